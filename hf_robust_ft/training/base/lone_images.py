"""A training batch of one image under a BatchNorm that has one value a channel there, which torch refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.utils.data import DataLoader
from transformers import TrainingArguments


@contextmanager
def lone_images_refused(
    model: nn.Module, loader: DataLoader | None, args: TrainingArguments, max_steps: int
) -> Iterator[None]:
    """Raise in the training forward within, the first, if that of a later batch of one image would fail.

    Only then is it known which BatchNorms normalise by the batch, whatever put others into evaluation mode, and
    whether they do so behind a pooling. Where no batch holds one image, nothing is watched.

    Args:
        model: the unwrapped model.
        loader: the training data's.
        args: their batch size, accumulation and devices, and in how many parts a batch goes through BatchNorm.
        max_steps: of the training.

    Raises:
        ValueError: in the block, naming the layer and the cure.
    """
    parts = getattr(args, "parts_of_batch", 1)
    found = _lone_batch(loader, args.n_gpu, parts)
    if found is None or found[0] > max_steps * args.gradient_accumulation_steps:
        yield
        return
    number, images, size = found
    watched = {module: name for name, module in model.named_modules() if isinstance(module, _BatchNorm)}

    def refuse(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shape = inputs[0].shape
        if module.training and shape[2:].numel() == 1 and not isinstance(module, SyncBatchNorm):
            cures = ["another batch size, such as per_device_train_batch_size="]
            cures = ["dataloader_drop_last=True"] * (number > 1) + cures
            cures = ["batch_norm='frozen'"] * (parts == 1) + cures
            raise ValueError(
                f"Batch {number} of each epoch leaves one image to {'a device' if parts == 1 else 'a half of it'} "
                f"({images} images, {size} at a time), and {watched[module]} (BatchNorm behind a pooling) cannot "
                f"normalise by one value a channel: training would fail there. Set {', or '.join(cures)}"
                f"{_other_size(images, size, args.n_gpu, parts)}."
            )

    hooks = [module.register_forward_pre_hook(refuse) for module in watched]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _lone_batch(loader: Any, devices: int, parts: int) -> tuple[int, int, int] | None:
    """Number of the first batch with one image for a device, images of an epoch and of a batch; None without such."""
    batches = getattr(loader, "batch_sampler", None)
    size = getattr(batches, "batch_size", None)
    # On several processes accelerate fills the last batch up.
    if size is None or getattr(batches, "num_processes", 1) > 1:
        return None
    try:
        images = len(batches.sampler)
    except (AttributeError, TypeError):  # a stream
        return None
    if _leaves_one(size, devices, parts) and images >= size:
        return 1, images, size
    if getattr(batches, "drop_last", False) or not _leaves_one(images % size, devices, parts):
        return None
    return images // size + 1, images, size


def _leaves_one(images: int, devices: int, parts: int) -> bool:
    """Whether DataParallel, which deals out a batch in equal parts but for the last, gives a device a single image.

    Args:
        parts: that the batch was divided into before; the largest counts, as the others may be of layers that stand
            still.
    """
    images = ceil(images / parts)
    part = ceil(images / max(devices, 1))
    return images > 0 and images - part * (ceil(images / part) - 1) == 1


def _other_size(images: int, size: int, devices: int, parts: int) -> int:
    """The nearest batch size, a device, that leaves none alone."""
    devices = max(devices, 1)
    choices = range(2, size // devices + 3)
    fitting = [
        each
        for each in choices
        if not _leaves_one(each * devices, devices, parts)
        and not _leaves_one(images % (each * devices), devices, parts)
    ]
    return min(fitting or list(choices), key=lambda each: abs(each - size // devices))
