"""Robust accuracy under our APGD-CE and other libraries', on the same images of the same checkpoint.

    python -m hf_robust_ft.benchmarks.apgd_parity --model quickstart --dataset digits --eps 16/255

AutoAttack's APGD comes from pyautoattack (extra `bench`). torchattacks pins a `requests` too old for `datasets`, so it
is measured only where it was installed with `pip install --no-deps torchattacks`.
"""

import argparse
import json

import torch

from hf_robust_ft.attacks import APGD, attack_mode
from hf_robust_ft.data import align_labels, load_image_dataset, with_pixel_values
from hf_robust_ft.evaluation import stack_examples
from hf_robust_ft.models import load_image_classifier, use_fast_memory_format
from hf_robust_ft.pixels import PixelClassifier, PixelSpace
from hf_robust_ft.threat_models import ThreatModel


def adversarial_examples(library: str, classifier, pixels, labels, threat_model: ThreatModel, steps: int):
    """The library's APGD-CE examples, from a random start with seed 0; None where it is not installed."""
    if library == "hf_robust_ft":
        attack = APGD(steps=steps, random_start=True, select="fooled")
        return attack(classifier, pixels, labels, threat_model).adversarial
    options = {"norm": threat_model.norm, "eps": threat_model.eps, "seed": 0, "loss": "ce"}
    if library == "autoattack":
        from pyautoattack.autopgd_base import APGDAttack

        attack = APGDAttack(classifier, n_iter=steps, device="cpu", **options)
        return attack.perturb(pixels, labels)
    try:
        import torchattacks
    except ImportError:
        return None
    return torchattacks.APGD(classifier, steps=steps, **options)(pixels, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Checkpoint folder or Hub id.")
    parser.add_argument("--dataset", default="digits", help="As in hf-robust-ft evaluate.")
    parser.add_argument("--eps", default="16/255")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 100])
    options = parser.parse_args()

    model, processor = load_image_classifier(options.model)
    use_fast_memory_format(model)
    space = PixelSpace.from_processor(processor)
    dataset = with_pixel_values(align_labels(load_image_dataset(options.dataset)["test"], model.config), processor)
    batch = stack_examples([dataset[index] for index in range(options.images)])
    pixels, labels = space.to_pixels(batch["pixel_values"]).clamp(0, 1), batch["labels"]
    threat_model = ThreatModel("Linf", options.eps)
    classifier = PixelClassifier(model, space).eval()

    rows = []
    with attack_mode(classifier):
        for steps in options.steps:
            for library in ("hf_robust_ft", "autoattack", "torchattacks"):
                found = adversarial_examples(library, classifier, pixels, labels, threat_model, steps)
                if found is None:
                    continue
                distance = (found - pixels).abs().max().item()
                with torch.no_grad():
                    accuracy = (classifier(found).argmax(1) == labels).float().mean().item()
                rows.append(
                    {"steps": steps, "library": library, "accuracy": round(accuracy, 4), "eps*255": distance * 255}
                )
    with torch.no_grad():
        clean = (classifier(pixels).argmax(1) == labels).float().mean().item()
    print(json.dumps({"images": options.images, "clean accuracy": round(clean, 4), "under attack": rows}, indent=2))


if __name__ == "__main__":
    main()
