"""Robustness metric: accuracy under attack at each eps and its mean over eps; configuration "segmentation" of masks."""

import copy
from itertools import chain

import datasets
import evaluate
import numpy as np

# evaluate.load copies the siblings named here and no others; one import a line, without a comment.
from .class_indices import check_classes
from .curve import check_epsilons
from .curve import expected_robustness
from .curve import grid_weights
from .curve import robust_accuracies
from .masks import check_masks
from .masks import count_pixels
from .masks import mean_iou
from .masks import pixel_accuracy
from .threat_distribution_specs import parse_distribution
from .threat_distributions import ThreatDistribution

_DESCRIPTION = """\
Measures the robustness of an image classifier from its predictions under attack at increasing budgets eps:
clean accuracy (eps = 0), adversarial accuracy (the largest eps) and expected robustness, the mean accuracy over eps,
i.e. the area under the accuracy-eps curve divided by the largest eps, or its mean over another distribution of eps.
The configuration "segmentation" measures the same of masks, by pixel accuracy and mean IoU.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: for each sample, the class predicted under attack at each eps (one row per sample).
    references: the true class of each sample. Classes are whole numbers of at least 0; -100 is none.
    epsilons: the budgets, in pixel units of [0, 1], increasing from 0 (clean); fractions such as "4/255" allowed.
    weights: optional, one per eps, summing to 1 (up to rounding, which is divided out), in place of the trapezoid
        rule (eps uniform on [0, eps_g]).
    distribution: optional, in place of weights: "uniform", "beta:A,B", "truncnorm:MEAN,STD", "dirac:EPS" or, for any
        weights of any eps, "weights:EPS=WEIGHT,..." or a dict {EPS: WEIGHT}; over eps in [0, the largest eps], in
        pixel units of [0, 1], fractions such as 4/255 allowed.
    ignore_index: only of "segmentation", where predictions are one mask (H, W) per eps for each sample and references
        masks (H, W): the label of pixels that count nowhere, 255 by default, as negative ones; None for no such label.
Returns:
    clean_accuracy, adversarial_accuracy, expected_robustness (floats), accuracies (one per eps); of "segmentation"
    clean_, adversarial_ and expected_pixel_accuracy, clean_, adversarial_ and expected_mean_iou (floats),
    pixel_accuracies, mean_ious (one per eps).
Examples:

    >>> robustness = Robustness(keep_in_memory=True)
    >>> results = robustness.compute(
    ...     predictions=[[0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]],
    ...     references=[0, 1, 1, 0],
    ...     epsilons=[0, 2 / 255, 4 / 255],
    ... )
    >>> results["accuracies"]
    [1.0, 0.75, 0.5]
    >>> results["clean_accuracy"], results["adversarial_accuracy"], results["expected_robustness"]
    (1.0, 0.5, 0.75)
    >>> results = robustness.compute(
    ...     predictions=[[0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]],
    ...     references=[0, 1, 1, 0],
    ...     epsilons=[0, 2 / 255, 4 / 255],
    ...     distribution="dirac:2/255",
    ... )
    >>> results["expected_robustness"]
    0.75
    >>> segmentation = Robustness("segmentation", keep_in_memory=True)
    >>> results = segmentation.compute(
    ...     predictions=[[[[0, 0], [1, 1]], [[0, 1], [1, 1]]]],
    ...     references=[[[0, 0], [1, 255]]],
    ...     epsilons=[0, "4/255"],
    ... )
    >>> results["clean_mean_iou"], results["adversarial_mean_iou"], results["expected_mean_iou"]
    (1.0, 0.5, 0.75)
"""

_CITATION = """\
@inproceedings{epsilon_scheduling_2026,
  title={Robust Fine-Tuning from Non-Robust Pretrained Models: Mitigating Suboptimal Transfer with Epsilon-Scheduling},
  booktitle={International Conference on Learning Representations},
  year={2026},
  url={https://arxiv.org/abs/2509.23325}
}
"""


_CLASSES, _MASK = (
    datasets.Sequence(datasets.Value("int64")),
    datasets.Sequence(datasets.Sequence(datasets.Value("int64"))),
)
_FEATURES = {
    "default": {"predictions": _CLASSES, "references": datasets.Value("int64")},
    "segmentation": {"predictions": datasets.Sequence(_MASK), "references": _MASK},
}


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Robustness(evaluate.Metric):
    def _info(self):
        if self.config_name not in _FEATURES:
            raise ValueError(f"Unknown configuration {self.config_name!r}. Valid: {', '.join(_FEATURES)}.")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(_FEATURES[self.config_name]),
        )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._of_masks = self.config_name == "segmentation"
        self._check = check_masks if self._of_masks else check_classes
        self._added = []  # (predictions, references), arrays; lists of arrays where these are masks

    def __len__(self):
        return sum(len(references) for _, references in self._added) if self.num_process == 1 else super().__len__()

    def add(self, *, prediction=None, reference=None, **named):
        """Add one sample: `prediction`, a class (or mask) per eps, and `reference`, the true one."""
        named = {"predictions": prediction, "references": reference} | named  # evaluate.combine says predictions
        self.add_batch(**{name: [value] for name, value in named.items()})

    def add_batch(self, *, predictions=None, references=None):
        """Add samples: `predictions`, a row each, and `references`.

        Raises:
            ValueError: what is no class, or shapes that do not match; nothing is added then.
        """
        predictions, references = self._check(predictions, references)
        if self.num_process > 1:
            super().add_batch(predictions=predictions, references=references)
        else:
            # Kept as arrays: evaluate's own store is written and read row by row, 10 s for a million rows of nine.
            self._added.append(copy.deepcopy((predictions, references)))  # a loop may fill one array again

    def compute(self, *, predictions=None, references=None, **options):
        """Score the samples given here and those added before, which are forgotten then.

        Raises:
            ValueError: no samples, what is no class, shapes that do not match, a bad grid, weights or distribution;
                samples added before are kept then.
        """
        if self.num_process > 1:
            return super().compute(predictions=predictions, references=references, **options)
        samples = list(self._added)
        if predictions is not None or references is not None:
            samples.append(self._check(predictions, references))
        if not samples:
            raise ValueError("There is nothing to score: give predictions and references, or add them before.")
        if self._of_masks:
            joined = [list(chain.from_iterable(parts)) for parts in zip(*samples, strict=True)]
        else:
            widths = sorted({rows.shape[1] for rows, _ in samples})
            if len(widths) > 1:
                raise ValueError(f"Each sample needs one prediction per eps: some were added with {widths}.")
            joined = map(np.concatenate, zip(*samples, strict=True))
        results = self._compute(*joined, **options)
        self._added = []
        return results

    def _compute(self, predictions, references, epsilons, weights=None, distribution=None, **options):
        grid = check_epsilons(epsilons)
        if weights is not None and distribution is not None:
            raise ValueError(f"Give weights or distribution, not both; got weights and distribution={distribution!r}.")
        if distribution is not None:
            threat: ThreatDistribution = parse_distribution(distribution, eps_g=grid[-1])
            weights = grid_weights(threat, grid)
        score = _score_masks if self._of_masks else _score_classes
        return score(predictions, references, grid, weights, **options)


def _score_classes(predictions, references, grid, weights):
    accuracies = robust_accuracies(predictions, references).tolist()
    _check_width(len(accuracies), grid)
    return {
        "clean_accuracy": accuracies[0],
        "adversarial_accuracy": accuracies[-1],
        "expected_robustness": expected_robustness(accuracies, grid, weights),
        "accuracies": accuracies,
    }


def _score_masks(predictions, references, grid, weights, ignore_index=255):
    predictions, references = check_masks(predictions, references)
    for masks in predictions:
        _check_width(len(masks), grid)
    counts = count_pixels(predictions, references, ignore_index)
    curves = {"pixel_accuracy": pixel_accuracy(*counts[:2]).tolist(), "mean_iou": mean_iou(*counts).tolist()}
    scores = {}
    for name, curve in curves.items():
        scores[f"clean_{name}"], scores[f"adversarial_{name}"] = curve[0], curve[-1]
        scores[f"expected_{name}"] = expected_robustness(curve, grid, weights)
    return scores | {"pixel_accuracies": curves["pixel_accuracy"], "mean_ious": curves["mean_iou"]}


def _check_width(width, grid):
    if width != len(grid):
        raise ValueError(f"Each sample needs one prediction per eps: {len(grid)} epsilons, rows of {width}.")
