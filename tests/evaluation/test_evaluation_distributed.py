"""Two gloo processes under torchrun measure what one does, to the last digit."""

import json
import time

import pytest
import torch
from colour_classifier import ColourClassifier
from colour_segmenter import ColourSegmenter
from conftest import run_script
from tiny_segmenters import scenes
from torch.utils.data import DataLoader

import hf_robust_ft.evaluation.measure_batch as evaluation_work
from hf_robust_ft import (
    APGD,
    AttackResult,
    PixelSpace,
    RobustnessReport,
    SegmentationReport,
    ThreatModel,
    evaluate_robustness,
    evaluate_segmentation,
)
from hf_robust_ft.evaluation.batches import stack_examples

# Batches of 10 are five, the last of 8; a batch of 48 leaves the second process without one.
CASES = {
    "paper": {"distributions": ["beta:2,5"], "autoattack": 25, "class_names": ["r", "g", "b", "y"], "attack_steps": 4},
    "exact": {"protocol": "exact", "attack_steps": 4},
    "random_start": {"attack": APGD(steps=3), "seed": 5, "checks": False},
    "loader": {"protocol": "exact", "checks": False, "attack_steps": 4},
    "one_batch": {"batch_size": 48, "checks": False, "attack_steps": 4},
}


judged = []  # by AutoAttack in this process: the number of images, a call


def half_withstand(logits_fn, pixels, labels, threat_model, seed):
    """In place of AutoAttack, which takes minutes."""
    judged.append(len(labels))
    return AttackResult(pixels, torch.arange(len(labels)) % 2 == 0, labels.float(), labels)


def measure_case(name, dataset, processor, model=None, **changes):
    data = DataLoader(dataset, batch_size=10, collate_fn=stack_examples) if name == "loader" else dataset
    options = {"threat_model": ThreatModel("Linf", "8/255"), "pixel_space": PixelSpace.from_processor(processor)}
    options |= {"batch_size": 10, "progress": False} | CASES[name] | changes
    return evaluate_robustness(model or ColourClassifier(), data, **options)


class Slow(ColourClassifier):
    """Waits at some forwards of one process, and fails in one at its third."""

    def __init__(self, seconds, at, rank, fails_on=None):
        super().__init__()
        self.seconds, self.at, self.rank, self.fails_on = seconds, at, rank, fails_on

    def forward(self, pixel_values):
        rank = torch.distributed.get_rank()
        if rank == self.rank and self.forwards in self.at:
            time.sleep(self.seconds)
        if rank == self.fails_on and self.forwards == 3:
            raise FloatingPointError("out of luck")
        return super().forward(pixel_values)


SCRIPT = """
import datetime
import json
import time
import torch.distributed
import test_evaluate_segmentation as segmentation
import test_evaluation_distributed as cases
from colour_classifier import ColourClassifier

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
cases.evaluation_work.autoattack = cases.half_withstand
forwards = {}
for name in cases.CASES:
    cases.judged.clear()
    model = ColourClassifier()
    cases.measure_case(name, dataset, processor, model).to_json(folder / f"{name}-{rank}.json")
    forwards[name] = model.forwards
    forwards[f"{name} autoattack"] = len(cases.judged)
stored = cases.measure_case("exact", dataset, processor, results_dir=folder / "results")
stored.to_json(folder / f"stored-{rank}.json")
segmentation.measure(batch_size=3, checks=True).to_json(folder / f"segmentation-{rank}.json")
try:
    cases.measure_case("paper", DataLoader(dataset, 10, shuffle=True), processor)
except ValueError as error:
    forwards["refused"] = str(error)

# From here on collectives wait for a second at most, as NCCL's wait for 10 minutes.
torch.distributed.set_timeout(datetime.timedelta(seconds=1))
for name, rank_of, at, checks in [("late checks", 0, 1, True), ("late batch", 1, 9, False)]:
    model = cases.Slow(seconds=2.5, at=[at], rank=rank_of)
    cases.measure_case("random_start", dataset, processor, model, checks=checks).to_json(folder / f"{name}-{rank}.json")
for name, model in {
    "failure while others work": cases.Slow(seconds=0.1, at=range(1000), rank=0, fails_on=1),
    "failure while others wait": cases.Slow(seconds=2.5, at=[1], rank=1, fails_on=1),
}.items():
    try:
        cases.measure_case("random_start", dataset, processor, model, batch_size=4)
    except Exception as error:
        forwards[name] = [type(error).__name__, str(error), model.forwards]
cases.measure_case("one_batch", dataset, processor).to_json(folder / f"after failures-{rank}.json")
(folder / f"forwards-{rank}.json").write_text(json.dumps(forwards))
torch.distributed.destroy_process_group()
""".replace("DataLoader(", "cases.DataLoader(")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder of what two processes wrote."""
    folder = tmp_path_factory.mktemp("two")
    done = run_script(SCRIPT, folder, processes=2)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", CASES)
def test_both_processes_return_the_report_of_one(both, dataset, processor, monkeypatch, name):
    monkeypatch.setattr(evaluation_work, "autoattack", half_withstand)
    single = measure_case(name, dataset, processor)
    assert single.num_samples == 48 and 0 < single.adversarial_accuracy < single.clean_accuracy
    for rank in (0, 1):
        assert RobustnessReport.from_json(both / f"{name}-{rank}.json") == single


def test_both_processes_return_the_segmentation_report_of_one(both):
    single = evaluate_segmentation(
        ColourSegmenter(),
        scenes(8, size=16),
        threat_model=ThreatModel("Linf", 0.2),
        epsilons=[0, 0.1, 0.2],
        batch_size=3,
        progress=False,
    )
    for rank in (0, 1):
        assert SegmentationReport.from_json(both / f"segmentation-{rank}.json") == single


def test_the_paper_case_covers_every_field(both):
    report = RobustnessReport.from_json(both / "paper-1.json")
    assert len(report.checks) == 8 and report.autoattack_samples == 25 and report.distributions
    assert report.autoattack_accuracy > 0 and report.confidence_intervals and len(report.per_class) == 4


def test_the_work_is_shared(both, dataset, processor):
    first, second = (json.loads((both / f"forwards-{rank}.json").read_text()) for rank in (0, 1))
    model = ColourClassifier()
    measure_case("loader", dataset, processor, model)
    assert first["loader"] < model.forwards and second["loader"] < model.forwards
    assert first["loader"] + second["loader"] == model.forwards + 1  # each counts the classes on one image
    assert second["one_batch"] == 0
    # The 25 images that AutoAttack is asked about are drawn from all five batches of ten.
    assert first["paper autoattack"] + second["paper autoattack"] <= 5
    assert first["paper autoattack"] > 0 < second["paper autoattack"]


@pytest.mark.parametrize("name", ["late checks", "late batch"])
def test_processes_wait_for_each_other_beyond_the_timeout_of_collectives(both, dataset, processor, name):
    single = measure_case("random_start", dataset, processor, checks=name == "late checks")
    assert [RobustnessReport.from_json(both / f"{name}-{rank}.json") for rank in (0, 1)] == [single, single]


@pytest.mark.parametrize("name", ["failure while others work", "failure while others wait"])
def test_a_failure_reaches_the_other_process_soon_and_by_name(both, dataset, processor, name):
    first, second = (json.loads((both / f"forwards-{rank}.json").read_text())[name] for rank in (0, 1))
    assert second == ["FloatingPointError", "out of luck", 3]
    assert first[:2] == ["OtherProcessFailed", "Process 1 of 2 failed: FloatingPointError: out of luck"]
    if name.endswith("work"):  # it stops where it is
        model = ColourClassifier()
        measure_case("random_start", dataset, processor, model, batch_size=4)
        assert first[2] < 0.8 * model.forwards / 2


def test_after_a_failure_the_processes_can_go_on(both, dataset, processor):
    single = measure_case("one_batch", dataset, processor)
    assert [RobustnessReport.from_json(both / f"after failures-{rank}.json") for rank in (0, 1)] == [single, single]


def test_a_shuffling_loader_is_refused_on_both(both):
    for rank in (0, 1):
        assert "needs shuffle=False" in json.loads((both / f"forwards-{rank}.json").read_text())["refused"]


def test_results_of_two_processes_are_continued_by_one(both, dataset, processor):
    whole = ColourClassifier()
    single = measure_case("exact", dataset, processor, whole)
    assert [RobustnessReport.from_json(both / f"stored-{rank}.json") for rank in (0, 1)] == [single, single]
    files = sorted((both / "results").glob("*/batch-*.json"))
    assert [json.loads(path.read_text())["batch"] for path in files] == [0, 1, 2, 3, 4]
    model = ColourClassifier()
    options = {"results_dir": both / "results", "checks": False}
    finished = measure_case("exact", dataset, processor, model, **options)
    assert model.forwards == 1 and finished.smallest_epsilons == single.smallest_epsilons
    files[3].unlink()  # as if the second process had been killed in its last batch
    model = ColourClassifier()
    assert measure_case("exact", dataset, processor, model, **options) == finished
    assert 1 < model.forwards < whole.forwards / 3
