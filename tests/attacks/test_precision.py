"""The iterate stays float32 and in the ball whatever the model computes in, and what half precision loses is told."""

import logging

import pytest
import torch
from conftest import make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_robust_ft import APGD, PixelClassifier, PixelSpace, ThreatModel
from hf_robust_ft.attacks import attack_mode
from hf_robust_ft.attacks.precision import GradientReport, check_input_precision
from hf_robust_ft.evaluation.batches import stack_examples

SPACES = [PixelSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), PixelSpace((0.5,) * 3, (0.5,) * 3), PixelSpace()]
make = make_model._get_wrapped_function()()
MODELS = {kind: make(kind) for kind in ("vit", "resnet")}
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


CASTS = {
    "fp32": lambda kind: (MODELS[kind], None),
    **{f"{name} autocast": lambda kind, dtype=dtype: (MODELS[kind], dtype) for name, dtype in HALF.items()},
    **{f"{name} parameters": lambda kind, dtype=dtype: (make(kind).to(dtype), None) for name, dtype in HALF.items()},
}


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    space=st.sampled_from(SPACES),
    kind=st.sampled_from(sorted(MODELS)),
    norm=st.sampled_from(["Linf", "L2", "L1"]),
    eps=st.sampled_from([0.5 / 255, 4 / 255, 8 / 255]),
)
@pytest.mark.parametrize("cast", CASTS)
def test_the_iterate_is_float32_and_in_the_ball_after_every_cast(cast, seed, space, kind, norm, eps):
    generator = torch.Generator().manual_seed(seed)
    pixel_values = space.from_pixels(torch.rand(3, 3, 16, 16, generator=generator))
    pixels, labels = space.to_pixels(pixel_values).clamp(0, 1), torch.tensor([0, 1, 2])
    eps = eps * {"Linf": 1, "L2": 10, "L1": 100}[norm]
    model, autocast = CASTS[cast](kind)
    seen = []
    hook = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with attack_mode(model), torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        result = APGD(steps=3)(
            PixelClassifier(model, space), pixels, labels, ThreatModel(norm, eps), generator=generator
        )
    hook.remove()
    found = result.adversarial
    assert found.dtype == torch.float32 and result.loss.dtype == torch.float32 and found.isfinite().all()
    assert found.min() >= 0 and found.max() <= 1
    ball = ThreatModel(norm, eps).ball(pixels, eps)
    assert (ball.distance(found) <= eps * (1 + 1e-5) + 1e-7).all()
    # Only the model's own precision may round what it is given.
    expected = next(model.parameters()).dtype
    assert {value.dtype for value in seen} == {expected}
    # What training makes of it: normalised again, in the dtype of the batch, it is still where the attack left it.
    trained_on = space.from_pixels(found).to(pixel_values.dtype)
    assert (space.to_pixels(trained_on) - found).abs().max() < 1e-6


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), space=st.sampled_from(SPACES), dtype=st.sampled_from(sorted(HALF)))
def test_rounding_bounds_what_a_cast_does_to_pixels(seed, space, dtype):
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    moved = (space.to_pixels(space.from_pixels(pixels).to(HALF[dtype])) - pixels).abs().max()
    bound = space.rounding(HALF[dtype])
    assert 0.1 * bound < moved <= bound * (1 + 1e-3)


@pytest.mark.parametrize("dtype", [*HALF.values(), torch.float32, torch.float64])
def test_half_precision_pixel_values_are_refused_where_they_leave_the_ball(dtype):
    batch, space = torch.zeros(1, 3, 4, 4, dtype=dtype), SPACES[0]
    check_input_precision(batch, space, ThreatModel("Linf", 0))
    if dtype in HALF.values():
        with pytest.raises(ValueError, match=r"by up to 0\.(59|074)/255: .* leave the ball of eps=4/255"):
            check_input_precision(batch, space, ThreatModel("Linf", "4/255"))
    else:
        check_input_precision(batch, space, ThreatModel("Linf", "4/255"))


def test_training_refuses_them_at_the_first_step(make_trainer):
    def halved(examples):
        batch = stack_examples(examples)
        return batch | {"pixel_values": batch["pixel_values"].bfloat16()}

    with pytest.raises(ValueError, match="pixel_values are bfloat16"):
        make_trainer(data_collator=halved).train()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_lost_gradients_are_logged_once(make_trainer, precision, caplog):
    trainer = make_trainer(
        eps_schedule="hinge", num_train_epochs=4, bf16=precision == "bf16", schedule_start=0.25, robust_eval="no"
    )
    trainer.train()
    told = [entry for entry in trainer.state.log_history if "attack_gradients_unusable" in entry]
    assert len(told) == 1 and told[0]["epoch"] == 3  # the first two have no attack
    assert told[0]["attack_gradients_unusable"] == told[0]["attack_gradients_nonfinite"] == 0
    assert "weaker than its eps" not in caplog.text


class Silent(nn.Module):
    """Sees nothing of some images."""

    def forward(self, pixels):
        margin = pixels.flatten(1).mean(1) * (torch.arange(len(pixels)) >= 1)
        return torch.stack([margin, -margin], 1)


@pytest.mark.parametrize(
    ("precision", "cure"), [("fp16", "bf16 or fp32"), ("bf16", "in fp32"), ("no", "rounding in it")]
)
@pytest.mark.parametrize(("images", "warns"), [(20, True), (200, False)])
def test_above_one_percent_there_is_a_warning_with_a_cure(images, warns, precision, cure, caplog):
    report = GradientReport()
    pixels, labels = torch.full((images, 1, 2, 2), 0.5), torch.zeros(images, dtype=torch.int64)
    with caplog.at_level(logging.WARNING):
        assert report.once("no") == {}
        APGD(steps=2, random_start=False)(report.metered(Silent()), pixels, labels, ThreatModel("Linf", 0.1))
        assert report.once(precision)["attack_gradients_unusable"] == pytest.approx(1 / images)
    assert ("5.0 % of the input gradients" in caplog.text and cure in caplog.text) == warns
    assert report.once("fp16") == {} and report.metered(Silent) is Silent


def test_tf32_of_the_arguments_holds_in_the_attack(make_args, make_trainer, monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_torch_tf32_available", lambda: True)
    before = torch.backends.fp32_precision
    seen = set()
    try:
        for wanted in (True, False):
            trainer = make_trainer(tf32=wanted, eps_schedule="constant", num_train_epochs=1, robust_eval="no")
            trainer.model.register_forward_pre_hook(
                lambda module, inputs: seen.add((inputs and inputs[0].requires_grad, torch.backends.fp32_precision))
            )
            trainer.train()
            assert trainer.args.training_settings()["tf32"] is wanted
            assert (True, "tf32" if wanted else "ieee") in seen
    finally:
        torch.backends.fp32_precision = before
    assert "tf32" not in make_args().training_settings()
