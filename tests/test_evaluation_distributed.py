"""Two gloo processes under torchrun measure what one does, to the last digit."""

import json

import pytest
import torch
from colour_classifier import ColourClassifier
from conftest import run_script
from torch.utils.data import DataLoader

import hf_robust_ft.evaluation as evaluation
from hf_robust_ft import APGD, AttackResult, PixelSpace, RobustnessReport, ThreatModel, evaluate_robustness
from hf_robust_ft.batches import stack_examples

# Batches of 10 are five, the last of 8; a batch of 48 leaves the second process without one.
CASES = {
    "paper": {"distributions": ["beta:2,5"], "autoattack": 25, "class_names": ["r", "g", "b", "y"]},
    "exact": {"protocol": "exact"},
    "random_start": {"attack": APGD(steps=3), "seed": 5, "checks": False},
    "loader": {"protocol": "exact", "checks": False},
    "one_batch": {"batch_size": 48, "checks": False},
}


def half_withstand(logits_fn, pixels, labels, threat_model, seed):
    """In place of AutoAttack, which takes minutes."""
    return AttackResult(pixels, torch.arange(len(labels)) % 2 == 0, labels.float(), labels)


def measure_case(name, dataset, processor, model=None, **changes):
    data = DataLoader(dataset, batch_size=10, collate_fn=stack_examples) if name == "loader" else dataset
    options = {"threat_model": ThreatModel("Linf", "8/255"), "pixel_space": PixelSpace.from_processor(processor)}
    options |= {"batch_size": 10, "progress": False} | CASES[name] | changes
    return evaluate_robustness(model or ColourClassifier(), data, **options)


SCRIPT = """
import json
import torch.distributed
import test_evaluation_distributed as cases
from colour_classifier import ColourClassifier

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
cases.evaluation.autoattack = cases.half_withstand
forwards = {}
for name in cases.CASES:
    model = ColourClassifier()
    cases.measure_case(name, dataset, processor, model).to_json(folder / f"{name}-{rank}.json")
    forwards[name] = model.forwards
stored = cases.measure_case("exact", dataset, processor, results_dir=folder / "results")
stored.to_json(folder / f"stored-{rank}.json")
try:
    cases.measure_case("paper", DataLoader(dataset, 10, shuffle=True), processor)
except ValueError as error:
    forwards["refused"] = str(error)
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
    monkeypatch.setattr(evaluation, "autoattack", half_withstand)
    single = measure_case(name, dataset, processor)
    assert single.num_samples == 48 and 0 < single.adversarial_accuracy < single.clean_accuracy
    for rank in (0, 1):
        assert RobustnessReport.from_json(both / f"{name}-{rank}.json") == single


def test_the_paper_case_covers_every_field(both):
    report = RobustnessReport.from_json(both / "paper-1.json")
    assert len(report.checks) == 6 and report.autoattack_samples == 25 and report.distributions
    assert report.autoattack_accuracy > 0 and report.confidence_intervals and len(report.per_class) == 4


def test_the_work_is_shared(both, dataset, processor):
    first, second = (json.loads((both / f"forwards-{rank}.json").read_text()) for rank in (0, 1))
    model = ColourClassifier()
    measure_case("loader", dataset, processor, model)
    assert first["loader"] < model.forwards and second["loader"] < model.forwards
    assert first["loader"] + second["loader"] == model.forwards + 1  # each counts the classes on one image
    assert second["one_batch"] == 0


def test_a_shuffling_loader_is_refused_on_both(both):
    for rank in (0, 1):
        assert "needs shuffle=False" in json.loads((both / f"forwards-{rank}.json").read_text())["refused"]


def test_results_of_two_processes_are_continued_by_one(both, dataset, processor):
    single = measure_case("exact", dataset, processor)
    assert [RobustnessReport.from_json(both / f"stored-{rank}.json") for rank in (0, 1)] == [single, single]
    files = sorted((both / "results").iterdir())
    batches = [[json.loads(line).get("batch") for line in path.read_text().splitlines()] for path in files]
    assert batches == [[None, 0, 2, 4], [None, 1, 3]]
    model = ColourClassifier()
    options = {"results_dir": both / "results", "checks": False}
    finished = measure_case("exact", dataset, processor, model, **options)
    assert model.forwards == 1 and finished.smallest_epsilons == single.smallest_epsilons
    # As if the second process had been killed in its last batch.
    files[1].write_bytes(files[1].read_bytes()[:-5])
    model = ColourClassifier()
    assert measure_case("exact", dataset, processor, model, **options) == finished
    assert 1 < model.forwards < 60
