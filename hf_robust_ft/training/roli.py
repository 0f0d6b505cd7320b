"""RoLI (arXiv 2312.05716): adversarial linear probing before training.

    head = probe(build_trainer, args)      # phase 1: the head alone, in args.output_dir/probe
    trainer = build_trainer(args)          # phase 2: whatever the arguments say, from that head
    head.load_into(trainer.model)
    trainer.train()

Phase 1 is an ordinary `AdversarialTrainer`'s run, with other arguments. Killed at any moment, the same lines go on:
from the head once there is one, else from the newest checkpoint in `probe/`.
"""

import copy
import gc
import logging
from collections.abc import Callable, Mapping
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.evaluation.convergence import AUTO, FIRST_STEPS
from hf_robust_ft.provenance.affects import arguments
from hf_robust_ft.reporting.probing import probe_doubt
from hf_robust_ft.reporting.verdict import guessing
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.base.checkpoints import newest_complete
from hf_robust_ft.training.base.resuming import refuse_other_settings, training_settings
from hf_robust_ft.training.objectives.structure_arguments import StructureArguments
from hf_robust_ft.training.pass_saving import NO_SAVINGS
from hf_robust_ft.training.probe_arguments import NO_PROBE
from hf_robust_ft.training.probed_head import ProbedHead, probe_folder
from hf_robust_ft.training.schedule_arguments import CONSTANT_EPS
from hf_robust_ft.training.trainer import AdversarialTrainer
from hf_robust_ft.training.tuning import TuningArguments

logger = logging.getLogger(__name__)

METRIC = "eval_adversarial_accuracy"

# What phase 1 changes, beside what belongs to training more than the head.
FIRST_PHASE = {
    **CONSTANT_EPS,
    "freeze": "backbone",
    "max_steps": -1,
    "optim_target_modules": None,
    "eval_strategy": IntervalStrategy.EPOCH,
    "eval_delay": 0,
    "eval_on_start": False,
    "eval_protocol": "paper",
    "robust_eval": "epoch",
    "save_strategy": SaveStrategy.EPOCH,
    "save_total_limit": 1,
    "save_only_model": False,
    "load_best_model_at_end": True,
    "metric_for_best_model": METRIC,
    "greater_is_better": True,
    "push_to_hub": False,
    "resume_from_checkpoint": None,
}


def first_phase(args: AdversarialTrainingArguments) -> AdversarialTrainingArguments:
    """The arguments of phase 1 of a run with `probe_epochs`: its attack, at a constant eps, on the head alone.

    Batch size, precision, seed, schedule of the learning rate and all else are the run's.
    """
    phase = copy.copy(args)
    tuning = [each for each in arguments(TuningArguments) if not each.is_trainers and each.name != "no_decay"]
    unused = {each.name: each.default for each in (*tuning, *arguments(StructureArguments))} | NO_PROBE | NO_SAVINGS
    changes = {
        **unused,
        **FIRST_PHASE,
        "output_dir": str(probe_folder(args.output_dir)),
        "num_train_epochs": args.probe_epochs,
        "learning_rate": args.probe_learning_rate,
        "weight_decay": args.probe_weight_decay,
        "optim": OptimizerNames(args.probe_optim),
        "optim_args": args.probe_optim_args,
        "eval_epsilons": ["0", str(args.eps)],
        "eval_attack_steps": FIRST_STEPS if args.eval_attack_steps == AUTO else args.eval_attack_steps,
    }
    if args.has_teacher:  # of phase 2, with the head that comes out of this one
        changes |= {"objective": "at", "objective_alpha": None, "objective_beta": None}
    for name, value in changes.items():
        setattr(phase, name, value)
    return phase


def probe(
    build_trainer: Callable[[AdversarialTrainingArguments], AdversarialTrainer],
    args: AdversarialTrainingArguments,
    settings: Mapping[str, Any] | None = None,
) -> ProbedHead:
    """Train the head alone under attack, or go on with that; all processes of a distributed run call this.

    Args:
        build_trainer: makes a trainer of a newly loaded model for the arguments it is given. It is called with those of
            phase 1 and, before, with `args`, for what they refuse to show before hours are spent.
        args: with `probe_epochs`.
        settings: of model and data (`run_settings`), which a head that is there must have been trained with, too.

    Returns:
        The best head by validation accuracy under attack, as `output_dir/probe/head.safetensors` keeps it.

    Raises:
        ValueError: no `probe_epochs`, a trainer without one validation set, or a head or checkpoint in `probe/` that
            was trained with other settings.
    """
    if args.probe_epochs == 0:
        raise ValueError("probe_epochs is 0: set it and probe_learning_rate, or train without a first phase.")
    phase, folder = first_phase(args), probe_folder(args.output_dir)
    found = ProbedHead.in_folder(folder)
    if found is not None:
        wanted = {**(settings or {}), **training_settings(phase)}
        changes = refuse_other_settings(str(folder), found.settings, wanted, args)
        head = ProbedHead(found.tensors, found.facts, {**found.settings, "changes": changes})
        if changes != found.settings["changes"] and args.local_process_index == 0:
            head.write(folder)
        return head
    build_trainer(args)
    gc.collect()  # what it holds of the device
    trainer = build_trainer(phase)
    trainer.train(resume_from_checkpoint=newest_complete(folder, tells=args.process_index == 0))
    record = trainer.training_record
    head = ProbedHead.of(
        trainer.model,
        _facts(trainer),
        {"settings": record.settings, "training": record.training, "changes": record.changes},
    )
    trainer.save_state()
    if args.local_process_index == 0:
        head.write(folder)
    trainer.accelerator.wait_for_everyone()
    if args.process_index == 0 and (doubt := probe_doubt(head.facts)):
        logger.warning("%s", doubt)
    del trainer
    gc.collect()
    return head


def _facts(trainer: AdversarialTrainer) -> dict[str, Any]:
    """What a report says of the best head."""
    if trainer.robustness_report is None:  # resumed when all epochs were done
        trainer.evaluate()
    report, step = trainer.robustness_report, trainer.state.best_global_step
    best = next(each for each in trainer.state.log_history if METRIC in each and each["step"] == step)
    return {
        "epochs": trainer.args.num_train_epochs,
        "step": step,
        "eps": format_eps(trainer.args.threat_model.eps),
        "validation_images": report.num_samples,
        "clean_accuracy": best["eval_clean_accuracy"],
        "adversarial_accuracy": best[METRIC],
        "guessing": guessing(report),
    }
