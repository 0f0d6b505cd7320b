"""Images and their adversarial examples as numbers: beside the strips, whose 8 bits would lose small differences."""

from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path

import numpy as np

from hf_robust_ft.provenance.plain_text import one_line

FILE_NAME = "examples.npz"
ADVICE = "Write it again with `hf-robust-ft evaluate --save_examples 8 --output_dir DIR`, or remove it."


def drawable(images: np.ndarray) -> np.ndarray:
    """Images (..., C, H, W) as a picture shows them: of 1 or 3 channels as they are, of others the mean in grey."""
    return images if images.shape[-3] in (1, 3) else images.mean(-3, keepdims=True)


@dataclass(frozen=True)
class ExamplePairs:
    """N images, each before and after the attack.

    Attributes:
        clean: (N, C, H, W) float32 in [0, 1].
        adversarial: the same after the attack; its best attempt where nothing was found.
        labels: (N,), names of the true classes.
        clean_predictions: (N,), names of the classes predicted before.
        adversarial_predictions: (N,), and after.
        threat_model: what the attack was allowed, "Linf 4/255".
    """

    clean: np.ndarray
    adversarial: np.ndarray
    labels: np.ndarray
    clean_predictions: np.ndarray
    adversarial_predictions: np.ndarray
    threat_model: str

    def captions(self) -> list[tuple[str, str]]:
        """What to say of each image before and after the attack: whether it was right, and whether it fell or stood."""
        found = []
        names = (self.labels, self.clean_predictions, self.adversarial_predictions)
        for label, before, after in zip(*(map(one_line, each) for each in names), strict=True):
            if before != label:
                told = f"{label}: wrong already, taken for {before}", f"{self.threat_model}: taken for {after}"
            elif after != label:
                told = f"{label}: right", f"{self.threat_model}: fell, taken for {after}"
            else:
                told = f"{label}: right", f"{self.threat_model}: stood"
            found.append(told)
        return found

    def save(self, folder: str | Path) -> Path:
        """Write `examples.npz` (arrays and text alone, no pickle); returns its path."""
        path = Path(folder) / FILE_NAME
        np.savez_compressed(path, **{entry.name: np.asarray(getattr(self, entry.name)) for entry in fields(self)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> "ExamplePairs":
        """Read `examples.npz`.

        Raises:
            ValueError: a damaged file or one of another kind (objects in it are not unpickled), or arrays that do not
                belong together.
        """
        content, keys = BytesIO(Path(path).read_bytes()), [entry.name for entry in fields(cls)]
        try:
            with np.load(content, allow_pickle=False) as found:
                missing = [key for key in keys if key not in found]
                values = {key: np.asarray(found[key]) for key in keys if key in found}
        except Exception:
            # zipfile, zlib and numpy each raise their own, and numpy's advise to unpickle what strangers sent.
            raise ValueError(f"{path} is damaged, or is no archive of plain arrays. {ADVICE}") from None
        if missing:
            raise ValueError(f"{path} holds no {', '.join(missing)}. {ADVICE}")
        clean, adversarial = values["clean"], values["adversarial"]
        names = [values[key] for key in ("labels", "clean_predictions", "adversarial_predictions")]
        if clean.ndim != 4 or clean.shape != adversarial.shape:
            raise ValueError(f"{path}: images must be (N, C, H, W), got {clean.shape} and {adversarial.shape}.")
        if any(each.shape != clean.shape[:1] for each in names):
            raise ValueError(
                f"{path}: {len(clean)} images, but {[len(each) for each in names]} labels and predictions."
            )
        return cls(**values | {"threat_model": str(values["threat_model"])})
