"""Accuracy and cost of protocol reliable beside the paper's ten steps and standard AutoAttack, on the same images.

    python -m hf_robust_ft.benchmarks.reliable_cost --model quickstart --dataset digits --eps 8/255 --images 60

All are measured at the one eps, in turn in one process, protocol reliable before and after AutoAttack. Seconds are the
processor's, which other jobs disturb less than a clock's. `--mask` puts the checkpoint behind a defence that hides its
gradients; `small_networks` trains a CNN and a ViT.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hf_robust_ft.attacks import attack_mode, autoattack
from hf_robust_ft.attacks.pass_meter import PassMeter
from hf_robust_ft.attacks.pixels import PixelClassifier, PixelSpace
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.benchmarks.checkpoint import checkpoint_parser, load_checkpoint
from hf_robust_ft.evaluation.evaluate import evaluate_robustness

# Around a function from pixels (N, C, H, W) to logits. The first leaves every prediction as it is.
MASKS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "saturated": lambda logits_fn, x: (20 * logits_fn(x)).softmax(1),
    "quantised": lambda logits_fn, x: logits_fn((16 * x).round() / 16),
}


class MaskedClassifier(PixelClassifier):
    """A classifier of pixels behind one of the `MASKS`."""

    def __init__(self, model: nn.Module, pixel_space: PixelSpace, mask: str):
        super().__init__(model, pixel_space)
        self.mask = mask

    def forward(self, pixels: Tensor) -> Tensor:
        return MASKS[self.mask](super().forward, pixels)


def measure_costs(
    classifier: PixelClassifier,
    pixels: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    whole_grid: bool = False,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Accuracies, processor seconds and passes an image of each way, on pixels (N, C, H, W) in [0, 1].

    Args:
        whole_grid: also protocol reliable on the default grid of eps.
    """
    images = [{"pixel_values": image, "labels": label} for image, label in zip(pixels, labels.tolist(), strict=True)]

    def by_protocol(protocol: str, epsilons: list[float] | None = None) -> Tensor:
        report = evaluate_robustness(
            classifier,
            images,
            threat_model=threat_model,
            epsilons=epsilons,
            protocol=protocol,
            checks=False,
            batch_size=batch_size,
            progress=False,
        )
        return torch.tensor([eps is None or eps > threat_model.eps for eps in report.smallest_epsilons])

    def by_autoattack() -> Tensor:
        return ~autoattack(classifier, pixels, labels, threat_model, batch_size=batch_size).fooled

    at_eps = [0.0, threat_model.eps]
    ways = {
        "paper": lambda: by_protocol("paper", at_eps),
        "reliable": lambda: by_protocol("reliable", at_eps),
        "autoattack": by_autoattack,
        "reliable again": lambda: by_protocol("reliable", at_eps),
    }
    if whole_grid:
        ways["reliable, whole grid"] = lambda: by_protocol("reliable")
    found, standing = {}, {}
    for name, way in ways.items():
        started = time.process_time()
        with attack_mode(classifier), PassMeter(classifier) as meter:
            standing[name] = way()
        found[name] = {
            "accuracy": standing[name].double().mean().item(),
            "seconds": time.process_time() - started,
            "forwards an image": meter.forwards / len(labels),
            "gradients an image": meter.gradients / len(labels),
        }
    again = found.pop("reliable again")
    found["reliable"]["seconds"] = (found["reliable"]["seconds"] + again["seconds"]) / 2
    with torch.no_grad():
        logits = torch.cat([classifier(part) for part in pixels.split(batch_size)])
    ours, theirs = standing["reliable"], standing["autoattack"]
    return {
        "images": len(labels),
        "clean accuracy": (logits.argmax(1) == labels).double().mean().item(),
        **found,
        "only autoattack fools": (ours & ~theirs).nonzero()[:, 0].tolist(),
        "only reliable fools": (theirs & ~ours).nonzero()[:, 0].tolist(),
        "autoattack / reliable": {
            key: found["autoattack"][key] / found["reliable"][key]
            for key in ("seconds", "forwards an image", "gradients an image")
            if found["reliable"][key]
        },
    }


def main() -> None:
    parser = checkpoint_parser(__doc__.splitlines()[0], eps="8/255", images=60)
    parser.add_argument("--mask", choices=list(MASKS), help="Hide the gradients.")
    parser.add_argument("--grid", action="store_true", help="Also protocol reliable on the whole grid of eps.")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    model, _, space, pixels, labels = load_checkpoint(options)
    classifier = MaskedClassifier(model, space, options.mask) if options.mask else PixelClassifier(model, space)
    costs = measure_costs(
        classifier.eval(),
        pixels,
        labels,
        ThreatModel(options.norm, options.eps),
        whole_grid=options.grid,
        batch_size=options.batch_size,
    )
    print(json.dumps({"model": options.model, "mask": options.mask, **costs}, indent=2))


if __name__ == "__main__":
    main()
