"""Robust accuracy under our APGD-CE and other libraries', on the same images of the same checkpoint.

    python -m hf_robust_ft.benchmarks.apgd_parity --model quickstart --dataset digits --eps 16/255

AutoAttack's APGD comes from pyautoattack (extra `bench`). torchattacks pins a `requests` too old for `datasets`, so it
is measured only where it was installed with `pip install --no-deps torchattacks`.
"""

import argparse
import json

import torch

from hf_robust_ft.attacks import APGD, attack_mode, use_fast_memory_format
from hf_robust_ft.batches import stack_examples
from hf_robust_ft.data import align_labels, load_image_dataset, with_pixel_values
from hf_robust_ft.models import load_image_classifier
from hf_robust_ft.pixels import PixelClassifier, PixelSpace
from hf_robust_ft.threat_models import ThreatModel


def adversarial_examples(library: str, classifier, pixels, labels, threat_model: ThreatModel, steps: int, seed: int):
    """The library's APGD-CE examples from one random start; None where it is not installed."""
    if library == "hf_robust_ft":
        attack = APGD(steps=steps, random_start=True, select="fooled")
        generator = torch.Generator().manual_seed(seed)
        return attack(classifier, pixels, labels, threat_model, generator=generator).adversarial
    options = {"norm": threat_model.norm, "eps": threat_model.eps, "seed": seed, "loss": "ce"}
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
    parser.add_argument("--seeds", type=int, default=1, help="Random starts; far from convergence one says little.")
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
                accuracies, distance = [], 0.0
                for seed in range(options.seeds):
                    found = adversarial_examples(library, classifier, pixels, labels, threat_model, steps, seed)
                    if found is None:
                        break
                    distance = max(distance, (found - pixels).abs().max().item())
                    with torch.no_grad():
                        accuracies.append((classifier(found).argmax(1) == labels).float().mean().item())
                if accuracies:
                    rows.append(
                        {
                            "steps": steps,
                            "library": library,
                            "mean accuracy": round(sum(accuracies) / len(accuracies), 4),
                            "by seed": [round(accuracy, 4) for accuracy in accuracies],
                            "largest distance * 255": distance * 255,
                        }
                    )
    with torch.no_grad():
        clean = (classifier(pixels).argmax(1) == labels).float().mean().item()
    print(json.dumps({"images": options.images, "clean accuracy": round(clean, 4), "under attack": rows}, indent=2))


if __name__ == "__main__":
    main()
