"""Image strips: an image, its adversarial example, and the difference made visible."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

from hf_robust_ft.attacks import APGD, attack_mode
from hf_robust_ft.reporting.example_pairs import ExamplePairs, drawable
from hf_robust_ft.threat_models import ThreatModel, format_eps


def save_examples(
    classifier: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    folder: str | Path,
    *,
    threat_model: ThreatModel,
    attack: APGD,
    class_names: Sequence[str],
    batch_size: int = 64,
) -> list[Path]:
    """Attack images at eps_g and write one strip an image, `example_000.png`, ... into `folder`, and all as numbers.

    Args:
        classifier: a `PixelClassifier`.
        pixels: (N, C, H, W) in [0, 1]; they may stay on the CPU while the model is elsewhere. Of other than 1 or 3
            channels the mean is drawn.
        labels: (N,), the true classes.
        attack: as in the evaluation.
        class_names: the model's class names, by index.
        batch_size: images attacked at a time.

    Returns:
        The strips, in the order of the images. Beside them lies `examples.npz` (see `ExamplePairs`).
    """
    folder, files, attacked, seen = Path(folder), [], [], []
    folder.mkdir(parents=True, exist_ok=True)
    parameter = next(classifier.parameters(), None)
    device = pixels.device if parameter is None else parameter.device
    generator = torch.Generator(device) if attack.random_start else None
    for some_pixels, some_labels in zip(pixels.split(batch_size), labels.split(batch_size), strict=True):
        x, y = some_pixels.to(device), some_labels.to(device)
        with attack_mode(classifier):
            found = attack(classifier, x, y, threat_model, generator=generator)
            with torch.no_grad():
                predictions = classifier(x).argmax(1)
        for index, (clean, adversarial) in enumerate(zip(some_pixels.cpu(), found.adversarial.cpu(), strict=True)):
            names = [class_names[int(of[index])] for of in (some_labels, predictions, found.predictions)]
            files.append(folder / f"example_{len(files):03d}.png")
            _plot_strip(clean, adversarial, names, str(threat_model), files[-1])
            attacked.append(adversarial)
            seen.append(names)
    if files:
        images = pixels.cpu().float().numpy(), torch.stack(attacked).float().numpy()
        ExamplePairs(*images, *np.array(seen, dtype=str).T, threat_model=str(threat_model)).save(folder)
    return files


def _plot_strip(clean: Tensor, adversarial: Tensor, names: Sequence[str], budget: str, path: Path) -> None:
    largest = (adversarial - clean).abs().max().item()
    channels = len(clean)
    clean, adversarial = (torch.from_numpy(drawable(image.numpy())) for image in (clean, adversarial))
    difference = adversarial - clean
    spread = 2 * difference.abs().max().item()
    visible = 0.5 + difference / spread if spread > 0 else torch.full_like(clean, 0.5)
    label, before, after = names
    shown = "" if channels in (1, 3) else f" (mean of {channels} channels)"
    titles = (
        f"{label}: taken for {before}{shown}",
        f"{budget}: taken for {after}",
        f"difference, largest {format_eps(largest)}",
    )
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.7), layout="constrained")
    for axis, image, title in zip(axes, (clean, adversarial, visible), titles, strict=True):
        axis.imshow(image.clamp(0, 1).permute(1, 2, 0).expand(-1, -1, 3).numpy())
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)
