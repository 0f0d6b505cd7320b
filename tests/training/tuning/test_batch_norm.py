"""Whose statistics BatchNorm normalises by in a training step, for every kind of BatchNorm and every way to train."""

import logging
from itertools import pairwise

import pytest
import timm
import torch
import torchvision
from conftest import assert_same_weights, weights
from torch import nn
from transformers import TrainerCallback

from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.training.tuning.batch_norm import BATCH_NORM, batch_norms

QUICK = {"num_train_epochs": 2, "eps_schedule": "constant", "optim": "sgd", "learning_rate": 0.05}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def is_statistic(name):
    return name.endswith(STATISTICS)


def moved(before, after):
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def with_statistics(model):
    """Running statistics as a pretrained model has them, not the initial ones."""
    for module in batch_norms(model):
        module.running_mean.uniform_(-0.1, 0.1)
        module.running_var.uniform_(0.5, 1.5)
    return model


KINDS = {
    "1d": lambda: nn.BatchNorm1d(4),
    "2d": lambda: nn.BatchNorm2d(4),
    "3d": lambda: nn.BatchNorm3d(4),
    "synchronised": lambda: nn.SyncBatchNorm(4),
    "lazy": lambda: nn.LazyBatchNorm2d(),
    "no affine": lambda: nn.BatchNorm2d(4, affine=False),
    "no statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "timm with activation": lambda: timm.layers.BatchNormAct2d(4),
    "timm synchronised": lambda: timm.layers.SyncBatchNormAct(4),
    "timm split": lambda: timm.layers.SplitBatchNorm2d(4),
    "timm evo B": lambda: timm.layers.EvoNorm2dB0(4),
}
OTHERS = {
    "group": lambda: nn.GroupNorm(2, 4),
    "layer": lambda: nn.LayerNorm(4),
    "instance": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "timm layer": lambda: timm.layers.LayerNorm2d(4),
    "timm group": lambda: timm.layers.GroupNorm1(4),
    "timm evo S": lambda: timm.layers.EvoNorm2dS0(4, groups=2),
    "timm frozen": lambda: timm.layers.FrozenBatchNormAct2d(4),
    "torchvision frozen": lambda: torchvision.ops.FrozenBatchNorm2d(4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_batch_norm_is_found(kind):
    module = KINDS[kind]()
    assert module in batch_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(module)))


@pytest.mark.parametrize("kind", OTHERS)
def test_norms_that_do_the_same_in_both_modes_are_not(kind):
    assert batch_norms(nn.Sequential(OTHERS[kind]())) == []


@pytest.mark.parametrize("kind", ["resnet", "timm"])
def test_frozen_statistics_stand_still_to_the_bit_and_everything_else_trains(make_trainer, make_model, kind):
    """Also with accumulation, a weight average, an evaluation in between, and the best checkpoint loaded at the end."""
    trainer = make_trainer(
        with_statistics(make_model(kind)), ema_decay=0.5, gradient_accumulation_steps=2, per_device_train_batch_size=3,
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, robust_eval="no", **QUICK,
    )  # fmt: skip
    before = weights(trainer.model)
    trainer.train()
    after = moved(before, weights(trainer.model))
    assert not any(map(is_statistic, after))
    affine = {name for name, module in trainer.model.named_modules() if module in batch_norms(trainer.model)}
    assert {name.rpartition(".")[0] for name in after} >= affine
    averages = trainer.weight_averaging.averages
    assert all(torch.equal(tensor, before[name]) for name, tensor in averages.items() if is_statistic(name))


@pytest.mark.parametrize("schedule", ["hinge", "uniform"])
def test_statistics_adapt_until_the_first_attack_and_then_never_again(make_trainer, make_model, schedule):
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            mean = torch.cat([module.running_mean for module in batch_norms(kwargs["model"])])
            seen.append((trainer.current_eps, mean.clone()))

    trainer = make_trainer(
        make_model("resnet"), callbacks=[Watch()], batch_norm="frozen_from_attack", eps_schedule=schedule
    )
    trainer.train()
    first = next(index for index, (eps, _) in enumerate(seen) if eps > 0)
    adapting = [not torch.equal(one[1], other[1]) for one, other in pairwise(seen)]
    assert adapting == [index + 1 < first for index in range(len(adapting))]
    assert (first > 0) == (schedule == "hinge")


def test_a_resumed_run_freezes_what_the_interrupted_one_had_frozen(make_trainer, make_model, tmp_path):
    """Also where eps is 0 again after the first attack, so that nothing but the checkpoint can tell."""
    settings = {
        "batch_norm": "frozen_from_attack", "eps_schedule": "piecewise_linear", "save_strategy": "epoch",
        "schedule_args": {"points": "0:1,0.3:1,0.31:0,1:0"},
    }  # fmt: skip
    whole = make_trainer(make_model("resnet"), output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    resumed = make_trainer(make_model("resnet", seed=1), output_dir=str(tmp_path / "other"), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-12"))
    assert_same_weights(resumed.model, whole.model)


@pytest.mark.parametrize("policy", BATCH_NORM)
def test_a_network_without_batch_norm_trains_the_same_bitwise(make_trainer, make_model, policy, caplog):
    trained = []
    with caplog.at_level(logging.INFO):
        for each in ("trainer", policy):
            trainer = make_trainer(make_model("vit", dropout=0.1), batch_norm=each, **QUICK)
            trainer.train()
            trained.append(trainer.model)
    assert_same_weights(*trained)
    said = [each for each in caplog.records if each.getMessage().startswith(f"batch_norm={policy} does nothing: the")]
    # A default that means nothing is no news; what somebody asked for is.
    assert said and {each.levelno for each in said} == {logging.INFO if policy == "frozen" else logging.WARNING}


def test_a_synchronised_batch_norm_trains_where_it_has_nothing_to_synchronise(make_trainer, make_model):
    """On a CPU torch refuses SyncBatchNorm in training mode: that it trains shows that none is in that mode."""
    model = with_statistics(make_model("timm"))
    twin = timm.layers.convert_sync_batchnorm(make_model("timm"))
    twin.load_state_dict(model.state_dict())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in twin.modules())
    for each in (model, twin):
        make_trainer(each, **QUICK).train()
    assert_same_weights(model, twin)


def test_with_lora_and_frozen_parts_statistics_stand_still_under_every_policy(make_trainer, make_model):
    for changes in ({"lora_rank": 2, "lora_targets": ["convolution"]}, {"freeze": "backbone"}):
        for policy in BATCH_NORM:
            trainer = make_trainer(make_model("resnet"), batch_norm=policy, **QUICK, **changes)
            before = weights(trainer.model)
            trainer.train()
            assert not any(map(is_statistic, moved(before, weights(trainer.model)))), (changes, policy)


def test_each_model_of_a_search_is_held(make_trainer, make_model, make_args, dataset, processor):
    from hf_robust_ft import AdversarialTrainer

    trainer = AdversarialTrainer(
        model_init=lambda: make_model("resnet"), args=make_args(**QUICK), train_dataset=dataset,
        processing_class=processor, data_collator=stack_examples,
    )  # fmt: skip
    for _ in range(2):
        trainer.train()
        after = weights(trainer.model)
        assert not any(map(is_statistic, moved(weights(make_model("resnet")), after)))


def test_the_attack_finds_batch_norm_as_it_leaves_it(make_trainer, make_model, dataset):
    trainer = make_trainer(make_model("resnet"), eps_schedule="constant")
    modes = []
    norm, convolution = (
        next(module for module in trainer.model.modules() if isinstance(module, kind))
        for kind in (nn.BatchNorm2d, nn.Conv2d)
    )
    norm.register_forward_hook(lambda *_: modes.append((norm.training, convolution.training)))
    trainer.adversary.is_ready = True
    trainer.scheduler_callback.current_eps = 8 / 255
    trainer.compute_loss(trainer.model.train(), stack_examples([dataset[index] for index in range(8)]))
    assert modes == [(False, False)] * 3 + [(False, True)]  # APGD-2 and its last forward, then the step


# ---- What is said ------------------------------------------------------------------


def test_statistics_that_no_data_ever_moved_are_told_of(make_trainer, make_model, caplog):
    make_trainer(make_model("resnet"), **QUICK).train()
    (said,) = [record.getMessage() for record in caplog.records if "variance 1" in record.getMessage()]
    assert said.startswith("batch_norm=frozen keeps the statistics of 6 of the model's 6 BatchNorm layers at mean 0")
    assert "frozen_from_attack" in said
    caplog.clear()
    make_trainer(with_statistics(make_model("resnet")), **QUICK).train()
    make_trainer(make_model("resnet"), batch_norm="trainer", **QUICK).train()
    assert "BatchNorm" not in caplog.text


@pytest.mark.parametrize(("schedule", "adapts"), [("constant", False), ("hinge", True)])
def test_waiting_for_an_attack_that_comes_at_once_is_told(make_trainer, make_model, caplog, schedule, adapts):
    settings = QUICK | {"eps_schedule": schedule, "batch_norm": "frozen_from_attack"}
    make_trainer(with_statistics(make_model("resnet")), **settings)
    told = "batch_norm=frozen_from_attack acts as frozen under eps_schedule=constant, which attacks from the first"
    assert (told in caplog.text) != adapts
    caplog.clear()
    make_trainer(with_statistics(make_model("resnet")), freeze="backbone", **settings)  # it stands still in any case
    assert "acts as frozen" not in caplog.text


def test_batch_norm_without_statistics_cannot_be_frozen_and_that_is_told(make_trainer, make_model, caplog):
    model = with_statistics(make_model("resnet"))
    module = batch_norms(model)[0]
    module.running_mean = module.running_var = module.num_batches_tracked = None
    module.track_running_stats = False
    make_trainer(model, **QUICK).train()
    assert "batch_norm=frozen cannot freeze 1 of the model's 6 BatchNorm layers" in caplog.text


def test_an_unknown_policy_is_refused(make_args):
    with pytest.raises(ValueError, match="Unknown batch_norm 'freeze'"):
        make_args(batch_norm="freeze")
