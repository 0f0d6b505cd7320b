"""Images and their adversarial examples as numbers: beside the strips, whose 8 bits would lose small differences."""

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

FILE_NAME = "examples.npz"


@dataclass(frozen=True)
class ExamplePairs:
    """N images, each before and after the attack.

    Attributes:
        clean: (N, C, H, W) float32 in [0, 1].
        adversarial: the same after the attack; the image itself where nothing was found.
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

    def save(self, folder: str | Path) -> Path:
        """Write `examples.npz` (arrays and text alone, no pickle); returns its path."""
        path = Path(folder) / FILE_NAME
        np.savez_compressed(path, **{entry.name: np.asarray(getattr(self, entry.name)) for entry in fields(self)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> "ExamplePairs":
        """Read `examples.npz`.

        Raises:
            ValueError: another kind of file, or arrays that do not belong together.
        """
        try:
            with np.load(path, allow_pickle=False) as found:
                values = {entry.name: found[entry.name] for entry in fields(cls)}
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no examples as `evaluate --save_examples` writes them: {error}") from None
        clean, adversarial = values["clean"], values["adversarial"]
        names = [values[key] for key in ("labels", "clean_predictions", "adversarial_predictions")]
        if clean.ndim != 4 or clean.shape[1] not in (1, 3) or clean.shape != adversarial.shape:
            raise ValueError(f"{path}: images must be (N, 1 or 3, H, W), got {clean.shape} and {adversarial.shape}.")
        if any(each.shape != clean.shape[:1] for each in names):
            raise ValueError(
                f"{path}: {len(clean)} images, but {[len(each) for each in names]} labels and predictions."
            )
        return cls(**values | {"threat_model": str(values["threat_model"])})
