"""Image strips: an image, its adversarial example, and the difference made visible."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

from hf_robust_ft.attacks import APGD, attack_mode
from hf_robust_ft.attacks.threat_model import ThreatModel, readable_eps
from hf_robust_ft.provenance.class_names import name_of
from hf_robust_ft.reporting.example_pairs import FILE_NAME, ExamplePairs, drawable

LONGEST_TITLE = 44  # letters over a picture


def choose_examples(
    smallest_epsilons: Sequence[float | None], count: int, seed: int = 0
) -> tuple[list[int], list[bool]]:
    """Candidates for `save_examples`, drawn at random from the images that an evaluation found right without an attack.

    Args:
        smallest_epsilons: of a report: 0 where an image was wrong as it is, None or infinite where nothing fooled it.
        count: as `save_examples`'s; twice as many of each kind are drawn, where there are as many.

    Returns:
        Their indices, and whether each fell to the attack.
    """
    smallest = np.array([np.inf if eps is None else eps for eps in smallest_epsilons], dtype=float)
    random = np.random.default_rng(seed)
    fell, stood = (
        random.permutation(np.flatnonzero(each))[: 2 * count].tolist()
        for each in ((smallest > 0) & np.isfinite(smallest), np.isinf(smallest))
    )
    return [*fell, *stood], [True] * len(fell) + [False] * len(stood)


def save_examples(
    classifier: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    folder: str | Path,
    *,
    threat_model: ThreatModel,
    attack: APGD,
    class_names: Sequence[str] | Mapping[int, str],
    fell: Sequence[bool] | None = None,
    count: int | None = None,
    batch_size: int = 64,
) -> list[Path]:
    """Attack images at eps_g and write one strip an image, `example_000.png`, ... into `folder`, and all as numbers.

    Args:
        classifier: a `PixelClassifier`.
        pixels: (N, C, H, W) in [0, 1]; they may stay on the CPU while the model is elsewhere. Of other than 1 or 3
            channels the mean is drawn.
        labels: (N,), the true classes.
        attack: as in the evaluation.
        class_names: the model's class names, by index; the index where there is none.
        fell: (N,), whether each fell in an evaluation, all being right before. Images that turn out otherwise here
            are then left out, and those that fell come first.
        count: how many strips at most, half of them of images that fell, as far as there are so many; None for all.
        batch_size: images attacked at a time.

    Returns:
        The strips. Beside them lies `examples.npz` (see `ExamplePairs`). Those of an earlier call are gone.
    """
    folder = Path(folder)
    remove_examples(folder)
    if not len(labels):
        return []
    adversarial, predictions = _attacked(classifier, pixels, labels, threat_model, attack, batch_size)
    shown = list(range(len(labels)))
    if fell is not None:
        right, stands = ((each == labels.cpu()).tolist() for each in predictions)
        agreed = [at for at in shown if right[at] and fell[at] != stands[at]]
        shown = _half_and_half([at for at in agreed if fell[at]], [at for at in agreed if not fell[at]], count)
    shown = shown[:count]
    if not shown:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    names = [[name_of(class_names, int(of[at])) for of in (labels, *predictions)] for at in shown]
    images = (each.cpu().float()[shown].numpy() for each in (pixels, adversarial))
    pairs = ExamplePairs(*images, *np.array(names, dtype=str).T, threat_model=str(threat_model))
    pairs.save(folder)
    files = [folder / f"example_{number:03d}.png" for number in range(len(shown))]
    for at, titles, file in zip(shown, pairs.captions(), files, strict=True):
        _plot_strip(pixels[at].cpu(), adversarial[at], titles, file)
    return files


def remove_examples(folder: Path) -> None:
    """Remove what `save_examples` wrote into a folder: it may be of other weights."""
    for old in (*folder.glob("example_*.png"), folder / FILE_NAME):
        old.unlink(missing_ok=True)


def _attacked(
    classifier: nn.Module, pixels: Tensor, labels: Tensor, threat_model: ThreatModel, attack: APGD, batch_size: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Adversarial images (N, C, H, W), and the classes predicted before and after, (N,) each; all on the CPU."""
    parameter = next(classifier.parameters(), None)
    device = pixels.device if parameter is None else parameter.device
    generator = torch.Generator(device) if attack.random_start else None
    parts = []
    for some_pixels, some_labels in zip(pixels.split(batch_size), labels.split(batch_size), strict=True):
        x, y = some_pixels.to(device), some_labels.to(device)
        with attack_mode(classifier):
            found = attack(classifier, x, y, threat_model, generator=generator)
            with torch.no_grad():
                before = classifier(x).argmax(1)
        parts.append([each.cpu() for each in (found.adversarial, before, found.predictions)])
    adversarial, before, after = (torch.cat(each) for each in zip(*parts, strict=True))
    return adversarial, (before, after)


def _half_and_half(first: list[int], second: list[int], count: int | None) -> list[int]:
    """At most `count` of both, the first half of the one kind; where one has too few, the other makes up for it."""
    if count is None:
        return [*first, *second]
    of_second = min(len(second), max(count // 2, count - len(first)))
    return [*first[: count - of_second], *second[:of_second]]


def _plot_strip(clean: Tensor, adversarial: Tensor, captions: tuple[str, str], path: Path) -> None:
    channels, largest = len(clean), (adversarial - clean).abs().max().item()
    clean, adversarial = (torch.from_numpy(drawable(image.numpy())) for image in (clean, adversarial))
    difference = adversarial - clean
    spread = 2 * difference.abs().max().item()
    visible = 0.5 + difference / spread if spread > 0 else torch.full_like(clean, 0.5)
    drawn = "" if channels in (1, 3) else f" (mean of {channels} channels)"
    titles = (*captions, f"difference, largest {readable_eps(largest)}{drawn}")
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.7), layout="constrained")
    for axis, image, title in zip(axes, (clean, adversarial, visible), titles, strict=True):
        axis.imshow(image.clamp(0, 1).permute(1, 2, 0).expand(-1, -1, 3).numpy())
        shown = title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 1]}…"
        axis.set_title(shown, fontsize=8, parse_math=False)
        axis.axis("off")
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)
