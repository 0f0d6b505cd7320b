"""Robustness metric: accuracy under attack at each eps, and its mean over eps."""

import datasets
import evaluate
import numpy as np

# evaluate.load copies the siblings named here and no others; one import a line, without a comment.
from .class_indices import check_classes
from .curve import check_epsilons
from .curve import expected_robustness
from .curve import grid_weights
from .curve import robust_accuracies
from .threat_distribution_specs import parse_distribution
from .threat_distributions import ThreatDistribution

_DESCRIPTION = """\
Measures the robustness of an image classifier from its predictions under attack at increasing budgets eps:
clean accuracy (eps = 0), adversarial accuracy (the largest eps) and expected robustness, the mean accuracy over eps,
i.e. the area under the accuracy-eps curve divided by the largest eps, or its mean over another distribution of eps.
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
Returns:
    clean_accuracy, adversarial_accuracy, expected_robustness (floats), accuracies (one per eps).
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
"""

_CITATION = """\
@inproceedings{epsilon_scheduling_2026,
  title={Robust Fine-Tuning from Non-Robust Pretrained Models: Mitigating Suboptimal Transfer with Epsilon-Scheduling},
  booktitle={International Conference on Learning Representations},
  year={2026},
  url={https://arxiv.org/abs/2509.23325}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Robustness(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._added = []  # (predictions, references), arrays

    def __len__(self):
        return sum(len(references) for _, references in self._added) if self.num_process == 1 else super().__len__()

    def add(self, *, prediction=None, reference=None, **named):
        """Add one sample: `prediction`, a class per eps, and `reference`, the true class."""
        named = {"predictions": prediction, "references": reference} | named  # evaluate.combine says predictions
        self.add_batch(**{name: [value] for name, value in named.items()})

    def add_batch(self, *, predictions=None, references=None):
        """Add samples: `predictions`, a row each, and `references`.

        Raises:
            ValueError: what is no class, or shapes that do not match; nothing is added then.
        """
        predictions, references = check_classes(predictions, references)
        if self.num_process > 1:
            super().add_batch(predictions=predictions, references=references)
        else:
            # Kept as arrays: evaluate's own store is written and read row by row, 10 s for a million rows of nine.
            self._added.append((predictions.copy(), references.copy()))  # a loop may fill one array again

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
            samples.append(check_classes(predictions, references))
        if not samples:
            raise ValueError("There is nothing to score: give predictions and references, or add them before.")
        widths = sorted({rows.shape[1] for rows, _ in samples})
        if len(widths) > 1:
            raise ValueError(f"Each sample needs one prediction per eps: some were added with {widths}.")
        results = self._compute(*map(np.concatenate, zip(*samples, strict=True)), **options)
        self._added = []
        return results

    def _compute(self, predictions, references, epsilons, weights=None, distribution=None):
        grid = check_epsilons(epsilons)
        if weights is not None and distribution is not None:
            raise ValueError(f"Give weights or distribution, not both; got weights and distribution={distribution!r}.")
        if distribution is not None:
            threat: ThreatDistribution = parse_distribution(distribution, eps_g=grid[-1])
            weights = grid_weights(threat, grid)
        accuracies = robust_accuracies(predictions, references).tolist()
        if len(accuracies) != len(grid):
            raise ValueError(
                f"Each sample needs one prediction per eps: {len(grid)} epsilons, rows of {len(accuracies)}."
            )
        return {
            "clean_accuracy": accuracies[0],
            "adversarial_accuracy": accuracies[-1],
            "expected_robustness": expected_robustness(accuracies, grid, weights),
            "accuracies": accuracies,
        }
