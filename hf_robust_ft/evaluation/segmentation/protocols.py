"""Which attacks a segmentation model is measured by."""

from dataclasses import dataclass, replace

from hf_robust_ft.attacks import APGD
from hf_robust_ft.attacks.losses import LOSSES, check_measures, get_loss
from hf_robust_ft.provenance.choices import check_choice

PAPER_STEPS, RELIABLE_STEPS = 10, 100


@dataclass(frozen=True)
class SegmentationProtocol:
    """The attacks of a protocol; an image's figure is of the worst of them.

    Attributes:
        losses: of `attacks.dense_losses`, one attack each.
        steps: of each attack, unless others are asked for.
        larger_eps: whether each begins in larger balls (arXiv 2306.12941); under L1 it always does.
    """

    losses: tuple[str, ...]
    steps: int
    larger_eps: bool

    def attacks(self, norm: str = "Linf", steps: int | None = None) -> list[APGD]:
        """In the order in which they are run."""
        given = {"steps": steps or self.steps, "larger_eps": self.larger_eps or norm == "L1"}
        return [APGD(loss=loss, random_start=False, select="fooled", **given) for loss in self.losses]


# `reliable`: the ensemble of SEA (arXiv 2306.12941) and cross-entropy, at a third of the authors' 300 steps an attack.
SEGMENTATION_PROTOCOLS = {
    "paper": SegmentationProtocol(("pixel_ce",), PAPER_STEPS, larger_eps=False),
    "reliable": SegmentationProtocol(("pixel_ce", "masked_ce", "masked_ce_balanced", "js"), RELIABLE_STEPS, True),
}


def resolve_attacks(protocol: str, attack: APGD | None, attack_steps: int | None, norm: str = "Linf") -> list[APGD]:
    """The attacks of a protocol, or the one given in place of the paper's.

    Raises:
        ValueError: an unknown protocol, an attack of one label an image, or settings that exclude each other.
    """
    check_choice("protocol", protocol, SEGMENTATION_PROTOCOLS, "protocols")
    if attack_steps is not None and (
        isinstance(attack_steps, bool) or not isinstance(attack_steps, int) or attack_steps < 1
    ):
        raise ValueError(
            f"attack_steps of a segmentation model must be a whole number of at least 1, got {attack_steps!r}: there "
            "is no 'auto', since pixels go on falling for long; the check converged tells whether more would."
        )
    if attack is None:
        return SEGMENTATION_PROTOCOLS[protocol].attacks(norm, attack_steps)
    if not isinstance(attack, APGD):
        raise ValueError(f"attack must be an APGD, e.g. APGD(steps=20, loss='pixel_ce'); got {attack!r}.")
    if protocol != "paper":
        raise ValueError(f"protocol={protocol!r} brings its own attacks: leave attack out, or set protocol='paper'.")
    check_measures(attack.loss)
    if not get_loss(attack.loss).dense:
        dense = ", ".join(name for name, loss in LOSSES.items() if loss.dense)
        raise ValueError(f"The loss {attack.loss!r} is of one label an image. Valid for segmentation: {dense}.")
    return [attack if attack_steps is None else replace(attack, steps=attack_steps)]
