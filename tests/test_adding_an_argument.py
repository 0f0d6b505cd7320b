"""A new argument is one line, its field, and its use; the rest follows from what the field says that it affects."""

import dataclasses
import json
from dataclasses import dataclass, field

import pytest
from conftest import assert_same_weights

from hf_robust_ft import AdversarialTrainer, AdversarialTrainingArguments
from hf_robust_ft.experiments.diagnose import refuse_flags, set_by_sweep
from hf_robust_ft.experiments.grid.cells import Cell, CellArguments, Job, Measurement
from hf_robust_ft.experiments.grid.run_cell import CONFIGURATION, refuse_changes
from hf_robust_ft.provenance.record import resolved_recipe
from hf_robust_ft.reporting.model_card import render_model_card
from hf_robust_ft.runs.arguments import DataArguments, ModelArguments
from hf_robust_ft.runs.options import parse_options
from hf_robust_ft.training.base.resuming import training_settings


@dataclass
class Weighing(AdversarialTrainingArguments):
    loss_scale: float = field(default=1.0, metadata={"help": "Factor on the loss.", "affects": "weights"})


@dataclass
class Measuring(AdversarialTrainingArguments):
    loss_scale: float = field(default=1.0, metadata={"help": "Factor on the loss.", "affects": "measurement"})


@dataclass
class Launching(AdversarialTrainingArguments):
    loss_scale: float = field(default=1.0, metadata={"help": "Factor on the loss.", "affects": "launch"})


KINDS = [Weighing, Measuring, Launching]


class ScaledTrainer(AdversarialTrainer):
    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        return loss * self.args.loss_scale if self.model.training else loss


def options(kind, argv):
    types = (ModelArguments, DataArguments, kind)
    own = ["--model", "r50", "--dataset", "digits", "--use_cpu", *argv]
    return parse_options("train", own, types, ("model", "data", "training"), "Train.").parsed


@pytest.fixture
def make_run(make_trainer, make_args):
    def make(kind, **changes):
        small = {"eps": "8/255", "attack_steps": 1, "eval_attack_steps": 1, "eval_epsilons": ["0", "8/255"]}
        args = make_args(kind, **{**small, "num_train_epochs": 2, "save_strategy": "epoch", **changes})
        return make_trainer(trainer_cls=ScaledTrainer, args=args)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_flag_with_its_help(kind, capsys):
    with pytest.raises(SystemExit):
        options(kind, ["--help-all"])
    assert "--loss_scale SCALE Factor on the loss. (default: 1.0)" in " ".join(capsys.readouterr().out.split())
    assert options(kind, ["--loss_scale", "2"])[2].loss_scale == 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_records_it_and_takes_it_back_unless_it_only_launches(kind, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("loss_scale: 2.0\n")
    if kind is Launching:
        with pytest.raises(ValueError, match=r"mine\.yaml may not set loss_scale: give it on the command line"):
            options(kind, ["--config", str(recipe)])
        assert "loss_scale" not in resolved_recipe(*options(kind, ["--loss_scale", "2"]))
    else:
        assert resolved_recipe(*options(kind, ["--config", str(recipe)]))["loss_scale"] == 2.0


def test_resuming_and_card_tell_it_where_it_touches_the_weights(make_run):
    for kind in KINDS:
        first = make_run(kind, loss_scale=2.0)
        assert ("loss_scale" in training_settings(first.args)) == (kind is Weighing)
        assert ("loss_scale" in first.args.training_settings()) == (kind is Weighing)
    first = make_run(Weighing, loss_scale=2.0)
    first.train()
    half = f"{first.args.output_dir}/checkpoint-6"
    with pytest.raises(ValueError, match=r"trained with other settings: loss_scale 2.0 there, 1.0 now"):
        make_run(Weighing).train(resume_from_checkpoint=half)
    again = make_run(Weighing, loss_scale=2.0)
    again.train(resume_from_checkpoint=half)
    assert_same_weights(again.model, first.model)
    first.evaluate()
    assert first.robustness_report.metadata["training"]["loss_scale"] == 2.0
    assert "| loss_scale | 2.0 |" in render_model_card(first.robustness_report)


def test_a_checkpoint_goes_on_whatever_is_measured_or_launched_otherwise(make_run):
    first = make_run(Measuring, loss_scale=2.0)
    first.train()
    for kind in (Measuring, Launching):
        again = make_run(kind, loss_scale=1.0)
        again.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-6")
        assert again.state.global_step == first.state.global_step > 6 and again.training_record.changes == []


def test_a_sweep_refuses_it_where_it_only_measures():
    for kind in KINDS:
        assert ("loss_scale" in set_by_sweep(kind)) == (kind is Measuring)
    refuse_flags("diagnose", ["--loss_scale", "2"], Weighing)
    with pytest.raises(ValueError, match=r"--loss_scale: diagnose measures clean validation accuracy.*Leave it out"):
        refuse_flags("diagnose", ["--loss_scale", "2"], Measuring)


@pytest.mark.parametrize("kind", KINDS)
def test_cells_that_differ_in_it_are_not_compared(kind, tmp_path):
    job = Job(Cell("r50", "digits", "Linf", "4/255", "hinge", 0), (), Measurement(), str(tmp_path))
    usual, changed = (CellArguments(*options(kind, argv)) for argv in ([], ["--loss_scale", "2"]))
    job.work.mkdir(parents=True)
    (job.work / CONFIGURATION).write_text(json.dumps(job.configuration(usual)))
    refuse_changes(job, job.configuration(usual))
    if kind is Launching:
        refuse_changes(job, job.configuration(changed))
    else:
        with pytest.raises(ValueError, match=r"another configuration: loss_scale None there, 2.0 now"):
            refuse_changes(job, job.configuration(changed))


def test_nothing_else_was_touched_for_it():
    fields = {entry.name for entry in dataclasses.fields(Weighing)}
    assert fields - {entry.name for entry in dataclasses.fields(AdversarialTrainingArguments)} == {"loss_scale"}
