"""TWINS in the Trainer: what each branch learns from, what checkpoints hold, and what is refused."""

import os

import pytest
import torch
from conftest import assert_same_weights, run_script, weights
from forked import LIBRARIES
from pretrained_norms import pretrained, still
from safetensors import safe_open
from torch import nn
from trained_alike import assert_goes_on_to_the_bit, assert_train_the_same
from transformers import TrainerCallback

from hf_robust_ft.training.attack_reach import _cure
from hf_robust_ft.training.objectives import Passes, at
from hf_robust_ft.training.objectives.hidden import FILE_NAME, hidden_tensors
from hf_robust_ft.training.objectives.twins import twins
from hf_robust_ft.training.tuning.averaging import FILE_NAME as AVERAGES

TWINS = {"twins_lambda": 0.5, "batch_norm": "trainer"}
QUICK = {"num_train_epochs": 2, "eps_schedule": "constant", "optim": "sgd", "learning_rate": 0.05}
SAVED = {"save_strategy": "steps", "save_steps": 5, "save_total_limit": None}


@pytest.fixture
def make(make_trainer, make_model):
    """A trainer of a pretrained tiny network, by default under TWINS-AT."""

    def build(kind="resnet", seed=0, **changes):
        model = pretrained(make_model(kind, seed=seed))
        return make_trainer(model, **{**TWINS, **QUICK, "robust_eval": "no", **changes})

    return build


def copied(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


class FirstGradients(TrainerCallback):
    def __init__(self):
        self.found = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.found:
            named = model.named_parameters()
            self.found = {name: each.grad.clone() for name, each in named if each.grad is not None}


def first_gradients(build, **changes):
    noted = FirstGradients()
    trainer = build(callbacks=[noted], max_steps=1, max_grad_norm=0.0, **changes)
    trainer.train()
    return noted.found


def test_without_weight_the_rest_learns_what_at_learns_from_the_second_half(make, monkeypatch):
    """Bit for bit, and statistics as well."""
    ours = first_gradients(make, twins_lambda=0.0)

    def on_half(passes, clean, adversarial):
        half = slice(len(clean) // 2, None)
        return at(passes.rows(half), clean[half], adversarial[half])

    monkeypatch.setattr(
        "hf_robust_ft.training.arguments.AdversarialTrainingArguments.build_objective", lambda self: on_half
    )
    theirs = first_gradients(make, twins_lambda=None)
    assert_same_weights(ours, theirs)


def test_the_loss_is_the_objective_of_each_half_through_its_branch(make, dataset):
    """By the two networks themselves: one in evaluation with the twins' weights, one in training."""
    trainer = make(twins_lambda=0.5)
    model = trainer.model.train()
    batch = trainer.data_collator([dataset[index] for index in range(7)])
    images, labels = batch["pixel_values"], batch["labels"]

    def compute_loss(through, inputs):
        outputs = through(inputs["pixel_values"])
        return nn.functional.cross_entropy(outputs.logits, inputs["labels"]), outputs

    before = copied(weights(model))
    frozen_net = pretrained_copy(model)
    adaptive = nn.functional.cross_entropy(model(images[3:]).logits, labels[3:])
    frozen = nn.functional.cross_entropy(frozen_net(images[:3]).logits, labels[:3])
    model.load_state_dict(before)
    found = twins(at, 0.5, model)(Passes(compute_loss, [model] * 2, batch), images, None)
    assert torch.equal(found.total, 0.5 * frozen + adaptive)
    assert found.parts == {"loss_frozen": frozen, "loss_adaptive": adaptive}
    assert len(found.outputs.logits) == 4


def pretrained_copy(model):
    """The plain network that the frozen branch is, of the twins' own weights."""
    plain = type(model)(model.config)
    state = model.state_dict() | {name.replace(".frozen", ""): each for name, each in hidden_tensors(model).items()}
    plain.load_state_dict(state)
    return plain.eval()


@pytest.mark.parametrize("kind", ["resnet", "timm"])
def test_frozen_statistics_stand_still_to_the_bit_and_their_scales_train(make, kind):
    trainer = make(kind)
    before, own = copied(hidden_tensors(trainer.model)), weights(trainer.model)
    trainer.train()
    for name, tensor in hidden_tensors(trainer.model).items():
        is_scale = name.endswith(("weight", "bias"))
        assert torch.equal(tensor, before[name]) != is_scale, name
    assert not any(torch.equal(each, own[name]) for name, each in weights(trainer.model).items())


def test_where_every_norm_stands_still_a_weight_of_one_is_twice_the_gradient(make):
    """Both branches are one network then."""
    still = {"freeze": "*.normalization.*"}
    ours = first_gradients(make, twins_lambda=1.0, **still)
    theirs = first_gradients(make, twins_lambda=None, **still)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], 2 * theirs[name], atol=1e-6) for name in ours)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_odd_batches_and_single_images_train(make, size, dataset):
    trainer = make(per_device_train_batch_size=size, max_steps=2, train_dataset=dataset.select(range(size + 1)))
    before = copied(hidden_tensors(trainer.model))
    trainer.train()
    moved = [name for name, each in hidden_tensors(trainer.model).items() if not torch.equal(each, before[name])]
    assert moved and all(torch.isfinite(each).all() for each in trainer.model.state_dict().values())


def test_both_halves_are_logged(make):
    trainer = make(logging_strategy="steps", logging_steps=1)
    trainer.train()
    rows = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(row["loss"] == pytest.approx(0.5 * row["loss_frozen"] + row["loss_adaptive"], rel=1e-3) for row in rows)


def test_a_run_that_was_cut_off_goes_on_to_the_bit(make, tmp_path):
    """From other weights, statistics among them: all comes from the checkpoint."""
    settings = {**SAVED, "attack_random_start": True, "ema_decay": 0.5}
    whole = make(output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    resumed = make(seed=5, output_dir=str(tmp_path / "other"), **settings)
    assert_goes_on_to_the_bit(whole, resumed, tmp_path / "whole" / "checkpoint-5")


def test_the_best_model_brings_its_twins_back(make):
    kept = {}

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, model=None, **kwargs):
            kept[state.global_step] = copied(hidden_tensors(model))

    trainer = make(
        callbacks=[Keep()], eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="loss", greater_is_better=True,  # so that the first epoch's is the best
    )  # fmt: skip
    trainer.train()
    best = trainer.state.best_global_step
    assert best < max(kept)
    assert_same_weights(hidden_tensors(trainer.model), kept[best])


WITHOUT_US = """
import sys
import torch
sys.modules["hf_robust_ft"] = None  # any import of it fails
from transformers import AutoModelForImageClassification
model, info = AutoModelForImageClassification.from_pretrained("published", output_loading_info=True)
assert not any(info.values()), info
torch.save(model.eval()(torch.load("images.pt")).logits, "logits.pt")
"""


def test_what_is_published_is_the_plain_model_to_whoever_has_never_heard_of_us(make, make_model, tmp_path):
    """Keys before and after, every file, and the logits in another process, bit for bit."""
    trainer = make(ema_decay=0.5, ema_use="no", **SAVED)
    plain = make_model("resnet").state_dict().keys()
    assert trainer.model.state_dict().keys() == plain
    trainer.train()
    assert trainer.model.state_dict().keys() == plain
    trainer.save_model(str(tmp_path / "published"))
    out = tmp_path / "out"
    for path in [*out.rglob("*.safetensors"), *(tmp_path / "published").rglob("*.safetensors")]:
        with safe_open(path, "pt") as file:
            assert any(".frozen." in name for name in file.keys()) == (path.name == FILE_NAME), path  # noqa: SIM118
    assert (out / "checkpoint-5" / FILE_NAME).is_file() and (out / "checkpoint-5" / AVERAGES).is_file()
    assert not (tmp_path / "published" / FILE_NAME).exists()
    images = torch.rand(4, 3, 16, 16)
    torch.save(images, tmp_path / "images.pt")
    (tmp_path / "script.py").write_text(WITHOUT_US)
    done = LIBRARIES.run(tmp_path / "script.py", [{**os.environ, "OMP_NUM_THREADS": "1"}], tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt"), trainer.model.eval()(images).logits)


@pytest.mark.parametrize("changes", [{"bf16": True}, {"torch_compile": True, "torch_compile_backend": "eager"}])
def test_other_ways_to_compute_train_the_same(make, changes):
    tolerance = 5e-2 if "bf16" in changes else 1e-5
    assert_train_the_same(make(max_steps=3), make(max_steps=3, **changes), tolerance)


def test_each_half_has_a_whole_objective_of_its_own(make):
    """Trades: the sum of its terms in the adaptive branch, and the same of the other one."""
    trainer = make(objective="trades", objective_beta=3.0, twins_lambda=0.5, logging_strategy="steps", logging_steps=1)
    trainer.train()
    rows = [entry for entry in trainer.state.log_history if "loss" in entry]
    for row in rows:
        assert row["loss_adaptive"] == pytest.approx(row["loss_clean"] + 3 * row["loss_kl"], rel=1e-4)
        assert row["loss"] == pytest.approx(0.5 * row["loss_frozen"] + row["loss_adaptive"], rel=1e-3)


def test_hinge_trains_both_branches_on_clean_halves_first(make):
    trainer = make(eps_schedule="hinge", num_train_epochs=4, logging_strategy="steps", logging_steps=1)
    trainer.train()
    rows = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert {"loss_frozen", "loss_adaptive"} <= rows[0].keys() and rows[0]["eps"] == 0 < rows[-1]["eps"]


def test_adapting_until_the_attack_is_allowed_and_freezes_the_adaptive_branch_then(make):
    trainer = make(batch_norm="frozen_from_attack", eps_schedule="hinge", num_train_epochs=4)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    assert not any(torch.equal(after[name], each) for name, each in before.items() if "running" in name)
    counted = {(after[name] - each).item() for name, each in before.items() if "num_batches" in name}
    assert counted == {6}  # steps of the first epoch, that of eps 0


def test_where_the_attack_does_not_reach_the_adaptive_branch_the_cure_is_one_that_twins_takes(make):
    trainer = make()
    told = _cure(trainer.args, trainer.model)
    assert "adaptive branch" in told and "frozen_from_attack" in told and "batch_norm='frozen'" not in told


# ---- Two processes -------------------------------------------------------------------

UNDER_DDP = """
from pretrained_norms import pretrained, still
from test_twins_training import FirstGradients
from hf_robust_ft.training.objectives.hidden import hidden_tensors
noted = FirstGradients()
trainer = make_trainer(still(pretrained(make_model("resnet"))), callbacks=[noted], **{settings})
trainer.train()
rank = trainer.args.process_index
result = dict(weights=trainer.model.state_dict(), hidden=hidden_tensors(trainer.model), gradients=noted.found)
torch.save(result, folder / f"{{rank}}.pt")
"""


@pytest.mark.parametrize(
    ("size", "changes"),
    [(4, {}), (3, {"twins_lambda": 1.0}), (1, {}), (4, {"twins_lambda": 0.0}), (3, {"objective": "trades"})],
)
def test_two_processes_equal_one_that_accumulates(make_trainer, make_model, tmp_path, size, changes):
    settings = {
        **TWINS, **QUICK, "robust_eval": "no", "max_grad_norm": 0.0, "max_steps": 4,
        "per_device_train_batch_size": size, **changes,
    }  # fmt: skip
    run = run_script(UNDER_DDP.format(settings=settings), tmp_path, processes=2)
    assert run.returncode == 0, run.stderr[-3000:]
    noted = FirstGradients()
    model = still(pretrained(make_model("resnet")))
    one = make_trainer(model, callbacks=[noted], gradient_accumulation_steps=2, **settings)
    one.train()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for kind, expected in (("gradients", noted.found), ("weights", weights(model)), ("hidden", hidden_tensors(model))):
        assert_same_weights(first[kind], second[kind])
        assert first[kind].keys() == expected.keys()
        compared = [name for name in expected if "num_batches" not in name]  # one process sees those of both
        assert all(torch.allclose(first[kind][name], expected[name], atol=1e-5) for name in compared), kind
