"""The runs that `kill_and_resume` kills: with gradient accumulation, averaged weights, dropout and random starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.base.checkpoints import checkpoints_in
from hf_robust_ft.training.probed_head import probe_folder
from hf_robust_ft.training.roli import probe
from hf_robust_ft.training.trainer import AdversarialTrainer

SETTINGS = {
    "hinge": {"eps_schedule": "hinge", "schedule_granularity": "step"},
    "auto": {
        "eps_schedule": "auto", "schedule_args": {"patience": 1, "tolerance": 1.0}, "eval_strategy": "epoch",
    },
    "per_sample": {"eps_schedule": "per_sample", "schedule_args": {"levels": 3}},
    "trades": {"schedule_granularity": "step", "objective": "trades", "attack_loss": "kl"},
    "mart": {"schedule_granularity": "step", "objective": "mart"},
    "pmg_aft": {"schedule_granularity": "step", "objective": "pmg_aft"},
    "fare": {"eps_schedule": "constant", "objective": "fare", "attack_loss": "features"},
    "twins": {"schedule_granularity": "step", "twins_lambda": 0.5, "batch_norm": "trainer"},
    "autolora": {  # which may go back to its best weights after each epoch
        "eps_schedule": "constant", "autolora": True, "autolora_rank": 2, "autolora_window": 1, "robust_eval": "epoch",
        "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True,
        "metric_for_best_model": "eval_adversarial_accuracy", "lr_scheduler_type": "constant",
    },
    "awp": {"schedule_granularity": "step", "awp_gamma": 0.005},
    "mixup": {"schedule_granularity": "step", "mixup_alpha": 0.8, "cutmix_alpha": 1.0},
    "roli": {"schedule_granularity": "step", "probe_epochs": 3.0, "probe_learning_rate": 0.5},
}  # fmt: skip
STEPS = 24  # 6 epochs of 4
PROBE_STEPS = 12  # before them, with probe_epochs
SAVE_STEPS = 3


class Images(torch.utils.data.Dataset):
    """32 random 16 x 16 images in 4 classes, which differ in brightness."""

    def __init__(self, identified: bool):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(32) % 4
        noise = torch.rand(32, 3, 16, 16, generator=generator)
        self.pixels = 0.2 * self.labels.view(-1, 1, 1, 1) + 0.2 * noise
        self.identified = identified

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {"pixel_values": self.pixels[index], "labels": int(self.labels[index])}
        return example | ({"sample_id": index} if self.identified else {})


def _network(with_batch_norm: bool) -> PreTrainedModel:
    """A tiny ViT with dropout, or a ResNet; the same each time."""
    set_seed(0)
    if with_batch_norm:
        config = ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4
        )  # fmt: skip
        return ResNetForImageClassification(config)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8,
        num_labels=4, hidden_dropout_prob=0.1,
    )  # fmt: skip
    return ViTForImageClassification(config)


def steps_before(setting: str) -> int:
    """Optimizer steps of a first phase, which count as done before the others."""
    return PROBE_STEPS if "probe_epochs" in SETTINGS[setting] else 0


def saved_in(folder: Path, setting: str) -> dict[Path, int]:
    """Checkpoints of a run, complete or not, each with the steps done by then."""
    places = ((folder, steps_before(setting)), (probe_folder(folder), 0))
    return {path: before + int(path.name.split("-")[1]) for place, before in places for path in checkpoints_in(place)}


def build(
    folder: Path, setting: str, watchers: Callable[[int], list] = lambda before: [], **changes: Any
) -> AdversarialTrainer:
    """The trainer of a run, the same each time; where it begins with a first phase, after that.

    Args:
        watchers: callbacks of a phase before which so many steps are done.
    """
    settings = {
        "num_train_epochs": 6, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "ema_decay": 0.9,
        "learning_rate": 3e-3, "eps": "8/255", "attack_steps": 2, "attack_random_start": True, "robust_eval": "no",
        "save_strategy": "steps", "save_steps": SAVE_STEPS, "save_total_limit": 1, "logging_steps": 1,
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "remove_unused_columns": False,
        "dataloader_pin_memory": False, "eval_epsilons": ["0", "8/255"],
    }  # fmt: skip
    args = AdversarialTrainingArguments(output_dir=str(folder), **(settings | SETTINGS[setting] | changes))
    head = None
    if args.probe_epochs > 0 and not checkpoints_in(folder):
        head = probe(lambda phase: _trainer(phase, setting, watchers(0)), args)
    trainer = _trainer(args, setting, watchers(steps_before(setting)))
    if head is not None:
        head.load_into(trainer.model)
    return trainer


def _trainer(args: AdversarialTrainingArguments, setting: str, callbacks: list) -> AdversarialTrainer:
    return AdversarialTrainer(
        model=_network(with_batch_norm="twins_lambda" in SETTINGS[setting]),
        args=args,
        train_dataset=Images(identified=setting == "per_sample"),
        eval_dataset=Images(identified=False),
        data_collator=stack_examples,
        callbacks=callbacks,
        pixel_space=PixelSpace(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    )
