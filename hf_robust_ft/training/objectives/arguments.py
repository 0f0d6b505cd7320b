"""What training minimises, as arguments."""

import math
from dataclasses import dataclass, field
from functools import partial

from hf_robust_ft.attacks.losses import get_loss
from hf_robust_ft.provenance.affects import DeclaredArguments
from hf_robust_ft.provenance.choices import check_choice, refuse_together
from hf_robust_ft.training.objectives.passes import Objective
from hf_robust_ft.training.objectives.table import DEFAULT_ALPHA, DEFAULT_BETA, OBJECTIVES, TAUGHT


@dataclass
class ObjectiveArguments(DeclaredArguments):
    """The `objective` and its weights."""

    objective: str = field(
        default="at",
        metadata={
            "help": "What training minimises: at (the loss on adversarial images), trades, mart, pmg_aft, fare.",
            "affects": "weights",
        },
    )
    objective_beta: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the KL between answers to image and adversarial image (default: trades 6, mart 5, "
            "pmg_aft 1).",
            "affects": "weights",
            "of": "objective",
        },
    )
    objective_alpha: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the KL to the frozen network that training starts from (default: pmg_aft 1).",
            "affects": "weights",
            "of": "objective",
        },
    )

    def resolve_objective(self) -> None:
        """Check these and enter the weights in use.

        Raises:
            ValueError: an unknown objective, or a weight that is out of range or of no use.
        """
        check_choice("objective", self.objective, OBJECTIVES, "objectives")
        for name, defaults in (("objective_beta", DEFAULT_BETA), ("objective_alpha", DEFAULT_ALPHA)):
            given, default = getattr(self, name), defaults.get(self.objective)
            if default is None and given is not None:
                raise ValueError(
                    f"{name}={given} does nothing with objective={self.objective!r}: leave it out, or set objective "
                    f"to {' or '.join(defaults)}."
                )
            if given is not None and (isinstance(given, (bool, str)) or not 0 <= given < math.inf):
                raise ValueError(f"{name} must be finite and not negative, e.g. {default}; got {given!r}.")
        self.objective_beta, self.objective_alpha = self._beta, self._alpha

    def check_taught(self) -> None:
        """Raise for what an objective that asks a frozen teacher cannot go with; once all arguments are settled.

        Raises:
            ValueError: naming both, and what to do.
        """
        of_features = get_loss(self.attack_loss).of_features
        if of_features != self.asks_features:
            raise ValueError(
                f"objective={self.objective!r} and attack_loss={self.attack_loss!r} exclude each other: FARE attacks "
                "the distance of features that it minimises, and nothing else does. Set both, as the recipe fare: "
                "objective='fare', attack_loss='features', attack_random_start=True; or neither."
            )
        if self.objective in TAUGHT and self.twins_lambda is not None:
            raise ValueError(
                f"objective={self.objective!r} and twins_lambda exclude each other: each holds on to the network that "
                "training starts from in its own way. Leave one out."
            )
        if not self.asks_features:
            return
        if self.threat_model.eps == 0:
            raise ValueError("objective='fare' at eps 0 has nothing to learn: no feature moves. Set an eps.")
        excluded = (
            ("freeze", self.freeze == "backbone", "the head stands still, so the backbone must not"),
            ("lora_rank", self.lora_rank is not None, "peft trains the head in full, which stands still here"),
            ("head_learning_rate", self.head_learning_rate is not None, "the head stands still"),
            ("probe_epochs", self.probe_epochs > 0, "the head stands still; train it in a run of its own"),
            ("torch_compile", self.torch_compile, "a hook reads its features, which compiled graphs may leave out"),
            ("label_smoothing_factor", self.label_smoothing_factor != 0, "no label has a say"),
        )
        refuse_together("objective='fare'", self, excluded)

    @property
    def asks_features(self) -> bool:
        """Whether it compares features, which no label has a say in."""
        return self.objective == "fare"

    @property
    def _beta(self) -> float | None:
        """The weight in use, also where a search has changed the objective since."""
        default = DEFAULT_BETA.get(self.objective)
        return default if default is None or self.objective_beta is None else self.objective_beta

    @property
    def _alpha(self) -> float | None:
        default = DEFAULT_ALPHA.get(self.objective)
        return default if default is None or self.objective_alpha is None else self.objective_alpha

    @property
    def has_teacher(self) -> bool:
        """Whether the network that training starts from is kept, frozen, and asked in each step."""
        return self.objective in TAUGHT

    @property
    def passes_under_attack(self) -> int:
        """Training passes that an attacked image takes; one that is not attacked takes one."""
        return 2 if self._beta else 1

    def teachers_passes(self, attacked: bool) -> int:
        """Forward passes of the teacher for an image, beside that which the attack compares with."""
        if self.asks_features:
            return int(not attacked)
        return int(bool(attacked and self._alpha))

    def build_objective(self) -> Objective:
        """What a training step minimises; one that `has_teacher` is given it as `teacher`, too."""
        weights = {"alpha": self._alpha, "beta": self._beta}
        given = {name: value for name, value in weights.items() if value is not None}
        function = OBJECTIVES[self.objective]
        return partial(function, **given) if given else function
