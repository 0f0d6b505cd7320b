"""Robust accuracy under our APGD and other libraries', on the same images of the same checkpoint.

    python -m hf_robust_ft.benchmarks.apgd_parity --model quickstart --dataset digits --eps 16/255

AutoAttack's APGD comes from pyautoattack, torchattacks' knows no L1 (both in the extra `bench`). Under L1 both search
larger balls first, as AutoAttack does by itself; `--no-larger_eps` leaves that out.
"""

import argparse
import json

import torch

from hf_robust_ft.attacks import APGD, attack_mode, use_fast_memory_format
from hf_robust_ft.attacks.pixels import PixelClassifier, PixelSpace
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.benchmarks.checkpoint import checkpoint_parser
from hf_robust_ft.data import align_labels, load_image_dataset, with_pixel_values
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.models import load_image_classifier

NUM_TARGETS = 3


def adversarial_examples(
    library: str, classifier, pixels, labels, threat_model: ThreatModel, steps: int, seed: int, options
):
    """The library's APGD examples from one random start, ours also from the images; None without such an attack."""
    loss, larger_eps = options.loss, options.larger_eps
    if library.startswith("hf_robust_ft"):
        random_start = library == "hf_robust_ft"
        attack = APGD(
            steps=steps,
            loss=loss,
            random_start=random_start,
            select="fooled",
            num_targets=NUM_TARGETS,
            larger_eps=larger_eps,
        )
        generator = torch.Generator().manual_seed(seed) if random_start else None
        return attack(classifier, pixels, labels, threat_model, generator=generator).adversarial
    settings = {"norm": threat_model.norm, "eps": threat_model.eps, "seed": seed}
    if library == "autoattack":
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

        settings |= {"n_iter": steps, "device": "cpu", "use_largereps": larger_eps}
        if loss == "dlr_targeted":
            return APGDAttack_targeted(classifier, n_target_classes=NUM_TARGETS, **settings).perturb(pixels, labels)
        return APGDAttack(classifier, loss=loss, **settings).perturb(pixels, labels)
    import torchattacks

    if threat_model.norm == "L1" or larger_eps:
        return None
    if loss == "dlr_targeted":
        attack = torchattacks.APGDT(classifier, steps=steps, n_classes=NUM_TARGETS + 1, **settings)
    else:
        attack = torchattacks.APGD(classifier, steps=steps, loss=loss, **settings)
    return attack(pixels, labels)


def main() -> None:
    parser = checkpoint_parser(__doc__.splitlines()[0], eps="16/255", images=200)
    parser.add_argument("--loss", default="ce", help="ce, dlr or dlr_targeted (towards 3 classes).")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--seeds", type=int, default=1, help="Random starts; far from convergence one says little.")
    parser.add_argument(
        "--larger_eps", action=argparse.BooleanOptionalAction, help="3 and 2 eps first; the default is: under L1."
    )
    parser.add_argument("--clean_start", action="store_true", help="Also ours from the images, as evaluation does.")
    options = parser.parse_args()
    if options.larger_eps is None:
        options.larger_eps = options.norm == "L1"

    model, processor = load_image_classifier(options.model)
    use_fast_memory_format(model)
    space = PixelSpace.from_processor(processor)
    dataset = with_pixel_values(align_labels(load_image_dataset(options.dataset)["test"], model.config), processor)
    batch = stack_examples([dataset[index] for index in range(options.images)])
    pixels, labels = space.clipped_pixels(batch["pixel_values"]), batch["labels"]
    threat_model = ThreatModel(options.norm, options.eps)
    classifier = PixelClassifier(model, space).eval()

    libraries = [*(["hf_robust_ft, clean start"] if options.clean_start else []), "autoattack", "torchattacks"]
    ball, rows = threat_model.ball(pixels), []
    with attack_mode(classifier):
        for steps in options.steps:
            for library in ("hf_robust_ft", *libraries):
                accuracies, distance = [], 0.0
                for seed in range(1 if library.endswith("clean start") else options.seeds):
                    found = adversarial_examples(
                        library, classifier, pixels, labels, threat_model, steps, seed, options
                    )
                    if found is None:
                        break
                    distance = max(distance, ball.distance(found).max().item())
                    with torch.no_grad():
                        accuracies.append((classifier(found).argmax(1) == labels).float().mean().item())
                if accuracies:
                    rows.append(
                        {
                            "steps": steps,
                            "library": library,
                            "mean accuracy": round(sum(accuracies) / len(accuracies), 4),
                            "by seed": [round(accuracy, 4) for accuracy in accuracies],
                            "largest distance / eps": distance / threat_model.eps,
                        }
                    )
    with torch.no_grad():
        clean = (classifier(pixels).argmax(1) == labels).float().mean().item()
    print(json.dumps({"images": options.images, "clean accuracy": round(clean, 4), "under attack": rows}, indent=2))


if __name__ == "__main__":
    main()
