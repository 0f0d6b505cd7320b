"""`evaluate_segmentation`: what its figures are, what they do not depend on, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from colour_segmenter import ColourSegmenter, Hiding
from defences import backward_as, junk
from tiny_segmenters import IGNORED, scenes, segformer
from torch.utils.data import DataLoader

from hf_robust_ft import APGD, PixelSpace, SegmentationReport, ThreatModel, evaluate_segmentation
from hf_robust_ft.attacks.segmenter import PixelSegmenter
from hf_robust_ft.evaluation.batches import stack_masks
from hf_robust_ft.hub.leaderboard.results import Result
from hf_robust_ft.metrics.robustness.robustness import Robustness

GRID = [0, 0.1, 0.2]
DATA = scenes(8, size=16)


def measure(model=None, data=DATA, **options):
    options = {"threat_model": ThreatModel("Linf", GRID[-1]), "epsilons": GRID, "progress": False} | options
    options = {"checks": False, "batch_size": 4} | options
    return evaluate_segmentation(model or ColourSegmenter(), data, **options)


@pytest.fixture(scope="module")
def report():
    return measure(checks=True, class_names=["red", "green", "blue", "yellow"])


def test_figures_are_the_metrics_on_what_the_attack_finds():
    attack = APGD(steps=10, loss="pixel_ce", random_start=False, select="fooled")
    report, threat_model = measure(attack=attack, epsilons=[0, 0.2]), ThreatModel("Linf", 0.2)
    model, batch = PixelSegmenter(ColourSegmenter()), stack_masks(DATA)
    labels = batch["labels"].masked_fill(batch["labels"] == IGNORED, -100)
    clean = model(batch["pixel_values"]).argmax(1)
    found = torch.cat(
        [
            attack(model, pixels, masks, threat_model).predictions
            for pixels, masks in zip(batch["pixel_values"].split(4), labels.split(4), strict=True)
        ]
    )
    metric = Robustness("segmentation", keep_in_memory=True)
    expected = metric.compute(
        predictions=torch.stack([clean, found], 1), references=batch["labels"], epsilons=[0, 0.2], ignore_index=IGNORED
    )
    for name in ("clean", "adversarial", "expected"):
        key = f"{name}_pixel_accuracy"
        assert getattr(report, key) == pytest.approx(expected[key])
    assert report.clean_mean_iou == pytest.approx(expected["clean_mean_iou"])
    assert report.adversarial_mean_iou <= expected["adversarial_mean_iou"] + 1e-12
    assert 0.2 < report.adversarial_pixel_accuracy < 0.9 < report.clean_pixel_accuracy


@pytest.mark.parametrize("options", [{}, {"protocol": "reliable", "attack_steps": 8}], ids=["paper", "reliable"])
def test_no_curve_rises_and_expected_is_the_area_under_it(options):
    report = measure(epsilons=[0, 0.05, 0.1, 0.2], **options)
    for name, curve in (("pixel_accuracy", report.pixel_accuracies), ("mean_iou", report.mean_ious)):
        assert (np.diff(curve) <= 0).all() and curve[-1] < curve[0]
        assert (curve[0], curve[-1]) == (getattr(report, f"clean_{name}"), getattr(report, f"adversarial_{name}"))
        area = np.trapezoid(curve, report.epsilons) / 0.2
        assert getattr(report, f"expected_{name}") == pytest.approx(area)


def test_the_worst_case_over_losses_is_no_higher_than_any_of_them():
    losses = ("pixel_ce", "masked_ce", "masked_ce_balanced", "js")
    attacks = [APGD(8, loss, random_start=False, select="fooled", larger_eps=True) for loss in losses]
    alone = [measure(attack=attack) for attack in attacks]
    report = measure(protocol="reliable", attack_steps=8)
    assert [attack["loss"] for attack in report.attacks] == list(losses)
    for curve in ("pixel_accuracies", "mean_ious"):
        assert (np.array(getattr(report, curve)) <= np.min([getattr(each, curve) for each in alone], 0) + 1e-12).all()


@pytest.mark.parametrize(("norm", "eps"), [("L2", 3.0), ("L1", 60.0)])
def test_other_norms_are_measured_under_l1_with_larger_balls_first(norm, eps):
    report = measure(threat_model=ThreatModel(norm, eps), epsilons=[0, eps], checks=True)
    assert report.attacks[0]["larger_eps"] == (norm == "L1")
    assert report.adversarial_pixel_accuracy < report.clean_pixel_accuracy
    assert "huge_eps" not in str(report.reliability), "an honest model falls to huge perturbations in each norm"


def test_at_eps_0_nothing_is_attacked():
    report = measure(threat_model=ThreatModel("Linf", 0), epsilons=[0], checks=True)
    assert report.passes["gradients"] == 0 and report.reliability["verdict"] == "ok"
    assert report.clean_pixel_accuracy == report.adversarial_pixel_accuracy == report.expected_pixel_accuracy


def test_ignored_pixels_do_not_count():
    report = measure()
    other = [each | {"labels": each["labels"].masked_fill(each["labels"] == IGNORED, -100)} for each in DATA]
    assert dataclasses.replace(measure(data=other, ignore_index=-100), ignore_index=IGNORED) == report
    labelled = sum(row["labelled_pixels"] for row in report.per_class)
    assert labelled == sum(int((each["labels"] != IGNORED).sum()) for each in DATA) < 8 * 16 * 16


def test_the_model_s_own_ignore_index_is_the_default():
    model = segformer()
    model.config.semantic_loss_ignore_index = 7
    data = [each | {"labels": each["labels"].masked_fill(each["labels"] == IGNORED, 7)} for each in scenes(2)]
    assert measure(model, data, attack_steps=1).ignore_index == 7


def test_figures_do_not_depend_on_batches_or_the_kind_of_source():
    report = measure()
    assert measure(batch_size=8) == report
    loader = DataLoader(DATA, batch_size=4, collate_fn=stack_masks)
    assert measure(data=loader) == report
    shuffled = DataLoader(DATA, 4, shuffle=True, collate_fn=stack_masks)
    assert measure(data=shuffled, checks=True).pixel_accuracies == pytest.approx(report.pixel_accuracies)


def test_logits_are_resized_to_the_masks_and_sizes_may_differ_one_image_at_a_time():
    small = measure(ColourSegmenter(stride=2), [*DATA[:2], *scenes(2, size=24)], batch_size=1, checks=True)
    assert small.num_samples == 4 and 0.5 < small.clean_pixel_accuracy < 1
    with pytest.raises(ValueError, match=r"must have one shape, got .* batch_size=1"):
        measure(data=[*DATA[:2], *scenes(2, size=24)])


def test_a_normalised_model_is_measured_on_its_pixels(report):
    space = PixelSpace((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    data = [each | {"pixel_values": space.from_pixels(each["pixel_values"][None])[0]} for each in DATA]
    found = measure(PixelSegmenter(ColourSegmenter()), DATA)
    assert found.pixel_accuracies == report.pixel_accuracies
    undone = Hiding(ColourSegmenter(), lambda logits: logits)
    undone.register_forward_pre_hook(lambda module, inputs: (space.to_pixels(inputs[0]),))
    assert measure(undone, data, pixel_space=space).pixel_accuracies == pytest.approx(report.pixel_accuracies, abs=0.01)


def test_a_run_that_was_cut_off_continues_and_ends_in_the_same_report(tmp_path):
    whole = ColourSegmenter()
    report = measure(whole)
    with pytest.raises(KeyboardInterrupt):
        measure(ColourSegmenter(fails_at=whole.forwards - 3), results_dir=tmp_path)
    model = ColourSegmenter()
    assert measure(model, results_dir=tmp_path) == report
    assert 0 < model.forwards < 0.7 * whole.forwards
    other = [each | {"labels": each["labels"].flip(1)} for each in DATA]
    with pytest.raises(ValueError, match="Choose another results folder"):
        measure(data=other, results_dir=tmp_path)


def test_a_report_reads_back_equal_and_says_its_task(report, tmp_path):
    report = report.with_metadata(dataset="scenes")
    report.to_json(tmp_path / "report.json")
    assert SegmentationReport.from_json(tmp_path / "report.json") == report
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["task"] == "image-segmentation" and content["mean_ious"] == report.mean_ious
    (tmp_path / "other.json").write_text(json.dumps(content | {"task": None}))
    with pytest.raises(ValueError, match=r"RobustnessReport.from_json"):
        SegmentationReport.from_json(tmp_path / "other.json")
    (tmp_path / "newer.json").write_text(json.dumps(content | {"schema_version": 99}))
    with pytest.raises(ValueError, match="pip install --upgrade"):
        SegmentationReport.from_json(tmp_path / "newer.json")


def test_a_report_prints_scores_intervals_classes_and_the_verdict(report):
    lines = str(report).splitlines()
    assert len(lines) == 7 and lines[0].startswith("clean pixel accuracy") and "[" in lines[0]
    assert "at Linf 51/255" in lines[3] and lines[-1].startswith("reliability")
    assert [row.split()[0] for row in report.class_table().splitlines()] == ["class", "red", "green", "blue", "yellow"]
    assert report.check_lines().count("\n") == 6


def test_intervals_hold_the_score_and_have_a_width_where_all_images_are_alike(report):
    for name in ("pixel_accuracy", "mean_iou"):
        for when in ("clean", "adversarial", "expected"):
            low, high = report.confidence_intervals[f"{when}_{name}"]
            assert low < getattr(report, f"{when}_{name}") < high
    alike = measure(data=[DATA[0]] * 8, threat_model=ThreatModel("Linf", 0), epsilons=[0])
    low, high = alike.confidence_intervals["clean_pixel_accuracy"]
    assert low < alike.clean_pixel_accuracy - 0.2 and alike.clean_pixel_accuracy < high


@pytest.mark.parametrize("options", [{}, {"protocol": "reliable", "attack_steps": 15}], ids=["paper", "reliable"])
def test_an_honest_segmenter_is_ok(options):
    report = measure(checks=True, **options)
    assert report.reliability == {"verdict": "ok", "reasons": []}, report.check_lines()
    assert [check["name"] for check in report.checks] == [
        "gradients", "random_noise", "converged", "deterministic", "alone", "huge_eps", "second_opinion"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("trick", "reason"),
    [
        (lambda logits: (2 * logits).round() / 2, "gradients"),
        (backward_as(junk), "second_opinion"),
        (backward_as(torch.neg), "second_opinion"),
        (lambda logits: logits + torch.rand_like(logits), "deterministic"),
        (lambda logits: 0 * logits + torch.tensor([1.0, 0, 0, 0]).view(-1, 1, 1), "gradients"),
    ],
    ids=["rounded", "junk gradient", "reversed gradient", "random", "constant"],
)
def test_a_segmenter_that_hides_its_gradients_is_doubtful(trick, reason):
    report = measure(Hiding(ColourSegmenter(), trick), checks=True)
    failed = [check["name"] for check in report.checks if not check["passed"]]
    assert report.reliability["verdict"] == "doubtful" and reason in failed, report.check_lines()


BRIGHT = torch.tensor([[0, 0, 0], [1, 0.2, 0.2], [0.2, 1, 0.2], [0.2, 0.2, 1], [1, 1, 0.2], [1, 0.2, 1], [0.2, 1, 1]])


def mostly_background(count=4, size=16):
    """Two bright squares on black: three quarters of the pixels are of class 0."""
    generator, examples = torch.Generator().manual_seed(0), []
    for _ in range(count):
        mask = torch.zeros(size, size, dtype=torch.long)
        for _ in range(2):
            y, x = torch.randint(0, size - 6, (2,), generator=generator)
            mask[y : y + 6, x : x + 6] = torch.randint(1, len(BRIGHT), (1,), generator=generator)
        noise = 0.1 * torch.randn(3, size, size, generator=generator)
        examples.append({"pixel_values": (BRIGHT[mask].movedim(-1, 0) + noise).clamp(0, 1), "labels": mask})
    return examples


def measure_background(trick=lambda logits: logits, preferred=0.6):
    """The report of a network that decides for background where in doubt, and the names of the checks that failed."""
    model, eps = ColourSegmenter(colours=BRIGHT), ThreatModel("Linf", 0.3)
    model.colours.bias.data[0] += preferred
    options = {"threat_model": eps, "epsilons": [0, 0.3], "protocol": "reliable", "attack_steps": 15, "checks": True}
    report = measure(Hiding(model, trick), mostly_background(), **options)
    return report, {check["name"] for check in report.checks if not check["passed"]}


def test_background_that_stands_at_the_huge_eps_makes_no_honest_network_doubtful():
    report, failed = measure_background()
    assert not failed and report.reliability["verdict"] == "ok", report.check_lines()
    background = report.per_class[0]["labelled_pixels"] / sum(row["labelled_pixels"] for row in report.per_class)
    assert background > 0.7, "by pixels it keeps more than the bound allows"


@pytest.mark.parametrize("trick", [lambda logits: (2 * logits).round() / 2, backward_as(junk)], ids=["rounded", "junk"])
def test_its_twin_that_hides_its_gradients_stands_in_all_classes(trick):
    report, failed = measure_background(trick)
    assert "huge_eps" in failed and report.reliability["verdict"] == "doubtful", report.check_lines()


def test_a_network_that_hides_the_gradients_of_background_alone_is_doubtful_where_a_search_changes_it():
    def hidden(logits):
        return torch.where((logits.argmax(1) == 0)[:, None], logits.detach() + 0 * logits, logits)

    for trick, expected in ((lambda logits: logits, False), (hidden, True)):
        report, failed = measure_background(trick, preferred=0.0)
        assert ("huge_eps" in failed) == expected, report.check_lines()


def test_auto_doubles_steps_until_both_scores_stand_still(tmp_path):
    auto = measure(attack_steps="auto", checks=True, results_dir=tmp_path)
    rounds = auto.convergence["rounds"]
    assert auto.convergence["settled"] and [each["steps"] for each in rounds] == [10, 20]
    paper = measure()
    assert [rounds[0][name] for name in ("mean_ious", "pixel_accuracies")] == [paper.mean_ious, paper.pixel_accuracies]
    assert rounds[1]["mean_ious"] == auto.mean_ious and (np.array(auto.mean_ious) <= paper.mean_ious).all()
    assert auto.attacks[0]["steps"] == 20 and auto.passes["gradients"] == 3 * paper.passes["gradients"]
    assert "at most" in auto.check_lines() and "settled, at 20" in str(auto)
    row = Result.of_report(auto, "mine")
    assert (row.first_adversarial, row.settled) == (paper.adversarial_mean_iou, True)
    assert measure(attack_steps="auto", checks=True, results_dir=tmp_path) == auto, "every round is kept"


def test_scores_that_do_not_stand_still_within_the_limit_are_doubtful(monkeypatch):
    monkeypatch.setattr("hf_robust_ft.evaluation.segmentation.convergence.SETTLED", 0.0)
    report = measure(attack_steps="auto", attack_steps_limit=10, checks=True)
    assert not report.convergence["settled"] and len(report.convergence["rounds"]) == 1
    assert [each for each in report.reliability["reasons"] if each.startswith("converged: ")]
    assert "without the scores settling: they are too high" in str(report)


def test_without_checks_a_report_is_doubtful():
    assert measure().reliability["reasons"] == ["not_checked: no trust checks were run"]


def edited(**changes):
    return [DATA[0], DATA[1] | changes]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocol": "exact"}, "Valid: paper, reliable|paper, reliable"),
        ({"attack": APGD(loss="ce")}, "Valid for segmentation: pixel_ce"),
        ({"attack": APGD(loss="pixel_ce"), "protocol": "reliable"}, "brings its own attacks"),
        ({"attack_steps": "many"}, "or 'auto'"),
        ({"attack_steps": 0}, "at least 1"),
        ({"attack_steps": "auto", "attack_steps_limit": 5}, "attack_steps_limit"),
        ({"epsilons": [0, 0.1]}, "must end at the threat model's eps"),
        ({"threat_model": "4/255"}, "must be a ThreatModel"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"ignore_index": "255"}, "ignore_index must be a whole number"),
        ({"data": []}, "dataset is empty"),
        ({"data": edited(labels=torch.full((16, 16), IGNORED))}, "image 1 of the data has no labelled pixel"),
        ({"data": edited(labels=torch.full((16, 16), 4))}, "class indices in 0..3|0..4-1"),
        ({"data": [{"pixel_values": DATA[0]["pixel_values"], "labels": torch.tensor(1)}]}, "masks of one class index"),
        ({"data": [{"pixel_values": DATA[0]["pixel_values"]}]}, "lack"),
        ({"data": [each | {"pixel_values": 255 * each["pixel_values"]} for each in DATA]}, "pixel_values"),
        ({"model": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4))}, "semantic segmentation model"),
        ({"model": Hiding(ColourSegmenter(), lambda logits: logits.detach())}, "no gradient"),
        ({"model": Hiding(ColourSegmenter(), lambda logits: logits / 0 * 0)}, "NaN"),
        ({"model": PixelSegmenter(ColourSegmenter()), "pixel_space": PixelSpace()}, "leave pixel_space out"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        measure(**options)
