"""RoLI: adversarial linear probing first. What its first phase trains, and what the second starts from."""

import json
import logging

import pytest
import torch
from conftest import assert_same_weights, run_script, weights
from safetensors.torch import load_file

from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.reporting.probing import probe_doubt
from hf_robust_ft.training.probed_head import ProbedHead, probe_folder
from hf_robust_ft.training.roli import first_phase, probe

PROBE = {"probe_epochs": 2, "probe_learning_rate": 0.5, "probe_optim_args": "momentum=0.9"}
HEADS = {"vit": "classifier.", "resnet": "classifier.1.", "timm": "timm_model.fc."}


@pytest.fixture
def build(make_trainer, make_model):
    """Of arguments a trainer of a newly loaded model, as `probe` takes it."""

    def builder(kind="resnet", **options):
        return lambda args: make_trainer(make_model(kind), args=args, **options)

    return builder


def logits(trainer):
    batch = trainer.data_collator([trainer.eval_dataset[index] for index in range(16)])
    trainer.model.eval()
    with torch.no_grad():
        return trainer.model(pixel_values=batch["pixel_values"]).logits


@pytest.fixture
def probed(build):
    """The head of a probe, and phase 1's trainer, whose model is the best then."""

    def run(args, kind="resnet"):
        seen = {}

        def watched(given):
            trainer = build(kind)(given)
            return seen.setdefault("phase 1", trainer) if given.freeze == "backbone" else trainer

        return probe(watched, args), seen["phase 1"]

    return run


@pytest.mark.parametrize("kind", HEADS)
def test_phase_1_moves_the_head_alone_buffers_included(probed, make_args, make_model, kind):
    head, trainer = probed(make_args(**PROBE, batch_norm="trainer", num_train_epochs=1), kind)
    before, after = weights(make_model(kind)), weights(trainer.model)
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == set(head.tensors) == {f"{HEADS[kind]}weight", f"{HEADS[kind]}bias"}
    assert all(torch.equal(tensor, after[name]) for name, tensor in head.tensors.items())


def test_phase_1_is_the_runs_attack_at_a_constant_eps_on_the_head_alone(make_args):
    args = make_args(
        **PROBE, eps_schedule="hinge", ema_decay=0.9, layer_decay=0.7, weight_decay=0.3, label_smoothing_factor=0.1,
        attack_random_start=True, attack_steps=3, max_steps=9, push_to_hub=False, optim="adamw_torch",
        eval_protocol="reliable", eval_attack_steps="auto", seed=5,
    )  # fmt: skip
    phase = first_phase(args)
    assert phase.train_attack == args.train_attack and phase.threat_model == args.threat_model
    assert (phase.eps_schedule, phase.freeze, phase.ema_decay, phase.layer_decay) == (
        "constant",
        "backbone",
        None,
        None,
    )
    assert (phase.num_train_epochs, phase.max_steps, phase.learning_rate, phase.weight_decay) == (2, -1, 0.5, 0.0)
    assert phase.optim == "sgd" and phase.optim_args == "momentum=0.9" and phase.probe_epochs == 0
    assert (phase.seed, phase.label_smoothing_factor) == (5, 0.1)
    assert phase.evaluation_grid == [0.0, args.threat_model.eps] and phase.eval_attack.steps == 10
    assert (args.eps_schedule, args.freeze, args.output_dir) == ("hinge", "none", phase.output_dir.rpartition("/")[0])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("resnet", {}), ("vit", {"lora_rank": 2}), ("resnet", {"ema_decay": 0.9}), ("resnet", {"freeze": "1"})],
)
def test_the_first_logits_of_phase_2_are_the_best_of_phase_1(build, probed, make_args, kind, changes):
    args = make_args(**PROBE, num_train_epochs=1, **changes)
    head, phase_1 = probed(args, kind)
    best = logits(phase_1)
    assert head.facts["step"] == phase_1.state.best_global_step
    trainer = build(kind)(args)
    assert not torch.equal(logits(trainer), best)
    head.load_into(trainer.model)
    assert torch.equal(logits(trainer), best)
    trainer.train()  # which sees that it is that head


def test_the_best_head_is_the_one_of_the_best_accuracy_under_attack(build, make_args):
    args = make_args(**PROBE | {"probe_epochs": 4}, num_train_epochs=1, metric_for_best_model=None)
    head = probe(build(), args)
    history = json.loads((probe_folder(args.output_dir) / "trainer_state.json").read_text())["log_history"]
    measured = {each["step"]: each["eval_adversarial_accuracy"] for each in history if "eval_clean_accuracy" in each}
    assert len(measured) == 4 and measured[head.facts["step"]] == max(measured.values())
    assert head.facts["adversarial_accuracy"] == max(measured.values()) and head.facts["validation_images"] == 48


def test_without_probe_epochs_all_is_as_before(make_trainer, make_model):
    ends = []
    for changes in ({}, {"probe_epochs": 0}):
        trainer = make_trainer(make_model("resnet"), num_train_epochs=2, eps_schedule="constant", **changes)
        trainer.train()
        ends.append(weights(trainer.model))
    assert_same_weights(*ends)
    assert "probe_epochs" not in trainer.described_training()


@pytest.mark.parametrize("schedule", ["hinge", "per_sample", "loss_driven"])
def test_phase_2_is_any_run(build, make_args, dataset, schedule, images, processor):
    identified = with_pixel_values(images, processor, sample_ids=True)
    args = make_args(**PROBE, eps_schedule=schedule, num_train_epochs=2)
    builder = build("resnet", train_dataset=identified)
    head = probe(builder, args)
    trainer = builder(args)
    head.load_into(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 12
    assert trainer.described_training()["probe_epochs"] == 2


def test_a_head_there_is_taken_and_a_probe_begun_goes_on(build, make_args):
    args = make_args(**PROBE, num_train_epochs=1)
    head = probe(build(), args)

    def must_not_train(given):
        raise AssertionError("the head is there")

    again = probe(must_not_train, args)
    assert_same_weights(again.tensors, head.tensors)
    assert again.facts == head.facts
    (probe_folder(args.output_dir) / "head.safetensors").unlink()  # killed before it was written
    once_more = probe(build(), args)
    assert_same_weights(once_more.tensors, head.tensors)
    assert once_more.facts == head.facts


def test_a_head_of_other_settings_is_refused(build, make_args, caplog):
    args = make_args(**PROBE, num_train_epochs=1)
    probe(build(), args)
    other = make_args(**PROBE | {"probe_learning_rate": 0.25}, num_train_epochs=1)
    with pytest.raises(ValueError, match=r"probe was trained with other settings: learning_rate .*0.5.*0.25"):
        probe(build(), other)
    other.force_resume = True
    assert probe(build(), other).told([])["resumed_with_changes"]
    of_phase_2 = make_args(**PROBE, num_train_epochs=3, learning_rate=0.1, eps_schedule="hinge", ema_decay=0.9)
    probe(build(), of_phase_2)  # which phase 1 does not depend on


def test_training_does_not_begin_without_the_head(build, make_args, make_trainer, make_model):
    args = make_args(**PROBE, num_train_epochs=1)
    with pytest.raises(ValueError, match=r"probe_epochs=2 asks for a head .* and there is none in"):
        build()(args).train()
    probe(build(), args)
    with pytest.raises(ValueError, match=r"the model does not start from the one in .*probe.*load_into"):
        build()(args).train()


def test_a_head_of_another_model_is_refused(build, make_args, make_model):
    head = probe(build(), make_args(**PROBE, num_train_epochs=1))
    with pytest.raises(ValueError, match=r"does not fit ResNet.*: its classifier.1.weight of shape"):
        head.load_into(make_model("resnet", num_labels=7))
    with pytest.raises(ValueError, match=r"its classifier.1.weight of shape \[4, 16\] is missing in the model"):
        head.load_into(make_model("vit"))


def test_a_broken_head_is_named(tmp_path):
    (tmp_path / "head.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"is no head that a probe wrote \(SafetensorError.*Delete it"):
        ProbedHead.in_folder(tmp_path)
    assert ProbedHead.in_folder(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe_epochs": -1}, "probe_epochs must be a number of epochs, 0 or more, got -1"),
        ({"probe_epochs": float("nan")}, "probe_epochs must be a number of epochs, 0 or more, got nan"),
        ({"probe_epochs": "many"}, "probe_epochs must be a number of epochs, 0 or more, got 'many'"),
        ({"probe_learning_rate": None}, "set probe_learning_rate"),
        ({"probe_learning_rate": 0.0}, "probe_learning_rate must be positive and finite, got 0.0"),
        ({"probe_weight_decay": -0.1}, "probe_weight_decay must be finite and not negative, got -0.1"),
        ({"probe_optim": "momentum"}, "Unknown probe_optim 'momentum'. Valid: .*sgd"),
        ({"probe_epochs": 0}, "probe_learning_rate, probe_optim_args do nothing without probe_epochs"),
        ({"probe_epochs": 0, "probe_optim_args": None}, "probe_learning_rate does nothing without probe_epochs"),
        ({"probe_optim_args": "momentum"}, "probe_optim_args is NAME=VALUE, .* momentum=0.9; got 'momentum'"),
        ({"probe_optim_args": "momentum=abc"}, "probe_optim_args='momentum=abc': could not convert"),
        ({"probe_optim_args": "momentun=0.9"}, "probe_optim_args: momentun=0.9 changes nothing of probe_optim='sgd'"),
        ({"eps": 0, "eval_epsilons": None}, "probe_epochs trains the head under attack at eps, which is 0"),
        ({"freeze": "backbone"}, "probe_epochs with freeze='backbone' trains the head alone twice"),
        ({"fsdp": "full_shard"}, "probe_epochs freezes the backbone in its first phase, .* sharded weights"),
    ],
)
def test_bad_settings_are_refused_at_construction(make_args, changes, message):
    with pytest.raises(ValueError, match=message):
        make_args(**PROBE | changes)


def test_bad_data_are_refused_before_anything_is_trained(build, make_args, dataset):
    args = make_args(**PROBE, num_train_epochs=1)
    with pytest.raises(ValueError, match=r"probe_epochs=2 chooses the head by .*: pass one eval_dataset, got none"):
        probe(build(eval_dataset=None), args)
    with pytest.raises(ValueError, match="pass one eval_dataset, got 2 by name"):
        probe(build(eval_dataset={"a": dataset, "b": dataset}), args)
    unlabelled = [{"pixel_values": dataset[index]["pixel_values"]} for index in range(16)]
    with pytest.raises(ValueError, match=r"labels"):
        probe(build(train_dataset=unlabelled), args)
    with pytest.raises(ValueError, match="probe_epochs is 0"):
        probe(build(), make_args())
    assert not list(probe_folder(args.output_dir).glob("*"))


def test_what_phase_2_refuses_is_refused_before_phase_1(build, make_args):
    args = make_args(**PROBE, num_train_epochs=1, lora_rank=2, lora_targets=["nothing"])
    with pytest.raises(ValueError, match="nothing"):
        probe(build(), args)
    assert not probe_folder(args.output_dir).exists()


def test_a_head_that_only_guesses_is_warned_of(build, make_args, caplog):
    args = make_args(**PROBE | {"probe_learning_rate": 1e-6}, num_train_epochs=1)
    with caplog.at_level(logging.WARNING, "hf_robust_ft.training.roli"):
        head = probe(build("vit"), args)
    assert probe_doubt(head.facts) in caplog.text and "leave probe_epochs out" in caplog.text


# SGD, for Adam makes a whole step of a gradient near 0.
TRAINED = """
from hf_robust_ft.training.roli import probe
args = make_args(
    probe_epochs=2, probe_learning_rate=0.5, num_train_epochs=1, eps_schedule="constant", optim="sgd",
    per_device_train_batch_size={batch}, ddp_backend={backend!r},
)
build = lambda given: make_trainer(make_model("timm"), args=given)
head = probe(build, args)
trainer = build(args)
head.load_into(trainer.model)
trainer.train()
trainer.save_model(str(folder / "end"))
"""


def test_two_processes_equal_one(tmp_path):
    ends, heads = [], []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        backend = "gloo" if processes > 1 else None
        done = run_script(TRAINED.format(batch=8 // processes, backend=backend), folder, processes)
        assert done.returncode == 0, done.stderr
        heads.append(ProbedHead.in_folder(folder / "out" / "probe"))
        ends.append(load_file(folder / "end" / "model.safetensors") | heads[-1].tensors)
    one, two = ends
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name].float(), two[name].float(), atol=1e-6) for name in one)
    assert heads[0].facts == pytest.approx(heads[1].facts)


@pytest.mark.parametrize(
    "changes",
    [
        {"bf16": True},
        {"label_smoothing_factor": 0.1},
        {"gradient_accumulation_steps": 2},
        {"activation_checkpointing": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_both_phases_go_with_what_training_goes_with(build, probed, make_args, make_model, changes):
    args = make_args(**PROBE, num_train_epochs=1, eps_schedule="constant", **changes)
    kind = "resnet" if "twins_lambda" in changes else "vit"
    head, phase_1 = probed(args, kind)
    before = weights(make_model(kind))
    moved = {name for name, tensor in weights(phase_1.model).items() if not torch.equal(tensor, before[name])}
    assert moved == set(head.tensors)
    trainer = build(kind)(args)
    head.load_into(trainer.model)
    trainer.train()
    assert not any(torch.equal(tensor, weights(trainer.model)[name]) for name, tensor in head.tensors.items())
