"""Every objective under the Trainer: what is plain stays plain, and Trainer treats each as it treats its own loss."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same_weights, weights
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_robust_ft import APGD
from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.training.adversary import Adversary
from hf_robust_ft.training.objectives import OBJECTIVES

WITH_TERMS = pytest.mark.parametrize("objective", ["trades", "mart"])
KL = {"attack_loss": "kl", "attack_random_start": True}
SGD = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}


def class_weighted(outputs, labels, num_items_in_batch=None):
    weight = torch.tensor([0.5, 1.0, 2.0, 1.0])
    return F.cross_entropy(outputs.logits, labels, weight=weight, reduction="sum") / num_items_in_batch


def losses(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# ---- Plain where nothing is attacked ------------------------------------------------------


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "fare"])  # which has no loss of labels
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_at_eps_0_it_is_bitwise_the_plain_trainer(make_trainer, make_model, make_args, objective, kind):
    plain = make_trainer(make_model(kind, dropout=0.1), trainer_cls=Trainer, args=make_args(TrainingArguments))
    plain.train()
    changes = {"eps": "0", "eval_epsilons": None, "batch_norm": "trainer", "objective": objective}
    ours = make_trainer(make_model(kind, dropout=0.1), **changes)
    ours.train()
    assert_same_weights(ours.model, plain.model)
    assert [entry["loss"] for entry in losses(ours)] == [entry["loss"] for entry in losses(plain)]


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_trades_of_weight_0_is_bitwise_the_plain_trainer_under_attack(make_trainer, make_model, make_args, kind):
    """BatchNorm's statistics included: the adversarial images never pass."""
    plain = make_trainer(make_model(kind), trainer_cls=Trainer, args=make_args(TrainingArguments))
    plain.train()
    changes = {"eps_schedule": "constant", "batch_norm": "trainer", "objective": "trades", "objective_beta": 0.0}
    ours = make_trainer(make_model(kind), **changes)
    ours.train()
    assert_same_weights(ours.model, plain.model)


class StopBeforeAttacks(TrainerCallback):
    """After the first epoch, in which hinge leaves eps at 0."""

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


@WITH_TERMS
def test_hinge_is_plain_until_it_attacks_and_then_the_method(make_trainer, make_model, make_args, objective):
    runs = {
        name: make_trainer(make_model("resnet"), batch_norm="trainer", callbacks=callbacks, **changes)
        for name, changes, callbacks in (
            ("at", {}, []), ("method", {"objective": objective}, []),
            ("begun", {"objective": objective}, [StopBeforeAttacks()]),
        )
    }  # fmt: skip
    args = make_args(TrainingArguments)
    runs["plain"] = make_trainer(make_model("resnet"), trainer_cls=Trainer, args=args, callbacks=[StopBeforeAttacks()])
    for trainer in runs.values():
        trainer.train()
    assert_same_weights(runs["begun"].model, runs["plain"].model)
    at, method = losses(runs["at"]), losses(runs["method"])
    assert [entry["eps"] for entry in method] == [entry["eps"] for entry in at]
    assert method[0]["loss"] == at[0]["loss"] and method[0]["loss_kl"] == 0
    assert all(entry["loss"] != before["loss"] for entry, before in zip(method[1:], at[1:], strict=True))
    assert all(entry["loss_kl"] > 0 for entry in method[1:])


@WITH_TERMS
def test_a_per_sample_schedule_begins_plain_too(make_trainer, make_model, make_args, images, processor, objective):
    """Every image's budget is 0 in the first step, in which an attack of eps 0 decides about the next."""
    data = with_pixel_values(images, processor, sample_ids=True)
    changes = {"eps_schedule": "per_sample", "max_steps": 1, "objective": objective, "batch_norm": "trainer"}
    ours = make_trainer(make_model("resnet"), train_dataset=data, **changes)
    args = make_args(TrainingArguments, max_steps=1)
    plain = make_trainer(make_model("resnet"), trainer_cls=Trainer, train_dataset=data, args=args)
    for trainer in (ours, plain):
        trainer.train()
    assert_same_weights(ours.model, plain.model)


# ---- What is logged ------------------------------------------------------------------------


@WITH_TERMS
@pytest.mark.parametrize("loss_function", [None, class_weighted], ids=["trainers", "users"])
def test_the_logged_parts_make_up_the_logged_loss(make_trainer, make_model, objective, loss_function):
    changes = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 4}
    trainer = make_trainer(make_model(), objective=objective, objective_beta=3.0, compute_loss_func=loss_function,
                           eps_schedule="constant", logging_strategy="steps", **changes)  # fmt: skip
    trainer.train()
    assert len(losses(trainer)) == 6
    for entry in losses(trainer):
        names = {"trades": ["loss_clean"], "mart": ["loss_adversarial", "loss_margin"]}[objective]
        together = sum(entry[name] for name in names) + 3.0 * entry["loss_kl"]
        assert entry["loss"] == pytest.approx(together, rel=1e-4) and entry["loss_kl"] > 0


def test_at_logs_what_it_did(make_trainer, make_model):
    trainer = make_trainer(make_model())
    trainer.train()
    assert not any(name.startswith("loss_") for entry in losses(trainer) for name in entry)


# ---- What Trainer does with a loss ----------------------------------------------------------


@WITH_TERMS
@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"label_smoothing_factor": 0.2}, {"compute_loss_func": class_weighted}],
    ids=["plain", "smooth", "users"],
)
def test_accumulated_batches_are_one_large_batch(make_trainer, make_model, objective, kind, changes):
    trainers = [
        make_trainer(make_model(kind), objective=objective, eps_schedule="constant", num_train_epochs=1,
                     per_device_train_batch_size=size, gradient_accumulation_steps=batches, **SGD, **changes)
        for size, batches in ((8, 1), (2, 4))
    ]  # fmt: skip
    for trainer in trainers:
        trainer.train()
    first, second = (weights(trainer.model) for trainer in trainers)
    for name in first:
        assert torch.allclose(first[name].float(), second[name].float(), atol=2e-6), name


def test_label_smoothing_reaches_trainers_loss_and_no_other_term(make_trainer, make_model):
    logged = {}
    for smoothing in (0.0, 0.3):
        trainer = make_trainer(make_model(), objective="mart", eps_schedule="constant", learning_rate=0.0,
                               label_smoothing_factor=smoothing, num_train_epochs=1)  # fmt: skip
        trainer.train()
        logged[smoothing] = losses(trainer)[0]
    assert logged[0.0]["loss_adversarial"] != logged[0.3]["loss_adversarial"]
    for name in ("loss_margin", "loss_kl"):
        assert logged[0.0][name] == pytest.approx(logged[0.3][name], rel=1e-6)


@WITH_TERMS
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({"bf16": True}, 2e-2), ({"activation_checkpointing": True}, 2e-5)],
    ids=["bf16", "checkpointed"],
)
def test_how_passes_are_computed_hardly_changes_the_training(make_trainer, make_model, objective, changes, tolerance):
    runs = [
        make_trainer(make_model(), objective=objective, eps_schedule="constant", num_train_epochs=1, **SGD, **each)
        for each in ({}, changes)
    ]
    for trainer in runs:
        trainer.train()
    first, second = (weights(trainer.model) for trainer in runs)
    assert all(torch.allclose(first[name], second[name], atol=tolerance) for name in first)
    assert losses(runs[1])[0]["loss_kl"] == pytest.approx(losses(runs[0])[0]["loss_kl"], rel=0.1, abs=1e-5)


@WITH_TERMS
def test_compiled_passes_train_as_eager_ones(make_trainer, make_model, objective):
    torch._dynamo.reset()
    settings = {"objective": objective, "eps_schedule": "constant", "max_steps": 3, **SGD}
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    runs = [make_trainer(make_model(), **settings, **changes) for changes in ({}, compiled)]
    for trainer in runs:
        trainer.train()
    torch._dynamo.reset()
    first, second = (weights(trainer.model) for trainer in runs)
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


@WITH_TERMS
@pytest.mark.parametrize(
    "changes",
    [{"ema_decay": 0.9}, {"lora_rank": 2}, {"freeze": "backbone"}, {"eps_schedule": "loss_driven"}],
    ids=["ema", "lora", "freeze", "loss_driven"],
)
def test_it_trains_beside_what_tunes_and_schedules(make_trainer, make_model, objective, changes):
    """And what stands still there stands still here; a resumed run is the uninterrupted one, to the bit."""
    settings = {"eps_schedule": "constant", "objective": objective, "num_train_epochs": 2, **KL, "eval_strategy": "no"}
    settings |= {"save_strategy": "epoch"} | changes
    whole, resumed = (make_trainer(make_model(dropout=0.1), **settings) for _ in range(2))
    before = weights(whole.model)
    whole.train()
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-6")
    assert_same_weights(resumed.model, whole.model)
    moved = {name for name, value in weights(whole.model).items() if not torch.equal(value, before[name])}
    assert moved and losses(whole)[-1]["loss_kl"] == losses(resumed)[-1]["loss_kl"]
    if "freeze" in changes:
        assert all(name.startswith("classifier.") for name in moved)
    if "lora_rank" in changes:
        assert all("lora_" in name or "classifier" in name for name in moved)


# ---- The attack ----------------------------------------------------------------------------


def test_random_starts_are_the_same_whatever_is_minimised(make_trainer, make_model, monkeypatch):
    """They depend on seed, process and step alone; so does the order of the images."""
    starts, begun = APGD.starts, []

    def spy(self, *args, **options):
        for x, targets in starts(self, *args, **options):
            if self.random_start:
                begun.append(x)
            yield x, targets

    monkeypatch.setattr(APGD, "starts", spy)
    found = []
    for changes in ({}, {"objective": "trades", "attack_loss": "kl"}, {"objective": "mart"}):
        begun = []
        make_trainer(make_model(), attack_random_start=True, num_train_epochs=3, **changes).train()
        found.append(begun)
    assert len(found[0]) == 2 * 6
    for first, second, third in zip(*found, strict=True):
        assert torch.equal(first, second) and torch.equal(first, third)


def test_kl_stays_in_training(make_trainer, make_model, monkeypatch):
    """The guard, the check of the first batch and every evaluation look for errors, by cross-entropy."""
    climbed, attack = [], Adversary.attack

    def spy(self, model, inputs, *args, attack: APGD, **options):
        climbed.append(("memory" in options, attack.loss))
        return original(self, model, inputs, *args, attack=attack, **options)

    original = attack
    monkeypatch.setattr(Adversary, "attack", spy)
    guarded = {"attack_guard": 0.5, "attack_guard_every": 2, "attack_steps": 3, "attack_steps_schedule": "hinge"}
    settings = {"objective": "trades", "eps_schedule": "constant", "num_train_epochs": 1} | KL | guarded
    trainer = make_trainer(make_model(), **settings)
    trainer.train()
    assert {loss for trains, loss in climbed if trains} == {"kl"}
    assert {loss for trains, loss in climbed if not trains} == {"ce"} and len(climbed) > 6
    trainer.evaluate()
    assert trainer.args.eval_attack.loss == trainer.robustness_report.attack["loss"] == "ce"


# ---- Arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective": "trade"},
            r"Unknown objective 'trade'\. Did you mean trades\? Valid objectives: at, trades, mart",
        ),
        ({"objective_beta": 6.0}, r"objective_beta=6\.0 does nothing with objective='at'.*set objective to trades or"),
        ({"objective": "trades", "objective_beta": -1.0}, r"not negative, e\.g\. 6\.0; got -1\.0"),
        ({"objective": "mart", "objective_beta": float("nan")}, r"must be finite.*e\.g\. 5\.0; got nan"),
        ({"objective": "mart", "objective_beta": "six"}, r"must be finite.*got 'six'"),
        ({"attack_loss": "kl"}, r"attack_loss='kl' has no gradient at the image.*set attack_random_start=True"),
        ({"attack_loss": "mse"}, r"Valid losses: ce, dlr, dlr_targeted, kl"),
    ],
)
def test_bad_arguments_are_refused_at_construction(make_args, changes, message):
    with pytest.raises(ValueError, match=message):
        make_args(**changes)


def test_an_objective_that_a_search_changes_has_its_own_weight(make_args):
    args = make_args()
    for name, passes in (("trades", 2), ("at", 1), ("mart", 2)):
        args.objective = name
        assert args.passes_under_attack == passes
        keywords = getattr(args.build_objective(), "keywords", {})
        assert keywords == {"at": {}, "trades": {"beta": 6.0}, "mart": {"beta": 5.0}}[name]


class TwoHeads(torch.nn.Module):
    """Two sets of logits in training, as GoogLeNet has, in a tuple that says not which."""

    def __init__(self):
        super().__init__()
        self.flat, self.head = torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4)

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.flat(pixel_values))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return (loss, logits, logits + 1) if self.training else {"loss": loss, "logits": logits}


@WITH_TERMS
def test_a_model_without_one_set_of_logits_is_told_in_the_first_step(make_trainer, objective):
    """Not when hinge begins to attack, hours later."""
    trainer = make_trainer(TwoHeads(), objective=objective)
    with pytest.raises(ValueError, match=r"In training mode: .*is unclear.*Or set objective='at'"):
        trainer.train()
    assert trainer.state.global_step == 0
    make_trainer(TwoHeads()).train()


def test_the_weight_in_use_is_what_is_recorded(make_args):
    told = {name: make_args(objective=name).objective_beta for name in OBJECTIVES if name != "fare"}
    assert told == {"at": None, "trades": 6.0, "mart": 5.0, "pmg_aft": 1.0}
    settings = make_args(objective="trades", objective_beta=1.0, **KL).training_settings()
    told = {name: settings[name] for name in ("objective", "objective_beta", "attack_loss", "attack_random_start")}
    assert told == {"objective": "trades", "objective_beta": 1.0, **KL}
    assert not {"objective", "objective_beta"} & make_args().training_settings().keys()


def test_a_checkpoint_of_another_objective_is_refused_by_name(make_trainer, make_model):
    settings = {"num_train_epochs": 2, "save_strategy": "epoch"}
    first = make_trainer(make_model(), objective="trades", **settings)
    first.train()
    checkpoint = f"{first.args.output_dir}/checkpoint-6"
    for changes, told in (
        ({}, "objective 'trades' there, 'at' now"),
        ({"objective": "mart"}, "objective 'trades' there, 'mart' now"),
        ({"objective": "trades", "objective_beta": 1.0}, r"objective_beta 6\.0 there, 1\.0 now"),
    ):
        with pytest.raises(ValueError, match=told):
            make_trainer(make_model(), **settings, **changes).train(resume_from_checkpoint=checkpoint)


def test_an_older_checkpoint_is_at(make_trainer, make_model):
    """One from before there were objectives says nothing of them."""
    settings = {"num_train_epochs": 2, "save_strategy": "epoch"}
    first = make_trainer(make_model(), **settings)
    first.train()
    state = Path(first.args.output_dir, "checkpoint-6", "trainer_state.json")
    content = json.loads(state.read_text())
    training = content["stateful_callbacks"]["TrainingRecord"]["attributes"]["training"]
    assert training.pop("objective") == "at" and training.pop("objective_beta") is None
    state.write_text(json.dumps(content))
    make_trainer(make_model(), **settings).train(resume_from_checkpoint=str(state.parent))
