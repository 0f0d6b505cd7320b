"""Small networks trained adversarially on handwritten digits from random weights, in minutes, for other benchmarks.

python -m hf_robust_ft.benchmarks.small_networks cnn --output_dir cnn
"""

import argparse
import tempfile

import torch
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_robust_ft.data import load_image_dataset, with_pixel_values
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.trainer import AdversarialTrainer

IMAGE_SIZE = 32
RATES = {"cnn": 5e-3, "vit": 1e-3}


def small_network(kind: str, label_names: list[str], image_size: int = IMAGE_SIZE) -> PreTrainedModel:
    """A ResNet of three basic blocks ("cnn"), or a ViT of four layers on patches of 4 ("vit"), of random weights."""
    classes = {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "cnn":
            shape = {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1], "layer_type": "basic"}
            return ResNetForImageClassification(ResNetConfig(**shape, **classes))
        shape = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
        return ViTForImageClassification(ViTConfig(image_size=image_size, patch_size=4, **shape, **classes))


def train_small_network(
    kind: str, folder: str, *, eps: str = "8/255", epochs: float = 15, images: int | None = None
) -> None:
    """Train by the hinge schedule up to Linf `eps`, on so many of the training digits, and write a checkpoint."""
    train = load_image_dataset("digits")["train"]
    names = train.features["label"].names
    train = train if images is None else train.shuffle(seed=0).select(range(images))
    processor = ViTImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    with tempfile.TemporaryDirectory() as scratch:
        args = AdversarialTrainingArguments(
            output_dir=scratch,
            eps=eps,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            learning_rate=RATES[kind],
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            batch_norm="trainer",  # random weights come with no statistics to keep
            memory_format="auto",
            robust_eval="no",
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
        )
        trainer = AdversarialTrainer(
            model=small_network(kind, names),
            args=args,
            train_dataset=with_pixel_values(train, processor),
            processing_class=processor,
            data_collator=stack_examples,
        )
        trainer.train()
    trainer.model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=list(RATES))
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--epochs", type=float, default=15)
    options = parser.parse_args()
    train_small_network(options.kind, options.output_dir, eps=options.eps, epochs=options.epochs)


if __name__ == "__main__":
    main()
