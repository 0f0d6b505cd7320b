"""An evaluation that was cut off goes on where it stopped and ends in the same report."""

import json
import signal

import pytest
import torch
from colour_classifier import ColourClassifier
from conftest import run_script
from torch.utils.data import DataLoader

import hf_robust_ft
from hf_robust_ft import APGD, PixelSpace, RobustnessReport, ThreatModel, evaluate_robustness
from hf_robust_ft.evaluation.batches import stack_examples

LINF = ThreatModel("Linf", "8/255")


class Interrupted(ColourClassifier):
    """Fails at its n-th forward."""

    def __init__(self, fails_at: int):
        super().__init__()
        self.fails_at = fails_at

    def forward(self, pixel_values):
        if self.forwards == self.fails_at:
            raise KeyboardInterrupt
        return super().forward(pixel_values)


@pytest.fixture
def measure(dataset, processor):
    """48 images in batches of 10: five, the last of 8."""

    def run(model=None, data=dataset, **changes):
        options = {"threat_model": LINF, "pixel_space": PixelSpace.from_processor(processor), "progress": False}
        options |= {} if "attack" in changes else {"attack_steps": 4}
        return evaluate_robustness(
            model if model is not None else ColourClassifier(),
            data,
            **(options | {"batch_size": 10, "checks": False} | changes),
        )

    return run


def stored(folder) -> list[int]:
    """The numbers of the finished batches."""
    return sorted(json.loads(path.read_text())["batch"] for path in folder.glob("*/batch-*.json"))


CASES = {
    "paper": {},
    "exact": {"protocol": "exact", "distributions": ["beta:2,5"]},
    "random_start": {"attack": APGD(steps=3, restarts=2), "seed": 3},
    "L2": {"threat_model": ThreatModel("L2", 0.6)},
    "L1": {"threat_model": ThreatModel("L1", 8.0)},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_a_resumed_run_equals_an_uninterrupted_one_and_attacks_only_what_was_left(measure, dataset, tmp_path, options):
    whole_model = ColourClassifier()
    whole = measure(whole_model, **options)
    with pytest.raises(KeyboardInterrupt):
        measure(Interrupted(whole_model.forwards // 2), results_dir=tmp_path, **options)
    finished = stored(tmp_path)
    assert finished == list(range(len(finished))) and 1 <= len(finished) <= 4
    resumed_model = ColourClassifier()
    assert measure(resumed_model, results_dir=tmp_path, **options) == whole
    assert stored(tmp_path) == [0, 1, 2, 3, 4]
    if not whole.attack["random_start"]:  # whose draws depend on the number of the batch
        rest = ColourClassifier()
        measure(rest, dataset.select(range(10 * len(finished), 48)), **options)
        assert resumed_model.forwards == rest.forwards
    again = ColourClassifier()
    assert measure(again, results_dir=tmp_path, **options) == whole
    assert again.forwards == 1  # on one image, to count the classes


KILLED_SCRIPT = """
import os, signal
from colour_classifier import ColourClassifier
from hf_robust_ft import PixelSpace, ThreatModel, evaluate_robustness

class Killed(ColourClassifier):
    def forward(self, pixel_values):
        if self.forwards == 60:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(pixel_values)

evaluate_robustness(Killed(), dataset, threat_model=ThreatModel("Linf", "8/255"), batch_size=10, progress=False,
                    pixel_space=PixelSpace.from_processor(processor), results_dir=folder / "results", checks=False,
                    attack_steps=4)
"""


def test_a_killed_process_is_continued(measure, tmp_path):
    done = run_script(KILLED_SCRIPT, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = stored(tmp_path / "results")
    assert 1 <= len(finished) <= 4
    whole, rest = ColourClassifier(), ColourClassifier()
    expected = measure(whole)
    assert measure(rest, results_dir=tmp_path / "results") == expected
    assert whole.forwards > 60 and rest.forwards < whole.forwards
    assert stored(tmp_path / "results") == [0, 1, 2, 3, 4]


def test_a_loader_resumes_as_its_dataset_does(measure, dataset, tmp_path):
    loader = DataLoader(dataset, batch_size=10, collate_fn=stack_examples)
    report = measure(data=loader, results_dir=tmp_path)
    model = ColourClassifier()
    assert measure(model, results_dir=tmp_path) == report and model.forwards == 1


def test_checks_are_made_again(measure, tmp_path):
    first, second = (measure(results_dir=tmp_path, checks=True) for _ in range(2))
    assert first == second and len(second.checks) == 8
    assert measure(results_dir=tmp_path).checks == [] and len(list(tmp_path.iterdir())) == 1


def with_changed(dataset, index, **changes):
    return [{**example, **(changes if at == index else {})} for at, example in enumerate(dataset)]


@pytest.mark.parametrize("changes", [{"labels": 2}, {"pixel_values": torch.zeros(3, 16, 16)}], ids=["label", "image"])
def test_changed_data_are_refused_by_the_name_of_the_batch(measure, dataset, tmp_path, changes):
    measure(results_dir=tmp_path)
    with pytest.raises(ValueError, match=r"Batch 3 holds other images or labels.*Choose another results folder"):
        measure(data=with_changed(dataset, 35, **changes), results_dir=tmp_path)


def test_a_damaged_file_is_kept_aside_and_the_run_completes(measure, tmp_path, caplog):
    report = measure(results_dir=tmp_path)
    path = next(tmp_path.glob("*/batch-3.json"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    model = ColourClassifier()
    assert measure(model, results_dir=tmp_path) == report and model.forwards > 5
    assert path.with_name(path.name + ".corrupt").read_bytes() == content
    assert "is damaged" in caplog.text and stored(tmp_path) == [0, 1, 2, 3, 4]


def test_half_a_file_costs_one_batch(measure, tmp_path):
    report = measure(results_dir=tmp_path)
    path = next(tmp_path.glob("*/batch-3.json"))
    path.write_bytes(path.read_bytes()[:-9])
    whole, rest = ColourClassifier(), ColourClassifier()
    assert measure(whole) == measure(rest, results_dir=tmp_path) == report
    assert stored(tmp_path) == [0, 1, 2, 3, 4] and rest.forwards < whole.forwards / 2


def test_other_settings_use_another_folder(measure, tmp_path, processor):
    variants = [
        {},
        {"seed": 1},
        {"batch_size": 12},
        {"protocol": "exact"},
        {"epsilons": [0, "8/255"]},
        {"attack": APGD(steps=3, random_start=False)},
        {"threat_model": ThreatModel("L2", 0.5)},
        {"model": ColourClassifier(0.3)},
    ]
    for count, changes in enumerate(variants, start=1):
        options = {"attack": APGD(steps=2, random_start=False)} | changes
        report = measure(results_dir=tmp_path, **options)
        assert len(list(tmp_path.iterdir())) == count, changes
        assert report == measure(**options)


def test_results_of_another_version_or_autocast_are_not_mixed_in(measure, tmp_path, monkeypatch):
    options = {"results_dir": tmp_path, "attack": APGD(steps=2, random_start=False)}
    measure(**options)
    monkeypatch.setattr(hf_robust_ft, "__version__", "0.0.1")
    model = ColourClassifier()
    measure(model, **options)
    assert model.forwards > 5 and len(list(tmp_path.iterdir())) == 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measure(**options)
    assert len(list(tmp_path.iterdir())) == 3
    headers = [json.loads((path / "settings.json").read_text()) for path in tmp_path.iterdir()]
    assert sorted(settings["hf_robust_ft"] for settings in headers)[0] == "0.0.1"


@pytest.mark.parametrize("changes", [{"distributions": ["dirac:0"]}, {"class_names": ["r", "g", "b", "y"]}])
def test_what_only_the_report_depends_on_is_no_setting(measure, tmp_path, changes):
    measure(results_dir=tmp_path)
    model = ColourClassifier()
    assert measure(model, results_dir=tmp_path, **changes) == measure(**changes) and model.forwards == 1


def test_a_shuffling_loader_cannot_be_resumed(measure, dataset, tmp_path):
    loader = DataLoader(dataset, batch_size=10, collate_fn=stack_examples, shuffle=True)
    with pytest.raises(ValueError, match=r"one to be resumed, or one with .*'reliable' needs shuffle=False"):
        measure(data=loader, results_dir=tmp_path / "results")
    assert not (tmp_path / "results").exists()
    assert measure(data=loader).num_samples == 48


def test_a_folder_that_is_a_file_is_named(measure, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be kept in .*file.*give a writable folder"):
        measure(results_dir=tmp_path / "file")


def test_a_report_from_stored_results_survives_json(measure, tmp_path):
    measure(results_dir=tmp_path)
    report = measure(results_dir=tmp_path, protocol="paper")
    report.to_json(tmp_path / "report.json")
    assert RobustnessReport.from_json(tmp_path / "report.json") == report
