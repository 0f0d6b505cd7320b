"""What the benchmark of training trains: two models, handwritten digits, and Trainers with nothing but the training."""

import copy
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_robust_ft.attacks import use_memory_format
from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.data import load_image_dataset, with_pixel_values
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.models import load_image_classifier
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.trainer import AdversarialTrainer

MODELS = ("efficientnet_lite0", "vit_tiny")
EPS = {"efficientnet_lite0": "16/255", "vit_tiny": "4/255"}
IMAGE_SIZE = 32
WARM_UP_STEPS = {"efficientnet_lite0": 60, "vit_tiny": 400}


@dataclass
class Subject:
    """A model as it was loaded or warmed up, its processor, and training images."""

    name: str
    model: nn.Module
    processor: Any
    train: Dataset
    test: Dataset
    batch_size: int

    @property
    def pixel_space(self) -> PixelSpace:
        return PixelSpace.from_processor(self.processor)

    @property
    def eps(self) -> str:
        return EPS[self.name]

    def fresh_model(self, memory_format: str = "contiguous") -> nn.Module:
        """A copy, in a layout."""
        model = copy.deepcopy(self.model)
        use_memory_format(model, memory_format)
        return model

    def arguments(self, cls: type[TrainingArguments], **changes: Any) -> TrainingArguments:
        settings = {
            "output_dir": tempfile.mkdtemp(),
            "num_train_epochs": 12,
            "per_device_train_batch_size": self.batch_size,
            "learning_rate": 1e-5,
            "lr_scheduler_type": "cosine",
            "remove_unused_columns": False,
            "save_strategy": "no",
            "logging_strategy": "epoch",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        if issubclass(cls, AdversarialTrainingArguments):
            settings |= {"eps": self.eps, "memory_format": "auto", "robust_eval": "no"}
        return cls(**(settings | changes))

    def adversarial_trainer(self, callbacks: list[TrainerCallback] | None = None, **changes: Any) -> AdversarialTrainer:
        """Ours, on a fresh copy of the model."""
        return AdversarialTrainer(
            model=self.fresh_model(),
            args=self.arguments(AdversarialTrainingArguments, **changes),
            train_dataset=self.train,
            processing_class=self.processor,
            data_collator=stack_examples,
            callbacks=callbacks,
        )

    def plain_trainer(
        self, callbacks: list[TrainerCallback] | None = None, memory_format: str = "auto", **changes: Any
    ) -> Trainer:
        """transformers' own, which knows no attack, on a fresh copy in the layout that ours chooses."""
        return Trainer(
            model=self.fresh_model(memory_format),
            args=self.arguments(TrainingArguments, **changes),
            train_dataset=self.train,
            data_collator=stack_examples,
            callbacks=callbacks,
        )

    def loader(self, seed: int = 0) -> DataLoader:
        """Shuffled batches for a plain loop."""
        return DataLoader(
            self.train,
            self.batch_size,
            shuffle=True,
            collate_fn=stack_examples,
            generator=torch.Generator().manual_seed(seed),
        )


def load_subject(
    name: str, images: int | None = None, batch_size: int = 32, warm_up: bool = True, seed: int = 0
) -> Subject:
    """The pretrained EfficientNet-Lite0 or a ViT-tiny of random weights, with `images` training digits.

    Args:
        warm_up: train on the clean images first, until most are right. torchattacks leaves out images that are wrong
            already, so on a model that knows nothing yet it would be timed for doing nothing.
    """
    splits = load_image_dataset("digits")
    names = splits["train"].features["label"].names
    if name == "vit_tiny":
        torch.manual_seed(seed)
        shape = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
        model = ViTForImageClassification(
            ViTConfig(image_size=IMAGE_SIZE, patch_size=8, num_labels=len(names), **shape)
        )
        processor = ViTImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    else:
        model, processor = load_image_classifier(name, label_names=names, image_size=IMAGE_SIZE, seed=seed)
    train = splits["train"] if images is None else splits["train"].shuffle(seed=0).select(range(images))
    subject = Subject(
        name,
        model,
        processor,
        with_pixel_values(train, processor),
        with_pixel_values(splits["test"], processor),
        batch_size,
    )
    if warm_up:
        trainer = subject.plain_trainer(max_steps=WARM_UP_STEPS[name], learning_rate=5e-4)
        trainer.train()
        # Not the trained model itself: accelerate has marked it as prepared, so torch_compile would pass it by.
        model.load_state_dict(trainer.model.state_dict())
    return subject
