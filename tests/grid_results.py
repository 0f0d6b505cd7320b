"""Results of grids that never ran: scores as asked for, with curves and costs to match."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hf_robust_ft.attacks.threat_model import default_epsilons, parse_eps
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.experiments.grid.results import MeasuredCell

EPOCHS = 10


def converged(result: MeasuredCell, *falls: float, settled: bool = True) -> MeasuredCell:
    """The same cell as measured by `attack_steps="auto"`: each round after the first one falls further at eps_g."""
    report, rounds = result.report, []
    for place, fall in enumerate((0.0, *falls)):
        last = report.adversarial_accuracy - fall
        rounds.append(
            {
                "steps": 10 * 2**place,
                "adversarial_accuracy": last,
                "expected_robustness": (report.clean_accuracy + last) / 2,
                "accuracies": [*report.accuracies[:-1], last],
            }
        )
    convergence = {"limit": 160, "settled": settled, "rounds": rounds}
    scores = {name: rounds[-1][name] for name in ("adversarial_accuracy", "expected_robustness", "accuracies")}
    attack = {**report.attack, "steps": rounds[-1]["steps"]}
    return replace(result, report=replace(report, attack=attack, convergence=convergence, **scores))


def make_result(
    model: str = "efficientnet_lite0",
    dataset: str = "digits",
    eps: str = "4/255",
    setting: str = "fix",
    seed: int = 0,
    clean: float = 0.8,
    adversarial: float = 0.4,
    *,
    norm: str = "Linf",
    attack: Mapping | None = None,
    protocol: str = "paper",
    num_samples: int = 360,
    num_classes: int = 10,
    adapts: int = 2,
    attack_passes: int = 7000,
) -> MeasuredCell:
    """A finished cell whose accuracy falls linearly from `clean` to `adversarial` over eps."""
    epsilons = default_epsilons(parse_eps(eps), norm)
    accuracies = np.linspace(clean, adversarial, len(epsilons)).tolist()
    report = RobustnessReport(
        clean_accuracy=accuracies[0],
        adversarial_accuracy=accuracies[-1],
        expected_robustness=float(np.mean([clean, adversarial])),
        epsilons=epsilons,
        accuracies=accuracies,
        threat_model={"norm": norm, "eps": parse_eps(eps)},
        attack={"steps": 10, "loss": "ce", "restarts": 1, **(attack or {})},
        protocol=protocol,
        num_samples=num_samples,
        per_class=[{"class": str(label)} for label in range(num_classes)],
    )
    epochs = [float(epoch) for epoch in range(1, EPOCHS + 1)]
    trained = 0.0 if setting == "standard" else parse_eps(eps)
    return MeasuredCell(
        model=model,
        dataset=dataset,
        norm=norm,
        eps=eps,
        setting=setting,
        seed=seed,
        report=report,
        validation={
            "epochs": epochs,
            "accuracies": [1 / num_classes if epoch < adapts else clean * epoch / EPOCHS for epoch in epochs],
            "eps": [trained * (epoch / EPOCHS if setting == "hinge" else 1) for epoch in epochs],
        },
        passes={"training": 1000, "attack": attack_passes, "forward": 1000},
        seconds={"training": 100.5, "evaluation": 10.25},
    )


def make_segmentation_result(setting: str = "fix", seed: int = 0, iou: float = 0.8, settled: bool = True):
    """A finished cell with masks: mean IoU falls from `iou` by 0.2 in 10 steps and 0.3 in 20, pixels half as far."""
    cell = make_result(dataset="digits_scenes", setting=setting, seed=seed, num_samples=64)
    epsilons = cell.report.epsilons

    def curves(fall: float) -> dict:
        found = {}
        for name, plural, clean, by in (
            ("mean_iou", "mean_ious", iou, fall),
            ("pixel_accuracy", "pixel_accuracies", (1 + iou) / 2, fall / 2),
        ):
            curve = np.linspace(clean, clean - by, len(epsilons)).tolist()
            found |= {plural: curve, f"clean_{name}": curve[0], f"adversarial_{name}": curve[-1]}
            found[f"expected_{name}"] = clean - by / 2
        return found

    rounds = [{"steps": steps, **curves(fall)} for steps, fall in ((10, 0.2), (20, 0.3))]
    report = SegmentationReport(
        **curves(0.3),
        epsilons=epsilons,
        threat_model=cell.report.threat_model,
        attacks=[{"steps": 20, "loss": "pixel_ce", "restarts": 1}],
        protocol="paper",
        num_samples=64,
        num_classes=11,
        convergence={"limit": 160, "settled": settled, "rounds": rounds},
    )
    accuracies = cell.validation["accuracies"]
    validation = {
        "epochs": cell.validation["epochs"],
        "mean_ious": accuracies,
        "pixel_accuracies": accuracies,
        "eps": cell.validation["eps"],
    }
    return replace(cell, report=report, validation=validation)
