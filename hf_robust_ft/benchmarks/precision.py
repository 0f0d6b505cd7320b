"""How strong an attack is in fp32, bf16, fp16 and, on CUDA, TF32: accuracy, attack loss, lost gradients.

    hf-robust-ft quickstart --output_dir runs/quickstart
    python -m hf_robust_ft.benchmarks.precision --model runs/quickstart --dataset digits --eps 16/255

Model and attack run in the precision of the row (bf16 and fp16: autocast, as in training); the images found are then
also shown to the model in fp32, which tells a weaker attack from a more fragile model. The last fp16 row leaves out the
attack's loss scale, as code does that trusts GradScaler, which `autograd.grad` passes by.
"""

import contextlib
import json
from unittest import mock

import torch
from torch import Tensor

from hf_robust_ft.attacks import APGD, GradientMeter, attack_mode
from hf_robust_ft.attacks import apgd_run as run
from hf_robust_ft.attacks.pixels import PixelClassifier
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.benchmarks.checkpoint import checkpoint_parser, load_checkpoint
from hf_robust_ft.evaluation.protocols import evaluation_attack

NO_SCALE = "fp16, no loss scale"
AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16, NO_SCALE: torch.float16}


@contextlib.contextmanager
def precision(name: str, device: torch.device):
    """Compute in it for a while."""
    before = torch.backends.fp32_precision
    with contextlib.ExitStack() as stack:
        if AUTOCAST[name] is not None:
            stack.enter_context(torch.autocast(device.type, AUTOCAST[name]))
        if name == NO_SCALE:
            stack.enter_context(mock.patch.multiple(run, FIRST_SCALE=1.0, GROWTH=1.0))
        torch.backends.fp32_precision = "tf32" if name == "tf32" else "ieee"
        try:
            yield
        finally:
            torch.backends.fp32_precision = before


def measure(
    name: str,
    classifier: PixelClassifier,
    pixels: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    attack: APGD,
    batch_size: int,
) -> dict[str, float]:
    """The figures of one precision, over images (N, C, H, W) in [0, 1] with `labels` (N,)."""
    meter, found = GradientMeter(), []
    right_in_fp32 = clean = 0
    with attack_mode(classifier):
        for x, y in zip(pixels.split(batch_size), labels.split(batch_size), strict=True):
            with precision(name, pixels.device):
                found.append(attack(meter(classifier), x, y, threat_model))
                with torch.no_grad():
                    clean += (classifier(x).argmax(1) == y).sum().item()
            with precision("fp32", pixels.device), torch.no_grad():
                right_in_fp32 += (classifier(found[-1].adversarial).argmax(1) == y).sum().item()
    lost = meter.read()
    adversarial = torch.cat([result.adversarial for result in found])
    return {
        "clean accuracy": clean / len(labels),
        "accuracy under attack": (~torch.cat([result.fooled for result in found])).double().mean().item(),
        "the same images in fp32": right_in_fp32 / len(labels),
        "mean attack loss": torch.cat([result.loss for result in found]).double().mean().item(),
        "images without a gradient": lost.unusable,
        "zero gradients": lost.zero,
        "non-finite gradients": lost.nonfinite,
        "largest distance": threat_model.ball(pixels, threat_model.eps).distance(adversarial).max().item(),
    }


def markdown_table(result: dict) -> str:
    """A row per precision; shares in percent."""
    columns = [name for name in next(iter(result["precisions"].values())) if name != "largest distance"]
    lines = ["| precision | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, figures in result["precisions"].items():
        shown = (f"{figures[key]:.3f}" if "loss" in key else f"{100 * figures[key]:.2f}" for key in columns)
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = checkpoint_parser(__doc__.splitlines()[0], eps="16/255", images=360)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=60)
    parser.add_argument("--precisions", nargs="+", choices=AUTOCAST, help="Default: all that the device has.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", help="Write the figures as JSON here.")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, _, space, pixels, labels = load_checkpoint(options, device)
    classifier, threat_model = PixelClassifier(model, space).eval(), ThreatModel(options.norm, options.eps)
    attack = evaluation_attack(options.steps, norm=options.norm)
    names = options.precisions or [name for name in AUTOCAST if name != "tf32" or device.type == "cuda"]
    result = {
        "model": options.model,
        "images": len(labels),
        "threat_model": str(threat_model),
        "attack": str(attack),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "precisions": {
            name: measure(name, classifier, pixels, labels, threat_model, attack, options.batch_size) for name in names
        },
    }
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
    print(markdown_table(result))


if __name__ == "__main__":
    main()
