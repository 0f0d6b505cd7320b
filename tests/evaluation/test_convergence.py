"""`attack_steps="auto"`: steps are doubled on what stands until the accuracy settles, and nothing found is lost."""

import json

import numpy as np
import pytest
import torch
from colour_classifier import ColourClassifier
from torch import nn
from torch.utils.data import DataLoader

from hf_robust_ft import APGD, PixelSpace, RobustnessReport, ThreatModel, evaluate_robustness
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.evaluation.convergence import Convergence, parse_attack_steps, rounds_up_to
from hf_robust_ft.evaluation.protocols import evaluation_attack

LINF = ThreatModel("Linf", "8/255")
GRID = [0, "4/255", "8/255"]


class Rippled(nn.Module):
    """A linear classifier under fast ripples, whose gradients mislead: ten steps are far from enough."""

    def __init__(self, fails_at: int | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(48, 2, generator=torch.Generator().manual_seed(0)))
        self.forwards, self.fails_at = 0, fails_at

    def forward(self, pixel_values):
        if self.forwards == self.fails_at:
            raise KeyboardInterrupt
        self.forwards += 1
        x = pixel_values.flatten(1) - 0.5
        return (x + 0.01 * torch.sin(1000 * x)) @ self.weight


@pytest.fixture(scope="module")
def rippled():
    pixels = torch.rand(100, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = Rippled()(pixels).argmax(1)
    labels[:3] = 1 - labels[:3]  # wrong as they are
    return [{"pixel_values": x, "labels": int(y)} for x, y in zip(pixels, labels, strict=True)]


def measure(rippled, model=None, **changes) -> RobustnessReport:
    options = {"threat_model": LINF, "epsilons": GRID, "attack_steps": "auto", "batch_size": 30, "checks": False}
    return evaluate_robustness(model or Rippled(), rippled, **(options | {"progress": False} | changes))


@pytest.mark.parametrize("protocol", ["paper", "exact"])
def test_more_steps_find_more_and_never_less(rippled, protocol):
    first = measure(rippled, attack_steps=10, protocol=protocol)
    report = measure(rippled, protocol=protocol)
    steps = [each["steps"] for each in report.convergence["rounds"]]
    assert steps == [10, 20, 40, 80][: len(steps)] and len(steps) > 2
    assert report.attack["steps"] == steps[-1]
    for mine, earlier in zip(report.smallest_epsilons, first.smallest_epsilons, strict=True):
        assert (np.inf if mine is None else mine) <= (np.inf if earlier is None else earlier)
    paper, last = report.convergence["rounds"][0], report.convergence["rounds"][-1]
    for name in ("adversarial_accuracy", "expected_robustness", "accuracies"):
        assert paper[name] == pytest.approx(getattr(first, name)) and last[name] == pytest.approx(getattr(report, name))
    assert report.adversarial_accuracy < first.adversarial_accuracy - 0.02
    assert report.clean_accuracy == first.clean_accuracy == 0.97


def test_it_settles_where_a_longer_attack_changes_little(dataset, processor):
    options = {"pixel_space": PixelSpace.from_processor(processor)}
    report = measure(dataset, ColourClassifier(), **options)
    assert report.convergence["settled"] and 0 < report.adversarial_accuracy < report.clean_accuracy
    longer = measure(dataset, ColourClassifier(), attack_steps=8 * report.attack["steps"], **options)
    assert longer.accuracies == pytest.approx(report.accuracies, abs=0.01)


def test_it_says_where_the_limit_came_first(rippled):
    report = measure(rippled, attack_steps_limit=25, checks=True)
    assert [each["steps"] for each in report.convergence["rounds"]] == [10, 20]
    assert not report.convergence["settled"]
    (check,) = [check for check in report.checks if check["name"] == "converged"]
    assert not check["passed"] and "attack_steps_limit above 25" in check["sentence"]
    assert len(report.checks) == 8


def test_only_what_stands_is_attacked_again(rippled):
    seen = []

    class Counting(Rippled):
        def forward(self, pixel_values):
            seen.append(len(pixel_values))
            return super().forward(pixel_values)

    fixed, auto = [], []
    for steps, counts in (({"attack_steps": 10}, fixed), ({"attack_steps": "auto", "attack_steps_limit": 20}, auto)):
        seen.clear()
        measure(rippled, Counting(), **steps)
        counts.extend(seen)
    # 97 correct images at most, 20 steps and one forward, once each and once more for what fell on the way.
    assert sum(fixed) < sum(auto) <= sum(fixed) + 97 * 21 * 1.5


@pytest.fixture(scope="module", params=["paper", "exact", "reliable"])
def uninterrupted(request, rippled):
    """Three rounds: their settings, the report, and how many forwards it took."""
    options, model = {"protocol": request.param, "attack_steps_limit": 40}, Rippled()
    report = measure(rippled, model, **options)
    assert len(report.convergence["rounds"]) == 3
    return options, report, model.forwards


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_run_that_was_cut_off_ends_in_the_same_report(rippled, uninterrupted, tmp_path, share):
    options, whole, forwards = uninterrupted
    options = {**options, "results_dir": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        measure(rippled, Rippled(int(share * forwards)), **options)
    rest, again = Rippled(), Rippled()
    assert measure(rippled, rest, **options) == whole and rest.forwards < forwards * (1.2 - share)
    assert measure(rippled, again, **options) == whole and again.forwards == 1


def test_what_ten_steps_found_is_where_auto_begins(rippled, tmp_path):
    measure(rippled, attack_steps=10, results_dir=tmp_path)
    fresh, begun = Rippled(), Rippled()
    limit = {"attack_steps_limit": 40}
    assert measure(rippled, fresh, **limit) == measure(rippled, begun, results_dir=tmp_path, **limit)
    assert begun.forwards < fresh.forwards


def test_random_starts_are_new_in_each_round_and_reproduce(rippled):
    attack = APGD(steps=3, select="fooled")
    first, second = (measure(rippled, attack=attack, seed=4, attack_steps_limit=20) for _ in range(2))
    assert first == second and [each["steps"] for each in first.convergence["rounds"]] == [10, 20]


def test_data_that_change_between_rounds_are_refused(rippled):
    class Random:
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return rippled[index] | {"pixel_values": torch.rand(3, 4, 4)}

    with pytest.raises(ValueError, match="other images or labels than at an earlier pass"):
        measure(Random())
    with pytest.raises(ValueError, match="shuffle=False"):
        measure(DataLoader(rippled, 10, shuffle=True, collate_fn=stack_examples))


def test_autoattack_counts_what_no_round_fooled(rippled, monkeypatch):
    import hf_robust_ft.evaluation.measure_batch as evaluation_work
    from hf_robust_ft import AttackResult

    def finds_nothing(logits_fn, pixels, labels, threat_model, seed):
        return AttackResult(pixels, torch.zeros(len(labels), dtype=torch.bool), labels.float(), labels)

    monkeypatch.setattr(evaluation_work, "autoattack", finds_nothing)
    monkeypatch.setattr(evaluation_work, "check_num_classes", lambda count: None)  # two are too few for the real one
    report = measure(rippled, autoattack=100, attack_steps_limit=20)
    assert report.autoattack_accuracy == report.adversarial_accuracy


def test_a_report_keeps_its_rounds_and_older_ones_are_read(rippled, tmp_path):
    report = measure(rippled, attack_steps_limit=20)
    report.to_json(tmp_path / "report.json")
    assert RobustnessReport.from_json(tmp_path / "report.json") == report
    content = json.loads((tmp_path / "report.json").read_text())
    del content["convergence"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert RobustnessReport.from_json(tmp_path / "old.json").convergence == {}


@pytest.mark.parametrize(
    ("before", "after", "count", "settled"),
    [
        (50, 50, 60, True),
        (50, 49, 60, False),
        (500, 491, 1000, True),
        (500, 490, 1000, False),
        (0, 0, 10, True),
        # Half an interval is 0.13 and 0.31 points.
        (5000, 4950, 100_000, True),
        (50_000, 49_600, 100_000, False),
    ],
)
def test_settled_is_less_than_a_point_and_than_half_an_interval(before, after, count, settled):
    rounds = Convergence(evaluation_attack(), [0.0, 0.1], "paper")
    first, second = (np.where(np.arange(count) < standing, np.inf, 0.1) for standing in (before, after))
    rounds.add(first)
    assert rounds.settled == (before == 0)  # one round tells nothing, unless nothing stands
    rounds.add(second)
    assert rounds.settled == settled


@pytest.mark.parametrize(("fall", "count", "settled"), [(1, 40, True), (2, 40, False), (3, 300, True), (4, 300, False)])
def test_at_the_limit_no_more_is_asked_for_than_the_checks_tolerate(fall, count, settled):
    rounds = Convergence(evaluation_attack(), [0.0, 0.1], "paper", limit=20)
    first, second = (np.where(np.arange(count) < standing, np.inf, 0.1) for standing in (30, 30 - fall))
    assert rounds.after(first).steps == 20 and rounds.after(second) is None
    assert rounds.settled == settled


def test_the_rounds_double():
    assert rounds_up_to(160) == [10, 20, 40, 80, 160] and rounds_up_to(159) == [10, 20, 40, 80]


@pytest.mark.parametrize("steps", [0, -3, 2.5, "2.5", "many", "", True, None, "AUTO"])
def test_what_is_neither_a_count_nor_auto_is_refused(steps):
    with pytest.raises(ValueError, match=r"attack_steps is a whole number of at least 1, or 'auto'.*got"):
        parse_attack_steps(steps)


@pytest.mark.parametrize("limit", [9, 0, -1, 20.0, "80", True])
def test_a_limit_below_ten_is_refused_before_anything_runs(rippled, limit):
    model = Rippled()
    with pytest.raises(ValueError, match=r"attack_steps_limit is the most steps that attack_steps='auto'.*at least 10"):
        measure(rippled, model, attack_steps_limit=limit)
    assert model.forwards == 0
