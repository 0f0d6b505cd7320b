"""Intervals, classes and the JSON of a report; the counting is tested in test_evaluation.py."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import REPOSITORY

from hf_robust_ft import RobustnessReport, ThreatModel
from hf_robust_ft.evaluation.protocols import evaluation_attack
from hf_robust_ft.evaluation.scoring import build_report
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck

GRID = [0.0, 1 / 255, 2 / 255, 4 / 255]
CHECKS = [TrustCheck("monotone", True, 0.0, "Fine."), TrustCheck("converged", False, 0.1, "Too few steps.")]


def make(count, protocol="exact", seed=0, **changes):
    """A report on `count` random images: some wrong at once, some never fooled."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    smallest = rng.choice([0.0, *GRID[1:], np.inf] if protocol == "paper" else [0.0, 0.001, 0.009, np.inf], count)
    options = {"threat_model": ThreatModel("Linf", "4/255"), "epsilons": GRID, "attack": evaluation_attack()}
    return build_report(labels, smallest, (labels + 1) % 3, protocol=protocol, **(options | changes))


def pairs(report):
    """(value, its interval) for everything that has one."""
    intervals = report.confidence_intervals
    scores = ("clean_accuracy", "adversarial_accuracy", "expected_robustness")
    return [
        *((getattr(report, key), intervals[key]) for key in scores),
        *zip(report.accuracies, intervals["accuracies"], strict=True),
    ]


@pytest.mark.parametrize("protocol", ["paper", "exact"])
def test_intervals_contain_the_value_and_shrink_with_more_images(protocol):
    few, many = make(50, protocol), make(5000, protocol)
    for report in (few, many):
        assert report.confidence_intervals["level"] == 0.95
        assert report.confidence_intervals["method"] == "Clopper-Pearson"
        assert all(0 <= low <= value <= high <= 1 for value, (low, high) in pairs(report))
    for (_, (low, high)), (_, (lower, higher)) in zip(pairs(few), pairs(many), strict=True):
        assert 0 < higher - lower < 0.3 * (high - low)  # by the square root of 100


def test_the_width_is_the_normal_approximations():
    accuracy, (low, high) = pairs(make(2000))[0]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(accuracy * (1 - accuracy) / 2000), rel=0.1)


def test_intervals_are_the_same_each_time_and_leave_randomness_alone():
    state = np.random.get_state()[1].copy()
    assert make(80).confidence_intervals == make(80).confidence_intervals
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize("protocol", ["paper", "exact"])
@pytest.mark.parametrize(("smallest", "ends"), [(0.0, [0.0, 0.0362]), (np.inf, [0.9638, 1.0])])
def test_none_or_all_of_100_images_is_no_certainty(protocol, smallest, ends):
    report = build_report(
        [0] * 100,
        [smallest] * 100,
        [1] * 100,
        threat_model=ThreatModel("Linf", "4/255"),
        epsilons=GRID,
        attack=evaluation_attack(),
        protocol=protocol,
        autoattack=[smallest > 0] * 100,
    )
    found = [*pairs(report), (report.autoattack_accuracy, report.confidence_intervals["autoattack_accuracy"])]
    for value, interval in found:
        assert value == (smallest > 0) and interval == pytest.approx(ends, abs=1e-3)


def test_one_image_tells_little():
    assert all(low <= value <= high and high - low > 0.9 for value, (low, high) in pairs(make(1)))


@pytest.mark.parametrize("protocol", ["paper", "exact"])
def test_classes_recombine_to_the_totals(protocol):
    report = make(101, protocol, class_names=["ant", "bee", "a long name"])
    counts = [row["samples"] for row in report.per_class]
    assert sum(counts) == 101 and [row["class"] for row in report.per_class] == ["ant", "bee", "a long name"]
    for key in ("clean_accuracy", "adversarial_accuracy", "expected_robustness"):
        total = np.average([row[key] for row in report.per_class], weights=counts)
        assert total == pytest.approx(getattr(report, key), abs=1e-12)
    header, *lines = report.class_table().splitlines()
    assert len(lines) == 3 and len({len(line) for line in (header, *lines)}) == 1
    for line, row in zip(lines, report.per_class, strict=True):
        assert line.startswith(row["class"]) and f" {row['samples']} " in line
        assert line.endswith(f"{row['expected_robustness']:.1%}")


def test_classes_without_names_are_numbers_and_absent_ones_have_no_row():
    report = build_report(
        [5, 5, 0], [0.0, 9.0, 9.0], [1, 1, 1], threat_model=ThreatModel(), epsilons=GRID, attack=evaluation_attack()
    )
    assert [(row["class"], row["samples"], row["clean_accuracy"]) for row in report.per_class] == [
        ("0", 1, 1.0),
        ("5", 2, 0.5),
    ]


def test_checks_are_lines():
    assert make(9, checks=CHECKS).check_lines() == "ok   monotone: Fine.\nWARN converged: Too few steps."


def test_print_shows_intervals_autoattack_and_distributions():
    report = make(60, autoattack=[True, False, False, False], distributions=["beta:2,5"])
    low, high = report.confidence_intervals["clean_accuracy"]
    text = str(report)
    assert f"[{low:.1%}, {high:.1%}]" in text
    assert "25.00%   [0.6%, 80.6%]   at Linf 4/255, 4 images, the first of the data" in text
    assert report.autoattack_accuracy == 0.25 and report.autoattack_samples == 4
    assert "for eps ~ beta:2,5" in text and "autoattack" not in str(make(60))


def test_every_field_survives_json(tmp_path):
    first = {"steps": 10, "adversarial_accuracy": 0.5, "expected_robustness": 0.7}
    rounds = {"limit": 10, "settled": False, "rounds": [first]}
    report = make(
        30,
        checks=CHECKS,
        autoattack=[True, True],
        autoattack_images=[3, 9],
        distributions=["uniform", "dirac:1/255"],
        convergence=rounds,
        image_hashes=["0" * 16] * 30,
        found_again=[True, None] * 15,
        passes=[[3, 2], [4, 1]],
        metadata={"a": [1]},
    )
    empty = [entry.name for entry in dataclasses.fields(report) if getattr(report, entry.name) in (None, [], {}, 0)]
    assert empty == []
    report.to_json(tmp_path / "report.json")
    again = RobustnessReport.from_json(tmp_path / "report.json")
    assert again.passes == {"forwards": 7, "gradients": 3}
    assert again.found_again == {"examples": 15, "misclassified": 15}
    assert again == report and again.check_lines() == report.check_lines() and str(again) == str(report)
    assert "Infinity" not in (tmp_path / "report.json").read_text()


NEW_FIELDS = {entry.name for entry in dataclasses.fields(RobustnessReport)} - {
    "clean_accuracy", "adversarial_accuracy", "expected_robustness", "epsilons", "accuracies", "threat_model", "attack",
    "protocol", "num_samples", "metadata",
}  # fmt: skip


def test_a_report_of_before_the_new_fields_loads(tmp_path):
    content = {key: value for key, value in dataclasses.asdict(make(30, "paper")).items() if key not in NEW_FIELDS}
    (tmp_path / "old.json").write_text(json.dumps(content))
    old = RobustnessReport.from_json(tmp_path / "old.json")
    assert old.confidence_intervals == {} and old.per_class == [] and old.autoattack_accuracy is None
    assert "clean accuracy" in str(old) and old.expected_robustness_under("uniform") == pytest.approx(
        old.expected_robustness
    )


def test_published_reports_load():
    paths = sorted(REPOSITORY.glob("model_cards/*/robustness_report.json"))
    assert paths
    for path in paths:
        assert 0 < RobustnessReport.from_json(path).expected_robustness < 1


@pytest.mark.parametrize("names", [["a"], {"0": "a"}, {0: "a"}, None])
def test_a_class_without_a_name_is_told_by_its_index(names):
    report = build_report(
        [0, 1],
        [0.0, np.inf],
        [1, 1],
        threat_model=ThreatModel("Linf", "4/255"),
        epsilons=[0, 4 / 255],
        attack=evaluation_attack(),
        class_names=names,
    )
    named = names is not None
    assert [row["class"] for row in report.per_class] == ["a" if named else "0", "1"]
