"""The arguments of adversarial weight perturbation."""

from dataclasses import dataclass, field

from hf_robust_ft.provenance.affects import DeclaredArguments
from hf_robust_ft.provenance.choices import is_number, refuse_together, refuse_unread


@dataclass
class PerturbationArguments(DeclaredArguments):
    """AWP (`awp_gamma`, `awp_warmup`), which goes round the training step of any objective; off by default."""

    awp_gamma: float = field(
        default=0.0,
        metadata={
            "help": "AWP: each step learns at the weights at which the loss is worst within this share of each layer's "
            "norm (the authors' with trades: 0.005; 0: off).",
            "affects": "weights",
        },
    )
    awp_warmup: float = field(
        default=0.0,
        metadata={
            "help": "Epochs before weights are perturbed (the authors' with trades: 10).",
            "affects": "weights",
            "of": "awp_gamma",
        },
    )

    def perturbs_at(self, step: int, steps_per_epoch: int) -> bool:
        """Whether an attacked step perturbs the weights, too.

        Args:
            step: optimizer steps done before it.
        """
        return self.awp_gamma > 0 and step >= self.awp_warmup * steps_per_epoch

    def check_awp(self) -> None:
        """Raise for values out of range, and for what AWP cannot go with; once all arguments are settled.

        Raises:
            ValueError: naming both, and what to do.
        """
        for name, valid in (("awp_gamma", "e.g. 0.005"), ("awp_warmup", "in epochs")):
            value = getattr(self, name)
            if not (is_number(value) and 0 <= value < float("inf")):
                raise ValueError(f"{name} must be finite and not negative, {valid}; got {value!r}.")
        if self.awp_gamma >= 1:
            raise ValueError(f"awp_gamma is a share of each layer's norm, below 1, e.g. 0.005; got {self.awp_gamma:g}.")
        if self.awp_gamma == 0:
            given = [f"awp_warmup={self.awp_warmup:g}"] if self.awp_warmup != 0 else []
            refuse_unread(given, "awp_gamma", "e.g. 0.005")
            return
        if self.threat_model.eps == 0:
            raise ValueError("awp_gamma at eps 0 does nothing: weights are perturbed where images are. Set an eps.")
        if self.max_steps <= 0 and self.awp_warmup >= self.num_train_epochs:
            raise ValueError(
                f"awp_warmup={self.awp_warmup:g} leaves none of {self.num_train_epochs:g} epochs to awp_gamma: weights "
                "would never be perturbed. Lower it, raise num_train_epochs, or leave awp_gamma out."
            )
        excluded = (
            ("lora_rank", self.lora_rank is not None, "adapters begin at 0, so a share of their norm is nothing"),
            ("autolora", self.autolora, "its two losses train two sets of weights"),
            ("eps_schedule", self.eps_schedule == "per_sample", "processes would not perturb in the same steps"),
            ("fp16", self.mixed_precision == "fp16", "gradients by GradScaler may overflow; set bf16=True"),
            ("torch_compile", self.torch_compile, "it has not been verified"),
        )
        refuse_together("awp_gamma", self, excluded)
