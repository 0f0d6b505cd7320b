"""Clean, adversarial and expected robustness of a model over a dataset, as a `RobustnessReport`."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_robust_ft.attacks import APGD, attack_mode
from hf_robust_ft.batch_checks import check_batch
from hf_robust_ft.metrics.robustness.curve import check_epsilons
from hf_robust_ft.metrics.robustness.robustness import Robustness
from hf_robust_ft.pixels import PixelClassifier, PixelSpace
from hf_robust_ft.threat_models import ThreatModel, default_epsilons, format_eps, parse_eps

PROTOCOLS = {
    "paper": "Protocol *paper* (arXiv 2509.23325): an attack at each eps of the grid, in the paper every 1/255 with "
    "APGD-CE-10, and the trapezoid rule over the grid. An image misclassified at one eps counts as misclassified at "
    "every larger one and is not attacked again."
}


@dataclass(frozen=True)
class RobustnessReport:
    """What was measured and how. Accuracies lie in [0, 1]; every eps is in pixel units of [0, 1].

    Attributes:
        clean_accuracy: accuracy at eps = 0.
        adversarial_accuracy: accuracy at the largest eps.
        expected_robustness: mean accuracy over eps in [0, eps_g] (arXiv 2509.23325).
        epsilons: the grid, increasing from 0 to eps_g.
        accuracies: accuracy at each of them.
        threat_model: {"norm": ..., "eps": ...}.
        attack: settings of the attack, `APGD`'s fields.
        protocol: a key of `PROTOCOLS`.
        num_samples: images evaluated.
        metadata: what else the writer knew (model, dataset, training settings, versions).
    """

    clean_accuracy: float
    adversarial_accuracy: float
    expected_robustness: float
    epsilons: list[float]
    accuracies: list[float]
    threat_model: dict[str, Any]
    attack: dict[str, Any]
    protocol: str
    num_samples: int
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_json(self, path: str | Path) -> None:
        """Write the report; `from_json` reads it back equal."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | Path) -> "RobustnessReport":
        """Read a report.

        Raises:
            ValueError: the file is no JSON, or holds other keys than a report's.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON file: {error}.") from None
        names = {entry.name for entry in dataclasses.fields(cls)}
        if not isinstance(content, dict) or set(content) - names or names - set(content) - {"metadata"}:
            held = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{path} is no robustness report: expected the keys {sorted(names)}, found {held}.")
        return cls(**content)

    def with_metadata(self, **metadata: Any) -> "RobustnessReport":
        """The same measurement with more said about it."""
        return dataclasses.replace(self, metadata={**self.metadata, **metadata})

    def __str__(self) -> str:
        lines = [
            f"{'clean accuracy':<22} {self.clean_accuracy:7.2%}",
            f"{'adversarial accuracy':<22} {self.adversarial_accuracy:7.2%}   at {self.threat_model['norm']} "
            f"{format_eps(self.epsilons[-1])}",
            f"{'expected robustness':<22} {self.expected_robustness:7.2%}   mean accuracy over eps in "
            f"[0, {format_eps(self.epsilons[-1])}]",
        ]
        return "\n".join(lines)


def evaluation_attack(steps: int = 10, loss: str = "ce") -> APGD:
    """The paper protocol's attack: from the clean image, keeping any misclassified point it visits."""
    return APGD(steps=steps, loss=loss, random_start=False, select="fooled")


def resolve_epsilons(epsilons: Sequence[float | str] | None, threat_model: ThreatModel) -> list[float]:
    """The evaluation grid: `epsilons`, or the paper's (every 1/255 up to eps).

    Raises:
        ValueError: not increasing from 0 to the threat model's eps.
    """
    grid = default_epsilons(threat_model.eps) if epsilons is None else [parse_eps(eps) for eps in epsilons]
    check_epsilons(grid)
    if abs(grid[-1] - threat_model.eps) > 1e-9:
        raise ValueError(
            f"epsilons must end at the threat model's eps ({format_eps(threat_model.eps)}), since expected robustness "
            f"is a mean over [0, eps]; the last one is {format_eps(grid[-1])}. Change the grid together with eps."
        )
    return grid


def predictions_under_attack(
    logits_fn: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    *,
    threat_model: ThreatModel,
    epsilons: Sequence[float],
    attack: APGD,
    generator: torch.Generator | None = None,
    clean_predictions: Tensor | None = None,
    survivors_only: bool = True,
) -> Tensor:
    """The class predicted for each image under attack at each eps: int64 (N, E), on the device of `pixels`.

    Only images still classified correctly are attacked at the next eps; the others keep their wrong class. Without
    `survivors_only` they are attacked in vain: the same result, at a cost that does not depend on the data.
    `clean_predictions` (N,), if known, save a forward.
    """
    predictions = clean_predictions
    if predictions is None:
        with torch.no_grad():
            predictions = logits_fn(pixels).argmax(1)
    columns = [predictions]
    for eps in epsilons[1:]:
        correct, attacked = predictions == labels, predictions.clone()
        chosen = correct.nonzero()[:, 0] if survivors_only else torch.arange(len(labels), device=labels.device)
        if len(chosen):
            result = attack(logits_fn, pixels[chosen], labels[chosen], threat_model, eps=eps, generator=generator)
            attacked[chosen] = result.predictions
        predictions = torch.where(correct, attacked, predictions)
        columns.append(predictions)
    return torch.stack(columns, dim=1)


def build_report(
    predictions: Any,
    references: Any,
    *,
    threat_model: ThreatModel,
    epsilons: Sequence[float],
    attack: APGD,
    protocol: str = "paper",
    metadata: dict[str, Any] | None = None,
) -> RobustnessReport:
    """Score predictions (n_samples, E) against references (n_samples,) with the `evaluate` module."""
    scores = Robustness(keep_in_memory=True).compute(
        predictions=predictions, references=references, epsilons=list(epsilons)
    )
    return RobustnessReport(
        **scores,
        epsilons=list(epsilons),
        threat_model={"norm": threat_model.norm, "eps": threat_model.eps},
        attack=dataclasses.asdict(attack),
        protocol=protocol,
        num_samples=len(references),
        metadata=metadata or {},
    )


def evaluate_robustness(
    model: nn.Module,
    dataset_or_loader: Any,
    *,
    threat_model: ThreatModel,
    pixel_space: PixelSpace | None = None,
    epsilons: Sequence[float | str] | None = None,
    attack: APGD | None = None,
    protocol: str = "paper",
    batch_size: int = 64,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> RobustnessReport:
    """Measure a model's accuracy under attack at each eps of a grid.

    Args:
        model: a transformers, PEFT, timm or plain classifier of `pixel_values`, or a `PixelClassifier` (then
            `pixel_values` are pixels in [0, 1]).
        dataset_or_loader: a map-style dataset of `{"pixel_values", "labels"}`, or a DataLoader of such batches.
        threat_model: norm and largest eps.
        pixel_space: how to undo the normalisation of `pixel_values`, e.g. `PixelSpace.from_processor(processor)`;
            without one they must be pixels in [0, 1], which is checked.
        epsilons: the grid, increasing from 0 to the threat model's eps; the default is every 1/255.
        attack: the default is the paper's, APGD-CE with 10 steps from the clean image.
        protocol: a key of `PROTOCOLS`.
        batch_size: images at a time, when given a dataset.
        device: where to run; the default is the model's own device.
        seed: of the attack's random starts, when it has any.
        progress: show a progress bar with the accuracy so far.

    Raises:
        ValueError: unknown protocol, bad grid, empty dataset, or a batch an attack cannot work on (see
            `batch_checks`).
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"Unknown protocol {protocol!r}. Valid protocols: {', '.join(PROTOCOLS)}.")
    grid = resolve_epsilons(epsilons, threat_model)
    attack = attack or evaluation_attack()
    classifier, pixel_space = _as_classifier(model, pixel_space)
    if device is None:
        parameter = next(model.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
    classifier.to(device)
    num_labels = None
    generator = torch.Generator(device).manual_seed(seed)

    predictions, references = [], []
    bar = tqdm(_batches(dataset_or_loader, batch_size), desc="Robust evaluation", unit="batch", disable=not progress)
    with attack_mode(classifier):
        for batch in bar:
            check_batch(batch, pixel_space, num_labels)
            if num_labels is None:  # a plain module tells its number of classes only by its logits
                num_labels = _count_classes(classifier, pixel_space, batch["pixel_values"][:1].to(device))
                check_batch(batch, pixel_space, num_labels)
            pixels = pixel_space.to_pixels(batch["pixel_values"].to(device)).clamp(0, 1)
            labels = batch["labels"].to(device)
            predicted = predictions_under_attack(
                classifier, pixels, labels, threat_model=threat_model, epsilons=grid, attack=attack, generator=generator
            )
            predictions.append(predicted.cpu())
            references.append(labels.cpu())
            correct = (torch.cat(predictions) == torch.cat(references)[:, None]).float().mean(0)
            bar.set_postfix(clean=f"{correct[0]:.1%}", adversarial=f"{correct[-1]:.1%}")
    if not references:
        raise ValueError("The dataset is empty: there is nothing to evaluate.")
    return build_report(
        torch.cat(predictions).numpy(),
        torch.cat(references).numpy(),
        threat_model=threat_model,
        epsilons=grid,
        attack=attack,
        protocol=protocol,
    )


def _count_classes(classifier: PixelClassifier, pixel_space: PixelSpace, pixel_values: Tensor) -> int:
    with torch.no_grad():
        return classifier(pixel_space.to_pixels(pixel_values).clamp(0, 1)).shape[1]


def _as_classifier(model: nn.Module, pixel_space: PixelSpace | None) -> tuple[PixelClassifier, PixelSpace]:
    """The classifier to attack, and the map from the data's `pixel_values` to pixels."""
    if not isinstance(model, PixelClassifier):
        pixel_space = pixel_space or PixelSpace()
        return PixelClassifier(model, pixel_space), pixel_space
    if pixel_space is not None:
        raise ValueError("A PixelClassifier normalises by itself and takes pixels in [0, 1]: leave pixel_space out.")
    return model, PixelSpace()


def _batches(dataset_or_loader: Any, batch_size: int) -> Iterable[dict[str, Tensor]]:
    if isinstance(dataset_or_loader, DataLoader):
        return dataset_or_loader
    if not hasattr(dataset_or_loader, "__getitem__") or not hasattr(dataset_or_loader, "__len__"):
        raise ValueError(
            "dataset_or_loader must be a map-style dataset or a torch DataLoader, got "
            f"{type(dataset_or_loader).__name__}."
        )
    # A loader without a generator of its own draws a seed from the global random state at each pass.
    return DataLoader(dataset_or_loader, batch_size=batch_size, collate_fn=stack_examples, generator=torch.Generator())


def stack_examples(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """A data collator: examples with `pixel_values` (C, H, W) and `labels` (int) to one batch.

    Raises:
        ValueError: an example lacks one of them.
    """
    missing = sorted({"pixel_values", "labels"} - set(examples[0]))
    if missing:
        raise ValueError(
            f"Examples lack {missing}; they hold {sorted(examples[0])}. Give the dataset a transform that makes "
            "pixel_values (the image processor's output) and labels (class indices)."
        )
    return {
        "pixel_values": torch.stack([torch.as_tensor(example["pixel_values"]) for example in examples]),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }
