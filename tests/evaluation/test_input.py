"""Data that no accuracy can be measured on are refused by name, not clipped or skipped."""

import pytest
import torch
from colour_classifier import ColourClassifier
from torch.utils.data import DataLoader

from hf_robust_ft import PixelSpace, ThreatModel, evaluate_robustness
from hf_robust_ft.evaluation.batches import stack_examples


@pytest.fixture
def space(processor):
    return PixelSpace.from_processor(processor)


@pytest.fixture
def measure(space):
    def run(data, model=None, **changes):
        options = {"threat_model": ThreatModel("Linf", "8/255"), "pixel_space": space, "progress": False}
        options |= {"batch_size": 10, "checks": False} | changes
        return evaluate_robustness(model if model is not None else ColourClassifier(), data, **options)

    return run


def changed(dataset, index, **entries):
    return [{**example, **(entries if at == index else {})} for at, example in enumerate(dataset)]


def test_pixels_far_outside_are_refused_and_rounding_is_not(measure, dataset, space):
    def with_corner(value):
        pixels = space.to_pixels(torch.as_tensor(dataset[13]["pixel_values"])).clamp(0, 1)
        pixels[1, 0, 0] = value
        return changed(dataset, 13, pixel_values=space.from_pixels(pixels))

    for value in (1.002, -0.002):
        with pytest.raises(ValueError, match=r"image 13 of the data is the first outside"):
            measure(with_corner(value))
    assert measure(with_corner(-3e-8)) == measure(with_corner(0.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite_are_named(measure, dataset, value):
    broken = torch.as_tensor(dataset[25]["pixel_values"]).clone()
    broken[0, 3, 3] = value
    with pytest.raises(ValueError, match="image 25 of the data are NaN or infinite"):
        measure(changed(dataset, 25, pixel_values=broken))


@pytest.mark.parametrize("batch_size", [0, -5, 2.5])
def test_a_batch_size_that_is_none_is_refused(measure, dataset, batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be a whole number of at least 1, got {batch_size}"):
        measure(dataset, batch_size=batch_size)


@pytest.mark.parametrize(
    ("epsilons", "message"),
    [
        (["0", "9/255", "8/255"], "increas"),
        (["0", "2/255", "2/255", "8/255"], "increas"),
        (["1/255", "8/255"], "start at 0"),
        (["0", "4/255"], "must end at the threat model's eps"),
        ([], "epsilons"),
    ],
)
def test_bad_grids_are_refused_before_anything_runs(measure, dataset, epsilons, message):
    model = ColourClassifier()
    with pytest.raises(ValueError, match=message):
        measure(dataset, model, epsilons=epsilons)
    assert model.forwards == 0


@pytest.mark.parametrize("kind", ["list", "loader"])
def test_empty_data_are_refused(measure, dataset, kind):
    data = [] if kind == "list" else DataLoader([], batch_size=4, collate_fn=stack_examples)
    for checks in (True, False):
        with pytest.raises(ValueError, match="dataset is empty"):
            measure(data, checks=checks)


@pytest.mark.parametrize(
    ("label", "message"),
    [(1.0, "labels must be one class index"), (4, r"got 4 \(image 12 of the data\)"), (-1, "got -1")],
)
def test_bad_labels_are_refused(measure, dataset, label, message):
    with pytest.raises(ValueError, match=message):
        measure(changed(dataset, 12, labels=label))


def test_batches_that_are_tuples_are_refused(measure, dataset):
    loader = DataLoader(dataset, batch_size=4, collate_fn=lambda batch: tuple(stack_examples(batch).values()))
    for checks in (True, False):
        with pytest.raises(ValueError, match="must hold 'pixel_values' and 'labels', got a tuple"):
            measure(loader, checks=checks)


def test_a_model_is_restored_when_the_data_are_refused(measure, dataset):
    model = ColourClassifier().train()
    with pytest.raises(ValueError, match="got 4"):
        measure(changed(dataset, 47, labels=4), model)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
