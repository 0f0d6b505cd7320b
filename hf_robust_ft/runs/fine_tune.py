"""One robust fine-tuning run from names to a checkpoint with its evidence; what `hf-robust-ft train` does."""

import copy
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel

from hf_robust_ft.attacks import use_memory_format
from hf_robust_ft.data import SeededAugmentation
from hf_robust_ft.hub import BackgroundPushError
from hf_robust_ft.hub.repository import check_repo_id
from hf_robust_ft.provenance.class_names import class_names
from hf_robust_ft.provenance.record import environment_facts, own_place, resolved_recipe, write_run_record
from hf_robust_ft.runs.arguments import DataArguments, ModelArguments
from hf_robust_ft.runs.continuing import checkpoint_to_resume
from hf_robust_ft.runs.model_names import describe_model
from hf_robust_ft.runs.tasks import TASKS, RunTask
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.base.launching import check_launch
from hf_robust_ft.training.base.resuming import TrainingRecord, check_resumed, run_settings, training_settings
from hf_robust_ft.training.probed_head import ProbedHead, probe_folder
from hf_robust_ft.training.roli import probe
from hf_robust_ft.training.trainer import AdversarialTrainer

logger = logging.getLogger(__name__)

FEW_STEPS = 100  # 40 on 115 photos of flowers ended at chance, 200 did not (notebooks/guides/training.md)


class PreparedRun(NamedTuple):
    """What a run trains and is measured on.

    Args:
        model: with a head for the dataset's classes.
        processor: its image processor.
        splits: `train`, `validation` and `test`, as large as asked for, labels in the model's order.
        facts: what the report says of model and data.
        task: which of `TASKS`.
        known: what the task knows of the data, for `inputs`.
    """

    model: PreTrainedModel
    processor: Any
    splits: DatasetDict
    facts: dict[str, Any]
    task: RunTask = RunTask()
    known: Any = None

    def inputs(self, split: str, augmentation: str = "none", sample_ids: bool = False) -> Dataset:
        """A split as the model takes it."""
        return self.task.inputs(self.splits[split], self.processor, self.known, augmentation, sample_ids)


def prepare_run(
    model_args: ModelArguments, data_args: DataArguments, args: AdversarialTrainingArguments
) -> PreparedRun:
    """Load dataset and model, and fit them to each other.

    Raises:
        ValueError: what `load_image_dataset` or `load_image_classifier` refuse, a number of samples below 1, or a
            stream and no number of steps.
    """
    if args.max_steps < 1 and not args.num_train_epochs > 0:
        raise ValueError(f"num_train_epochs must be positive, got {args.num_train_epochs}.")
    if data_args.streaming:
        check_stream(args)
    check_warm_start(model_args, args)
    task = TASKS[data_args.settle_task(model_args.model, data_args.dataset, model_args.model_revision)]
    task.check(model_args, data_args)
    task.settle(copy.copy(args))  # the trainer does, but only once data and model are loaded
    loaded = task.load_data(data_args)
    model, processor = task.load_model(model_args, task.class_names(loaded), args.seed)
    splits, known = task.fitted(loaded, model.config, processor)
    splits["train"] = task.at_most(splits["train"], model_args.max_train_samples, args.seed, "max_train_samples")
    splits["test"] = task.at_most(splits["test"], data_args.max_eval_samples, data_args.split_seed, "max_eval_samples")
    facts = {
        **describe_model(model_args.model),
        **data_args.describe(loaded),
        "split_sizes": {name: len(split) for name, split in splits.items() if isinstance(split, Dataset)},
        "augmentation": model_args.augmentation,
        "transforms": task.describe(processor, model_args.augmentation),
        "head": model_args.head,
        "memory_format": use_memory_format(model, args.memory_format_in_use),
    }
    if commit := getattr(model.config, "_commit_hash", None):  # what the revision stood for
        facts["base_model_commit"] = commit
    return PreparedRun(model, processor, splits, facts, task, known)


def build_trainer(
    model_args: ModelArguments,
    args: AdversarialTrainingArguments,
    run: PreparedRun,
    data_args: DataArguments | None = None,
    *,
    fresh_models: bool = False,
) -> AdversarialTrainer:
    """The trainer of a run, which evaluates on the validation split.

    Args:
        data_args: what its checkpoints then also remember; None where the caller compares configurations itself.
        fresh_models: let it load the model anew for every training, as a search needs.
    """
    names = class_names(run.model.config)

    def model_init() -> PreTrainedModel:
        model, _ = run.task.load_model(model_args, names, args.seed)
        return model

    return AdversarialTrainer(
        **({"model_init": model_init} if fresh_models else {"model": run.model}),
        args=args,
        train_dataset=run.inputs("train", model_args.augmentation, sample_ids=args.needs_sample_ids),
        eval_dataset=run.inputs("validation"),
        processing_class=run.processor,
        data_collator=run.task.collate,
        callbacks=[SeededAugmentation(), TrainingRecord(run_settings(model_args, data_args) if data_args else {})],
    )


def probe_first(
    model_args: ModelArguments,
    args: AdversarialTrainingArguments,
    run: PreparedRun,
    data_args: DataArguments | None = None,
    *,
    watched: Callable[[AdversarialTrainer], None] = lambda trainer: None,
) -> ProbedHead:
    """RoLI's first phase, or the head that it left before; the run's model then starts from that head.

    Args:
        data_args: as of `build_trainer`.
        watched: called with the phase's trainer before it trains.
    """

    def on_a_copy(phase: AdversarialTrainingArguments) -> AdversarialTrainer:
        trainer = build_trainer(model_args, phase, run._replace(model=copy.deepcopy(run.model)), data_args)
        if phase is not args and args.process_index == 0:
            _warn_of_few_steps(phase, run.splits["train"], "of the head", "--probe_epochs")
        watched(trainer)
        return trainer

    head = probe(on_a_copy, args, run_settings(model_args, data_args) if data_args else {})
    head.load_into(run.model)
    if args.process_index == 0:
        print(f"Training starts from the head in {probe_folder(args.output_dir)}: {head}", flush=True)
    return head


def fine_tune(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: AdversarialTrainingArguments,
    metadata: dict[str, Any] | None = None,
) -> AdversarialTrainer:
    """Train, evaluate on the test split, and write checkpoint, processor, report, pictures and card to `output_dir`.

    Accuracy during training is measured on the validation split; nothing is selected on the test split. Returns the
    trainer, whose `robustness_report` holds the result.

    `recipe.yaml` and `provenance.json` are there from the start of training. With `probe_epochs` the head is trained
    first, in `output_dir/probe` (`training.roli`).

    Raises:
        ValueError: what `prepare_run` or `AdversarialTrainer` refuse, an `output_dir` with checkpoints or a probe of an
            earlier run that is neither resumed nor empty, or one to resume that was trained with other settings.
        PublishError: with `push_to_hub`, what could not be pushed; all of it is in `output_dir`.
    """
    check_launch(args)
    _check_publishable(args)
    resume = checkpoint_to_resume(args)
    forced = []
    if resume is not None:  # before anything is loaded for it, or written
        forced = check_resumed(resume, run_settings(model_args, data_args) | training_settings(args), args)
        if args.process_index == 0:
            print(f"Training goes on from {resume}.", flush=True)
    run = prepare_run(model_args, data_args, args)
    seeds = {"seed": args.seed, "split_seed": data_args.split_seed}
    facts = {**run.facts, "seeds": seeds, "split": "test", **(metadata or {})}
    if forced:
        facts["resumed_with_changes"] = forced
    facts["recipe"] = resolved_recipe(model_args, data_args, args)
    if args.probe_epochs > 0:
        _write_record(model_args, data_args, args, facts)
        head = ProbedHead.in_folder(probe_folder(args.output_dir))
        if resume is None:  # else all weights are the checkpoint's, and the head's file only tells of the first phase
            head = probe_first(model_args, args, run, data_args)
        facts |= {} if head is None else head.told(forced)
    trainer = build_trainer(model_args, args, run, data_args)
    _write_record(model_args, data_args, args, facts)
    if args.process_index == 0:
        _warn_of_few_steps(args, run.splits["train"])
    failed = None
    try:
        trainer.train(resume_from_checkpoint=resume)
    except BackgroundPushError as error:  # training itself is done
        failed = error
    trainer.save_model(_internal_call=True)  # before anything else can fail
    trainer.evaluate(run.inputs("test"), metric_key_prefix="test")
    trainer.save_state()
    if trainer.robustness_report is not None:
        trainer.robustness_report = trainer.robustness_report.with_metadata(**facts)
        trainer.save_evidence()
    if args.push_to_hub:
        trainer.push_to_hub()
        if failed is not None:  # what they would have carried is in the repository now
            logger.warning("%s", failed)
    return trainer


def _write_record(
    model_args: ModelArguments, data_args: DataArguments, args: AdversarialTrainingArguments, facts: dict[str, Any]
) -> None:
    if args.process_index == 0:
        own_recipe = resolved_recipe(model_args, data_args, args, place=own_place)
        write_run_record(args.output_dir, own_recipe, facts | environment_facts())


def _warn_of_few_steps(
    args: AdversarialTrainingArguments, images: Any, phase: str = "in all", epochs: str = "--num_train_epochs"
) -> None:
    """Say where training is too short for new weights to learn the task, let alone under attack.

    Args:
        phase: of the training, as a sentence is to name it.
        epochs: the option that makes it longer.
    """
    if not isinstance(images, Dataset) or args.threat_model.eps == 0:
        return
    epoch = math.ceil(len(images) / (args.train_batch_size * args.world_size * args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)
    if steps < FEW_STEPS:
        logger.warning(
            "%d training steps %s are few: a model that has not learned its task before it is attacked in full may "
            "never do so. For more, raise %s (an epoch has %d) or lower --per_device_train_batch_size.",
            steps, phase, epochs, epoch,
        )  # fmt: skip


def _check_publishable(args: AdversarialTrainingArguments) -> None:
    """Raise where `push_to_hub` would have no report of the published weights to push, before a run is spent on it."""
    if not args.push_to_hub:
        return
    if args.hub_model_id is not None:
        check_repo_id(args.hub_model_id)
    if args.robust_eval == "no" or args.threat_model.eps == 0:
        raise ValueError(
            f"push_to_hub publishes a checkpoint with its robustness report, which robust_eval={args.robust_eval!r} "
            f"and eps={args.eps} do not make: leave push_to_hub out, or set robust_eval=end and an eps above 0."
        )
    if args.ema_decay is not None and args.ema_use == "eval":
        raise ValueError(
            "With ema_use=eval other weights are measured than published: set ema_use=save to push_to_hub."
        )


def check_warm_start(model_args: ModelArguments, args: AdversarialTrainingArguments) -> None:
    """Raise a ValueError where attacks would start from what they found in an image that is varied since."""
    if args.attack_warm_start and model_args.augmentation != "none":
        raise ValueError(
            "attack_warm_start goes on from what the last epoch's attack found in the same image, which "
            f"augmentation={model_args.augmentation} varies in every epoch: give --augmentation none, or leave it out."
        )


def check_stream(args: AdversarialTrainingArguments) -> None:
    """What a stream needs, checked before a pass over it is spent on holding images out.

    Raises:
        ValueError: no number of steps, an eps that would change by epochs, or what counts in epochs.
    """
    if args.attack_warm_start:
        raise ValueError("A stream has no epochs to go on from: leave attack_warm_start out, or do not stream.")
    if args.probe_epochs > 0:
        raise ValueError("A stream has no epochs to probe for: leave probe_epochs out, or do not stream.")
    if args.max_steps < 1:
        raise ValueError(
            "A stream has no length, so num_train_epochs says nothing: give --max_steps N with --streaming."
        )
    if args.schedule_granularity == "epoch":
        raise ValueError(
            "A stream has no epochs for eps to change at: give --schedule_granularity step with --streaming."
        )
