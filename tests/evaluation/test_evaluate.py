import dataclasses
import json
from collections import Counter

import pytest
import torch
from colour_classifier import ColourClassifier
from short_search import CHECKED_IMAGES
from torch.utils.data import DataLoader

import hf_robust_ft.evaluation.measure_batch as evaluation_work
from hf_robust_ft import (
    APGD,
    AttackResult,
    PixelClassifier,
    PixelSpace,
    RobustnessReport,
    ThreatModel,
    evaluate_robustness,
)
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.evaluation.protocols import attack_on_grid, resolve_epsilons
from hf_robust_ft.evaluation.trust_verdicts import OPENINGS

LINF = ThreatModel("Linf", "4/255")


@pytest.fixture
def space(processor):
    return PixelSpace.from_processor(processor)


@pytest.fixture
def report(make_model, dataset, space):
    return evaluate_robustness(make_model("resnet"), dataset, threat_model=LINF, pixel_space=space, progress=False)


def test_report_covers_the_papers_grid(report):
    assert report.epsilons == [0.0, 1 / 255, 2 / 255, 3 / 255, 4 / 255] and report.num_samples == 48
    assert report.clean_accuracy == report.accuracies[0] and report.adversarial_accuracy == report.accuracies[-1]
    assert report.accuracies == sorted(report.accuracies, reverse=True)
    assert report.attack == {
        "steps": 10,
        "loss": "ce",
        "random_start": False,
        "restarts": 1,
        "select": "fooled",
        "num_targets": 9,
        "larger_eps": False,
    }


def test_report_survives_json_with_the_promised_keys(report, tmp_path):
    path = tmp_path / "report.json"
    report.with_metadata(model="x").to_json(path)
    assert RobustnessReport.from_json(path) == report.with_metadata(model="x")
    keys = {"clean_accuracy", "adversarial_accuracy", "expected_robustness", "epsilons", "accuracies"}
    assert keys <= set(json.loads(path.read_text()))


@pytest.mark.parametrize("content", ["not json", "[]", '{"clean_accuracy": 1}', "{}"])
def test_a_file_that_is_no_report_is_refused(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"report\.json is no (JSON|robustness report)"):
        RobustnessReport.from_json(path)


def test_dataset_loader_and_batch_size_give_one_result(make_model, dataset, space, report):
    model = make_model("resnet")
    loader = DataLoader(dataset, batch_size=7, collate_fn=stack_examples)
    from_loader = evaluate_robustness(model, loader, threat_model=LINF, pixel_space=space, progress=False)
    assert from_loader == report


@pytest.mark.parametrize("options", [{}, {"results_dir": "results"}, {"attack_steps": "auto"}], ids=str)
def test_checksums_are_of_batches_that_are_compared(make_model, dataset, space, monkeypatch, tmp_path, options):
    sums = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation_work, "hash_tensors", lambda batch: sums.append(batch) or "0")
    report = evaluate_robustness(
        make_model("resnet"), dataset, threat_model=LINF, pixel_space=space, batch_size=8, progress=False, **options
    )
    rounds = len(report.convergence["rounds"]) if report.convergence else 1
    assert len(sums) == (6 * rounds if options else 0)


def test_a_pixel_classifier_takes_pixels(make_model, dataset, space, report):
    pixels = [{**example, "pixel_values": space.to_pixels(example["pixel_values"])} for example in dataset]
    classifier = PixelClassifier(make_model("resnet"), space)
    assert evaluate_robustness(classifier, pixels, threat_model=LINF, progress=False).accuracies == report.accuracies
    with pytest.raises(ValueError, match="leave pixel_space out"):
        evaluate_robustness(classifier, pixels, threat_model=LINF, pixel_space=space)


def test_normalised_images_need_their_pixel_space(make_model, dataset):
    with pytest.raises(ValueError, match="pass the map in use: pixel_space"):
        evaluate_robustness(make_model(), dataset, threat_model=LINF, progress=False)


def test_the_model_comes_back_as_it_was(make_model, dataset, space):
    model = make_model("resnet").train()
    evaluate_robustness(model, dataset, threat_model=LINF, pixel_space=space, epsilons=[0, LINF.eps], progress=False)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_only_survivors_are_attacked(make_model, dataset, space):
    attacked = []

    class Spy(APGD):
        def starts(self, logits_fn, ball, labels, *args, **kwargs):
            attacked.append(len(labels))
            return super().starts(logits_fn, ball, labels, *args, **kwargs)

    batch = stack_examples(list(dataset))
    classifier = PixelClassifier(make_model("resnet"), space).eval()
    pixels = space.to_pixels(batch["pixel_values"]).clamp(0, 1)
    grid = [0.0, 1 / 255, 4 / 255, 0.5]
    outcome = attack_on_grid(
        classifier, pixels, batch["labels"], threat_model=ThreatModel(eps=0.5), epsilons=grid, attack=Spy(steps=5)
    )
    correct = outcome.smallest_eps[:, None] > torch.tensor(grid)
    assert attacked == [int(n) for n in correct.sum(0)[:-1] if n]


def test_an_empty_dataset_is_refused(make_model, dataset, space):
    with pytest.raises(ValueError, match="dataset is empty"):
        evaluate_robustness(make_model(), dataset.select([]), threat_model=LINF, pixel_space=space, progress=False)


@pytest.mark.parametrize(
    ("epsilons", "message"),
    [([0, 2 / 255], "must end at"), ([0.01, 4 / 255], "start at 0"), ([0, 4 / 255, 2 / 255, 4 / 255], "increase")],
)
def test_bad_grids_are_refused(epsilons, message):
    with pytest.raises(ValueError, match=message):
        resolve_epsilons(epsilons, LINF)


def test_unknown_protocol_lists_the_valid_ones(make_model, dataset):
    with pytest.raises(ValueError, match="Valid protocols: paper"):
        evaluate_robustness(make_model(), dataset, threat_model=LINF, protocol="robustbench")


def test_data_of_another_kind_is_refused(make_model):
    with pytest.raises(ValueError, match="map-style dataset or a torch DataLoader, got generator"):
        evaluate_robustness(make_model(), (x for x in []), threat_model=LINF)
    with pytest.raises(ValueError, match="Examples lack"):
        evaluate_robustness(make_model(), [{"image": 1, "label": 2}], threat_model=LINF, progress=False)


def test_labels_beyond_the_head_are_refused(make_model, dataset, space):
    with pytest.raises(ValueError, match=r"in 0\.\.3-1, got 3"):
        evaluate_robustness(make_model(num_labels=3), dataset, threat_model=LINF, pixel_space=space, progress=False)


def test_labels_beyond_the_logits_of_a_plain_module_are_refused(make_model, dataset, space):
    shifted = [{**example, "labels": example["labels"] + 1} for example in dataset]
    with pytest.raises(ValueError, match=r"in 0\.\.4-1, got 4"):
        evaluate_robustness(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4)),
            shifted,
            threat_model=LINF,
            pixel_space=space,
            progress=False,
        )


def test_attacking_everyone_gives_the_same_predictions(make_model, dataset, space):
    batch = stack_examples(list(dataset))
    classifier = PixelClassifier(make_model("vit"), space).eval()
    pixels = space.to_pixels(batch["pixel_values"]).clamp(0, 1)
    options = {"threat_model": LINF, "epsilons": [0.0, LINF.eps], "attack": APGD(steps=3, random_start=False)}
    survivors, everyone = (
        attack_on_grid(classifier, pixels, batch["labels"], survivors_only=flag, **options) for flag in (True, False)
    )
    assert torch.equal(survivors.smallest_eps, everyone.smallest_eps)


def test_report_prints_the_three_numbers(report):
    assert "clean accuracy" in str(report) and "Linf 4/255" in str(report) and "expected robustness" in str(report)


def test_random_starts_do_not_touch_global_randomness(make_model, dataset, space):
    model, state = make_model("resnet"), torch.get_rng_state()
    options = {"threat_model": LINF, "pixel_space": space, "attack": APGD(steps=2), "progress": False}
    first, second = (evaluate_robustness(model, dataset, **options) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == second


@pytest.fixture
def measure(dataset, space):
    """48 images in batches of 10, of which some withstand 8/255."""

    def run(data=dataset, model=None, **changes):
        options = {"threat_model": ThreatModel("Linf", "8/255"), "pixel_space": space, "progress": False}
        options |= {"batch_size": 10, "checks": False} | changes
        return evaluate_robustness(model if model is not None else ColourClassifier(), data, **options)

    return run


def test_trust_checks_are_in_the_report_unless_switched_off(measure, tmp_path):
    report = measure(checks=True)
    assert [check["name"] for check in report.checks] == list(OPENINGS)
    assert all(check["passed"] for check in report.checks)
    report.to_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["checks"] == report.checks
    assert report.check_lines().count("\n") == 7 and f"on {CHECKED_IMAGES} images" in report.check_lines()
    without = measure(checks=False)
    assert without.checks == [] and dataclasses.replace(report, checks=[]) == without


def test_a_failed_check_is_in_the_report(measure):
    class Rounding(ColourClassifier):
        def forward(self, pixel_values):
            return super().forward((255 * pixel_values).round() / 255)

    report = measure(model=Rounding(), checks=True, epsilons=[0, "8/255"])
    assert "gradients" in [check["name"] for check in report.checks if not check["passed"]]
    assert "WARN gradients: The attack cannot see where to go" in report.check_lines()


class SortedByClass(torch.utils.data.Dataset):
    """100 images of 4 classes, one class after the other; `read` has the indices asked for."""

    def __init__(self, dataset):
        self.dataset, self.read = dataset, []

    def __len__(self):
        return 100

    def __getitem__(self, index):
        self.read.append(index)
        return self.dataset[index // 25 + 4 * (index % 12)]


SOURCES = {
    "dataset": lambda data: data,
    "loader": lambda data: DataLoader(data, batch_size=10, collate_fn=stack_examples),
    "shuffled": lambda data: DataLoader(data, batch_size=10, collate_fn=stack_examples, shuffle=True),
}


@pytest.mark.parametrize("source", SOURCES)
def test_as_many_images_of_each_class_are_checked(measure, dataset, monkeypatch, source):
    checked = []
    monkeypatch.setattr(
        evaluation_work, "run_trust_checks", lambda _, *given, **more: checked.append((given, more)) or []
    )
    data = SortedByClass(dataset)
    loss_free = {"epsilons": [0, "8/255"], "attack": APGD(steps=1), "checks": True}
    torch.manual_seed(0)
    report = measure(SOURCES[source](data), **loss_free)
    (_, labels, *_), options = checked[0]
    assert labels.bincount().tolist() == [CHECKED_IMAGES // 4] * 4 and len(labels) == CHECKED_IMAGES
    again = data.read[100:]
    if source == "shuffled":
        assert again == []
    else:
        assert again == sorted(again) and len(again) == CHECKED_IMAGES  # the others are read once
        smallest = [report.smallest_epsilons[index] for index in again]
        assert options["standing"].tolist() == [eps is None or eps == float("inf") for eps in smallest]
        measure(SOURCES[source](data), seed=1, **loss_free)
        assert data.read[-CHECKED_IMAGES:] != again


@pytest.fixture
def asked(monkeypatch):
    """The labels AutoAttack is asked about; it fools those of class 0."""
    labels_seen = []

    def stub(logits_fn, pixels, labels, threat_model, *, seed):
        labels_seen.append(labels.tolist())
        return AttackResult(pixels, labels == 0, labels.float(), labels)

    monkeypatch.setattr(evaluation_work, "autoattack", stub)
    return labels_seen


@pytest.mark.parametrize("protocol", ["paper", "exact"])
@pytest.mark.parametrize("count", [1, 10, 25, 48, 1000])
def test_autoattack_runs_on_the_survivors_of_images_drawn_by_class(measure, dataset, asked, protocol, count):
    report = measure(autoattack=count, protocol=protocol, epsilons=[0, "8/255"])
    drawn, labels = report.autoattack_images, [example["labels"] for example in dataset]
    survivors = [labels[index] for index in drawn if report.smallest_epsilons[index] is None]
    assert [label for batch in asked for label in batch] == survivors
    assert report.autoattack_samples == len({*drawn}) == min(count, 48) and drawn == sorted(drawn)
    taken = Counter(labels[index] for index in drawn)
    assert max(taken.values()) - min(taken[label] for label in range(4)) <= 1
    assert report.autoattack_accuracy == pytest.approx(sum(label != 0 for label in survivors) / len(drawn))
    assert report.autoattack_accuracy <= len(survivors) / len(drawn)


def test_autoattack_is_asked_again_about_the_same_images_and_no_others_by_another_seed(measure, asked):
    images = [measure(autoattack=9, seed=seed, epsilons=[0, "8/255"]).autoattack_images for seed in (0, 0, 1)]
    assert images[0] == images[1] != images[2]


def test_an_evaluation_with_autoattack_that_was_cut_off_goes_on(measure, asked, tmp_path):
    options = {"autoattack": 20, "epsilons": [0, "8/255"], "checks": False, "batch_size": 8}
    whole = measure(results_dir=tmp_path, **options)
    before = len(asked)
    for newest in sorted(tmp_path.rglob("batch-*.json"), key=lambda path: path.stat().st_mtime_ns)[-2:]:
        newest.unlink()
    assert measure(results_dir=tmp_path, **options) == whole
    assert 0 < len(asked) - before <= 2


@pytest.mark.parametrize("options", [{"autoattack": 5}, {"attack_steps": "auto"}, {"protocol": "reliable"}])
def test_what_looks_at_images_again_needs_the_same_ones(measure, dataset, options):
    shuffled = DataLoader(dataset, 8, shuffle=True, collate_fn=stack_examples)
    with pytest.raises(ValueError, match=r"one with AutoAttack, .*'reliable' needs shuffle=False"):
        measure(shuffled, **options)


def test_without_autoattack_nothing_is_reported_of_it(measure, asked):
    report = measure()
    assert asked == [] and report.autoattack_accuracy is None and report.autoattack_samples == 0
    assert measure(autoattack=20).accuracies == report.accuracies and asked  # which it has no part in


def test_real_autoattack_is_at_least_as_strong(measure):
    report = measure(autoattack=3, epsilons=[0, "8/255"])
    standing = sum(report.smallest_epsilons[index] is None for index in report.autoattack_images)
    assert standing > 0 and 0 <= report.autoattack_accuracy <= standing / 3


@pytest.mark.parametrize("count", [-1, 2.5, True])
def test_a_number_that_is_none_of_images_is_refused_for_autoattack(measure, count):
    model = ColourClassifier()
    with pytest.raises(ValueError, match=f"1 or more; got {count}"):
        measure(model=model, autoattack=count)
    assert model.forwards == 0


def test_autoattack_needs_four_classes_and_says_so(dataset, measure):
    class Three(ColourClassifier):
        def forward(self, pixel_values):
            return super().forward(pixel_values)[:, :3]

    few, model = [example for example in dataset if example["labels"] < 3], Three()
    with pytest.raises(ValueError, match="4 classes"):
        measure(few, model, autoattack=20, epsilons=[0, "8/255"])
    assert model.forwards == 1  # to count the classes: nothing was attacked yet


def test_a_loss_that_ranks_more_logits_than_there_are_is_refused_at_once(dataset, measure):
    class Two(ColourClassifier):
        def forward(self, pixel_values):
            return super().forward(pixel_values)[:, :2]

    few, model = [example for example in dataset if example["labels"] < 2], Two()
    with pytest.raises(ValueError, match="Use loss='ce'"):
        measure(few, model, attack=APGD(loss="dlr", random_start=False))
    assert model.forwards == 1


def test_the_checks_run_no_more_images_at_once_than_the_evaluation(measure, dataset):
    sizes = []

    class Sized(ColourClassifier):
        def forward(self, pixel_values):
            sizes.append(len(pixel_values))
            return super().forward(pixel_values)

    in_tens = measure(model=Sized(), checks=True)
    assert max(sizes) == 10
    sizes.clear()
    loader = DataLoader(dataset, batch_sampler=[range(start, start + 6) for start in range(0, 48, 6)],
                        collate_fn=stack_examples)  # fmt: skip
    in_sixes = measure(loader, Sized(), checks=True)
    assert max(sizes) == 6
    assert in_sixes == in_tens == measure(checks=True, batch_size=48)


def test_weights_of_eps_are_reported_by_their_name(measure, tmp_path):
    weights = {0: 1, "2/255": 2, 8 / 255: 1}
    name = "weights:0=1,2/255=2,8/255=1"
    for protocol in ("paper", "exact"):
        report = measure(distributions=[weights, "dirac:2/255"], protocol=protocol)
        parts = [report.clean_accuracy, 2 * report.accuracies[2], report.adversarial_accuracy]
        assert list(report.distributions) == [name, "dirac:2/255"]
        assert report.distributions[name] == pytest.approx(sum(parts) / 4)
        assert report.expected_robustness_under(name) == report.expected_robustness_under(weights)
        assert f"for eps ~ {name}" in str(report)
        report.to_json(tmp_path / "report.json")
        assert RobustnessReport.from_json(tmp_path / "report.json") == report


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distributions": "beta:2,5"}, "put it in brackets"),
        ({"distributions": {0: 1}}, "put it in brackets"),
        ({"distributions": [{9 / 255: 1}]}, r"in \[0, eps_g\]"),
        ({"distributions": [3]}, "3 is no distribution of eps"),
        ({"threat_model": "8/255"}, r"threat_model must be a ThreatModel, e.g. .*; got '8/255'"),
        ({"attack": "apgd"}, "attack must be an APGD"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": 0.5}, "seed must be a whole number of at least 0, got 0.5"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(measure, changes, message):
    model = ColourClassifier()
    with pytest.raises(ValueError, match=message):
        measure(model=model, **changes)
    assert model.forwards == 0
