import dataclasses
import json

import pytest
import torch
from torch.utils.data import DataLoader

from hf_robust_ft import APGD, PixelClassifier, PixelSpace, RobustnessReport, ThreatModel, evaluate_robustness
from hf_robust_ft.batches import stack_examples
from hf_robust_ft.protocols import attack_on_grid, resolve_epsilons

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
