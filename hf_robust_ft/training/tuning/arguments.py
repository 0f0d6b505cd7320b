"""`TrainingArguments` plus how a pretrained model is fine-tuned; nothing adversarial here."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from hf_robust_ft.provenance.affects import WEIGHTS, DeclaredArguments, arguments, stated_settings
from hf_robust_ft.provenance.choices import check_choice, refuse_unread
from hf_robust_ft.training.tuning.freezing import parse_freeze

NO_DECAY = ("trainer", "norms_biases")
EMA_USE = ("no", "eval", "save")


@dataclass
class TuningArguments(DeclaredArguments, TrainingArguments):
    """`TrainingArguments` for `TuningTrainer`.

    Groups: learning rates (`head_learning_rate`, `layer_decay`), weight decay (`no_decay`), an average of the weights
    (`ema_*`), training a part of them (`freeze`) or low-rank updates of them (`lora_*`). All are off by default, as a
    Trainer script that changes its class names expects.

    Raises:
        ValueError: on construction, for a value out of range or settings that exclude each other.
    """

    head_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate of the classification head (default: learning_rate).",
            "affects": "weights",
        },
    )
    layer_decay: float | None = field(
        default=None,
        metadata={
            "help": "Factor in (0, 1] on the learning rate of each layer against the one above it (e.g. 0.75).",
            "affects": "weights",
        },
    )
    no_decay: str = field(
        default="trainer",
        metadata={
            "help": "What weight decay spares: 'trainer' (Trainer's rule by names, which decays BatchNorm's scales) or "
            "'norms_biases' (every norm, bias and scale, and what a timm model declares).",
            "affects": "weights",
            "stated": "always",
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Keep an exponential moving average of the weights, with this decay (0.999).",
            "affects": "weights",
        },
    )
    ema_warmup: bool = field(
        default=True,
        metadata={
            "help": "Let the average forget faster at first: decay min(ema_decay, (1 + step) / (10 + step)).",
            "affects": "weights",
            "of": "ema_decay",
        },
    )
    ema_use: str = field(
        default="save",
        metadata={
            "help": "Where averaged weights stand in for the trained ones: 'save' (evaluate(), predict() and the "
            "published model), 'eval' (evaluate() and predict() only), 'no' (kept in checkpoints only).",
            "affects": "weights",
            "of": "ema_decay",
        },
    )
    freeze: str = field(
        default="none",
        metadata={
            "help": "What is not trained: none, backbone (linear probing), a number of first stages (blocks of a ViT) "
            "with the stem, or patterns of parameter names separated by commas. No dropout, drop path or new BatchNorm "
            "statistics there.",
            "affects": "weights",
            "stated": "always",
        },
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "Train low-rank updates of this rank, and the head in full (needs peft).",
            "affects": "weights",
        },
    )
    lora_alpha: float | None = field(
        default=None,
        metadata={
            "help": "LoRA updates are scaled by lora_alpha / lora_rank (default: by 1).",
            "affects": "weights",
            "of": "lora_rank",
        },
    )
    lora_dropout: float = field(
        default=0.0,
        metadata={"help": "Dropout in front of the LoRA adapters, in [0, 1).", "affects": "weights", "of": "lora_rank"},
    )
    lora_targets: list[str] | None = field(
        default=None,
        metadata={
            "help": "Ends of the names of the layers to adapt (default: the attention's query and value).",
            "affects": "weights",
            "of": "lora_rank",
        },
    )

    def __post_init__(self):
        self.freeze = str(self.freeze)
        for name, valid in (("no_decay", NO_DECAY), ("ema_use", EMA_USE)):
            check_choice(name, getattr(self, name), valid)
        parse_freeze(self.freeze)
        self._check_ranges()
        self._check_combinations()
        super().__post_init__()
        if self.push_to_hub and self.hub_strategy != HubStrategy.END and self.publishes_other_weights:
            raise ValueError(
                f"hub_strategy={self.hub_strategy.value!r} would push the checkpoints' own weights, not the "
                f"{'merged' if self.lora_rank else 'averaged'} ones that are to be published. Set hub_strategy='end'."
            )

    @property
    def publishes_other_weights(self) -> bool:
        """Whether `save_model` stores something else than a checkpoint does."""
        return self.lora_rank is not None or (self.ema_decay is not None and self.ema_use == "save")

    def tuning_settings(self) -> dict[str, Any]:
        """What a report says of these settings: those in use."""
        ours = {each.name for each in arguments(TuningArguments) if not each.is_trainers}
        settings = {name: value for name, value in stated_settings(self, WEIGHTS).items() if name in ours}
        if self.lora_rank is not None:
            settings |= {
                "lora_alpha": self.lora_rank if self.lora_alpha is None else self.lora_alpha,
                "lora_targets": self.lora_targets or "default",
            }
        return settings

    def _check_ranges(self) -> None:
        for name, fits, valid in (
            ("head_learning_rate", lambda value: 0 < value < float("inf"), "positive"),
            ("layer_decay", lambda value: 0 < value <= 1, "in (0, 1]"),
            ("ema_decay", lambda value: 0 < value < 1, "in (0, 1), e.g. 0.999"),
            ("lora_rank", lambda value: value >= 1, "at least 1"),
            ("lora_alpha", lambda value: 0 < value < float("inf"), "positive"),
            ("lora_dropout", lambda value: 0 <= value < 1, "in [0, 1)"),
            # Trainer's own, which it passes on to where they fail late, or are taken as they are.
            ("seed", lambda value: 0 <= value < 2**32, "in 0..4294967295"),
            ("data_seed", lambda value: 0 <= value < 2**32, "in 0..4294967295"),
            ("learning_rate", lambda value: 0 <= value < float("inf"), "finite and not negative"),
            ("weight_decay", lambda value: 0 <= value < float("inf"), "finite and not negative"),
            ("adam_beta1", lambda value: 0 <= value < 1, "in [0, 1)"),
            ("adam_beta2", lambda value: 0 <= value < 1, "in [0, 1)"),
            ("max_grad_norm", lambda value: value >= 0, "not negative (0 clips nothing)"),
            ("label_smoothing_factor", lambda value: 0 <= value < 1, "in [0, 1)"),
            ("num_train_epochs", lambda value: abs(value) < float("inf"), "finite"),
            ("max_steps", lambda value: value == -1 or value >= 1, "at least 1 (or -1, for num_train_epochs)"),
            ("save_steps", lambda value: value > 0, "positive"),
            ("eval_steps", lambda value: value > 0, "positive"),
            ("dataloader_num_workers", lambda value: value >= 0, "not negative"),
        ):
            value = getattr(self, name)
            try:
                good = value is None or fits(value)
            except TypeError:  # text, where a number was expected
                good = False
            if not good:
                raise ValueError(f"{name} must be {valid}, got {value!r}.")

    def _check_combinations(self) -> None:
        if self.lora_rank is None:
            lora = [each for each in arguments(TuningArguments) if each.of == "lora_rank"]
            given = [each.name for each in lora if getattr(self, each.name) != each.default]
            refuse_unread(given, "lora_rank", "e.g. 8")
        else:
            for name, default in (("freeze", "none"), ("layer_decay", None)):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"lora_rank and {name}={getattr(self, name)!r} exclude each other: with LoRA every weight but "
                        "the adapters' and the head's is frozen."
                    )
        if self.ema_decay is None and (self.ema_use != "save" or not self.ema_warmup):
            raise ValueError("ema_use and ema_warmup do nothing without ema_decay: set it (e.g. 0.999).")
        if self.freeze == "backbone":
            for name in ("layer_decay", "head_learning_rate"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"freeze='backbone' trains the head alone: leave {name} unset and set learning_rate."
                    )
