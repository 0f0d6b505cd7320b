"""What TWINS and AutoLoRA cannot go with, each told by name before any compute is spent."""

import re
from types import SimpleNamespace

import pytest
import torch
from pretrained_norms import pretrained

from hf_robust_ft.training.objectives.structures import check_structure

QUICK = {"num_train_epochs": 1, "eps_schedule": "constant", "robust_eval": "no"}
SAVED = {"save_strategy": "steps", "save_steps": 5, "save_total_limit": None}
TWINS = {"twins_lambda": 0.5, "batch_norm": "trainer"}
AUTOLORA = {"autolora": True, "autolora_rank": 2, "autolora_rate": "off"}
METHODS = [(TWINS, "twins_lambda"), (AUTOLORA, "autolora")]
RULED = {
    "robust_eval": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True,
    "metric_for_best_model": "eval_adversarial_accuracy", "lr_scheduler_type": "constant",
}  # fmt: skip


@pytest.fixture
def make(make_trainer, make_model):
    def build(**changes):
        return make_trainer(pretrained(make_model("resnet")), **{**QUICK, **changes})

    return build


TWINS_EXCLUDE = [
    ({"twins_lambda": -0.1}, "twins_lambda must be finite and not negative, e.g. 0.4, got -0.1."),
    ({"twins_lambda": "0.4"}, "twins_lambda must be finite and not negative, e.g. 0.4, got '0.4'."),
    ({"batch_norm": "frozen"}, "twins_lambda and batch_norm='frozen' exclude each other: the other branch"),
    ({"lora_rank": 4}, "twins_lambda and lora_rank=4 exclude each other: twins_lambda trains all weights."),
    ({"activation_checkpointing": True}, "twins_lambda and activation_checkpointing exclude each other"),
    ({"ddp_find_unused_parameters": True}, "twins_lambda and ddp_find_unused_parameters=True exclude each other"),
]
AUTOLORA_EXCLUDES = [
    ({"objective": "trades"}, "autolora and objective='trades' exclude each other: it has terms of its own."),
    ({"lora_rank": 4}, "autolora and lora_rank=4 exclude each other"),
    ({"twins_lambda": 0.4, "batch_norm": "trainer"}, "twins_lambda and autolora exclude each other: leave one out."),
    ({"freeze": "backbone"}, "autolora and freeze='backbone' exclude each other: it trains all weights."),
    ({"layer_decay": 0.75}, "autolora and layer_decay=0.75 exclude each other: its updates have no depth."),
    ({"activation_checkpointing": True}, "autolora and activation_checkpointing exclude each other"),
    ({"autolora_rank": 0}, "autolora_rank must be a whole number from 1 on, got 0."),
    ({"autolora_scale": -1.0}, "autolora_scale must be finite and not negative, e.g. 6, got -1.0."),
    ({"autolora_window": 0}, "autolora_window must be whole epochs, at least 1, got 0."),
    ({"autolora_scale": "6"}, "autolora_scale must be finite and not negative, e.g. 6, got '6'."),
    ({"autolora_rate": "paper"}, "autolora_rate"),
    ({"autolora": False}, "autolora_rank, autolora_rate do nothing without autolora: set it"),
]
EXCLUDED = [(TWINS, *each) for each in TWINS_EXCLUDE] + [(AUTOLORA, *each) for each in AUTOLORA_EXCLUDES]


@pytest.mark.parametrize(("method", "changes", "told"), EXCLUDED, ids=[told[:40] for _, _, told in EXCLUDED])
def test_arguments_that_exclude_each_other_are_refused(make_args, method, changes, told):
    make_args(**method)
    with pytest.raises(ValueError, match=re.escape(told)):
        make_args(**{**method, **changes})


def test_set_ups_that_twins_cannot_work_in_are_refused(make, make_trainer, make_model):
    with pytest.raises(ValueError, match=r"ViTForImageClassification has none \(LayerNorm\): leave twins_lambda unset"):
        make_trainer(make_model("vit"), **TWINS)
    with pytest.raises(ValueError, match="twins_lambda and compute_loss_func exclude each other"):
        make(**TWINS, compute_loss_func=lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum())
    with pytest.raises(ValueError, match=r"batch_norm='frozen_from_attack' needs a schedule that begins with eps 0"):
        make(twins_lambda=0.5, batch_norm="frozen_from_attack")
    model = make_model("resnet")
    model.resnet.encoder.gradient_checkpointing = True
    with pytest.raises(ValueError, match=r"twins_lambda and activation checkpointing .*gradient_checkpointing_disable"):
        make_trainer(model, **TWINS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("robust_eval", "end"), ("eval_strategy", "no"), ("save_strategy", "no"), ("load_best_model_at_end", False),
        ("metric_for_best_model", "loss"), ("lr_scheduler_type", "cosine"),
    ],
)  # fmt: skip
def test_the_rule_names_what_it_lacks(make_args, name, value):
    settings = {**AUTOLORA, **RULED, "autolora_rate": "apgd"}
    make_args(**settings)
    changes = {name: value}
    if name in ("eval_strategy", "save_strategy"):
        changes |= {"load_best_model_at_end": False}
    if name == "robust_eval":
        changes |= {"metric_for_best_model": "loss"}
    with pytest.raises(ValueError, match=rf"autolora_rate='apgd' halves .* It needs .*{name}={RULED[name]}.*'off'\."):
        make_args(**settings | changes)


def test_two_that_decide_by_the_same_evaluations_are_refused(make_args):
    settings = {**AUTOLORA, **RULED, "eps_schedule": "auto"}
    make_args(**settings)
    with pytest.raises(
        ValueError, match="autolora and eps_schedule='auto' exclude each other: both decide by the same"
    ):
        make_args(**settings | {"autolora_rate": "authors"})


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([{"pixel_values": torch.zeros(3, 16, 16), "labels": 0}])


def test_set_ups_that_autolora_cannot_work_in_are_refused(make):
    with pytest.raises(ValueError, match="autolora and compute_loss_func exclude each other"):
        make(**AUTOLORA, compute_loss_func=lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum())
    with pytest.raises(ValueError, match="autolora measures its branch on all training images before each epoch"):
        make(**AUTOLORA, train_dataset=Stream(), max_steps=3, schedule_granularity="step")


@pytest.mark.parametrize(
    ("method", "name"), [(TWINS, "twins_lambda"), (AUTOLORA, "autolora")], ids=["twins", "autolora"]
)
def test_a_checkpoint_of_another_objective_is_refused_by_name_in_either_direction(make, tmp_path, method, name):
    plain, ours = ({**SAVED, "output_dir": str(tmp_path / each)} for each in ("plain", "ours"))
    plain |= {"batch_norm": method.get("batch_norm", "frozen")}
    make(**plain).train()
    make(**method, **ours).train()
    for changes in (plain | method, {**ours, "batch_norm": plain["batch_norm"]}):
        with pytest.raises(ValueError, match=rf"trained with other settings: .*{name}"):
            make(**changes).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"holds no hidden_weights\.safetensors: it was trained without twins_lambda"):
        make(**plain | method, force_resume=True).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"has other groups of weights, which force_resume cannot change: give"):
        make(**{**ours, "batch_norm": plain["batch_norm"]}, force_resume=True).train(resume_from_checkpoint=True)


def test_a_loader_of_the_users_own_needs_the_data_beside_it(make):
    trainer = make(**AUTOLORA)
    loader, trainer.train_dataset = trainer.get_train_dataloader(), None
    trainer.get_train_dataloader = lambda: loader
    with pytest.raises(ValueError, match="autolora measures its branch on train_dataset, and there is none"):
        trainer.train()


@pytest.mark.parametrize("sharded", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_sharded_weights_are_refused(make_args, sharded):
    trainer = SimpleNamespace(args=make_args(**TWINS), compute_loss_func=None, train_dataset=None, current_eps=0.0,
                              is_fsdp_enabled=False, is_deepspeed_enabled=False)  # fmt: skip
    check_structure(trainer)
    setattr(trainer, sharded, True)
    with pytest.raises(ValueError, match="twins_lambda is not verified with sharded weights: train with DDP"):
        check_structure(trainer)


@pytest.mark.parametrize(
    ("method", "name"), [(TWINS, "twins_lambda"), (AUTOLORA, "autolora")], ids=["twins", "autolora"]
)
def test_an_attack_that_never_comes_is_told_of(make, caplog, method, name):
    make(**method, eps="0", eval_epsilons=None)
    assert f"{name} at eps 0: no image is attacked" in caplog.text
