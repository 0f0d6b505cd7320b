from dataclasses import replace

import pytest
from conftest import REPOSITORY
from page_runs import make_report

from hf_robust_ft import RobustnessReport
from hf_robust_ft.evaluation.detection.report import DetectionReport
from hf_robust_ft.reporting.consistency import check_consistent
from hf_robust_ft.reporting.detection.card import check_consistent_detection

CARDS = REPOSITORY / "model_cards"


@pytest.mark.parametrize("protocol", ["paper", "exact"])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", "8/255"), ("L2", 0.7)])
def test_reports_as_they_are_made_pass(protocol, norm, eps):
    check_consistent(make_report(norm=norm, eps=eps, protocol=protocol))


@pytest.mark.parametrize("path", sorted(CARDS.rglob("robustness_report.json")), ids=lambda path: path.parent.name)
def test_our_own_reports_pass(path):
    if "detection" in path.parts:
        check_consistent_detection(DetectionReport.from_json(path))
    else:
        check_consistent(RobustnessReport.from_json(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expected_robustness": 0.99}, r"Its expected robustness is 0.99, but its curve gives 0\.\d{6}"),
        ({"expected_robustness": float("nan")}, "Its expected robustness is nan"),
        ({"adversarial_accuracy": 0.99}, "Its adversarial accuracy is 0.99"),
        ({"clean_accuracy": 0.01}, "Its clean accuracy is 0.01"),
        ({"accuracies": [0.5, 0.4]}, "Its curve has 2 accuracies and 9 intervals for 9 eps"),
        ({"accuracies": [float("nan")] * 9}, r"Its accuracies are no shares in \[0, 1\]"),
        ({"protocol": "exact", "smallest_epsilons": [0.1]}, "It holds 1 smallest fooling eps for 60 images"),
        ({"protocol": "fast"}, "Unknown protocol 'fast'"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_consistent(replace(make_report(), **changes))
    with pytest.raises(ValueError):
        check_consistent(replace(make_report(protocol="exact"), expected_robustness=0.99))
