"""RoLI's first phase (arXiv 2312.05716): how the head is trained under attack before anything else is."""

import copy
import math
from dataclasses import dataclass, field

from transformers import Trainer
from transformers.training_args import OptimizerNames

from hf_robust_ft.provenance.affects import DeclaredArguments, arguments
from hf_robust_ft.provenance.choices import check_choice, refuse_unread


@dataclass
class ProbeArguments(DeclaredArguments):
    """Adversarial linear probing before training: `probe_epochs` and, with them, `probe_*`. Off by default."""

    probe_epochs: float = field(
        default=0.0,
        metadata={
            "help": "RoLI: before, train the head alone for so many epochs, attacked at eps throughout, and start from "
            "the best on validation images under attack.",
            "affects": "weights",
        },
    )
    probe_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Its peak learning rate; needed.", "affects": "weights", "of": "probe_epochs"},
    )
    probe_weight_decay: float = field(
        default=0.0, metadata={"help": "Its weight decay.", "affects": "weights", "of": "probe_epochs"}
    )
    probe_optim: str = field(
        default="sgd", metadata={"help": "Its optimizer, as of optim.", "affects": "weights", "of": "probe_epochs"}
    )
    probe_optim_args: str | None = field(
        default=None,
        metadata={
            "help": "Its optimizer's arguments, as of optim_args (momentum=0.9).",
            "affects": "weights",
            "of": "probe_epochs",
        },
    )

    def check_probe(self) -> None:
        """Check the settings of the first phase, which rest on those of the run.

        Raises:
            ValueError: a value out of range, settings that nothing reads, or a run that has no such phase.
        """
        for name, valid, fits in (
            ("probe_epochs", "a number of epochs, 0 or more", lambda value: 0 <= value < math.inf),
            ("probe_learning_rate", "positive and finite", lambda value: value is None or 0 < value < math.inf),
            ("probe_weight_decay", "finite and not negative", lambda value: 0 <= value < math.inf),
        ):
            value = getattr(self, name)
            try:
                good = fits(value)
            except TypeError:  # text, where a number was expected
                good = False
            if not good:
                raise ValueError(f"{name} must be {valid}, got {value!r}.")
        check_choice("probe_optim", self.probe_optim, [each.value for each in OptimizerNames])
        if self.probe_epochs == 0:
            given = [each.name for each in arguments(ProbeArguments) if getattr(self, each.name) != each.default]
            refuse_unread(given, "probe_epochs", "e.g. 60")
            return
        if self.probe_learning_rate is None:
            raise ValueError(
                "probe_epochs trains the head with a learning rate of its own: set probe_learning_rate (1.0 with sgd "
                "is the authors' for CUB and Stanford Dogs, 0.05 for CIFAR-10)."
            )
        self._check_optim_args()
        self._check_run_has_phase()

    def _check_optim_args(self) -> None:
        """transformers reads the names that an optimizer takes, and no others."""
        if not self.probe_optim_args:
            return
        pairs = [part.split("=") for part in self.probe_optim_args.replace(" ", "").split(",")]
        if any(len(pair) != 2 or not all(pair) for pair in pairs):
            raise ValueError(
                f"probe_optim_args is NAME=VALUE, with commas between several, e.g. momentum=0.9; got "
                f"{self.probe_optim_args!r}."
            )
        asked = copy.copy(self)
        asked.optim, asked.optim_args = OptimizerNames(self.probe_optim), None
        without = Trainer.get_optimizer_cls_and_kwargs(asked)
        for pair in pairs:
            asked.optim_args = "=".join(pair)
            try:
                found = Trainer.get_optimizer_cls_and_kwargs(asked)
            except ValueError as error:
                raise ValueError(f"probe_optim_args={self.probe_optim_args!r}: {error}") from None
            if found == without:
                raise ValueError(
                    f"probe_optim_args: {asked.optim_args} changes nothing of probe_optim={self.probe_optim!r}: it "
                    "takes no such argument, or has this value anyway. Look for a slip in the name, or leave it out."
                )

    def _check_run_has_phase(self) -> None:
        if self.threat_model.eps == 0:
            raise ValueError(
                "probe_epochs trains the head under attack at eps, which is 0: set an eps, or leave probe_epochs out."
            )
        if self.freeze == "backbone":
            raise ValueError(
                "probe_epochs with freeze='backbone' trains the head alone twice: leave freeze out, or set "
                "num_train_epochs in place of probe_epochs."
            )
        if self._uses_fsdp or self.deepspeed:
            raise ValueError(
                "probe_epochs freezes the backbone in its first phase, which is not verified with sharded weights: "
                "train with DDP, or leave probe_epochs out."
            )


# Of a run that trains everything from the model as it was loaded.
NO_PROBE = {each.name: each.default for each in arguments(ProbeArguments)}
