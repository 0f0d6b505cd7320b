"""Which checkpoint: what every command is told that loads one."""

from dataclasses import dataclass, field
from typing import Any

from hf_robust_ft.provenance.affects import DeclaredArguments


@dataclass(kw_only=True)
class CheckpointArguments(DeclaredArguments):
    """A model by its name, and how it is read; what names are known depends on the command."""

    model: str = field(metadata={"help": "Hub id, folder or weight file.", "affects": ("weights", "measurement")})
    model_revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of the model.", "affects": ("weights", "measurement")},
    )
    architecture: str | None = field(
        default=None,
        metadata={
            "help": "What a weight file holds: timm/NAME, open_clip:NAME, or a folder or Hub id.",
            "affects": ("weights", "measurement"),
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Pixels a side (default: the checkpoint's; 224 for the paper's).",
            "affects": ("weights", "measurement"),
        },
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "Run Python code that the model's repository brings. Read it first, and fix --model_revision.",
            "affects": "launch",
        },
    )

    def loading_options(self) -> dict[str, Any]:
        """What the functions that load a model are told of its repository; what is not given is theirs to choose."""
        given = {"revision": self.model_revision, "trust_remote_code": self.trust_remote_code}
        return {name: value for name, value in given.items() if value}
