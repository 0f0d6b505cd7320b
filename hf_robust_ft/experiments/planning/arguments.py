"""What a dry run is told."""

import dataclasses
from dataclasses import dataclass, field

from hf_robust_ft.experiments.planning.gpus import GPUS, get_gpu
from hf_robust_ft.provenance.affects import DeclaredArguments


@dataclass
class PlanArguments(DeclaredArguments):
    """A dry run: what the command would do and cost, without doing it and without the network.

    Raises:
        ValueError: on construction, for an unknown device, a share out of range, counts that make no sense, or any of
            the others without `dry_run`.
    """

    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Train nothing: print configuration, sample counts, attack passes, FLOPs and estimated GPU hours. "
            "Never uses the network.",
            "affects": "launch",
        },
    )
    gpu: str = field(
        default="h100", metadata={"help": f"Device to estimate hours for: {', '.join(GPUS)}.", "affects": "measurement"}
    )
    utilisation: float = field(
        default=0.3,
        metadata={
            "help": "Share of the device's peak rate assumed to be reached, in (0, 1]. An assumption: measure.",
            "affects": "measurement",
        },
    )
    samples: list[int] | None = field(
        default=None,
        metadata={
            "help": "Images in train, validation and test, for a dataset that is neither local nor cached.",
            "affects": "measurement",
        },
    )
    plan_json: str | None = field(
        default=None, metadata={"help": "Write the plan to this JSON file as well.", "affects": "launch"}
    )

    def __post_init__(self):
        get_gpu(self.gpu)
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation is a share in (0, 1], got {self.utilisation}.")
        if self.samples is not None and (len(self.samples) != 3 or min(self.samples) < 1):
            raise ValueError(f"samples are three counts, train validation test, each at least 1; got {self.samples}.")
        if self.dry_run:
            return
        given = [entry.name for entry in dataclasses.fields(self) if getattr(self, entry.name) != entry.default]
        if given:
            raise ValueError(f"{', '.join(f'--{name}' for name in given)}: only with --dry_run.")
