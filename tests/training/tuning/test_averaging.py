import pytest
import torch
from conftest import assert_same_weights, run_script, weights
from transformers import AutoModelForImageClassification, TrainerCallback

from hf_robust_ft.training.tuning.averaging import FILE_NAME, WeightAveraging

QUICK = {"num_train_epochs": 2, "eps_schedule": "constant", "robust_eval": "no"}


class Recording(TrainerCallback):
    """The raw weights after every step, from 0."""

    def __init__(self):
        self.history = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.history.append(weights(model))

    on_step_end = on_train_begin


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_is_the_recursion_over_the_raw_weights(make_trainer, make_model, kind, warmup):
    recording = Recording()
    trainer = make_trainer(
        make_model(kind),
        callbacks=[recording],
        ema_decay=0.9,
        ema_warmup=warmup,
        gradient_accumulation_steps=2,
        batch_norm="trainer",  # which lets statistics move
        **QUICK,
    )
    trainer.train()
    first, *rest = recording.history
    assert len(rest) == trainer.state.max_steps == 6  # optimizer steps, not batches
    expected = {name: tensor.double() for name, tensor in first.items()}
    for step, current in enumerate(rest, start=1):
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        expected = {name: decay * value + (1 - decay) * current[name].double() for name, value in expected.items()}
    averages = trainer.weight_averaging.averages
    assert averages.keys() == {name for name, tensor in first.items() if tensor.is_floating_point()}
    assert kind != "resnet" or any("running_var" in name for name in averages)
    for name, average in averages.items():
        assert torch.allclose(average.double(), expected[name], atol=1e-6), name
        assert not torch.equal(average, rest[-1][name])


@pytest.mark.parametrize("use", ["save", "eval", "no"])
def test_what_is_measured_and_saved_is_what_was_asked_for(make_trainer, make_model, tmp_path, use):
    trainer = make_trainer(make_model("resnet"), ema_decay=0.5, ema_use=use, **QUICK | {"learning_rate": 0.02})
    trainer.train()
    raw, averages = weights(trainer.model), trainer.weight_averaging.averages
    metrics, predictions = trainer.evaluate(), trainer.predict(trainer.eval_dataset).predictions
    trainer.save_model(tmp_path / "published")
    assert_same_weights(trainer.model, raw)  # training could go on

    saved = weights(AutoModelForImageClassification.from_pretrained(tmp_path / "published"))
    for name, average in averages.items():
        assert torch.equal(saved[name], average if use == "save" else raw[name]), name
    trainer.weight_averaging = None
    trainer.model.load_state_dict(raw | (averages if use != "no" else {}))
    assert trainer.evaluate()["eval_loss"] == metrics["eval_loss"]
    assert (trainer.predict(trainer.eval_dataset).predictions == predictions).all()


def test_evaluation_between_epochs_is_of_the_average_and_leaves_training_alone(make_trainer, make_model):
    seen = []

    class Spy(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, **kwargs):
            seen.append(weights(model))

    settings = {**QUICK, "eval_strategy": "epoch"}
    trainer = make_trainer(make_model("resnet"), callbacks=[Spy()], ema_decay=0.9, **settings)
    plain = make_trainer(make_model("resnet"), **settings)
    trainer.train()
    plain.train()
    assert_same_weights(trainer.model, plain.model)
    assert len(seen) == 2
    assert all(torch.equal(seen[-1][name], average) for name, average in trainer.weight_averaging.averages.items())


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_resuming_equals_an_uninterrupted_run(make_trainer, make_model, tmp_path, kind):
    settings = {
        **QUICK,
        "ema_decay": 0.9,
        "layer_decay": 0.7,
        "head_learning_rate": 1e-2,
        "weight_decay": 0.1,
        "save_strategy": "steps",
        "save_steps": 5,
    }
    whole = make_trainer(make_model(kind, dropout=0.1), **settings)
    whole.train()
    resumed = make_trainer(make_model(kind, seed=5, dropout=0.1), **settings, output_dir=str(tmp_path / "resumed"))
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-5")
    assert_same_weights(resumed.model, whole.model)
    assert_same_weights(resumed.weight_averaging.averages, whole.weight_averaging.averages)
    checkpoint = AutoModelForImageClassification.from_pretrained(f"{whole.args.output_dir}/checkpoint-12")
    assert_same_weights(checkpoint, whole.model)  # raw, whatever ema_use says


def test_the_best_checkpoint_brings_its_average_back(make_trainer, make_model):
    kept = {}

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            kept[state.global_step] = {n: t.clone() for n, t in trainer.weight_averaging.averages.items()}

    trainer = make_trainer(
        make_model("resnet"),
        callbacks=[Keep()],
        ema_decay=0.5,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that the first epoch's is the best
        eval_strategy="epoch",
        save_strategy="epoch",
        **QUICK,
    )
    trainer.train()
    best = trainer.state.best_global_step
    assert best == 6 < max(kept)
    assert_same_weights(trainer.weight_averaging.averages, kept[best])


def test_a_checkpoint_without_or_with_other_averages_is_refused(make_trainer, make_model, tmp_path):
    make_model("vit").save_pretrained(tmp_path / "plain")
    trainer = make_trainer(make_model("vit"), ema_decay=0.9)
    with pytest.raises(ValueError, match="trained without ema_decay"):
        trainer._load_from_checkpoint(str(tmp_path / "plain"))
    other = WeightAveraging(0.9)
    other.averages = {"classifier.weight": torch.zeros(7, 16)}
    other.save(tmp_path / "plain")
    assert (tmp_path / "plain" / FILE_NAME).is_file()
    with pytest.raises(RuntimeError, match="does not hold averages of this model"):
        trainer._load_from_checkpoint(str(tmp_path / "plain"))


def test_weights_come_back_after_an_error_within(make_model):
    model, averaging = make_model("resnet"), WeightAveraging(0.5)
    raw = weights(model)
    averaging.averages = {name: torch.zeros_like(tensor) for name, tensor in model.named_parameters()}
    with pytest.raises(ZeroDivisionError), averaging.applied(model), averaging.applied(model):
        assert not any(parameter.any() for parameter in model.parameters())
        raise ZeroDivisionError
    assert_same_weights(model, raw)


def test_a_compiled_model_trains_and_averages_as_an_eager_one(make_trainer, make_model, tmp_path):
    def run(**changes):
        trainer = make_trainer(make_model("resnet"), ema_decay=0.9, layer_decay=0.7, freeze=1, **QUICK, **changes)
        trainer.train()
        loss = trainer.evaluate()["eval_loss"]
        trainer.save_model(tmp_path / "published")
        published = weights(AutoModelForImageClassification.from_pretrained(tmp_path / "published"))
        return loss, weights(trainer.model), published

    eager, compiled = run(), run(torch_compile=True, torch_compile_backend="eager")
    assert eager[0] == pytest.approx(compiled[0], abs=1e-5)
    for one, other in zip(eager[1:], compiled[1:], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.allclose(one[name].float(), other[name].float(), atol=1e-5) for name in one)


def test_weights_come_back_after_an_evaluation_in_bf16(make_model):
    """With bf16_full_eval, Trainer casts the model within evaluate(), which replaces its buffers."""
    model, averaging = make_model("resnet"), WeightAveraging(0.5)
    raw = weights(model)
    averaging.averages = {name: tensor + 1 for name, tensor in raw.items() if tensor.is_floating_point()}
    with averaging.applied(model):
        model.to(torch.bfloat16)
    assert_same_weights(model, {name: t.bfloat16() if t.is_floating_point() else t for name, t in raw.items()})


TUNED = {
    "ema_decay": 0.9,
    "layer_decay": 0.7,
    "head_learning_rate": 1e-2,
    "freeze": 1,
    "weight_decay": 0.1,
    "optim": "sgd",
    "learning_rate": 0.1,
    "num_train_epochs": 2,
    "eps_schedule": "constant",
}

UNDER_DDP = """
trainer = make_trainer(make_model("vit"), per_device_train_batch_size=4, **{settings})
trainer.train()
loss = trainer.evaluate()["eval_loss"]
trainer.save_model(str(folder / "published"))
if trainer.is_world_process_zero():
    result = dict(raw=trainer.model.state_dict(), averages=trainer.weight_averaging.averages, loss=loss)
    torch.save(result, folder / "result.pt")
"""


def test_two_processes_equal_one(make_trainer, make_model, tmp_path):
    one = make_trainer(make_model("vit"), **TUNED)
    one.train()
    run = run_script(UNDER_DDP.format(settings=TUNED), tmp_path, processes=2)
    assert run.returncode == 0, run.stderr
    two = torch.load(tmp_path / "result.pt", weights_only=True)
    assert one.evaluate()["eval_loss"] == pytest.approx(two["loss"], abs=1e-4)
    for first, second in ((weights(one.model), two["raw"]), (one.weight_averaging.averages, two["averages"])):
        assert all(torch.allclose(tensor, second[name], atol=2e-5) for name, tensor in first.items())
    published = AutoModelForImageClassification.from_pretrained(tmp_path / "published").state_dict()
    assert all(torch.equal(published[name], average) for name, average in two["averages"].items())
