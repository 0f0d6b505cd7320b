"""Which attacks a segmentation model is measured by."""

from dataclasses import dataclass, replace

from hf_robust_ft.attacks import APGD
from hf_robust_ft.attacks.losses import LOSSES, check_measures, get_loss
from hf_robust_ft.evaluation.convergence import AUTO, FIRST_STEPS, parse_attack_steps
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


def resolve_attacks(
    protocol: str, attack: APGD | None, attack_steps: int | str | None, norm: str = "Linf"
) -> list[APGD]:
    """The attacks of a protocol, or the one given in place of the paper's; with steps "auto", of the first round.

    Raises:
        ValueError: an unknown protocol, an attack of one label an image, or settings that exclude each other.
    """
    check_choice("protocol", protocol, SEGMENTATION_PROTOCOLS, "protocols")
    steps = None if attack_steps is None else parse_attack_steps(attack_steps)
    steps = FIRST_STEPS if steps == AUTO else steps
    if attack is None:
        return SEGMENTATION_PROTOCOLS[protocol].attacks(norm, steps)
    if not isinstance(attack, APGD):
        raise ValueError(f"attack must be an APGD, e.g. APGD(steps=20, loss='pixel_ce'); got {attack!r}.")
    if protocol != "paper":
        raise ValueError(f"protocol={protocol!r} brings its own attacks: leave attack out, or set protocol='paper'.")
    check_measures(attack.loss)
    if not get_loss(attack.loss).dense:
        dense = ", ".join(name for name, loss in LOSSES.items() if loss.dense)
        raise ValueError(f"The loss {attack.loss!r} is of one label an image. Valid for segmentation: {dense}.")
    return [attack if steps is None else replace(attack, steps=steps)]
