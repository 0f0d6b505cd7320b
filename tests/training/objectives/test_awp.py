"""AWP: weights are moved by their share towards a higher loss, for the length of a step, and come back to the bit."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_same_weights, run_script, weights
from pretrained_norms import pretrained, still

from hf_robust_ft.training.objectives import awp
from hf_robust_ft.training.objectives.awp import WeightPerturbation, perturbed_weights
from hf_robust_ft.training.objectives.hidden import hidden_tensors
from hf_robust_ft.training.objectives.structures import check_structure

QUICK = {"num_train_epochs": 1, "eps_schedule": "constant", "optim": "sgd", "learning_rate": 0.02, "robust_eval": "no"}
AWP = {"awp_gamma": 0.05}
OBJECTIVES = {
    "at": {}, "trades": {"objective": "trades"}, "mart": {"objective": "mart"}, "pmg_aft": {"objective": "pmg_aft"},
    "fare": {"objective": "fare", "attack_loss": "features", "attack_random_start": True, "learning_rate": 1e-4},
    "twins": {"twins_lambda": 0.5, "batch_norm": "trainer"},
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", OBJECTIVES)


@pytest.fixture
def make(make_trainer, make_model):
    def build(kind="resnet", seed=0, **changes):
        return make_trainer(pretrained(make_model(kind, seed=seed)), **{**QUICK, **changes})

    return build


@pytest.fixture
def seen(monkeypatch):
    """What each step's climb found: loss before, weights before and after."""
    notes = []
    climb, restore = WeightPerturbation.climb, WeightPerturbation.restore

    def noted(self, model, loss):
        before = [each.detach().clone() for each in perturbed_weights(model)]
        climb(self, model, loss)
        notes.append((loss.item(), before, [each.detach().clone() for each in perturbed_weights(model)], model))

    def checked(self):
        moved = bool(self._kept)
        restore(self)
        if not moved:
            return
        _, before, _, model = notes[-1]
        assert all(torch.equal(*pair) for pair in zip(before, perturbed_weights(model), strict=True))

    monkeypatch.setattr(WeightPerturbation, "climb", noted)
    monkeypatch.setattr(WeightPerturbation, "restore", checked)
    return notes


@EVERY
def test_each_layer_moves_by_its_share_uphill_and_comes_back(make, seen, name):
    """The logged loss of a step is that at the moved weights, above that of the gradient's."""
    trainer = make(max_steps=2, logging_strategy="steps", logging_steps=1, **AWP, **OBJECTIVES[name])
    trainer.train()
    rows = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(seen) == len(rows) == 2
    for (loss, before, after, _), row in zip(seen, rows, strict=True):
        assert row > loss or (name == "fare" and row >= 0.9 * loss)
        for w, moved in zip(before, after, strict=True):
            share = ((moved - w).norm() / w.norm()).item()
            assert share == pytest.approx(0.05, rel=1e-3) or torch.equal(w, moved)


def test_the_move_is_the_gradients_direction(make_model):
    model = make_model("vit")
    images, labels = torch.rand(4, 3, 16, 16), torch.arange(4)

    class OneProcess:
        num_processes = 1

    plain = copy.deepcopy(model)
    torch.nn.functional.cross_entropy(plain(images).logits, labels).backward()
    perturbation = WeightPerturbation(0.1, OneProcess)
    perturbation.climb(model, torch.nn.functional.cross_entropy(model(images).logits, labels))
    moved, named = dict(model.named_parameters()), dict(plain.named_parameters())
    for name, own in named.items():
        if own.ndim > 1 and "weight" in name:
            expected = own + 0.1 * own.norm() * own.grad / own.grad.norm()
            assert torch.allclose(moved[name], expected, atol=1e-6), name
        else:
            assert torch.equal(moved[name], own), name
        assert moved[name].grad is None
    perturbation.restore()
    assert_same_weights(model, plain)


@EVERY
@pytest.mark.parametrize("batch_norm", ["frozen", "frozen_from_attack", "trainer"])
def test_statistics_see_what_they_saw_without(make, name, batch_norm, monkeypatch):
    """At a move of nothing it is the plain step to the bit, under each policy of BatchNorm."""
    if name == "twins" and batch_norm != "trainer":
        pytest.skip("TWINS brings its own policy")
    settings = {**OBJECTIVES[name], "batch_norm": batch_norm, "max_steps": 3}
    plain = make(**settings)
    plain.train()
    ours = make(**settings, awp_gamma=1e-30)  # below the rounding of any weight
    ours.train()
    assert_same_weights(ours.model, plain.model)
    assert_same_weights(hidden_tensors(ours.model), hidden_tensors(plain.model))


def test_it_begins_after_its_warm_up_and_with_the_attack(make, seen):
    make(num_train_epochs=3, awp_warmup=2.0, **AWP).train()
    assert len(seen) == 6  # of 18 steps
    seen.clear()
    hinge = make(num_train_epochs=4, **AWP, eps_schedule="hinge", logging_strategy="steps", logging_steps=1)
    hinge.train()
    attacked = [entry for entry in hinge.state.log_history if "loss" in entry and entry["eps"] > 0]
    assert len(seen) == len(attacked) < 24


def test_a_failing_step_leaves_the_weights_as_they_were(make, monkeypatch):
    trainer = make(max_steps=2, **AWP)
    before = weights(trainer.model)
    climb = WeightPerturbation.climb

    def failing(self, model, loss):
        climb(self, model, loss)
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(awp.WeightPerturbation, "climb", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert_same_weights(trainer.model, before)


def test_a_run_that_was_cut_off_goes_on_to_the_bit(make, tmp_path):
    settings = {**AWP, "awp_warmup": 0.5, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 5}
    settings |= {"objective": "trades", "ema_decay": 0.5}
    whole = make(output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    resumed = make(seed=5, output_dir=str(tmp_path / "other"), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert_same_weights(resumed.model, whole.model)
    with pytest.raises(ValueError, match=r"awp_gamma 0.05 there, 0.1 now"):
        make(output_dir=str(tmp_path / "third"), **settings | {"awp_gamma": 0.1}).train(
            resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5")
        )


UNDER_DDP = """
from pretrained_norms import pretrained, still
trainer = make_trainer(still(pretrained(make_model("resnet"))), **{settings})
trainer.train()
torch.save(trainer.model.state_dict(), folder / f"{{trainer.args.process_index}}.pt")
"""


def test_two_processes_move_alike_and_as_one_of_twice_the_batch(make_trainer, make_model, tmp_path):
    """The move is by the gradient of all their images."""
    settings = {**QUICK, **AWP, "max_grad_norm": 0.0, "max_steps": 3}
    run = run_script(UNDER_DDP.format(settings={**settings, "per_device_train_batch_size": 4}), tmp_path, processes=2)
    assert run.returncode == 0, run.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_same_weights(first, second)
    one = make_trainer(still(pretrained(make_model("resnet"))), per_device_train_batch_size=8, **settings)
    one.train()
    assert all(torch.allclose(first[name], each, atol=1e-5) for name, each in weights(one.model).items())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"awp_gamma": -0.1}, "awp_gamma must be finite and not negative, e.g. 0.005; got -0.1."),
        ({"awp_gamma": "0.1"}, "awp_gamma must be finite and not negative, e.g. 0.005; got '0.1'."),
        ({"awp_warmup": -1.0}, "awp_warmup must be finite and not negative, in epochs; got -1.0."),
        ({"awp_gamma": 0.0, "awp_warmup": 2.0}, "awp_warmup=2 does nothing without awp_gamma"),
        ({"lora_rank": 2}, "awp_gamma and lora_rank=2 exclude each other: adapters begin at 0"),
        ({"autolora": True, "autolora_rate": "off"}, "awp_gamma and autolora=True exclude each other"),
        ({"eps_schedule": "per_sample"}, "awp_gamma and eps_schedule='per_sample' exclude each other"),
        ({"awp_gamma": 1.0}, "awp_gamma is a share of each layer's norm, below 1, e.g. 0.005; got 1."),
        ({"awp_warmup": 4.0}, "awp_warmup=4 leaves none of 4 epochs to awp_gamma"),
        ({"torch_compile": True}, "awp_gamma and torch_compile=True exclude each other"),
    ],
)
def test_what_it_cannot_go_with_is_refused_by_name(make_args, changes, told):
    with pytest.raises(ValueError, match=told):
        make_args(**{**AWP, **changes})


def test_at_eps_0_it_is_refused(make_args):
    with pytest.raises(ValueError, match="awp_gamma at eps 0 does nothing"):
        make_args(eps="0", eval_epsilons=None, **AWP)


def test_sharded_weights_are_refused(make_args):
    args = make_args(**AWP)
    for fsdp in (True, False):
        with pytest.raises(ValueError, match="awp_gamma is not verified with sharded weights: train with DDP"):
            check_structure(SimpleNamespace(args=args, is_fsdp_enabled=fsdp, is_deepspeed_enabled=not fsdp))
