"""The worst case over attacks, image by image for pixel accuracy, and for the data set's mean IoU."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_robust_ft.evaluation.segmentation.counts import LABELLED, PREDICTED, RIGHT, interval, mean_iou, pixel_accuracy
from hf_robust_ft.evaluation.segmentation.worst_case import curves, fewest_right, lowest_mean_iou


def random_counts(*shape, classes=3, seed=0):
    """Counts (*shape, 3, K) as masks of 100 pixels give them; an image's labels are the same under each attack."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((*shape, 3, classes), dtype=np.int64)
    labels = rng.integers(0, classes, (shape[-1], 100))
    for index in np.ndindex(*shape):
        label = labels[index[-1]]
        answer = np.where(rng.random(100) < rng.random(), label, rng.integers(0, classes, 100))
        counts[index][RIGHT] = np.bincount(label[label == answer], minlength=classes)
        counts[index][LABELLED] = np.bincount(label, minlength=classes)
        counts[index][PREDICTED] = np.bincount(answer, minlength=classes)
    return counts


def test_the_worst_for_pixel_accuracy_is_the_attack_with_fewest_right_pixels_on_each_image():
    candidates = random_counts(3, 6)
    right = candidates[..., RIGHT, :].sum(-1)
    assert (fewest_right(candidates)[:, RIGHT].sum(-1) == right.min(0)).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_mean_iou_ends_where_no_other_attack_on_one_image_lowers_it(seed):
    candidates = random_counts(2, 5, seed=seed)
    chosen = lowest_mean_iou(candidates, candidates[0])
    found = mean_iou(chosen.sum(0))
    for image, attack in itertools.product(range(5), range(2)):
        other = chosen.copy()
        other[image] = candidates[attack, image]
        assert mean_iou(other.sum(0)) >= found - 1e-12
    every = [candidates[list(choice), np.arange(5)].sum(0) for choice in itertools.product(range(2), repeat=5)]
    best = min(map(mean_iou, every))
    assert best - 1e-12 <= found <= min(mean_iou(each.sum(0)) for each in candidates) + 1e-12


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_curves_start_at_clean_and_never_rise(seed):
    candidates, clean = random_counts(4, 2, 5, seed=seed), random_counts(5, seed=seed)
    worst_right, lowest_iou = curves(candidates, clean)
    assert (worst_right[0] == clean).all() and (lowest_iou[0] == clean).all()
    for score, counts in ((pixel_accuracy, worst_right), (mean_iou, lowest_iou)):
        curve = score(counts.sum(1))
        assert (np.diff(curve) <= 1e-12).all()
        every = np.concatenate([candidates[-1], clean[None]])
        assert curve[-1] <= min(score(each.sum(0)) for each in every) + 1e-12


@pytest.mark.parametrize("accuracy", [0.5, 0.95, 1.0])
def test_an_interval_covers_the_truth_in_95_of_100_samples_where_a_bootstrap_collapses(accuracy):
    rng, covered, collapsed = np.random.default_rng(0), 0, 0
    for _ in range(100):
        right = 50 * (rng.random((20, 1, 1)) < accuracy)  # all of an image or nothing
        counts = np.concatenate([right, np.full_like(right, 50), np.full_like(right, 50)], 1).repeat(2, 2)
        low, high = interval(counts, pixel_accuracy)
        covered += low <= accuracy <= high
        collapsed += right.min() == right.max()
    assert covered >= 95 and (collapsed > 20 or accuracy == 0.5)
