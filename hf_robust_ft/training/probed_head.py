"""The head that RoLI's first phase leaves in `output_dir/probe/head.safetensors`, and a model that starts from it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from hf_robust_ft.provenance.atomic import write_whole
from hf_robust_ft.training.tuning.parts import head_modules

PROBE, HEAD = "probe", "head.safetensors"


def probe_folder(output_dir: str | Path) -> Path:
    """Where the first phase of the run in `output_dir` is."""
    return Path(output_dir) / PROBE


@dataclass(frozen=True)
class ProbedHead:
    """A head trained alone.

    Args:
        tensors: parameters and buffers by their names in the model, on the CPU.
        facts: how it came about, for a report: `epochs`, `step` of its best, and of the `validation_images` under
            attack at `eps` the `adversarial_accuracy`, the `clean_accuracy` and what `guessing` gives.
        settings: what it was trained with, by name, and `changes` that were forced upon it.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    settings: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, facts: dict[str, Any], settings: dict[str, Any]) -> "ProbedHead":
        """The head of a trained model that is in no wrapper."""
        places = tuple(f"{name}." for name in head_modules(model))
        tensors = {name: each.detach().cpu().clone() for name, each in model.state_dict().items()}
        return cls({name: each for name, each in tensors.items() if name.startswith(places)}, facts, settings)

    @classmethod
    def in_folder(cls, folder: Path) -> "ProbedHead | None":
        """The finished head of a first phase; None where there is none.

        Raises:
            ValueError: a file that cannot be read.
        """
        path = folder / HEAD
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                told = file.metadata() or {}
            return cls(tensors, json.loads(told["facts"]), json.loads(told["settings"]))
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path} is no head that a probe wrote ({type(error).__name__}: {error}). Delete it, and the probe "
                "goes on from its last checkpoint."
            ) from None

    def __str__(self) -> str:
        facts = self.facts
        return (
            f"best of {facts['epochs']:g} epochs at step {facts['step']}, right on {facts['clean_accuracy']:.1%} of "
            f"{facts['validation_images']} validation images and on {facts['adversarial_accuracy']:.1%} under attack "
            f"at {facts['eps']}."
        )

    def write(self, folder: Path) -> None:
        """Write it whole or not at all."""
        told = {"facts": json.dumps(self.facts), "settings": json.dumps(self.settings)}
        write_whole(folder / HEAD, save(self.tensors, metadata=told))

    def told(self, forced: list[str]) -> dict[str, Any]:
        """What a report says of it: the facts `probe` and, with those `forced` later, `resumed_with_changes`."""
        changes = [*self.settings["changes"], *forced]
        return {"probe": self.facts} | ({"resumed_with_changes": changes} if changes else {})

    def load_into(self, model: nn.Module) -> None:
        """Give a model, or a `PeftModel` of one, this head in place of its own.

        Raises:
            ValueError: the model's head has other tensors, or of other shapes.
        """
        own = _head_tensors(model, self.tensors)
        differing = [name for name, each in self.tensors.items() if name not in own or own[name].shape != each.shape]
        if differing:
            name = differing[0]
            has = f"of shape {list(own[name].shape)}" if name in own else "missing"
            raise ValueError(
                f"The probed head does not fit {type(model).__name__}: its {name} of shape "
                f"{list(self.tensors[name].shape)} is {has} in the model. Load the model that was probed, with its "
                "classes."
            )
        with torch.no_grad():
            for name, each in self.tensors.items():
                own[name].copy_(each)

    def is_in(self, model: nn.Module) -> bool:
        """Whether the model's head is this one. note: moves the head to the CPU"""
        own = _head_tensors(model, self.tensors)
        return own.keys() == self.tensors.keys() and all(
            own[name].shape == each.shape and torch.equal(own[name].cpu(), each.to(own[name].dtype))
            for name, each in self.tensors.items()
        )


def _head_tensors(model: nn.Module, names: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's own tensors of these names, which PEFT puts into wrappers."""
    plain = {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", ""): tensor
        for name, tensor in model.state_dict().items()
    }
    return {name: plain[name] for name in names if name in plain}


def check_starts_from_probe(model: nn.Module, output_dir: str, probe_epochs: float) -> None:
    """Raise where `probe_epochs` ask for a first phase, and training is about to begin without its head.

    Raises:
        ValueError: it is.
    """
    if probe_epochs == 0:
        return
    head = ProbedHead.in_folder(probe_folder(output_dir))
    if head is None or not head.is_in(model):
        told = "there is none in" if head is None else "the model does not start from the one in"
        raise ValueError(
            f"probe_epochs={probe_epochs:g} asks for a head that was trained first, and {told} "
            f"{probe_folder(output_dir)}. `hf-robust-ft train` trains it; in Python call "
            "hf_robust_ft.training.roli.probe(build_trainer, args) and load_into(trainer.model) of what it returns, or "
            "set probe_epochs=0."
        )
