"""Results of grids that never ran: scores as asked for, with curves and costs to match."""

from collections.abc import Mapping

import numpy as np

from hf_robust_ft.grid.results import CellResult
from hf_robust_ft.reports import RobustnessReport
from hf_robust_ft.threat_models import default_epsilons, parse_eps

EPOCHS = 10


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
) -> CellResult:
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
    return CellResult(
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
