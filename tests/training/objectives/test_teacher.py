"""The frozen teacher: what it is, that it stands still and shows nowhere, and what a checkpoint has of it."""

import copy
import json

import pytest
import torch
from conftest import assert_same_weights, run_script, weights
from pretrained_norms import pretrained, still
from safetensors import safe_open
from trained_alike import assert_goes_on_to_the_bit, assert_train_the_same

from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.training.objectives.hidden import FILE_NAME, hidden_tensors
from hf_robust_ft.training.objectives.teacher import TEACHER, teacher_of
from hf_robust_ft.training.tuning.parts import head_parameters, layer_numbers

QUICK = {"num_train_epochs": 2, "eps_schedule": "constant", "optim": "sgd", "learning_rate": 0.05, "robust_eval": "no"}
SAVED = {"save_strategy": "steps", "save_steps": 5, "save_total_limit": None}
PMG_AFT = {"objective": "pmg_aft"}
FARE = {"objective": "fare", "attack_loss": "features", "attack_random_start": True}
TAUGHT = pytest.mark.parametrize("method", [PMG_AFT, FARE], ids=["pmg_aft", "fare"])
KINDS = pytest.mark.parametrize("kind", ["vit", "resnet", "timm"])


@pytest.fixture
def make(make_trainer, make_model):
    def build(kind="resnet", seed=0, **changes):
        return make_trainer(pretrained(make_model(kind, seed=seed)), **{**QUICK, **changes})

    return build


def copied(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


@TAUGHT
@KINDS
@pytest.mark.parametrize("batch_norm", ["frozen", "frozen_from_attack", "trainer"])
def test_it_stands_still_to_the_bit_and_shows_nowhere(make, make_model, method, kind, batch_norm):
    """Under every policy of BatchNorm, which the student follows and the teacher has no part in."""
    trainer = make(kind, batch_norm=batch_norm, max_steps=4, **method)
    model, before, start = trainer.model, copied(hidden_tensors(trainer.model)), weights(trainer.model)
    assert model.state_dict().keys() == make_model(kind).state_dict().keys()
    trainer.train()
    assert_same_weights(hidden_tensors(model), before)
    assert_same_weights({name.removeprefix(f"{TEACHER}.model."): each for name, each in before.items()}, start)
    assert not any(module.training for module in teacher_of(model).modules())
    assert not any(each.requires_grad or each.grad is not None for each in teacher_of(model).parameters())
    after, head = weights(model), head_parameters(model)
    moved = {name for name in start if not torch.equal(start[name], after[name])}
    assert moved and bool(moved & head) == (method is PMG_AFT)
    statistics = {name for name in start if "running" in name}
    assert moved & statistics == (statistics if batch_norm == "trainer" else set())


@TAUGHT
def test_a_run_that_was_cut_off_goes_on_to_the_bit(make, tmp_path, method):
    """From another model, of other weights: the teacher comes from the checkpoint, too."""
    settings = {**SAVED, "attack_random_start": True, "ema_decay": 0.5, **method}
    whole = make(output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    resumed = make(seed=5, output_dir=str(tmp_path / "other"), **settings)
    assert_goes_on_to_the_bit(whole, resumed, tmp_path / "whole" / "checkpoint-5")
    for path in (tmp_path / "whole").rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert any(TEACHER in name for name in file.keys()) == (path.name == FILE_NAME), path  # noqa: SIM118
    whole.save_model(str(tmp_path / "published"))
    assert not (tmp_path / "published" / FILE_NAME).exists()
    with safe_open(tmp_path / "published" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(whole.model.state_dict())


def test_a_checkpoint_of_another_objective_is_refused_by_name(make, tmp_path):
    make(output_dir=str(tmp_path / "whole"), objective="trades", **SAVED).train()
    last = str(tmp_path / "whole" / "checkpoint-5")
    for changes, told in (
        (PMG_AFT, "objective_beta 6.0 there, 1.0 now"), (FARE, "objective 'trades' there, 'fare' now"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            make(output_dir=str(tmp_path / "other"), **changes).train(resume_from_checkpoint=last)
    with pytest.raises(ValueError, match=r"objective_alpha None there, 1.0 now|holds no hidden_weights"):
        make(output_dir=str(tmp_path / "other"), force_resume=True, **PMG_AFT).train(resume_from_checkpoint=last)


def test_the_teacher_is_what_training_starts_from_and_not_what_was_built_from(make):
    """A head that was put in afterwards, as RoLI's, is the teacher's, too."""
    trainer = make(max_steps=1, **PMG_AFT)
    with torch.no_grad():
        trainer.model.classifier[1].bias.add_(1.0)
    start = weights(trainer.model)
    trainer.train()
    assert_same_weights(teacher_of(trainer.model).model, start)


@TAUGHT
@pytest.mark.parametrize("second", [{}, PMG_AFT, FARE], ids=["at", "pmg_aft", "fare"])
def test_a_second_training_begins_as_from_the_saved_model(make_trainer, make_model, method, second):
    settings = {**QUICK, "num_train_epochs": 1}
    used = make_trainer(pretrained(make_model("resnet")), **settings, **method)
    used.train()
    saved = make_model("resnet", seed=1)
    saved.load_state_dict(used.model.state_dict())
    again, anew = (make_trainer(model, **settings, **second) for model in (used.model, saved))
    names = [
        [(name, each.requires_grad) for name, each in trainer.model.named_parameters()] for trainer in (again, anew)
    ]
    assert names[0] == names[1]
    for trainer in (again, anew):
        trainer.train()
    assert_same_weights(again.model, anew.model)


COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}


@pytest.mark.parametrize(
    ("method", "changes"), [(PMG_AFT, {"bf16": True}), (FARE, {"bf16": True}), (PMG_AFT, COMPILED)]
)
def test_other_ways_to_compute_train_the_same(make, method, changes):
    plain, other = make("vit", max_steps=3, **method), make("vit", max_steps=3, **method, **changes)
    for trainer in (plain, other):
        trainer.train()
    first, second = weights(plain.model), weights(other.model)
    tolerance = 5e-2 if "bf16" in changes else 1e-5
    assert all(torch.allclose(first[name], second[name], atol=tolerance) for name in first)


def test_it_computes_in_the_precision_of_the_model(make):
    """Else features would differ where no weight does."""
    teacher = teacher_of(make(bf16=True, **FARE).model)
    teacher(pixel_values=torch.rand(2, 3, 16, 16))
    plain = teacher_of(make(**FARE).model)
    plain(pixel_values=torch.rand(2, 3, 16, 16))
    outputs = [each.model(torch.rand(2, 3, 16, 16)).logits.dtype for each in (teacher, plain)]
    assert teacher.dtype == torch.bfloat16 and plain.dtype is None and set(outputs) == {torch.float32}
    assert teacher(pixel_values=torch.rand(2, 3, 16, 16)).logits.dtype == torch.bfloat16


@KINDS
def test_depths_of_layers_are_the_models_own(make, make_model, kind):
    """So `layer_decay` gives each layer the rate it has without a teacher."""
    assert layer_numbers(make(kind, **PMG_AFT).model) == layer_numbers(make_model(kind))
    make(kind, layer_decay=0.5, max_steps=1, **PMG_AFT).train()


@TAUGHT
@pytest.mark.parametrize("schedule", ["uniform", "loss_driven", "per_sample", "auto"])
def test_every_kind_of_schedule_trains_the_model_and_leaves_the_teacher(
    make_trainer, make_model, images, processor, method, schedule
):
    settings = {"eps_schedule": schedule}
    if schedule == "auto":
        patient = {"patience": 1, "tolerance": 1.0}
        settings |= {"eval_strategy": "epoch", "num_train_epochs": 4, "schedule_args": patient}
    data = with_pixel_values(images, processor, sample_ids=schedule == "per_sample")
    trainer = make_trainer(make_model("vit"), train_dataset=data, **{**QUICK, **settings, **method})
    before, teacher = weights(trainer.model), copied(hidden_tensors(trainer.model))
    trainer.train()
    assert any(not torch.equal(before[name], each) for name, each in weights(trainer.model).items())
    assert_same_weights(hidden_tensors(trainer.model), teacher)


@TAUGHT
def test_activation_checkpointing_trains_the_same(make, method):
    assert_train_the_same(make("vit", **method), make("vit", activation_checkpointing=True, **method), 2e-5)


def test_of_a_model_without_one_set_of_logits_only_features_can_be_held(make_trainer):
    class TwoHeads(torch.nn.Module):
        """Two sets of logits in training, in a tuple that says not which."""

        def __init__(self):
            super().__init__()
            self.body, self.head = torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4)
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, pixel_values, labels=None):
            logits = self.head(self.scale * self.body(pixel_values))
            loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
            return (loss, logits, logits + 1) if self.training else {"loss": loss, "logits": logits}

    with pytest.raises(ValueError, match=r"In training mode: .*is unclear.*Or set objective='at'"):
        make_trainer(TwoHeads(), **QUICK, **PMG_AFT).train()
    trainer = make_trainer(TwoHeads(), **QUICK, **FARE)
    trainer.train()
    assert trainer.model.scale != 1


def test_lora_trains_adapters_against_the_whole_start(make):
    trainer = make("vit", lora_rank=2, max_steps=2, **PMG_AFT)
    before = copied(hidden_tensors(trainer.model))
    trainer.train()
    assert_same_weights(hidden_tensors(trainer.model), before)
    assert not any(each.requires_grad for each in teacher_of(trainer.model).parameters())


def test_copies_of_the_model_hold_no_features_of_others(make):
    """A tensor with a graph could not be copied at all."""
    trainer = make(max_steps=1, **FARE)
    trainer.train()
    images = torch.rand(2, 3, 16, 16)
    logits = trainer.model(images).logits
    copied_model = copy.deepcopy(trainer.model)
    assert torch.equal(copied_model(images).logits, logits)
    students = teacher_of(copied_model).students
    assert students is not teacher_of(trainer.model).students and students.take().shape[0] == len(images)


UNDER_DDP = """
from pretrained_norms import pretrained, still
trainer = make_trainer(still(pretrained(make_model("resnet"))), **{settings})
trainer.train()
torch.save(trainer.model.state_dict(), folder / f"{{trainer.args.process_index}}.pt")
"""


@TAUGHT
def test_two_processes_equal_one_that_accumulates(make_trainer, make_model, tmp_path, method):
    settings = {**QUICK, **method, "max_grad_norm": 0.0, "max_steps": 3, "per_device_train_batch_size": 4}
    settings["learning_rate"] = 0.05 if method is PMG_AFT else 1e-3
    run = run_script(UNDER_DDP.format(settings=settings), tmp_path, processes=2)
    assert run.returncode == 0, run.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_same_weights(first, second)
    if method is PMG_AFT:  # random starts are drawn for each process
        one = make_trainer(still(pretrained(make_model("resnet"))), gradient_accumulation_steps=2, **settings)
        one.train()
        expected = weights(one.model)
        assert all(torch.allclose(first[name], each, atol=1e-5) for name, each in expected.items())


def test_what_is_recorded_and_stated(make, tmp_path):
    trainer = make(max_steps=1, save_strategy="steps", save_steps=1, **PMG_AFT)
    assert trainer.args.training_settings()["objective_alpha"] == 1.0
    trainer.train()
    state = json.loads((tmp_path / "out" / "checkpoint-1" / "trainer_state.json").read_text())
    kept = state["stateful_callbacks"]["TrainingRecord"]["attributes"]["training"]
    assert (kept["objective"], kept["objective_alpha"], kept["objective_beta"]) == ("pmg_aft", 1.0, 1.0)
