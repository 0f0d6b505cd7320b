"""How a robustness is measured: checked once, before any compute is spent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_robust_ft.attacks import APGD
from hf_robust_ft.attacks.autoattack import check_autoattack
from hf_robust_ft.attacks.losses import check_measures, check_of_images
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.convergence import (
    AUTO,
    STEPS_LIMIT,
    Convergence,
    check_steps_limit,
    first_attack,
    steps_under,
)
from hf_robust_ft.evaluation.protocols import evaluation_attack, resolve_epsilons
from hf_robust_ft.metrics.robustness.threat_distribution_specs import parse_distribution


@dataclass(frozen=True)
class EvaluationSettings:
    """What decides an evaluation's figures beside model and images; made by `check`.

    Attributes:
        epsilons: the grid, increasing from 0 to the threat model's eps, in pixel units of [0, 1].
        attack: with converged steps, the first round's.
        converges: steps are doubled until the accuracy settles, up to `steps_limit`.
        autoattack: how many images standard AutoAttack is asked about.
    """

    threat_model: ThreatModel
    epsilons: list[float]
    attack: APGD
    protocol: str
    converges: bool
    steps_limit: int
    distributions: Sequence[str | Mapping[float | str, float]]
    autoattack: int
    seed: int

    def rounds(self) -> Convergence | None:
        """What decides about further rounds; None where the steps are fixed."""
        return Convergence(self.attack, self.epsilons, self.protocol, self.steps_limit) if self.converges else None


def check(
    threat_model: ThreatModel,
    *,
    epsilons: Sequence[float | str] | None = None,
    attack: APGD | None = None,
    attack_steps: int | str | None = None,
    attack_steps_limit: int = STEPS_LIMIT,
    protocol: str = "paper",
    distributions: Sequence[str | Mapping[float | str, float]] = (),
    autoattack: int = 0,
    seed: int = 0,
) -> EvaluationSettings:
    """The settings that `evaluate_robustness`'s arguments of these names stand for.

    Raises:
        ValueError: what would fail only after hours, or not at all.
    """
    if not isinstance(threat_model, ThreatModel):
        raise ValueError(
            f"threat_model must be a ThreatModel, e.g. ThreatModel('Linf', '4/255'); got {threat_model!r}."
        )
    if attack is not None and not isinstance(attack, APGD):
        raise ValueError(f"attack must be an APGD, e.g. APGD(steps=20, select='fooled'); got {attack!r}.")
    if isinstance(distributions, (str, Mapping)):
        raise ValueError(f"distributions must be a list of them, got {distributions!r} alone: put it in brackets.")
    for distribution in distributions:
        parse_distribution(distribution, threat_model.eps)
    if autoattack:
        check_autoattack(autoattack)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}.")
    attack = evaluation_attack(norm=threat_model.norm) if attack is None else attack
    check_measures(attack.loss)
    check_of_images(attack.loss)
    steps = steps_under(protocol, attack_steps)
    check_steps_limit(attack_steps_limit, attack.steps if steps is None else steps)
    return EvaluationSettings(
        threat_model=threat_model,
        epsilons=resolve_epsilons(epsilons, threat_model),
        attack=attack if steps is None else first_attack(attack, steps),
        protocol=protocol,
        converges=steps == AUTO,
        steps_limit=attack_steps_limit,
        distributions=distributions,
        autoattack=autoattack,
        seed=seed,
    )
