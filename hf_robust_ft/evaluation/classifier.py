"""From a model as training leaves it to the classifier of pixels that one process can evaluate by itself."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hf_robust_ft.attacks.pixels import PixelClassifier, PixelModel, PixelSpace

# Wrappers whose forward waits for the other processes, by the names of their classes: importing them takes seconds.
SHARDING = {"FullyShardedDataParallel": "FSDP", "FSDPModule": "FSDP (fully_shard)"}


def as_classifier(model: nn.Module, pixel_space: PixelSpace | None) -> tuple[PixelClassifier, PixelSpace]:
    """The classifier to attack, without DDP's wrapper, and the map from the data's `pixel_values` to pixels.

    Raises:
        ValueError: as `as_pixel_model`.
    """
    return as_pixel_model(model, pixel_space, PixelClassifier)


def as_pixel_model(
    model: nn.Module, pixel_space: PixelSpace | None, kind: type[PixelModel]
) -> tuple[PixelModel, PixelSpace]:
    """The model to attack as one of pixels of this `kind`, and the map from the data's `pixel_values` to pixels.

    Raises:
        ValueError: no module, a model whose forward needs all processes at once, no `PixelSpace`, or one together
            with a model that already is of this kind.
    """
    name = kind.__name__
    if not isinstance(model, nn.Module):
        what = "classifies images" if kind is PixelClassifier else "segments images"
        raise ValueError(f"model must be a torch.nn.Module that {what}, got {type(model).__name__}.")
    if pixel_space is not None and not isinstance(pixel_space, PixelSpace):
        raise ValueError(
            f"pixel_space must be a PixelSpace, got {type(pixel_space).__name__}: give "
            "PixelSpace.from_processor(processor) or PixelSpace(mean, std)."
        )
    model = _without_ddp(model)
    if isinstance(model, kind) and _without_ddp(model.model) is not model.model:
        model = kind(_without_ddp(model.model), model.pixel_space, model_inputs=model.model_inputs)
    check_whole(model)
    if isinstance(getattr(model, "_orig_mod", None), kind):
        raise ValueError(
            f"A compiled {name} hides its normalisation: compile the model inside of it, "
            f"{name}(torch.compile(model), pixel_space)."
        )
    if not isinstance(model, kind):
        pixel_space = pixel_space or PixelSpace()
        return kind(model, pixel_space), pixel_space
    if pixel_space is not None:
        raise ValueError(f"A {name} normalises by itself and takes pixels in [0, 1]: leave pixel_space out.")
    return model, PixelSpace()


def check_whole(model: nn.Module) -> None:
    """Raise a ValueError if a forward of the model needs other processes: each attacks other numbers of images."""
    found = {SHARDING.get(cls.__name__) for module in model.modules() for cls in _torch_classes(module)}
    found |= {"DTensor parameters" for parameter in model.parameters() if type(parameter).__name__ == "DTensor"}
    found |= {"DeepSpeed ZeRO-3" for parameter in model.parameters() if hasattr(parameter, "ds_id")}
    found |= {"DDP inside of the model" for module in model.modules() if isinstance(module, DistributedDataParallel)}
    if found := found - {None}:
        raise ValueError(
            f"This model is spread over processes ({', '.join(sorted(found))}): each of its forwards waits for all of "
            "them, while evaluate_robustness gives each process images of its own. Save it and evaluate the "
            "checkpoint: trainer.save_model(folder), then AutoModelForImageClassification.from_pretrained(folder). "
            "(Under FSDP, AdversarialTrainer.evaluate() measures the model in place.)"
        )


@contextmanager
def nan_refused(classifier: PixelClassifier, where: str) -> Iterator[None]:
    """Raise a ValueError after the block if a forward in it gave NaN, which `argmax` takes for the first class."""
    found: list[Tensor] = []
    watch = classifier.register_forward_hook(lambda module, pixels, logits: found.append(logits.detach().isnan().any()))
    try:
        yield
    finally:
        watch.remove()
    if found and torch.stack(found).any():  # note: a host sync
        raise ValueError(
            f"The model's logits are NaN for {where}, as it is or under attack, so no class is predicted there. Look "
            "for overflow in the model; where it runs in float16, try bfloat16 or float32."
        )


def _torch_classes(module: nn.Module) -> list[type]:
    return [cls for cls in type(module).__mro__ if cls.__module__.startswith("torch.distributed.")]


def _without_ddp(model: nn.Module) -> nn.Module:
    """The model in DDP's wrapper, whose forward waits for other processes, and in `torch.compile`'s around that."""
    while isinstance(inner := getattr(model, "_orig_mod", model), DistributedDataParallel):
        model = inner.module
    return model
