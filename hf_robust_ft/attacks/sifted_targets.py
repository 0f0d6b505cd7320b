"""Targeted APGD at the price of a few targets: some steps towards each class, all of them only towards the nearest."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_robust_ft.attacks.aims import target_classes
from hf_robust_ft.attacks.apgd import APGD, LogitsFn
from hf_robust_ft.attacks.apgd_run import ApgdRun
from hf_robust_ft.attacks.balls import Ball
from hf_robust_ft.attacks.larger_eps import eps_phases


@dataclass(frozen=True)
class SiftedTargets(APGD):
    """A targeted APGD that chooses its classes by what the first steps towards each of them reach.

    Which class an image can be taken to shows there, and not in the order of its logits: of eight digits of the
    quickstart that fall to some target, two do so only at the fourth and the fifth likeliest class, and each at the
    class that led after 5 steps.

    Attributes:
        num_targets: how many of the likeliest classes are tried.
        sifting: steps towards each of them, the first of a run of all `steps`.
        kept: how many of them, nearest first, are run to the end.

    Raises:
        ValueError: as `APGD`; more sifting than steps; a random start, which no two runs would share.
    """

    loss: str = "dlr_targeted"
    random_start: bool = False
    select: str = "fooled"
    sifting: int = 5
    kept: int = 1

    def __post_init__(self):
        super().__post_init__()
        for name in ("sifting", "kept"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= self.steps:
                raise ValueError(
                    f"{type(self).__name__} needs {name} to be a whole number from 1 to steps={self.steps}, "
                    f"got {value!r}."
                )
        if self.random_start:
            raise ValueError(f"{type(self).__name__} compares runs from one start: leave random_start=False.")

    def __str__(self) -> str:
        text = super().__str__()
        return text.replace(" targets", f" targets sifted to {self.kept}") if self.num_targets > self.kept else text

    def passes(self, num_classes: int) -> tuple[int, int]:
        """Of an image that withstands it: gradients, and forwards without one."""
        targets, phases = min(self.num_targets, num_classes - 1), [phase.steps for phase in eps_phases(self)]
        runs = min(self.kept, targets)
        gradients, forwards = runs * self.steps, runs * len(phases) + 1
        if targets > runs:
            # The gradient at a run's last point is left out at its very end only.
            gradients += targets * (self.sifting + (self.sifting < self.steps))
            forwards += targets * sum(sum(phases[: done + 1]) <= self.sifting for done in range(len(phases)))
        return gradients, forwards

    def starts(
        self,
        logits_fn: LogitsFn,
        ball: Ball,
        labels: Tensor,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The same start for each of the classes that are kept, nearest first."""
        x = ball.center if start is None else ball.project(start)
        likeliest = target_classes(logits_fn, x, labels, self.num_targets)
        if len(likeliest) > self.kept:
            reached = []
            for targets in likeliest:
                run = ApgdRun(self, logits_fn, ball, labels, x, targets, start is not None)
                for _ in range(self.sifting):
                    run.step()
                reached.append(torch.where(run.result.fooled, torch.inf, run.best.loss))
            order = torch.stack(reached).argsort(dim=0, descending=True, stable=True)
            likeliest = torch.stack(likeliest).gather(0, order)[: self.kept]
        for targets in likeliest:
            yield x, targets
