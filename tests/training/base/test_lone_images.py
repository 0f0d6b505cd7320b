"""A batch of one image behind a pooling: told at the first step, with a cure that works, and only where it is true."""

from functools import partial

import pytest
import torch
from torch import nn

from hf_robust_ft import AdversarialTrainer, PixelSpace


class Net(nn.Module):
    def __init__(self, pooled=True, norm=nn.BatchNorm2d):
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3), *[nn.AdaptiveAvgPool2d(1)] * pooled, norm(8), nn.AdaptiveAvgPool2d(1)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4))

    def forward(self, pixel_values, labels=None):
        logits = self.body(pixel_values)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


@pytest.fixture
def build(make_trainer):
    def make(images=17, model=None, **changes):
        rows = [{"pixel_values": torch.rand(3, 16, 16), "labels": index % 4} for index in range(images)]
        options = {"train_dataset": rows, "eval_dataset": rows[:4], "num_train_epochs": 1, "robust_eval": "no"}
        options["batch_norm"] = "trainer"
        kind = partial(changes.pop("trainer_cls", AdversarialTrainer), pixel_space=PixelSpace())
        return make_trainer(model or Net(), trainer_cls=kind, **options | changes)

    return make


def steps_of(trainer):
    trainer.train()
    return trainer.state.global_step


def test_it_is_told_before_the_first_step_with_a_cure_that_works(build):
    trainer = build()
    before = trainer.model.body[0].weight.clone()
    told = r"Batch 3 of each epoch .*17 images, 8 at a time.*body\.2 .*dataloader_drop_last=True.*_batch_size=7\."
    with pytest.raises(ValueError, match=told):
        trainer.train()
    assert torch.equal(trainer.model.body[0].weight, before) and trainer.state.global_step == 0
    cures = {"per_device_train_batch_size": 7}, {"dataloader_drop_last": True}, {"batch_norm": "frozen"}
    assert [steps_of(build(**cure)) for cure in cures] == [3, 2, 3]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_single_images_are_told_too_and_ends_that_are_never_reached_are_not(build, accumulation):
    options = {"gradient_accumulation_steps": accumulation}
    with pytest.raises(ValueError, match=r"Batch 1 of each .* Set batch_norm='frozen', or another batch size, .*=3"):
        build(images=5, per_device_train_batch_size=1, **options).train()
    assert steps_of(build(images=8 * 2 * accumulation + 1, max_steps=2, **options)) == 2


def test_a_half_of_one_image_is_told_too(build):
    """TWINS passes halves through BatchNorm: it is batches of two that leave one image there."""
    options = {"twins_lambda": 0.5, "images": 18}
    told = r"Batch 3 of each epoch leaves one image to a half of it .*Set dataloader_drop_last=True, or another.*=7\."
    with pytest.raises(ValueError, match=told):
        build(**options).train()
    assert [steps_of(build(**options | cure)) for cure in ({"per_device_train_batch_size": 7}, {"images": 19})] == [
        3,
        3,
    ]
    assert steps_of(build(images=18)) == 3


class KeptInEval(AdversarialTrainer):
    def compute_loss(self, model, *args, **kwargs):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return super().compute_loss(model, *args, **kwargs)


def test_norms_that_do_not_fail_are_not_refused(build):
    for changes in (
        {"model": Net(pooled=False)},
        {"model": Net(norm=lambda channels: nn.GroupNorm(2, channels))},
        {"trainer_cls": KeptInEval},
        {"freeze": "body.0.*,body.2.*"},  # a frozen BatchNorm stays in evaluation mode
    ):
        assert steps_of(build(**changes)) == 3  # 8, 8 and the lone image
