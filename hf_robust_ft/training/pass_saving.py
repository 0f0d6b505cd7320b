"""What makes an epoch under attack cheaper: warm starts, attacks on a share of each batch, small images at first."""

import math
from dataclasses import dataclass, field

from hf_robust_ft.provenance.affects import DeclaredArguments, arguments
from hf_robust_ft.provenance.choices import is_number, refuse_together


@dataclass
class PassSavingArguments(DeclaredArguments):
    """`attack_warm_start`, `attacked_share` and `low_resolution*`. All off by default."""

    attack_warm_start: bool = field(
        default=False,
        metadata={
            "help": "Start each image's training attack from what the last epoch's found, so that few attack_steps do; "
            "2 bytes of the device's memory for each of an image's pixel values. Not with augmentation.",
            "affects": "weights",
        },
    )
    attacked_share: float = field(
        default=1.0,
        metadata={
            "help": "Attack only this share of each batch, e.g. 0.5; the rest is trained on as it is.",
            "affects": "weights",
        },
    )
    low_resolution: float = field(
        default=1.0,
        metadata={
            "help": "At first train and attack at this share of height and width, e.g. 0.5; evaluation never does.",
            "affects": "weights",
        },
    )
    low_resolution_until: float = field(
        default=0.5,
        metadata={
            "help": "Share of training from which images have their full size.",
            "affects": "weights",
            "of": "low_resolution",
        },
    )

    def check_savings(self) -> None:
        """Raise for a value out of range, and for what cannot go together; once all arguments are settled.

        Raises:
            ValueError: naming the arguments, and what to do.
        """
        if not isinstance(self.attack_warm_start, bool):
            raise ValueError(f"attack_warm_start must be True or False, got {self.attack_warm_start!r}.")
        for name in ("attacked_share", "low_resolution", "low_resolution_until"):
            value = getattr(self, name)
            if not is_number(value) or not 0 < value <= 1:
                raise ValueError(f"{name} is a share in (0, 1], e.g. 0.5; got {value!r}.")
        if self.low_resolution == 1 and self.low_resolution_until != NO_SAVINGS["low_resolution_until"]:
            raise ValueError("low_resolution_until does nothing without low_resolution: set it (e.g. 0.5).")
        if self.attack_warm_start:
            own_start = "an attack has one starting point"
            never_again = "a mixed image never comes again"
            now_and_then = "most images would not have been attacked in the last epoch"
            refuse_together(
                "attack_warm_start=True",
                self,
                (
                    ("attack_random_start", self.attack_random_start, own_start),
                    ("mixup_alpha", self.mixup_alpha > 0, never_again),
                    ("cutmix_alpha", self.cutmix_alpha > 0, never_again),
                    ("attacked_share", self.attacked_share < 1, now_and_then),
                ),
            )
        if self.attacked_share < 1:
            in_pairs = "it compares each image with its adversarial one"
            refuse_together(
                f"attacked_share={self.attacked_share:g}",
                self,
                (
                    ("objective", self.objective != "at", in_pairs),
                    ("twins_lambda", self.twins_lambda is not None, in_pairs),
                    ("autolora", self.autolora, in_pairs),
                ),
            )
        if self.low_resolution < 1 and self.norm != "Linf":
            raise ValueError(
                f"low_resolution={self.low_resolution:g} keeps eps, and an eps of {self.norm} means another thing in "
                "an image of another size: leave it out, or set norm='Linf'."
            )

    def attacked_of(self, images: int) -> int:
        """How many of so many images, which come in batches of a process, are attacked."""
        batches, rest = divmod(images, self.train_batch_size)
        return batches * self.attacked_in_batch(self.train_batch_size) + self.attacked_in_batch(rest)

    def attacked_in_batch(self, images: int) -> int:
        """The same in one batch: rounded up."""
        return math.ceil(self.attacked_share * images - 1e-9)

    def resolution_at(self, progress: float) -> float:
        """The share of height and width that images are trained at, of `progress` in [0, 1]."""
        return self.low_resolution if progress < self.low_resolution_until else 1.0

    def pixel_share_at(self, progress: float) -> float:
        """The share of its pixels, in which the passes of an image are counted; whole numbers stay whole."""
        resolution = self.resolution_at(progress)
        return 1 if resolution == 1 else resolution**2


# Of a run in which every attacked step costs what it costs.
NO_SAVINGS = {each.name: each.default for each in arguments(PassSavingArguments)}
