"""Per-sample schedules: every training image has a radius of its own, kept by its id."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Memory = dict[str, Any]


@dataclass(frozen=True)
class PerSample:
    """An image's own alpha, one level higher after each visit that it stays correct, one lower after it is fooled.

    Like instance adaptive training (IAAT: Balaji et al. 2019, arXiv 1910.08051), which looks for the largest radius an
    image withstands. IAAT attacks three times a batch, at the radius, a step above it and the new one; here the outcome
    of the one training attack decides, so it costs nothing. Neither IAAT's warm-up, at eps_g, nor its averaging is
    kept, and no radius exceeds eps_g.

    Args:
        levels: from 0 to the whole budget; an image needs that many visits to rise all the way.
        initial: level of an image at its first visit.

    Raises:
        ValueError: levels that are not whole numbers, or out of range.
    """

    levels: int = 20
    initial: int = 0

    def __post_init__(self):
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (self.levels, self.initial))
        if not whole or self.levels < 1 or not 0 <= self.initial <= self.levels:
            raise ValueError(
                "per_sample needs whole numbers, levels of at least 1 and initial in 0..levels, got "
                f"levels={self.levels!r}, initial={self.initial!r}."
            )

    def begin(self) -> Memory:
        return {"levels": {}, "total": 0}

    def alphas(self, memory: Memory, ids: Iterable[str]) -> list[float]:
        """The share of the budget of each of these images."""
        known = memory["levels"]
        return [known.get(each, self.initial) / self.levels for each in ids]

    def record(self, memory: Memory, ids: Sequence[str], fooled: Sequence[bool]) -> None:
        """Move the levels of images that were attacked, in place: the memory is as large as the dataset."""
        known = memory["levels"]
        for each, was_fooled in zip(ids, fooled, strict=True):
            before = known.get(each, self.initial)
            known[each] = min(max(before + (-1 if was_fooled else 1), 0), self.levels)
            memory["total"] += known[each] - (before if each in known else 0)

    def __call__(self, memory: Memory, progress: float) -> float:
        """The mean share of the budget over the images seen so far."""
        known = memory["levels"]
        return (memory["total"] / len(known) if known else self.initial) / self.levels
