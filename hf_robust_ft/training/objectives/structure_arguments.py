"""The arguments of methods that train modules of their own beside the model, and what these exclude."""

from dataclasses import dataclass, field, fields

from hf_robust_ft.provenance.choices import check_choice, is_number, refuse_together, refuse_unread
from hf_robust_ft.training.objectives.autolora_rate import RULES
from hf_robust_ft.training.objectives.awp_arguments import PerturbationArguments
from hf_robust_ft.training.tuning.batch_norm import AS_TRAINER, FROZEN, FROZEN_FROM_ATTACK


@dataclass
class StructureArguments(PerturbationArguments):
    """TWINS (`twins_lambda`), AutoLoRA (`autolora*`) and AWP (`awp_*`); all off by default."""

    twins_lambda: float | None = field(
        default=None,
        metadata={
            "help": "TWINS: half of each batch, at this weight (e.g. 0.4), goes through BatchNorm that keeps its "
            "pretrained statistics. Needs batch_norm=trainer.",
            "affects": "weights",
        },
    )
    autolora: bool = field(
        default=False,
        metadata={
            "help": "AutoLoRA: the loss on unattacked images trains low-rank updates, which are thrown away.",
            "affects": "weights",
        },
    )
    autolora_rank: int = field(
        default=8, metadata={"help": "Rank of the updates.", "affects": "weights", "of": "autolora"}
    )
    autolora_scale: float = field(
        default=6.0,
        metadata={
            "help": "Weight of its KL term, times the training accuracy.",
            "affects": "weights",
            "of": "autolora",
        },
    )
    autolora_rate: str = field(
        default="authors",
        metadata={
            "help": "How its learning rate is halved: 'authors' (as their code), 'apgd' (their text), 'off'.",
            "affects": "weights",
            "of": "autolora",
        },
    )
    autolora_window: int = field(
        default=4, metadata={"help": "Epochs between these decisions.", "affects": "weights", "of": "autolora"}
    )

    @property
    def structure(self) -> str | None:
        """The argument that asks for modules beside the model, if one does."""
        return "autolora" if self.autolora else None if self.twins_lambda is None else "twins_lambda"

    @property
    def parts_of_batch(self) -> int:
        """In how many a batch goes through layers that normalise by it."""
        return 1 if self.twins_lambda is None else 2

    @property
    def passes_beside(self) -> int:
        """Training passes that each image takes beside the objective's, attacked or not.

        For those of AutoLoRA's branch, each training image also takes one forward an epoch.
        """
        return int(self.autolora)

    def check_structures(self) -> None:
        """Raise for what a method's own modules cannot go with; called once all arguments are settled.

        Raises:
            ValueError: naming both, and what to do.
        """
        if self.twins_lambda is not None:
            self._check_twins()
        if self.autolora:
            self._check_autolora()
        else:
            own = [each for each in fields(StructureArguments) if each.name.startswith("autolora_")]
            given = [each.name for each in own if getattr(self, each.name) != each.default]
            refuse_unread(given, "autolora", "autolora=True")
        if self.structure is not None:
            self._check_what_both_exclude(self.structure)
        self.check_awp()

    def _check_twins(self) -> None:
        if not (is_number(self.twins_lambda) and 0 <= self.twins_lambda < float("inf")):
            raise ValueError(f"twins_lambda must be finite and not negative, e.g. 0.4, got {self.twins_lambda!r}.")
        if self.autolora:
            raise ValueError("twins_lambda and autolora exclude each other: leave one out.")
        if self.batch_norm == FROZEN:
            raise ValueError(
                f"twins_lambda and batch_norm={FROZEN!r} exclude each other: the other branch of TWINS adapts its "
                f"statistics, and would be the frozen one again. Set batch_norm={AS_TRAINER!r} (as published), or "
                f"{FROZEN_FROM_ATTACK!r} where eps is 0 at first."
            )

    def _check_autolora(self) -> None:
        check_choice("autolora_rate", self.autolora_rate, RULES)
        for name, fits, valid in (
            ("autolora_rank", lambda value: isinstance(value, int) and value >= 1, "a whole number from 1 on"),
            ("autolora_scale", lambda value: 0 <= value < float("inf"), "finite and not negative, e.g. 6"),
            ("autolora_window", lambda value: isinstance(value, int) and value >= 1, "whole epochs, at least 1"),
        ):
            if not (is_number(value := getattr(self, name)) and fits(value)):
                raise ValueError(f"{name} must be {valid}, got {value!r}.")
        excluded = (
            ("objective", self.objective != "at", "it has terms of its own"),
            ("freeze", self.freeze != "none", "it trains all weights"),
            ("layer_decay", self.layer_decay is not None, "its updates have no depth"),
        )
        refuse_together("autolora", self, excluded)
        if self.autolora_rate != "off":
            self._check_rate_rule()

    def _check_rate_rule(self) -> None:
        """The rule reads validation robust accuracy after each epoch, and is the only one to change the rate."""
        if self.eps_schedule == "auto":
            raise ValueError(
                "autolora and eps_schedule='auto' exclude each other: both decide by the same evaluations. Set "
                "autolora_rate='off', or another schedule."
            )
        needed = {
            "robust_eval": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True,
            "metric_for_best_model": "eval_adversarial_accuracy", "lr_scheduler_type": "constant",
        }  # fmt: skip
        given = {name: getattr(self, name) for name in needed}
        given["metric_for_best_model"] = f"eval_{(self.metric_for_best_model or '').removeprefix('eval_')}"
        missing = [f"{name}={value}" for name, value in needed.items() if given[name] != value]
        if missing:
            raise ValueError(
                f"autolora_rate={self.autolora_rate!r} halves the learning rate by the robust accuracy after each "
                f"epoch, and goes back to the best weights. It needs {', '.join(missing)} (as the recipe autolora has "
                "them), or autolora_rate='off'."
            )

    def _check_what_both_exclude(self, name: str) -> None:
        if self.lora_rank is not None:
            raise ValueError(f"{name} and lora_rank={self.lora_rank} exclude each other: {name} trains all weights.")
        if self.activation_checkpointing:
            raise ValueError(
                f"{name} and activation_checkpointing exclude each other: the backward pass would compute the "
                "activations again by another branch of the network. Leave activation_checkpointing out."
            )
        if self.ddp_find_unused_parameters:
            raise ValueError(
                f"{name} and ddp_find_unused_parameters=True exclude each other: a step makes several forwards, and "
                "DDP would take what the first does not use for unused. Leave it out."
            )
        self.ddp_find_unused_parameters = False  # Trainer's default is True
