"""The arguments of methods that train modules of their own beside the model, and what these exclude."""

from dataclasses import dataclass, field

from hf_robust_ft.provenance.affects import DeclaredArguments
from hf_robust_ft.training.tuning.batch_norm import AS_TRAINER, FROZEN, FROZEN_FROM_ATTACK


@dataclass
class StructureArguments(DeclaredArguments):
    """TWINS: `twins_lambda`; off by default."""

    twins_lambda: float | None = field(
        default=None,
        metadata={
            "help": "TWINS: half of each batch goes through BatchNorm layers that keep their pretrained statistics, at "
            "this weight (0.4 for Caltech-256, 1.0 for CIFAR in the paper). Needs BatchNorm and batch_norm=trainer.",
            "affects": "weights",
        },
    )

    def check_structures(self) -> None:
        """Raise for what a method's own modules cannot go with; called once all arguments are settled.

        Raises:
            ValueError: naming both, and what to do.
        """
        if self.twins_lambda is None:
            return
        if not 0 <= self.twins_lambda < float("inf"):
            raise ValueError(f"twins_lambda must be finite and not negative, e.g. 0.4, got {self.twins_lambda!r}.")
        if self.batch_norm == FROZEN:
            raise ValueError(
                f"twins_lambda and batch_norm={FROZEN!r} exclude each other: the other branch of TWINS adapts its "
                f"statistics, and would be the frozen one again. Set batch_norm={AS_TRAINER!r} (as published), or "
                f"{FROZEN_FROM_ATTACK!r} where eps is 0 at first."
            )
        self._refuse("twins_lambda", "which of a BatchNorm's branches is meant is a flag while the forward runs")

    @property
    def parts_of_batch(self) -> int:
        """In how many a batch goes through layers that normalise by it."""
        return 1 if self.twins_lambda is None else 2

    def _refuse(self, name: str, because: str) -> None:
        """What neither method can go with.

        Args:
            because: why activations must not be computed again.
        """
        if self.lora_rank is not None:
            raise ValueError(f"{name} and lora_rank={self.lora_rank} exclude each other: {name} trains all weights.")
        if self.activation_checkpointing:
            raise ValueError(
                f"{name} and activation_checkpointing exclude each other: {because}, and the backward pass would "
                "compute the activations again without it. Leave activation_checkpointing out."
            )
        if self.ddp_find_unused_parameters:
            raise ValueError(
                f"{name} and ddp_find_unused_parameters=True exclude each other: a step makes several forwards, and "
                "DDP would take what the first does not use for unused. Leave it out."
            )
        self.ddp_find_unused_parameters = False  # Trainer's default is True
