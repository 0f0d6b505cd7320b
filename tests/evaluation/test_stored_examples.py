"""`evaluate_robustness(examples_dir=...)`: what is stored proves the report, however the evaluation went."""

import json

import pytest
import torch
from colour_classifier import ColourClassifier
from conftest import run_script
from safetensors.torch import load_file

from hf_robust_ft import AttackResult, PixelSpace, RobustnessReport, ThreatModel, evaluate_robustness
from hf_robust_ft.evaluation import convergence
from hf_robust_ft.evaluation import measure_batch as evaluation_work
from hf_robust_ft.evaluation.stored_examples import ExampleFolder, Examples, ExamplesUnreadable, StoredExamples
from hf_robust_ft.provenance.image_hashes import as_hex, combined_hash

LINF = ThreatModel("Linf", "8/255")
CASES = {
    "paper": {},
    "exact": {"protocol": "exact"},
    "rounds": {"attack_steps": "auto", "attack_steps_limit": 20, "epsilons": [0, "4/255", "8/255"]},
    "exact_rounds": {"attack_steps": "auto", "attack_steps_limit": 20, "protocol": "exact"},
    "L2": {"threat_model": ThreatModel("L2", 0.6), "protocol": "exact"},
    "L1": {"threat_model": ThreatModel("L1", 12.0)},
}


class Rippled(ColourClassifier):
    """With ripples that more steps get over: each round finds more."""

    def forward(self, pixel_values):
        ripples = torch.sin(30 * torch.nn.functional.conv2d(pixel_values, self.kernel, stride=2))
        return super().forward(pixel_values) + 0.2 * ripples.mean((2, 3))[:, :4]


@pytest.fixture(autouse=True)
def rounds_from_one_step(monkeypatch):
    monkeypatch.setattr(convergence, "FIRST_STEPS", 1)


@pytest.fixture
def measure(dataset, processor):
    def run(model=None, data=dataset, **changes):
        options = {"threat_model": LINF, "pixel_space": PixelSpace.from_processor(processor), "progress": False}
        options |= {"batch_size": 10, "checks": False} | changes
        return evaluate_robustness(model if model is not None else Rippled(), data, **options)

    return run


@pytest.fixture
def all_pixels(dataset, processor):
    values = torch.stack([torch.as_tensor(example["pixel_values"]) for example in dataset])
    return PixelSpace.from_processor(processor).to_pixels(values).clamp(0, 1)


def read(folder) -> Examples:
    unreadable = []
    parts = list(StoredExamples(folder).batches(unreadable))
    assert not unreadable
    found = Examples(*(torch.cat([getattr(part, name) for part in parts]) for name in Examples.__annotations__))
    return found.rows(found.index.argsort())


def check_proof(found: Examples, report: RobustnessReport, pixels: torch.Tensor, threat_model, labels, space) -> None:
    """Every image that falls has a float32 point in its ball, in [0, 1], that the model gets wrong."""
    smallest = report.smallest_epsilons
    assert found.index.tolist() == [place for place, eps in enumerate(smallest) if eps is not None and eps > 0]
    assert found.adversarial.dtype == torch.float32 and 0 <= found.adversarial.min() <= found.adversarial.max() <= 1
    assert found.eps.tolist() == [smallest[place] for place in found.index.tolist()]
    distance = threat_model.ball(pixels[found.index].double()).distance(found.adversarial.double())
    assert (distance <= found.eps * (1 + 1e-6)).all() and (distance > 0).all()
    predicted = Rippled()(space.from_pixels(found.adversarial)).argmax(1)
    assert torch.equal(predicted, found.prediction) and (predicted != found.label).all()
    assert found.label.tolist() == [labels[place] for place in found.index.tolist()]
    assert as_hex(found.image_hash) == [report.image_hashes[place] for place in found.index.tolist()]


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_examples_prove_the_report_and_change_nothing_in_it(measure, dataset, all_pixels, processor, tmp_path, options):
    plain = measure(**options)
    report = measure(examples_dir=tmp_path / "examples", **options)
    assert report == plain and 0 < report.adversarial_accuracy < report.clean_accuracy
    space, labels = PixelSpace.from_processor(processor), dataset.with_format(None)["label"]
    found = read(tmp_path / "examples")
    check_proof(found, report, all_pixels, options.get("threat_model", LINF), labels, space)
    assert report.found_again == {"examples": len(found), "misclassified": len(found)}
    assert StoredExamples(tmp_path / "examples").image_digest == report.image_digest
    rounds = {name.split(".")[1] for name in StoredExamples(tmp_path / "examples").shards}
    assert rounds > {"round-0"} if "attack_steps" in options else rounds == {"round-0"}


class Interrupted(Rippled):
    def __init__(self, fails_at):
        super().__init__()
        self.fails_at = fails_at

    def forward(self, pixel_values):
        if self.forwards == self.fails_at:
            raise KeyboardInterrupt
        return super().forward(pixel_values)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_run_that_was_cut_off_ends_in_the_same_files(measure, tmp_path, share):
    options = CASES["rounds"]
    model = Rippled()
    whole = measure(model, examples_dir=tmp_path / "whole", **options)
    folders = {"results_dir": tmp_path / "results", "examples_dir": tmp_path / "parts"}
    with pytest.raises(KeyboardInterrupt):
        measure(Interrupted(int(share * model.forwards)), **folders, **options)
    with pytest.raises(ExamplesUnreadable, match=r"has no examples.json.*--store_examples"):
        StoredExamples(tmp_path / "parts")
    rest = Rippled()
    assert measure(rest, **folders, **options) == whole and rest.forwards < model.forwards
    assert {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }
    again = Rippled()
    assert measure(again, **folders, **options) == whole and again.forwards == 1


def test_a_file_that_is_gone_or_damaged_is_made_again(measure, tmp_path):
    folders = {"results_dir": tmp_path / "results", "examples_dir": tmp_path / "examples"}
    whole = measure(**folders)
    first, second = sorted((tmp_path / "examples").glob("batch-*"))[:2]
    contents = first.read_bytes(), second.read_bytes()
    first.unlink()
    second.write_bytes(contents[1][:-8])
    model = Rippled()
    assert measure(model, **folders) == whole and model.forwards > 5
    assert (first.read_bytes(), second.read_bytes()) == contents


def test_the_folder_holds_one_evaluation(measure, dataset, tmp_path):
    measure(examples_dir=tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    measure(data=dataset.select(range(20)), examples_dir=tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*StoredExamples(tmp_path).files, "notes.txt"} and read(tmp_path).index.max() < 20


def test_a_folder_that_is_a_file_is_refused_before_anything_is_measured(measure, tmp_path):
    (tmp_path / "file").write_text("")
    model = Rippled()
    with pytest.raises(ValueError, match=r"cannot be kept in .*file, which is a file"):
        measure(model, examples_dir=tmp_path / "file")
    assert model.forwards == 0


def test_what_autoattack_finds_is_stored_at_eps_g(measure, all_pixels, tmp_path, monkeypatch):
    def first_falls(logits_fn, pixels, labels, threat_model, seed):
        fooled = torch.arange(len(labels)) == 0
        moved = torch.where(fooled.view(-1, 1, 1, 1), (pixels + threat_model.eps).clamp(0, 1), pixels)
        return AttackResult(moved, fooled, labels.float(), (labels + fooled.long()) % 4)

    monkeypatch.setattr(evaluation_work, "autoattack", first_falls)
    report = measure(examples_dir=tmp_path, autoattack=20)
    found = read(tmp_path)
    extra = [place for place in found.index.tolist() if report.smallest_epsilons[place] is None]
    standing = sum(report.smallest_epsilons[index] is None for index in report.autoattack_images)
    assert extra and {*extra} <= {*report.autoattack_images}
    assert round(20 * report.autoattack_accuracy) == standing - len(extra)
    rows = torch.tensor([found.index.tolist().index(place) for place in extra])
    assert (found.eps[rows] == LINF.eps).all() and (found.prediction[rows] == (found.label[rows] + 1) % 4).all()


SCRIPT = """
import torch.distributed
import hf_robust_ft.evaluation.convergence as convergence
from test_stored_examples import Rippled
from hf_robust_ft import PixelSpace, ThreatModel, evaluate_robustness

convergence.FIRST_STEPS = 1
torch.distributed.init_process_group("gloo")
evaluate_robustness(Rippled(), dataset, threat_model=ThreatModel("Linf", "8/255"), batch_size=10, checks=False,
                    pixel_space=PixelSpace.from_processor(processor), progress=False, attack_steps="auto",
                    attack_steps_limit=20, epsilons=[0, "4/255", "8/255"], examples_dir=folder / "examples")
torch.distributed.destroy_process_group()
"""


def test_two_processes_store_what_one_does(measure, tmp_path):
    done = run_script(SCRIPT, tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr
    measure(examples_dir=tmp_path / "one", **CASES["rounds"])
    both, one = (StoredExamples(folder) for folder in (tmp_path / "two" / "examples", tmp_path / "one"))
    assert both.shards == one.shards and both.image_digest == one.image_digest


def test_random_predictions_are_not_found_again(measure):
    honest = measure(epsilons=[0, "8/255"])
    assert honest.found_again["misclassified"] == honest.found_again["examples"] > 10
    torch.manual_seed(0)

    class Random(Rippled):
        def forward(self, pixel_values):
            return super().forward(pixel_values) + 0.2 * torch.randn(len(pixel_values), 4)

    report = measure(Random(), epsilons=[0, "8/255"])
    assert report.found_again["misclassified"] < 0.8 * report.found_again["examples"]


def test_passes_are_those_of_the_model(measure):
    class Counting(Rippled):
        images = 0

        def forward(self, pixel_values):
            self.images += len(pixel_values)
            return super().forward(pixel_values)

    model = Counting()
    report = measure(model)
    examples = report.found_again["examples"]
    assert report.passes["forwards"] == model.images - examples - 1  # looked at again, and one to count the classes
    assert 0 < report.passes["gradients"] < report.passes["forwards"]
    one, more = (measure(attack_steps="auto", attack_steps_limit=limit) for limit in (1, 8))
    assert more.passes["gradients"] > one.passes["gradients"]


def test_hashes_are_the_images_and_survive_json(measure, dataset, tmp_path):
    report = measure()
    assert len(set(report.image_hashes)) == 48 and report.image_digest == combined_hash(report.image_hashes)
    assert measure(batch_size=7).image_hashes == report.image_hashes
    assert measure(data=dataset.select(range(20))).image_hashes == report.image_hashes[:20]
    report.to_json(tmp_path / "report.json")
    assert RobustnessReport.from_json(tmp_path / "report.json") == report
    content = json.loads((tmp_path / "report.json").read_text())
    for name in ("image_hashes", "image_digest", "passes", "found_again"):
        del content[name]
    (tmp_path / "old.json").write_text(json.dumps(content))
    old = RobustnessReport.from_json(tmp_path / "old.json")
    assert (old.image_hashes, old.image_digest, old.passes, old.found_again) == ([], "", {}, {})


def test_files_are_plain_safetensors(measure, tmp_path):
    measure(examples_dir=tmp_path)
    name = next(iter(StoredExamples(tmp_path).shards))
    tensors = load_file(tmp_path / name)
    assert set(tensors) == {"adversarial", "index", "label", "prediction", "eps", "image_hash"}
    assert ExampleFolder(tmp_path).holds([[name, StoredExamples(tmp_path).shards[name]]])
    assert not ExampleFolder(tmp_path).holds([[name, "0" * 64]])
