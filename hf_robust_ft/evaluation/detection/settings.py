"""How the robustness of a detection model is measured: checked once, before any compute is spent."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hf_robust_ft.attacks import APGD
from hf_robust_ft.attacks.losses import get_loss
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.detection.average_precision import check_installed
from hf_robust_ft.evaluation.protocols import resolve_epsilons

STEPS, LOSS = 10, "set_loss"


@dataclass(frozen=True)
class DetectionSettings:
    """What decides an evaluation's figures beside model and images; made by `check`.

    Attributes:
        epsilons: the grid, increasing from 0 to the threat model's eps, in pixel units of [0, 1].
        attack: run at each eps.
    """

    threat_model: ThreatModel
    epsilons: list[float]
    attack: APGD
    seed: int


def check(
    threat_model: ThreatModel,
    *,
    epsilons: Sequence[float | str] | None = None,
    attack: APGD | None = None,
    attack_steps: int | None = None,
    seed: int = 0,
) -> DetectionSettings:
    """The settings that `evaluate_detection`'s arguments of these names stand for.

    Raises:
        ValueError: what would fail only after hours, or not at all.
        ImportError: what measures mAP is not installed.
    """
    check_installed()
    if not isinstance(threat_model, ThreatModel):
        raise ValueError(
            f"threat_model must be a ThreatModel, e.g. ThreatModel('Linf', '4/255'); got {threat_model!r}."
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}.")
    if attack_steps is not None and (
        isinstance(attack_steps, bool) or not isinstance(attack_steps, int) or attack_steps < 1
    ):
        raise ValueError(
            f"attack_steps of a detection model must be a whole number of at least 1, got {attack_steps!r}: there is "
            "no 'auto', since no one image counts as fooled; measure with more steps and compare."
        )
    if attack is None:
        attack = detection_attack(threat_model.norm)
    if not isinstance(attack, APGD) or not get_loss(attack.loss).given:
        raise ValueError(f"attack must be one of the model's loss, APGD(steps=20, loss='set_loss'); got {attack!r}.")
    return DetectionSettings(
        threat_model=threat_model,
        epsilons=resolve_epsilons(epsilons, threat_model),
        attack=attack if attack_steps is None else replace(attack, steps=attack_steps),
        seed=seed,
    )


def detection_attack(norm: str = "Linf", steps: int = STEPS) -> APGD:
    """The attack of an evaluation: from the clean image, keeping the point of highest loss."""
    return APGD(steps=steps, loss=LOSS, random_start=False, larger_eps=norm == "L1")
