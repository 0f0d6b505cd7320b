"""What is wrong with a report or its stored examples is found, by name, without an attack."""

import dataclasses
import hashlib
import json
import re
import shutil

import pytest
import torch
from colour_classifier import ColourClassifier
from safetensors.torch import load_file, save_file

from hf_robust_ft import PixelSpace, ThreatModel, evaluate_robustness
from hf_robust_ft.evaluation.stored_examples import ExamplesUnreadable, StoredExamples
from hf_robust_ft.hub import verification
from hf_robust_ft.hub.verification import verify_report
from hf_robust_ft.provenance.image_hashes import combined_hash

NAMES = ["files", "complete", "images", "labels", "range", "ball", "misclassified", "undecided", "clean accuracy",
         "scores"]  # fmt: skip
LINF = ThreatModel("Linf", "8/255")


@pytest.fixture
def space(processor):
    return PixelSpace.from_processor(processor)


@pytest.fixture
def evaluate(dataset, space, tmp_path):
    def run(model=None, **changes):
        options = {"threat_model": LINF, "batch_size": 10, "checks": False, "progress": False} | changes
        folder = tmp_path / "examples"
        return evaluate_robustness(
            model or ColourClassifier(), dataset, pixel_space=space, examples_dir=folder, **options
        ), folder

    return run


@pytest.fixture
def verify(dataset, space):
    def run(report, folder, model=None, data=dataset, **changes):
        found = verify_report(model or ColourClassifier(), data, report, folder, pixel_space=space, **changes)
        assert [each.name for each in found] == NAMES
        return {each.name: each.sentence for each in found if not each.passed}

    return run


CASES = {
    "paper": {},
    "exact": {"protocol": "exact", "distributions": ["beta:2,5"], "class_names": ["r", "g", "b", "y"]},
    "rounds": {"attack_steps": "auto", "attack_steps_limit": 20, "epsilons": [0, "4/255", "8/255"]},
    "L2": {"threat_model": ThreatModel("L2", 0.6), "protocol": "exact"},
    "L1": {"threat_model": ThreatModel("L1", 12.0)},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("batch_size", [7, 64])
def test_an_honest_report_holds_at_any_batch_size(evaluate, verify, options, batch_size):
    report, folder = evaluate(**options)
    assert verify(report, folder, batch_size=batch_size) == {}


def test_nothing_is_attacked(evaluate, verify):
    class NoGradients(ColourClassifier):
        def forward(self, pixel_values):
            assert not torch.is_grad_enabled()
            return super().forward(pixel_values)

    model = NoGradients()
    assert verify(*evaluate(), model) == {} and model.forwards < 20


def rewrite(folder, change, seal=True):
    """Change the tensors of the first shard; `seal` enters its checksum in the index, as a forger would."""
    index = json.loads((folder / "examples.json").read_text())
    name = next(iter(index["shards"]))
    tensors = change(load_file(folder / name))
    save_file(tensors, folder / name)
    if seal:
        index["shards"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        (folder / "examples.json").write_text(json.dumps(index))
    return name


def changing(name, change):
    def apply(tensors):
        tensors[name] = change(tensors[name].clone(), tensors)
        return tensors

    return apply


def beyond_eps(pixels, tensors):
    pixels[0, 0, 0, 0] += 0.1 if pixels[0, 0, 0, 0] < 0.5 else -0.1
    return pixels


def above_one(pixels, tensors):
    pixels[0, 0, 0, 0] = 1.01
    return pixels


def not_a_number(pixels, tensors):
    pixels[0, 0, 0, 0] = torch.nan
    return pixels


def other(values, tensors):
    values[0] = (values[0] + 1) % 4
    return values


def swapped(values, tensors):
    values[[0, 1]] = values[[1, 0]]
    return values


TAMPERED = {
    "outside of its ball": (changing("adversarial", beyond_eps), {"ball"}, r"image \d+ is at Linf 0\.\d+, its eps"),
    "out of range": (changing("adversarial", above_one), {"range", "ball"}, r"has pixels from 0\.?\d* to 1\.01"),
    "NaN": (changing("adversarial", not_a_number), {"range", "ball"}, "pixels from nan"),
    "another label": (changing("label", other), {"labels"}, r"image \d+ is of class \d, its example of \d"),
    "of another image": (changing("image_hash", swapped), {"images"}, r"the example of image \d+ is of \w{16}, not"),
    "examples swapped": (changing("adversarial", swapped), {"ball"}, "is at Linf"),
    "an image twice": (changing("index", lambda v, _: v.index_fill(0, torch.tensor([1]), v[0])),
                       {"complete", "images", "ball"}, "and has no example"),
    "of no image": (changing("index", lambda v, _: v.index_fill(0, torch.tensor([0]), 99)), {"complete", "images"},
                    "is of image 99, and there are 48"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "names", "sentence"), TAMPERED.values(), ids=TAMPERED)
def test_a_forged_example_is_found(evaluate, verify, change, names, sentence):
    report, folder = evaluate()
    rewrite(folder, change)
    found = verify(report, folder)
    # What is moved far is perhaps classified correctly; the forger's other traces are as expected.
    assert names <= set(found) <= names | {"misclassified", "labels"}, found
    assert re.search(sentence, " ".join(found.values())), found


def test_an_example_that_fools_nobody_is_found(evaluate, verify, dataset, space):
    report, folder = evaluate()
    values = torch.stack([torch.as_tensor(example["pixel_values"]) for example in dataset])
    pixels = space.to_pixels(values).clamp(0, 1)
    rewrite(folder, changing("adversarial", lambda points, tensors: pixels[tensors["index"]]))
    found = verify(report, folder)
    assert set(found) == {"misclassified"} and "is classified correctly" in found["misclassified"]


def test_files_that_are_damaged_or_gone_are_named(evaluate, verify):
    report, folder = evaluate()
    first, second = list(StoredExamples(folder).shards)[:2]
    (folder / first).write_bytes((folder / first).read_bytes()[:-100])
    (folder / second).unlink()
    found = verify(report, folder)
    assert set(found) == {"files", "complete"}
    assert f"{first} is not the file that was written" in found["files"] and f"{second} is missing" in found["files"]
    rewritten, folder = evaluate()
    name = rewrite(folder, changing("label", other), seal=False)
    assert name in verify(rewritten, folder)["files"]


def test_without_an_index_the_way_to_examples_is_told(evaluate, verify):
    report, folder = evaluate()
    (folder / "examples.json").write_text('{"format": 1}')
    with pytest.raises(ExamplesUnreadable, match="is no index of examples"):
        verify(report, folder)
    shutil.rmtree(folder)
    with pytest.raises(ExamplesUnreadable, match="evaluate with --store_examples"):
        verify(report, folder)


def raised(report):
    """A report whose every number was made to agree with one image that is said to stand."""
    place = next(place for place, eps in enumerate(report.smallest_epsilons) if eps is not None and 0 < eps < LINF.eps)
    smallest = [None if at == place else eps for at, eps in enumerate(report.smallest_epsilons)]
    standing = torch.tensor([torch.inf if eps is None else eps for eps in smallest], dtype=torch.float64)
    accuracies = [(standing > eps).double().mean().item() for eps in report.epsilons]
    changed = dataclasses.replace(
        report, smallest_epsilons=smallest, accuracies=accuracies, adversarial_accuracy=accuracies[-1], per_class=[]
    )
    return dataclasses.replace(changed, expected_robustness=changed.expected_robustness_under("uniform"))


FORGED = {
    "clean accuracy": (lambda r: {"clean_accuracy": 1.0}, {"clean accuracy", "scores"}),
    "adversarial accuracy": (lambda r: {"adversarial_accuracy": r.adversarial_accuracy + 1 / 48}, {"scores"}),
    "expected robustness": (lambda r: {"expected_robustness": 0.9}, {"scores"}),
    "curve": (lambda r: {"accuracies": [*r.accuracies[:-1], 0.9], "adversarial_accuracy": 0.9}, {"scores"}),
    "class": (lambda r: {"per_class": [{**r.per_class[0], "adversarial_accuracy": 1.0}, *r.per_class[1:]]}, {"scores"}),
    "all together": (lambda r: vars(raised(r)), {"scores"}),
    "distribution": (lambda r: {"distributions": {"beta:2,5": 0.99}}, {"scores"}),
    "smallest eps": (lambda r: {"smallest_epsilons": [eps and eps / 2 for eps in r.smallest_epsilons]},
                     {"scores", "ball"}),
    "image hash": (lambda r: {"image_hashes": ["0" * 16, *r.image_hashes[1:]]}, {"images"}),
    "digest": (lambda r: {"image_digest": "0" * 16}, {"images"}),
    "eps": (lambda r: {"threat_model": {"norm": "L2", "eps": 8 / 255}}, {"ball"}),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "names"), FORGED.values(), ids=FORGED)
def test_a_changed_report_is_found(evaluate, verify, changes, names):
    report, folder = evaluate()
    found = verify(dataclasses.replace(report, **changes(report)), folder)
    assert set(found) == names, found


def test_other_images_or_another_model_are_found(evaluate, verify, dataset):
    report, folder = evaluate()
    found = verify(report, folder, data=dataset.select(range(47)))
    assert "the data have 47, the report 48" in found["images"] and "scores" in found
    found = verify(report, folder, data=dataset.select([1, 0, *range(2, 48)]))
    assert "image 0 is" in found["images"] and found["images"].endswith("; and 1 more")
    assert {"misclassified", "clean accuracy"} <= set(verify(report, folder, ColourClassifier(0.0)))


def test_a_report_of_an_older_version_is_refused(evaluate, verify):
    report, folder = evaluate()
    old = dataclasses.replace(report, image_hashes=[], image_digest="")
    with pytest.raises(ValueError, match=r"does not tell which images it is of.*--protocol reliable"):
        verify(old, folder)


@pytest.mark.parametrize("ruled_out", [-1e5, -torch.inf])
def test_a_class_that_is_ruled_out_leaves_no_prediction_undecided(evaluate, verify, ruled_out):
    class Wider(ColourClassifier):
        def forward(self, pixel_values):
            return torch.nn.functional.pad(super().forward(pixel_values), (0, 1), value=ruled_out)

    report, folder = evaluate(Wider(), protocol="exact")
    assert verify(report, folder, Wider()) == {}
    assert set(verify(dataclasses.replace(report, clean_accuracy=1.0), folder, Wider())) == {"clean accuracy", "scores"}
    assert {"misclassified", "clean accuracy"} <= set(verify(report, folder, Wider(0.0)))


@pytest.mark.parametrize(("count", "named"), [(1, False), (2, True)])
def test_more_undecided_predictions_than_are_tolerated_do_not_hold(evaluate, verify, monkeypatch, count, named):
    """As if every lead were within rounding, and so many images wrong in the report that are right."""
    monkeypatch.setattr(verification, "LEAD", 1e6)
    report, folder = evaluate()
    right = [place for place, eps in enumerate(report.smallest_epsilons) if eps is None]
    smallest = [0.0 if place in right[:count] else eps for place, eps in enumerate(report.smallest_epsilons)]
    found = verify(dataclasses.replace(report, smallest_epsilons=smallest), folder)
    assert ("undecided" in found) == named
    assert not named or found["undecided"].startswith("2 predictions on 48 images and ")


def test_random_predictions_do_not_hold(evaluate, verify):
    class Random(ColourClassifier):
        def forward(self, pixel_values):
            return super().forward(pixel_values) + 0.2 * torch.randn(len(pixel_values), 4)

    torch.manual_seed(0)
    report, folder = evaluate(Random(), epsilons=[0, "8/255"])
    assert "misclassified" in verify(report, folder, Random())


def test_the_digest_is_of_the_report_s_hashes(evaluate):
    report, folder = evaluate()
    assert StoredExamples(folder).image_digest == report.image_digest == combined_hash(report.image_hashes)
