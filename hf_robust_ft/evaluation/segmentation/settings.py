"""How the robustness of a segmentation model is measured: checked once, before any compute is spent."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_robust_ft.attacks import APGD
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.convergence import AUTO, STEPS_LIMIT, check_steps_limit
from hf_robust_ft.evaluation.protocols import resolve_epsilons
from hf_robust_ft.evaluation.segmentation.convergence import SegmentationConvergence
from hf_robust_ft.evaluation.segmentation.protocols import resolve_attacks


@dataclass(frozen=True)
class SegmentationSettings:
    """What decides an evaluation's figures beside model and images; made by `check`.

    Attributes:
        epsilons: the grid, increasing from 0 to the threat model's eps, in pixel units of [0, 1].
        attacks: all run at each eps; the worst of them counts. With steps "auto" those of the first round.
        ignore_index: the label of pixels that count nowhere; None without one.
        steps_limit: the most steps of "auto"; None where their number is fixed.
    """

    threat_model: ThreatModel
    epsilons: list[float]
    attacks: list[APGD]
    protocol: str
    ignore_index: int | None
    seed: int
    steps_limit: int | None = None

    def rounds(self) -> SegmentationConvergence | None:
        """The rounds of one evaluation with steps "auto"; None with a fixed number, or without an attack."""
        if self.steps_limit is None or len(self.epsilons) == 1:
            return None
        return SegmentationConvergence(self.attacks, self.epsilons, self.steps_limit)


def check(
    threat_model: ThreatModel,
    *,
    epsilons: Sequence[float | str] | None = None,
    attack: APGD | None = None,
    attack_steps: int | str | None = None,
    attack_steps_limit: int = STEPS_LIMIT,
    protocol: str = "paper",
    ignore_index: int | None = None,
    seed: int = 0,
) -> SegmentationSettings:
    """The settings that `evaluate_segmentation`'s arguments of these names stand for.

    Raises:
        ValueError: what would fail only after hours, or not at all.
    """
    if not isinstance(threat_model, ThreatModel):
        raise ValueError(
            f"threat_model must be a ThreatModel, e.g. ThreatModel('Linf', '4/255'); got {threat_model!r}."
        )
    for name, value, lowest in (("seed", seed, 0), ("ignore_index", ignore_index, None)):
        allowed_none = name == "ignore_index" and value is None
        if not allowed_none and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{name} must be a whole number, got {value!r}.")
        if lowest is not None and value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}.")
    check_steps_limit(attack_steps_limit, attack_steps)
    return SegmentationSettings(
        threat_model=threat_model,
        epsilons=resolve_epsilons(epsilons, threat_model),
        attacks=resolve_attacks(protocol, attack, attack_steps, threat_model.norm),
        protocol=protocol,
        ignore_index=ignore_index,
        seed=seed,
        steps_limit=attack_steps_limit if attack_steps == AUTO else None,
    )
