"""How far protocol exact's smallest eps lies above the best that is known of each image, and what it costs.

    python -m hf_robust_ft.benchmarks.minimum_norm_gap --model quickstart --dataset digits --eps 8/255 --images 48

The best known is the least of what protocol exact, protocol paper, a bisection by our APGD on cross-entropy and towards
the two likeliest classes, and foolbox's FMN find (in the extra `bench`; without foolbox it is left out). Cost is
counted in forwards, a gradient as three, as a share of the naive grid's: every image at every point, to the last step.
"""

import json
import math
import os
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from hf_robust_ft.attacks import APGD, attack_mode, attack_until_fooled
from hf_robust_ft.attacks.apgd import LogitsFn
from hf_robust_ft.attacks.pass_meter import FORWARDS_PER_GRADIENT, CountedForwards
from hf_robust_ft.attacks.pixels import PixelClassifier
from hf_robust_ft.attacks.threat_model import ThreatModel, default_epsilons
from hf_robust_ft.benchmarks.checkpoint import checkpoint_parser, load_checkpoint
from hf_robust_ft.evaluation.protocols import attack_on_grid, attack_to_the_minimum, evaluation_attack

FMN = {"Linf": "LInfFMNAttack", "L2": "L2FMNAttack", "L1": "L1FMNAttack"}


@dataclass(frozen=True)
class Gap:
    """Protocol exact against the best known, over images that something fooled and that were right before.

    Attributes:
        images: how many these are.
        median, ninth_decile: of eps / best known - 1, as shares; infinite where exact found nothing.
        above_paper: images whose eps lies above the paper protocol's.
        cost: forwards as a share of the naive grid's.
        paper_cost: likewise, the paper protocol's.
    """

    images: int
    median: float
    ninth_decile: float
    above_paper: int
    cost: float
    paper_cost: float


def measure_gap(
    logits_fn: torch.nn.Module,
    pixels: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    attack: APGD,
    thorough_steps: int = 100,
) -> Gap:
    """Both protocols on the default grid, and whatever else finds small eps, on pixels (N, C, H, W) in [0, 1]."""
    epsilons = default_epsilons(threat_model.eps, threat_model.norm)
    options = {"threat_model": threat_model, "epsilons": epsilons, "attack": attack}
    ours, paper = CountedForwards(logits_fn), CountedForwards(logits_fn)
    exact = attack_to_the_minimum(ours, pixels, labels, **options).smallest_eps
    on_grid = attack_on_grid(paper, pixels, labels, **options).smallest_eps
    best = exact.minimum(bisected(logits_fn, pixels, labels, threat_model, on_grid, thorough_steps))
    best = best.minimum(by_fmn(logits_fn, pixels, labels, threat_model, thorough_steps))
    counted = best.isfinite() & (best > 0)
    gaps = exact[counted] / best[counted] - 1
    naive = len(pixels) * (1 + (len(epsilons) - 1) * (FORWARDS_PER_GRADIENT * attack.steps + 1))
    nan = torch.tensor([math.nan])
    return Gap(
        images=int(counted.sum()),
        median=(gaps if len(gaps) else nan).quantile(0.5, interpolation="lower").item(),
        ninth_decile=(gaps if len(gaps) else nan).quantile(0.9, interpolation="lower").item(),
        above_paper=int((exact > on_grid).sum()),
        cost=ours.count / naive,
        paper_cost=paper.count / naive,
    )


def bisected(
    logits_fn: LogitsFn, pixels: Tensor, labels: Tensor, threat_model: ThreatModel, found: Tensor, steps: int
) -> Tensor:
    """The eps (N,) that bisections by APGD bring `found` (N,) down to."""
    for loss in ("ce", "dlr_targeted"):
        attack = APGD(steps=steps, loss=loss, random_start=False, num_targets=2)
        below = torch.zeros_like(found)
        for turn in range(8):
            reach = found.clamp(max=threat_model.eps)
            budgets = (below + reach) / 2 if turn else reach
            rows = ((found > 0) & (found.isfinite() | (turn == 0))).nonzero()[:, 0]
            if len(rows) == 0:
                break
            result = attack_until_fooled(attack, logits_fn, pixels[rows], labels[rows], threat_model, eps=budgets[rows])
            distance = threat_model.ball(pixels[rows]).distance(result.adversarial)
            found = found.index_copy(0, rows, torch.where(result.fooled, distance, math.inf).minimum(found[rows]))
            failed = rows[~result.fooled & (budgets[rows] < found[rows])]
            below = below.index_copy(0, failed, budgets[failed])
    return found


def by_fmn(logits_fn: torch.nn.Module, pixels: Tensor, labels: Tensor, threat_model: ThreatModel, steps: int) -> Tensor:
    """The distance (N,) of foolbox's fast minimum-norm examples; infinite where there are none within eps_g."""
    nothing = torch.full((len(labels),), math.inf, dtype=torch.float64)
    try:
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # foolbox imports GitPython, which demands an executable
        import foolbox
    except ImportError:
        return nothing
    model = foolbox.PyTorchModel(logits_fn, bounds=(0, 1), device=pixels.device)
    attack = getattr(foolbox.attacks, FMN[threat_model.norm])(steps=steps)
    _, adversarial, _ = attack(model, pixels.clone(), foolbox.criteria.Misclassification(labels), epsilons=None)
    adversarial = adversarial.clamp(0, 1)
    with torch.no_grad():
        wrong = logits_fn(adversarial).argmax(1) != labels
    distance = threat_model.ball(pixels).distance(adversarial)
    return torch.where(wrong & (distance <= threat_model.eps), distance, nothing)


def main() -> None:
    parser = checkpoint_parser(__doc__.splitlines()[0], eps="8/255", images=48)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--thorough_steps", type=int, default=100, help="Of the bisection's attacks, and of FMN.")
    options = parser.parse_args()

    model, _, space, pixels, labels = load_checkpoint(options)
    classifier = PixelClassifier(model, space).eval()
    with attack_mode(classifier):
        gap = measure_gap(
            classifier,
            pixels,
            labels,
            ThreatModel(options.norm, options.eps),
            attack=evaluation_attack(options.steps, norm=options.norm),
            thorough_steps=options.thorough_steps,
        )
    print(json.dumps(asdict(gap), indent=2))


if __name__ == "__main__":
    main()
