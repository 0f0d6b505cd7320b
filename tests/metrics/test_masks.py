"""The configuration `segmentation` of the metric: pixel accuracy and mean IoU of masks under attack."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

import hf_robust_ft
from hf_robust_ft.metrics.robustness.masks import class_ious, count_pixels, mean_iou
from hf_robust_ft.metrics.robustness.robustness import Robustness

FOLDER = Path(hf_robust_ft.__file__).parent / "metrics" / "robustness"
GRID = [0, "2/255", "4/255"]


@pytest.fixture(params=["evaluate.load", "import"])
def metric(request):
    if request.param == "import":
        return Robustness("segmentation", keep_in_memory=True)
    return evaluate.load(str(FOLDER), "segmentation")


def random_masks(count=3, size=(5, 7), classes=4, eps=3, seed=0):
    rng = np.random.default_rng(seed)
    references = [rng.integers(0, classes, size) for _ in range(count)]
    predictions = [rng.integers(0, classes, (eps, *size)) for _ in range(count)]
    for reference in references:
        reference[0, :3] = 255
    return predictions, references


def by_confusion(predictions, references, index, classes):
    """Accuracy and mean IoU at one eps as the confusion matrix over all labelled pixels has them."""
    confusion = np.zeros((classes, classes))
    for masks, reference in zip(predictions, references, strict=True):
        for true, answer in zip(reference.flat, masks[index].flat, strict=True):
            if true != 255:
                confusion[true, answer] += 1
    right, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return right.sum() / confusion.sum(), np.mean([a / b for a, b in zip(right, union, strict=True) if b])


def test_scores_are_those_of_the_confusion_matrix_over_all_labelled_pixels(metric):
    predictions, references = random_masks()
    found = metric.compute(predictions=predictions, references=references, epsilons=GRID)
    expected = [by_confusion(predictions, references, index, 4) for index in range(3)]
    assert found["pixel_accuracies"] == pytest.approx([accuracy for accuracy, _ in expected])
    assert found["mean_ious"] == pytest.approx([iou for _, iou in expected])
    for name, curve in (("pixel_accuracy", "pixel_accuracies"), ("mean_iou", "mean_ious")):
        first, middle, last = found[curve]
        assert (found[f"clean_{name}"], found[f"adversarial_{name}"]) == (first, last)
        assert found[f"expected_{name}"] == pytest.approx((first + 2 * middle + last) / 4)


def test_a_class_that_is_nowhere_does_not_count_and_one_only_predicted_counts_as_missed():
    reference, right, astray = np.zeros((1, 4), int), np.zeros((1, 1, 4), int), np.array([[[0, 0, 0, 5]]])
    assert mean_iou(*count_pixels([right], [reference])).tolist() == [1.0]
    counts = count_pixels([astray], [reference])
    assert mean_iou(*counts).tolist() == [0.375]  # of 3/4 and 0
    assert np.isnan(class_ious(*counts)[0, 1:5]).all()


def test_ignored_pixels_do_not_count_whatever_is_predicted_there(metric):
    predictions, references = random_masks()
    options = {"references": references, "epsilons": GRID}
    first = metric.compute(predictions=predictions, **options)
    for masks in predictions:
        masks[:, 0, :3] = 3 - masks[:, 0, :3]
    assert metric.compute(predictions=predictions, **options) == first
    counted = metric.compute(predictions=predictions, ignore_index=None, **options)
    assert counted["clean_pixel_accuracy"] < first["clean_pixel_accuracy"]
    negative = [np.where(reference == 255, -100, reference) for reference in references]
    assert metric.compute(predictions=predictions, references=negative, epsilons=GRID) == first


def test_samples_added_one_by_one_and_of_other_sizes_score_as_all_together(metric):
    predictions, references = random_masks(2)
    wider = random_masks(1, size=(2, 9), seed=1)
    predictions, references = predictions + wider[0], references + wider[1]
    together = metric.compute(predictions=predictions, references=references, epsilons=GRID)
    metric.add_batch(predictions=[torch.tensor(masks) for masks in predictions[:2]], references=references[:2])
    metric.add(prediction=predictions[2].tolist(), reference=references[2].tolist())
    assert len(metric) == 3 and metric.compute(epsilons=GRID) == together


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"references": [np.zeros((4, 4), int)]}, "as many"),
        ({"references": [np.zeros((5, 6), int)] * 3}, "Resize logits to the reference's size"),
        ({"predictions": [np.full((3, 5, 7), 0.5)] * 3}, "take the argmax"),
        ({"predictions": [np.full((3, 5, 7), -1)] * 3}, "class indices"),
        ({"predictions": [np.zeros((2, 5, 7), int)] * 3}, "one prediction per eps"),
        ({"references": [np.full((5, 7), 255)] * 3}, "No pixel of the references is labelled"),
        ({"epsilons": [0.1, 0.2, 0.3]}, "must start at 0"),
    ],
)
def test_what_cannot_be_is_refused(metric, change, said):
    predictions, references = random_masks()
    with pytest.raises(ValueError, match=said):
        metric.compute(**({"predictions": predictions, "references": references, "epsilons": GRID} | change))


def test_an_unknown_configuration_is_refused():
    with pytest.raises(ValueError, match="Valid: default, segmentation"):
        Robustness("detection", keep_in_memory=True)
