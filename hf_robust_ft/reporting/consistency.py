"""Whether the parts of a report belong together; one from elsewhere may be damaged, or changed by hand."""

from hf_robust_ft.evaluation.protocols import get_protocol
from hf_robust_ft.evaluation.report import RobustnessReport

ROUNDING = 1e-6


def check_consistent(report: RobustnessReport) -> None:
    """Refuse a report whose figures do not follow from its own curve.

    Raises:
        ValueError: an unknown protocol, a curve or intervals of another length than the grid, accuracies that are no
            shares, or scores that the curve does not give.
    """
    get_protocol(report.protocol)
    bands = report.confidence_intervals.get("accuracies") or []
    points = len(report.epsilons)
    if len(report.accuracies) != points or len(bands) not in (0, points):
        raise ValueError(
            f"Its curve has {len(report.accuracies)} accuracies and {len(bands)} intervals for {points} eps."
        )
    if not all(0 <= accuracy <= 1 for accuracy in report.accuracies):
        raise ValueError(f"Its accuracies are no shares in [0, 1]: {report.accuracies}.")
    if report.protocol == "exact" and len(report.smallest_epsilons) != report.num_samples:
        raise ValueError(
            f"It holds {len(report.smallest_epsilons)} smallest fooling eps for {report.num_samples} images."
        )
    follows = {"clean_accuracy": report.accuracies[0], "adversarial_accuracy": report.accuracies[-1]}
    if report.epsilons[-1] > 0:
        follows["expected_robustness"] = report.expected_robustness_under("uniform")
    for name, value in follows.items():
        told = getattr(report, name)
        if not abs(told - value) <= ROUNDING:
            raise ValueError(f"Its {name.replace('_', ' ')} is {told}, but its curve gives {value:.6f}.")
