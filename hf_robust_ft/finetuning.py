"""One robust fine-tuning run from names to a checkpoint with its evidence; what `hf-robust-ft train` does."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint

from hf_robust_ft.attacks import use_fast_memory_format
from hf_robust_ft.batches import stack_examples
from hf_robust_ft.data import align_labels, load_image_dataset, with_pixel_values
from hf_robust_ft.models import load_image_classifier
from hf_robust_ft.reporting import write_evidence
from hf_robust_ft.trainer import AdversarialTrainer
from hf_robust_ft.training_args import AdversarialTrainingArguments


@dataclass
class DataArguments:
    """Which images."""

    dataset: str = field(
        metadata={"help": "Hub dataset id, local folder (imagefolder or parquet), or 'digits' (embedded)."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Image column, where there are several."})
    label_column: str | None = field(default=None, metadata={"help": "Label column, where it is not found by itself."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration, where the dataset has several."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset."})
    validation_size: float = field(
        default=0.1, metadata={"help": "Share of train split off where there is no validation split."}
    )
    test_size: float = field(default=0.2, metadata={"help": "Share of train split off where there is no test split."})
    split_seed: int = field(default=0, metadata={"help": "Seed of what is split off."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Draw this many images of the evaluated split at most (with split_seed)."}
    )

    def __post_init__(self):
        self.dataset = os.path.expanduser(self.dataset)

    def load(self, require_train: bool = True) -> DatasetDict:
        """The splits train, validation and test, with columns `image` and `label`."""
        options = {"name": self.dataset_config, "revision": self.dataset_revision}
        return load_image_dataset(
            self.dataset,
            image_column=self.image_column,
            label_column=self.label_column,
            validation_size=self.validation_size,
            test_size=self.test_size,
            seed=self.split_seed,
            require_train=require_train,
            **{name: value for name, value in options.items() if value},
        )

    def describe(self) -> dict[str, Any]:
        """What a card says of the data; a local folder is named without its path."""
        splitting = {
            name: getattr(self, name) for name in ("validation_size", "test_size", "split_seed", "max_eval_samples")
        }
        if os.path.exists(self.dataset):
            return {"dataset": Path(self.dataset).resolve().name, "splitting": splitting}
        return {
            "dataset": self.dataset,
            "dataset_on_hub": self.dataset != "digits",
            "dataset_config": self.dataset_config,
            "dataset_revision": self.dataset_revision,
            "splitting": splitting,
        }


@dataclass
class ModelArguments:
    """Which pretrained model, and how its training images are varied."""

    model: str = field(
        metadata={
            "help": "AutoModelForImageClassification id (timm/... included), local folder, or 'efficientnet_lite0' "
            "(embedded)."
        }
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    image_size: int | None = field(default=None, metadata={"help": "Input size of the embedded model, in pixels."})
    augmentation: str = field(
        default="paper",
        metadata={"help": "Training augmentation: paper (flip, colour jitter 0.25, rotation) or none."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many images at most."})


def at_most(dataset: Dataset, count: int | None, seed: int, name: str) -> Dataset:
    """`count` images drawn with `seed`, or all of them for None."""
    if count is None:
        return dataset
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}.")
    return dataset.shuffle(seed=seed).select(range(min(count, len(dataset))))


def fine_tune(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: AdversarialTrainingArguments,
    metadata: dict[str, Any] | None = None,
) -> AdversarialTrainer:
    """Train, evaluate on the test split, and write checkpoint, processor, report, pictures and card to `output_dir`.

    Accuracy during training is measured on the validation split; nothing is selected on the test split. Returns the
    trainer, whose `robustness_report` holds the result.

    Raises:
        ValueError: what `load_image_dataset`, `load_image_classifier` or `AdversarialTrainer` refuse, or an
            `output_dir` with checkpoints of an earlier run that is neither resumed nor empty.
    """
    resume = _checkpoint_to_resume(args)
    splits = data_args.load()
    model, processor = load_image_classifier(
        model_args.model,
        label_names=splits["train"].features["label"].names,
        image_size=model_args.image_size,
        seed=args.seed,
        **({"revision": model_args.model_revision} if model_args.model_revision else {}),
    )
    splits = DatasetDict({name: align_labels(split, model.config) for name, split in splits.items()})
    train = at_most(splits["train"], model_args.max_train_samples, args.seed, "max_train_samples")
    test = at_most(splits["test"], data_args.max_eval_samples, data_args.split_seed, "max_eval_samples")
    memory_format = use_fast_memory_format(model)
    trainer = AdversarialTrainer(
        model=model,
        args=args,
        train_dataset=with_pixel_values(train, processor, model_args.augmentation),
        eval_dataset=with_pixel_values(splits["validation"], processor),
        processing_class=processor,
        data_collator=stack_examples,
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()  # before anything else can fail
    trainer.evaluate(with_pixel_values(test, processor), metric_key_prefix="test")
    trainer.save_state()
    if trainer.robustness_report is not None and trainer.is_world_process_zero():
        trainer.robustness_report = trainer.robustness_report.with_metadata(
            **describe_model(model_args.model, model),
            **data_args.describe(),
            split="test",
            memory_format=memory_format,
            augmentation=model_args.augmentation,
            **(metadata or {}),
        )
        write_evidence(trainer.robustness_report, args.output_dir, trainer.state.log_history)
    if args.push_to_hub:
        trainer.push_to_hub()
    return trainer


def describe_model(model_id: str, model: PreTrainedModel) -> dict[str, Any]:
    """What a card says of the model that training started from; a local folder is named without its path."""
    if model_id == "efficientnet_lite0":
        from hf_robust_ft.models.efficientnet_lite import SOURCE

        return {"base_model_text": SOURCE}
    if os.path.exists(model_id):
        return {"base_model_text": Path(model_id).resolve().name}
    return {"base_model": model_id}


def _checkpoint_to_resume(args: AdversarialTrainingArguments) -> str | None:
    """The checkpoint that --resume_from_checkpoint names: a folder, or 'last' for the newest in `output_dir`."""
    last = get_last_checkpoint(args.output_dir) if os.path.isdir(args.output_dir) else None
    wanted = args.resume_from_checkpoint
    if wanted is None:
        if last is not None:
            raise ValueError(
                f"{args.output_dir} holds checkpoints of an earlier run ({os.path.basename(last)}). Continue it with "
                "--resume_from_checkpoint last, or choose another --output_dir."
            )
        return None
    if wanted in ("last", "True", "true"):
        if last is None:
            raise ValueError(f"There is no checkpoint to resume from in {args.output_dir}.")
        return last
    if not os.path.isdir(wanted):
        raise ValueError(f"resume_from_checkpoint={wanted!r} is not a folder. Name one, or 'last'.")
    return wanted
