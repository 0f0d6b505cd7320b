"""What `AdversarialTrainer` refuses at construction, before any compute is spent."""

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
from torch import nn
from transformers import DefaultDataCollator, TrainingArguments, default_data_collator

from hf_robust_ft.attacks.batch_checks import CheckedCollator
from hf_robust_ft.attacks.rehearsal import stated_classes
from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.evaluation.batches import PairCollator
from hf_robust_ft.evaluation.convergence import AUTO
from hf_robust_ft.provenance.file_names import check_output_dir
from hf_robust_ft.schedules.sample_ids import HOW_TO_ADD, SAMPLE_ID, IdentifyingCollator
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.attack_reach import AttackReach
from hf_robust_ft.training.base.launching import ZERO_3_REFUSED, check_launch, check_sharding
from hf_robust_ft.training.guard import OverfittingGuard
from hf_robust_ft.training.low_resolution import check_has_small_images, check_takes_small_images
from hf_robust_ft.training.objectives.parts import LossParts
from hf_robust_ft.training.objectives.structures import check_structure
from hf_robust_ft.training.objectives.teacher import warn_of_ignorance
from hf_robust_ft.training.scheduler import EpsilonSchedulerCallback
from hf_robust_ft.training.tasks import Task, task_of
from hf_robust_ft.training.tuning.batch_norm import BatchNormPolicy, tell_of_start
from hf_robust_ft.training.warm_start import AttackMemory

REENTRANT_REFUSED = (
    "Reentrant activation checkpointing cannot be differentiated with respect to the pixels, so the attack would fail. "
    "Set activation_checkpointing_kwargs={'use_reentrant': False}."
)


def checked_args(args: TrainingArguments | None) -> AdversarialTrainingArguments:
    """The arguments, Trainer's default without any; raise unless they are ours and ask for nothing attacks break at."""
    args = AdversarialTrainingArguments(output_dir="tmp_trainer") if args is None else args
    if not isinstance(args, AdversarialTrainingArguments):
        raise TypeError(
            f"args must be AdversarialTrainingArguments, got {type(args).__name__}: replace TrainingArguments(...) by "
            "AdversarialTrainingArguments(...); it takes the same arguments."
        )
    check_output_dir(args.output_dir)
    if args.activation_checkpointing and (args.activation_checkpointing_kwargs or {}).get("use_reentrant"):
        raise ValueError(REENTRANT_REFUSED)
    if getattr(getattr(args, "deepspeed_plugin", None), "zero_stage", 0) == 3:
        raise ValueError(ZERO_3_REFUSED)
    check_launch(args)
    return args


def datasets_of(eval_dataset: Any) -> list:
    """The datasets in Trainer's `eval_dataset`: several by name, one, or none."""
    return list(eval_dataset.values()) if isinstance(eval_dataset, dict) else [eval_dataset]


def collator_in_use(given: Callable | None) -> Callable:
    """The data collator given, or Trainer's default, which takes torchvision's pairs here as well."""
    is_default = given is None or given is default_data_collator or isinstance(given, DefaultDataCollator)
    return PairCollator(given or default_data_collator) if is_default else given


def checked_collator(trainer: Any) -> Callable:
    """The trainer's data collator, with every training batch checked, and given ids where the schedule needs them."""
    num_labels = trainer.adversary.num_labels(trainer.model)
    collator = CheckedCollator(trainer.data_collator, trainer.pixel_space, num_labels, trainer.task.label_check)
    # By the arguments, too: a hyper-parameter search sets them before the callback reads them.
    needs_ids = trainer.args.needs_sample_ids or trainer.scheduler_callback.alpha.is_per_sample
    return IdentifyingCollator(collator) if needs_ids else collator


def check_data(
    args: AdversarialTrainingArguments,
    model: nn.Module | None,
    data: list,
    eval_dataset: Any,
    data_collator: Callable | None,
    compute_metrics: Callable | None,
) -> None:
    """Raise for data sets that give no images, and for arguments that mean nothing for the model's task."""
    if model is not None:
        check_task(task_of(model), args, eval_dataset, compute_metrics)
    check_probe_data(args, eval_dataset)
    for dataset in data:
        check_dataset(dataset, args, has_collator=data_collator is not None)


def check_task(task: Task, args: AdversarialTrainingArguments, eval_dataset: Any, compute_metrics: Any) -> None:
    """Raise for arguments that mean nothing for a task, and for a metric of the best model that nothing measures."""
    task.settle(args)
    check_best_metric(args, task.metrics, compute_metrics is not None, eval_dataset)


def check_built(trainer: Any, train_dataset: Any, eval_dataset: Any) -> None:
    """Raise for what the trainer's model, data and processes, now that they are known, cannot do together."""
    if trainer.model_init is not None:  # the model is known now
        check_task(trainer.task, trainer.args, eval_dataset, trainer.compute_metrics)
    check_sharded(trainer.args, trainer.is_fsdp_enabled)
    check_structure(trainer)
    tell_of_start(trainer.args, trainer.model, trainer.current_eps)
    trainer.task.check_trainer(trainer)
    check_has_small_images(trainer)
    check_model(trainer.model, trainer.task.least_classes)
    num_labels = trainer.adversary.num_labels(trainer.model)
    check_labels(train_dataset, num_labels, at_least=2)
    for dataset in datasets_of(eval_dataset):
        check_labels(dataset, num_labels)
    check_schedule(trainer.scheduler_callback, train_dataset, eval_dataset)


def check_first_batch(trainer: Any, inputs: dict[str, Any]) -> None:
    """Raise for what shows with the first batch only, before the first step."""
    if trainer.args.torch_compile:
        trainer.task.before_compiling(trainer.model)
    trainer.adversary.check(trainer.model, inputs, trainer.args.threat_model)
    check_takes_small_images(trainer, inputs)
    check_labels(trainer.train_dataset, trainer.adversary.num_labels(trainer.model))
    if trainer.args.has_teacher:
        warn_of_ignorance(trainer.model, inputs)


def check_dataset(dataset: Any, args: TrainingArguments, has_collator: bool) -> None:
    """Raise if it is empty, or could give no `pixel_values`: nothing makes them, or Trainer removes their source."""
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError("A dataset holds no images: look at the filter, split or selection that made it.")
    if not isinstance(dataset, datasets.Dataset) or "pixel_values" in dataset.column_names:
        return
    is_lazy = dataset.format["type"] == "custom"
    if not args.remove_unused_columns and (is_lazy or has_collator):
        return
    if is_lazy:
        raise ValueError(
            f"The dataset makes pixel_values by a transform from its columns {dataset.column_names}, which Trainer "
            "removes first. Set remove_unused_columns=False."
        )
    raise ValueError(
        f"The dataset has the columns {dataset.column_names} but no 'pixel_values'. Give it a transform "
        "(dataset.with_transform(...)) that applies the image processor, and set remove_unused_columns=False."
    )


def check_model(model: nn.Module, least_classes: int = 2) -> None:
    """Raise unless the model tells at least so many classes apart, by a forward that can be attacked."""
    for module in model.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if getattr(module, "gradient_checkpointing", False) and getattr(function, "keywords", {}).get("use_reentrant"):
            raise ValueError(REENTRANT_REFUSED)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("Every parameter of the model is frozen (requires_grad=False): there is nothing to train.")
    if (num_labels := stated_classes(model)) is not None and num_labels < least_classes:
        raise ValueError(
            f"The model has {num_labels} class: there is nothing to confuse it with. Load it with num_labels=<classes>."
        )


# What any evaluation of Trainer's measures, beside what a task's own does.
TIMES = ("runtime", "samples_per_second", "steps_per_second")


def check_sharded(args: AdversarialTrainingArguments, is_fsdp_enabled: bool) -> None:
    """Raise where FSDP is asked for in vain, or would wait for attacks that not every process runs.

    Raises:
        ValueError: what `check_sharding` refuses; or robust evaluations would double their steps under FSDP.
    """
    check_sharding(args, is_fsdp_enabled)
    attacks = args.robust_eval != "no" and args.threat_model.eps > 0
    implied = "" if args.eval_protocol == "paper" else f", which eval_protocol={args.eval_protocol!r} implies,"
    if is_fsdp_enabled and attacks and args.eval_attack_steps == AUTO:
        raise ValueError(
            f"eval_attack_steps='auto'{implied} attacks what stands, other numbers of images on each process, while a "
            "forward under FSDP waits for all of them: give a number of steps, and measure the saved checkpoint with "
            "hf-robust-ft evaluate --attack_steps auto."
        )


def check_best_metric(
    args: TrainingArguments, measured_of_task: tuple[str, ...], has_metrics: bool, eval_dataset: Any
) -> None:
    """Raise if the best model is to be told by what no evaluation will measure: Trainer finds out after an epoch."""
    shown = ("loss", *measured_of_task)
    known = (*shown, *TIMES)
    metric = args.metric_for_best_model
    if metric is None or args.eval_strategy == "no":
        return
    name = metric.removeprefix("eval_")
    if isinstance(eval_dataset, dict):
        measured = [(each, name.removeprefix(f"{each}_")) for each in eval_dataset if name.startswith(f"{each}_")]
        is_known = any(has_metrics or rest in known for _, rest in measured)
        valid = [f"eval_{each}_{what}" for each in eval_dataset for what in shown]
        why = "there are several eval_datasets, each with its own"
    else:
        is_known, valid = has_metrics or name in known, shown
        why = "without compute_metrics there are"
    if not is_known:
        raise ValueError(f"metric_for_best_model={metric!r} is not measured: {why} {', '.join(valid)}.")


def check_probe_data(args: AdversarialTrainingArguments, eval_dataset: Any) -> None:
    """Raise where the first phase that `probe_epochs` ask for has not one validation set to choose its head by."""
    if args.probe_epochs > 0 and (eval_dataset is None or isinstance(eval_dataset, dict)):
        raise ValueError(
            f"probe_epochs={args.probe_epochs:g} chooses the head by its validation accuracy under attack: pass one "
            f"eval_dataset, got {'none' if eval_dataset is None else f'{len(eval_dataset)} by name'}."
        )


def check_labels(dataset: Any, num_labels: int | None, at_least: int = 1) -> None:
    """Raise if a label column, where there is one, holds too few classes or others than 0..K-1.

    Behind a lazy transform the column need not be what the model sees; then only its number of classes counts, and
    each batch is checked for the rest.
    """
    found = _distinct_labels(dataset)
    if found is None or len(found) == 0:
        return
    if len(found) < at_least:
        raise ValueError(f"The training data holds one class only ({found.tolist()}): there is nothing to learn.")
    if dataset.format["type"] == "custom":
        return
    if found[0] < 0 or (num_labels is not None and found[-1] >= num_labels):
        raise ValueError(
            f"Labels must be class indices in 0..{num_labels or 'K'}-1, found {found[0]} to {found[-1]}. "
            "Filter out unlabelled images (-1, -100); for a wrong class count load the model with "
            f"num_labels={max(int(found[-1]) + 1, 2)} and ignore_mismatched_sizes=True."
        )


def _distinct_labels(dataset: Any) -> np.ndarray | None:
    """The sorted distinct labels, where they are a plain integer column; reading it decodes no image."""
    if not isinstance(dataset, datasets.Dataset):
        return None
    for column in ("labels", "label"):
        if isinstance(dataset.features.get(column), (datasets.ClassLabel, datasets.Value)):  # no mask is read for this
            values = np.asarray(dataset.with_format("numpy", columns=[column])[:][column])
            return np.unique(values) if values.ndim == 1 and np.issubdtype(values.dtype, np.integer) else None
    return None


def with_scheduler(callbacks: list | None, args: AdversarialTrainingArguments) -> list:
    """The callbacks with exactly one eps scheduler among them: the user's, or one made from `args`."""
    callbacks = list(callbacks or [])
    ours = [entry for entry in callbacks if isinstance(entry, EpsilonSchedulerCallback)]
    if len(ours) > 1:
        raise ValueError(f"Pass at most one EpsilonSchedulerCallback, got {len(ours)}: which eps is meant is unclear.")
    if not ours:
        return [*callbacks, EpsilonSchedulerCallback.from_args(args)]
    if abs(ours[0].target_eps - args.threat_model.eps) > 1e-9:
        raise ValueError(
            f"The EpsilonSchedulerCallback leads to eps={format_eps(ours[0].target_eps)}, but the arguments say "
            f"eps={format_eps(args.threat_model.eps)}, which evaluation uses. Give both the same."
        )
    return callbacks


def with_watchers(callbacks: list | None, args: AdversarialTrainingArguments) -> list:
    """The callbacks with what a training under attack has beside it."""
    callbacks = [BatchNormPolicy(args.batch_norm), AttackReach(), LossParts(), *with_scheduler(callbacks, args)]
    callbacks += [AttackMemory()] if args.attack_warm_start else []
    if args.attack_guard is None or any(isinstance(entry, OverfittingGuard) for entry in callbacks):
        return callbacks
    return [*callbacks, OverfittingGuard.from_args(args)]


def check_schedule(scheduler: EpsilonSchedulerCallback, train_dataset: Any, eval_dataset: Any) -> None:
    """Raise if the data cannot tell a schedule what it follows: one accuracy, or an id for each image."""
    if scheduler.alpha.is_per_sample:
        _check_sample_ids(train_dataset)
    if scheduler.alpha.observes == "accuracy" and isinstance(eval_dataset, dict):
        raise ValueError(
            f"eps_schedule={scheduler.alpha.name!r} follows one accuracy, and eval_dataset holds several datasets: "
            f"{sorted(eval_dataset)}. Give the one that decides."
        )


def _check_sample_ids(dataset: Any) -> None:
    """Raise if a column `sample_id`, where the dataset has one, gives two images the same id or one none."""
    if not isinstance(dataset, datasets.Dataset) or SAMPLE_ID not in dataset.column_names:
        return
    ids = dataset.with_format(None, columns=[SAMPLE_ID])[:][SAMPLE_ID]
    if len(set(ids)) < len(ids) or None in ids:
        raise ValueError(
            f"The column {SAMPLE_ID!r} gives {len(ids)} images {len(set(ids) - {None})} different ids. {HOW_TO_ADD}"
        )
