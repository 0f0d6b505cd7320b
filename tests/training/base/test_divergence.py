"""A loss or gradient that is not finite ends training; its batch is kept and shows it again."""

from pathlib import Path

import pytest
import torch
from conftest import assert_same_weights, weights
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import TrainerCallback, ViTForImageClassification

from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.training.base.divergence import MOST_OVERFLOWS, DivergenceWatch


class SpoilAt(TrainerCallback):
    """Makes the weights so large that the loss overflows."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            model.classifier.weight.data.fill_(3e38)


@pytest.mark.parametrize("has_ids", [False, True])
def test_the_batch_of_a_bad_loss_shows_it_again(make_trainer, make_model, images, processor, has_ids):
    data = with_pixel_values(images, processor, sample_ids=True) if has_ids else with_pixel_values(images, processor)
    schedule = {"eps_schedule": "per_sample"} if has_ids else {"eps_schedule": "constant"}
    trainer = make_trainer(
        make_model(), train_dataset=data, callbacks=[SpoilAt(8)], save_strategy="steps", save_steps=3, **schedule
    )
    with pytest.raises(FloatingPointError, match=r"The loss is (nan|inf) after step 8 .*checkpoint-6") as stop:
        trainer.train()
    folder = Path(trainer.args.output_dir) / "diverged-step9"
    path = folder / "batch0-rank0.safetensors"
    assert str(path) in str(stop.value) and "before the weights change" in str(stop.value)
    batch = load_file(path)
    labels = batch["labels"].tolist()
    with safe_open(path, "pt") as file:
        told = file.metadata()["images"]
    if has_ids:
        assert told == f"sample_id {batch['sample_id'].tolist()}" and len(set(batch["sample_id"].tolist())) == 8
    else:
        name, _, indices = told.partition("indices ")
        assert name == "dataset "
        for index, pixels in zip(eval(indices), batch["pixel_values"], strict=True):  # a list of numbers
            assert torch.equal(data[index]["pixel_values"], pixels)
    model = ViTForImageClassification.from_pretrained(folder)
    assert_same_weights(model, trainer.model)
    assert not model(pixel_values=batch["pixel_values"], labels=torch.tensor(labels)).loss.isfinite()


def test_a_bad_gradient_stops_before_the_weights_change_and_all_its_batches_are_kept(make_trainer, make_model):
    class SpoilGradient(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                self.before = weights(model)
                model.classifier.bias.register_hook(lambda gradient: gradient * float("nan"))

    spoil = SpoilGradient()
    trainer = make_trainer(make_model(), callbacks=[spoil], gradient_accumulation_steps=3, max_grad_norm=0.0)
    with pytest.raises(
        FloatingPointError, match=r"gradient's norm is nan after step 3 .*no checkpoint to go on from yet"
    ):
        trainer.train()
    assert_same_weights(trainer.model, spoil.before)
    kept = sorted((Path(trainer.args.output_dir) / "diverged-step4").glob("batch*"))
    assert [path.name for path in kept] == [f"batch{index}-rank0.safetensors" for index in range(3)]


def test_a_full_disk_does_not_hide_the_bad_loss(make_trainer, make_model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diverged-step1").write_text("in the way")
    with pytest.raises(FloatingPointError, match=r"The loss is .* could not be written"):
        make_trainer(make_model(), callbacks=[SpoilAt(0)]).train()


def test_overflows_that_a_scaler_handles_do_not_stop_training_but_endless_ones_do():
    def step(watch, loss, norm):
        watch.add_batch({}, torch.tensor(loss))
        return watch.end_step(0, "step 0", torch.tensor(norm))

    watch, inf = DivergenceWatch(is_scaled=True), float("inf")
    assert all(step(watch, 1.0, inf) is None for _ in range(MOST_OVERFLOWS - 1))
    assert step(watch, 1.0, 2.0) is None
    assert all(step(watch, 1.0, inf) is None for _ in range(MOST_OVERFLOWS - 1))
    assert step(watch, 1.0, inf).bad_batches() == []
    assert step(DivergenceWatch(is_scaled=True), float("nan"), inf).bad_batches() == [0]
    assert step(DivergenceWatch(is_scaled=False), 1.0, inf).gradient_norm == inf


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_nothing_waits_and_the_step_is_found_one_later():
    watch, good, bad = DivergenceWatch(False), torch.ones((), device="cuda"), torch.full((), torch.nan, device="cuda")
    watch.add_batch({"labels": 0}, good)
    assert watch.end_step(0, "step 0", good) is None
    torch.cuda.set_sync_debug_mode("error")
    try:
        watch.add_batch({"labels": 1}, bad)
        assert watch.end_step(1, "step 1", bad) is None
        watch.add_batch({"labels": 2}, bad)
        found = watch.end_step(2, "step 2", bad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.number == 1 and found.batches == [{"labels": 1}] and found.bad_batches() == [0]
