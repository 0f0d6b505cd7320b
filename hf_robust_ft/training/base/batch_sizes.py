"""The batch sizes that training ran with, which the arguments alone do not tell."""

from typing import Any

from transformers import Trainer


def batch_sizes(trainer: Trainer) -> dict[str, Any]:
    """Images of a batch on one device, and of an optimizer step on all devices of all processes.

    `auto_find_batch_size` halves the arguments' number, several devices in one process and `split_batches` divide or
    multiply it, and a data loader of the user's own need not follow it. Before training it is what training would take.
    """
    args, loader = trainer.args, trainer.callback_handler.train_dataloader
    of_process = trainer._train_batch_size
    if loader is not None:
        # accelerate's loaders tell what all processes get together, the user's own one what this process gets.
        total = getattr(loader, "total_batch_size", None)
        own = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
        of_process = total // args.world_size if total else own or of_process
    return {
        "per_device_train_batch_size": of_process // max(args.n_gpu, 1),
        "total_train_batch_size": of_process * args.world_size * args.gradient_accumulation_steps,
    }
