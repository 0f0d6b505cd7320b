"""Robustness metric: accuracy under attack at each eps, and its mean over eps."""

import datasets
import evaluate

from .curve import check_epsilons
from .curve import expected_robustness
from .curve import robust_accuracies
from .threat_distribution_specs import parse_distribution
from .threat_distributions import grid_weights

_DESCRIPTION = """\
Measures the robustness of an image classifier from its predictions under attack at increasing budgets eps:
clean accuracy (eps = 0), adversarial accuracy (the largest eps) and expected robustness, the mean accuracy over eps,
i.e. the area under the accuracy-eps curve divided by the largest eps, or its mean over another distribution of eps.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: for each sample, the class predicted under attack at each eps (one row per sample).
    references: the true class of each sample.
    epsilons: the budgets, in pixel units of [0, 1], increasing from 0 (clean).
    weights: optional, one per eps, summing to 1, in place of the trapezoid rule (eps uniform on [0, eps_g]).
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

    def _compute(self, predictions, references, epsilons, weights=None, distribution=None):
        grid = check_epsilons(epsilons)
        if weights is not None and distribution is not None:
            raise ValueError(f"Give weights or distribution, not both; got weights and distribution={distribution!r}.")
        if distribution is not None:
            weights = grid_weights(parse_distribution(distribution, eps_g=grid[-1]), grid)
        widths = {len(row) for row in predictions}
        if widths != {len(grid)}:
            raise ValueError(
                f"Each sample needs one prediction per eps: {len(grid)} epsilons, rows of {sorted(widths)}."
            )
        accuracies = robust_accuracies(predictions, references).tolist()
        return {
            "clean_accuracy": accuracies[0],
            "adversarial_accuracy": accuracies[-1],
            "expected_robustness": expected_robustness(accuracies, grid, weights),
            "accuracies": accuracies,
        }
