"""Which models may be called robust, and what is said of the others."""

import dataclasses
import re
from dataclasses import replace

import pytest
from page_runs import make_report
from passed_checks import passed_checks

from hf_robust_ft.metrics.robustness.curve import expected_robustness
from hf_robust_ft.reporting import render_model_card
from hf_robust_ft.reporting.verdict import verdict


def report_of(*accuracies, classes=10, most=None, **metadata):
    """A report with this curve, on a grid of 1/255, of classes as frequent as each other but one of `most`."""
    epsilons = [k / 255 for k in range(len(accuracies))]
    rows = [{"class": str(k), "samples": 10, **dict.fromkeys(("clean_accuracy", "adversarial_accuracy"), 0.5),
             "expected_robustness": 0.5} for k in range(classes)]  # fmt: skip
    rows[0]["samples"] = most or 10
    return replace(
        make_report(**metadata),
        checks=[dataclasses.asdict(check) for check in passed_checks()],
        epsilons=epsilons,
        accuracies=list(accuracies),
        clean_accuracy=accuracies[0],
        adversarial_accuracy=accuracies[-1],
        expected_robustness=expected_robustness(accuracies, epsilons),
        threat_model={"norm": "Linf", "eps": epsilons[-1]},
        confidence_intervals={},
        per_class=rows,
    )


@pytest.mark.parametrize(
    ("curve", "classes", "most", "is_robust", "up_to"),
    [
        ((0.9, 0.8, 0.7, 0.45), 10, None, True, "Linf 3/255"),
        ((0.9, 0.8, 0.7, 0.44), 10, None, False, "Linf 2/255"),
        ((0.9, 0.5, 0.2, 0.004), 10, None, False, "Linf 1/255"),
        ((0.9, 0.2, 0.1, 0.0), 10, None, False, ""),
        ((0.1, 0.1, 0.1, 0.1), 10, None, False, ""),  # guessing, which no attack makes worse
        ((0.5, 0.5), 2, None, False, ""),
        ((0.95, 0.91, 0.9), 2, 90, False, "Linf 1/255"),  # 90 % are of one class
        ((0.0, 0.0), 10, None, False, ""),
    ],
)
def test_the_bar_is_half_of_clean_accuracy_and_more_than_guessing(curve, classes, most, is_robust, up_to):
    found = verdict(report_of(*curve, classes=classes, most=most))
    assert (found.is_robust, found.up_to) == (is_robust, up_to)
    assert found.sentence.startswith(f"{'Robust' if is_robust else 'Not robust'} at {found.threat}: {curve[-1]:.1%}")
    assert not up_to or is_robust or f"It still is at {up_to}" in found.sentence
    assert bool(up_to) or "Nor is it at any smaller eps" in found.sentence
    by_guessing = (most or 10) / (10 * (classes - 1) + (most or 10))
    assert ("it has not learned its task" in found.sentence) == (curve[0] <= by_guessing)


def test_autoattack_counts_where_it_finds_more():
    report = report_of(0.9, 0.8, 0.6)
    assert verdict(report).is_robust
    assert not verdict(replace(report, autoattack_accuracy=0.3, autoattack_samples=100)).is_robust
    assert verdict(report_of(0.9)) is None  # nothing was attacked


@pytest.mark.parametrize("training", [{"eps": "2/255"}, None])
def test_the_card_fits_its_numbers(training):
    facts = {"training": training} if training else {"base_model": "someone/model"}
    weak, strong = (render_model_card(report_of(*curve, **facts)) for curve in ((0.9, 0.5, 0.004), (0.9, 0.8, 0.7)))
    praise = re.compile("keep its answer when|robust image classifier|may tamper with", re.I)
    assert not praise.search(weak) if training else "fits a use where" not in weak
    assert "**Not robust at Linf 2/255**: 0.4% of the answers" in weak and "It still is at Linf 1/255" in weak
    assert "Not robust" not in strong and "tamper" in strong
