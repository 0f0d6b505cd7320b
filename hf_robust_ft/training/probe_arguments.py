"""RoLI's first phase (arXiv 2312.05716): how the head is trained under attack before anything else is."""

import math
from dataclasses import dataclass, field

from transformers.training_args import OptimizerNames

from hf_robust_ft.provenance.affects import DeclaredArguments, arguments
from hf_robust_ft.provenance.choices import check_choice


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
            if given:
                raise ValueError(f"{', '.join(given)} do nothing without probe_epochs: set it (e.g. 60).")
            return
        if self.probe_learning_rate is None:
            raise ValueError(
                "probe_epochs trains the head with a learning rate of its own: set probe_learning_rate (1.0 with sgd "
                "is the authors' for CUB and Stanford Dogs, 0.05 for CIFAR-10)."
            )
        self._check_run_has_phase()

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
