"""AutoLoRA in the Trainer: its scalars, its rate, what checkpoints hold, and what is refused."""

import shutil

import pytest
import torch
from conftest import assert_same_weights, run_script, weights
from pretrained_norms import pretrained, still
from safetensors import safe_open
from trained_alike import assert_goes_on_to_the_bit, assert_train_the_same
from transformers import AutoModelForImageClassification, TrainerCallback

from hf_robust_ft.training.objectives.autolora import BRANCH, NaturalNetwork
from hf_robust_ft.training.objectives.autolora_epochs import natural_accuracy
from hf_robust_ft.training.objectives.autolora_rate import AutoLoraRecord, halvings
from hf_robust_ft.training.objectives.hidden import FILE_NAME, hidden_tensors

RULED = {
    "robust_eval": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True,
    "metric_for_best_model": "eval_adversarial_accuracy", "lr_scheduler_type": "constant", "save_total_limit": None,
}  # fmt: skip
AUTOLORA = {"autolora": True, "autolora_rank": 2, "autolora_rate": "off"}
QUICK = {"num_train_epochs": 2, "eps_schedule": "constant", "optim": "sgd", "learning_rate": 0.05, "robust_eval": "no"}


@pytest.fixture
def make(make_trainer, make_model):
    """A trainer of a tiny network, by default under AutoLoRA without its rate rule."""

    def build(kind="resnet", seed=0, **changes):
        return make_trainer(pretrained(make_model(kind, seed=seed)), **{**AUTOLORA, **QUICK, **changes})

    return build


def record_of(trainer):
    return trainer.callback_of(AutoLoraRecord)


class Watch(TrainerCallback):
    """Notes the scalars and the rate of every step, and the gradients of the first."""

    def __init__(self):
        self.trainer, self.accuracies, self.rates, self.gradients = None, [], [], {}

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.accuracies.append(record_of(self.trainer).accuracy)
        self.rates.append(optimizer.param_groups[0]["lr"])
        if not self.gradients:
            named = model.named_parameters()
            self.gradients = {name: each.grad.clone() for name, each in named if each.grad is not None}


def watched(build, **changes):
    watch = Watch()
    watch.trainer = build(callbacks=[watch], **changes)
    return watch.trainer, watch


# ---- The scalars ---------------------------------------------------------------------


@torch.no_grad()
def counted(model, dataset):
    network = NaturalNetwork(model.eval())
    right = [network(each["pixel_values"][None]).logits.argmax() == each["labels"] for each in dataset]
    return sum(map(bool, right)) / len(right)


def test_the_branchs_accuracy_is_counted_on_every_training_image(make, dataset):
    trainer = make(per_device_eval_batch_size=7)
    with torch.no_grad():
        for update in trainer.model.natural_branch.b.values():
            update.normal_().mul_(0.3)
    trainer.model.train()
    before, random_state = weights(trainer.model), torch.random.get_rng_state()
    found = natural_accuracy(trainer, seed=0)
    assert found == counted(trainer.model, dataset) and 0 < found < 1
    trainer.model.train()
    assert_same_weights(trainer.model, before)
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_scalars_are_measured_before_each_epoch_and_logged(make, dataset):
    trainer, watch = watched(make, num_train_epochs=3, learning_rate=0.2)
    expected = counted(trainer.model, dataset)
    trainer.train()
    each = [watch.accuracies[at : at + 6] for at in range(0, 18, 6)]
    assert all(len(set(epoch)) == 1 for epoch in each) and each[0][0] == expected
    assert len({epoch[0] for epoch in each}) > 1
    rows = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [row["lambda1"] for row in rows] == pytest.approx([1 - epoch[0] for epoch in each])
    assert [row["lambda2"] for row in rows] == pytest.approx([6 * epoch[0] for epoch in each])
    for row in rows:
        terms = row["lambda1"] * row["loss_natural"] + (1 - row["lambda1"]) * row["loss_adversarial"]
        assert row["loss"] == pytest.approx(terms + row["lambda2"] * row["loss_kl"], rel=1e-3)


def test_label_smoothing_is_for_the_network_alone(make):
    smoothed = {
        name: watched(make, max_steps=1, label_smoothing_factor=factor, logging_strategy="steps", logging_steps=1)
        for name, factor in (("plain", 0.0), ("smoothed", 0.2))
    }
    rows = {}
    for name, (trainer, _) in smoothed.items():
        trainer.train()
        rows[name] = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert rows["plain"]["loss_natural"] == rows["smoothed"]["loss_natural"]
    assert rows["plain"]["loss_adversarial"] != rows["smoothed"]["loss_adversarial"]


# ---- Checkpoints ---------------------------------------------------------------------


@pytest.mark.parametrize("step", [6, 8])
def test_a_run_that_was_cut_off_goes_on_to_the_bit(make, tmp_path, step):
    """At the end of an epoch and within one, from other weights."""
    settings = {
        "save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "attack_random_start": True,
        "batch_norm": "trainer", "ema_decay": 0.5,
    }  # fmt: skip
    whole, watch = watched(make, output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    resumed, seen = watched(make, seed=5, output_dir=str(tmp_path / "other"), **settings)
    assert_goes_on_to_the_bit(whole, resumed, tmp_path / "whole" / f"checkpoint-{step}")
    assert seen.accuracies == watch.accuracies[step:]


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_what_is_saved_is_the_plain_model_without_the_branch(make, make_model, kind, tmp_path):
    trainer = make(kind, save_strategy="epoch", ema_decay=0.5, ema_use="no")
    plain = make_model(kind).state_dict().keys()
    trainer.train()
    assert trainer.model.state_dict().keys() == plain
    assert all(each.any() for each in trainer.model.natural_branch.b.values())
    trainer.save_model(str(tmp_path / "published"))
    for path in tmp_path.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert any(BRANCH in name for name in file.keys()) == (path.name == FILE_NAME), path  # noqa: SIM118
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path / "published", output_loading_info=True)
    assert not any(info.values())
    images = torch.rand(4, 3, 16, 16)
    assert torch.equal(loaded.eval()(images).logits, trainer.model.eval()(images).logits)


# ---- The rate ------------------------------------------------------------------------

SCRIPTED = [0.5, 0.6, 0.4, 0.4, 0.7, 0.2]  # robust accuracies of the epochs
WINDOW_1 = {"autolora_rate": "authors", "autolora_window": 1, "num_train_epochs": 6}


@pytest.fixture
def make_ruled(make, monkeypatch):
    """Under the rate rule, with scripted robust accuracies."""

    def build(accuracies=SCRIPTED, **changes):
        trainer, watch = watched(make, **{**RULED, **WINDOW_1, **changes})
        evaluate = trainer.evaluation_loop

        def scripted(*args, **kwargs):
            output = evaluate(*args, **kwargs)
            epoch = trainer.state.global_step // 6 - 1
            output.metrics["eval_adversarial_accuracy"] = accuracies[epoch]
            return output

        trainer.evaluation_loop = scripted
        return trainer, watch

    return build


def test_the_rate_follows_the_rule_from_the_next_step_on(make_ruled):
    trainer, watch = make_ruled(learning_rate=0.016)
    trainer.train()
    halved = halvings(SCRIPTED, 1, "authors")
    assert halved == [False, True, True, False, True]
    rates = [0.016, 0.016, 0.016, 0.008, 0.004, 0.004]
    assert watch.rates == pytest.approx([rate for rate in rates for _ in range(6)])


def test_it_goes_back_to_the_best_weights_after_the_checkpoint_was_saved(make_ruled, tmp_path):
    """Branch and statistics among them; the checkpoint of the epoch itself holds what was trained."""
    begun, out = {}, tmp_path / "out"

    class Begins(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step % 6 == 0:
                tensors = {**model.state_dict(), **hidden_tensors(model)}
                begun[state.global_step] = {name: each.clone() for name, each in tensors.items()}

    trainer, _ = make_ruled(batch_norm="trainer")
    trainer.add_callback(Begins())
    trainer.train()

    def saved(step):
        found = {}
        for name in ("model.safetensors", FILE_NAME):
            with safe_open(out / f"checkpoint-{step}" / name, "pt") as file:
                found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return found

    goes_on_from = {6: 6, 12: 12, 18: 12, 24: 12, 30: 30}
    for step, source in goes_on_from.items():
        assert_same_weights(begun[step], saved(source))
    assert not all(torch.equal(each, saved(12)[name]) for name, each in saved(18).items())
    assert trainer.state.best_global_step == 30


def test_a_run_cut_off_between_the_evaluation_and_going_back_goes_on_to_the_bit(make_ruled, tmp_path):
    whole, watch = make_ruled(output_dir=str(tmp_path / "whole"))
    whole.train()
    for step in (6, 12, 18, 24):
        folder = tmp_path / f"from_{step}"
        shutil.copytree(tmp_path / "whole", folder)
        resumed, seen = make_ruled(seed=5, output_dir=str(folder))
        assert_goes_on_to_the_bit(whole, resumed, folder / f"checkpoint-{step}")
        assert seen.rates == watch.rates[step:] and seen.accuracies == watch.accuracies[step:]
        assert record_of(resumed).robust_accuracies == SCRIPTED


def test_training_ends_below_the_least_rate(make_ruled):
    trainer, watch = make_ruled([0.5] * 6, learning_rate=4e-5)
    trainer.train()
    assert trainer.state.global_step == 4 * 6  # 4e-5, 4e-5, 2e-5, 1e-5, and 5e-6 would follow
    assert min(watch.rates) == pytest.approx(1e-5)


def test_the_rule_waits_until_eps_is_eps_g(make_ruled):
    """While eps rises robust accuracy may fall by design; scalars are measured from the first epoch on."""
    trainer, watch = make_ruled(eps_schedule="hinge", schedule_start=0.2, schedule_end=0.6)
    eps = []
    trainer.add_callback(
        type("Eps", (TrainerCallback,), {"on_evaluate": lambda *a, **k: eps.append(trainer.current_eps)})()
    )
    trainer.train()
    at_target = sum(each >= 8 / 255 - 1e-9 for each in eps[:6])
    assert 0 < at_target < 6 and record_of(trainer).robust_accuracies == SCRIPTED[6 - at_target :]
    assert watch.rates[: 6 * (7 - at_target)] == [0.05] * (6 * (7 - at_target))


def test_off_never_changes_the_rate(make):
    trainer, watch = watched(make, lr_scheduler_type="cosine")
    trainer.train()
    assert watch.rates == sorted(watch.rates, reverse=True) and record_of(trainer).robust_accuracies == []


# ---- Two processes, and other ways to compute ------------------------------------------

UNDER_DDP = """
from pretrained_norms import pretrained, still
from test_autolora_training import Watch, record_of
from hf_robust_ft.training.objectives.hidden import hidden_tensors
watch = Watch()
trainer = watch.trainer = make_trainer(still(pretrained(make_model("resnet"))), callbacks=[watch], **{settings})
trainer.train()
result = dict(weights=trainer.model.state_dict(), hidden=hidden_tensors(trainer.model), gradients=watch.gradients)
torch.save(result | {{"accuracies": watch.accuracies}}, folder / f"{{trainer.args.process_index}}.pt")
"""


@pytest.mark.parametrize("changes", [{}, {"eps": "0", "eval_epsilons": None}, {"autolora_scale": 0.0}])
def test_two_processes_equal_one_that_accumulates(make_trainer, make_model, tmp_path, changes):
    """45 images: the last batches are filled up, which the branch's accuracy does not count."""
    settings = {
        **AUTOLORA, **QUICK, "max_grad_norm": 0.0, "per_device_train_batch_size": 4, "batch_norm": "trainer",
        "per_device_eval_batch_size": 7, **changes,
    }  # fmt: skip
    run = run_script(UNDER_DDP.format(settings=settings), tmp_path, processes=2)
    assert run.returncode == 0, run.stderr[-3000:]
    watch, model = Watch(), still(pretrained(make_model("resnet")))
    watch.trainer = make_trainer(model, callbacks=[watch], gradient_accumulation_steps=2, **settings)
    watch.trainer.train()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["accuracies"] == second["accuracies"] == watch.accuracies
    expected = {"gradients": watch.gradients, "weights": weights(model), "hidden": hidden_tensors(model)}
    for kind, tensors in expected.items():
        assert_same_weights(first[kind], second[kind])
        assert first[kind].keys() == tensors.keys()
        compared = [name for name in tensors if "num_batches" not in name]  # one process sees those of both
        assert all(torch.allclose(first[kind][name], tensors[name], atol=1e-5) for name in compared), kind


@pytest.mark.parametrize("changes", [{"bf16": True}, {"torch_compile": True, "torch_compile_backend": "eager"}])
def test_other_ways_to_compute_train_the_same(make, changes):
    tolerance = 5e-2 if "bf16" in changes else 1e-5
    assert_train_the_same(make(max_steps=3), make(max_steps=3, **changes), tolerance)
