"""Each pass is Trainer's own loss on its images; only the first goes through the wrapped model."""

import itertools

import pytest
import torch
from torch import nn

from hf_robust_ft.training.objectives import Passes, at


class Flat(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(12, 3))


def make_passes(per_item=None, images=4):
    torch.manual_seed(0)
    wrapped, again, went = Flat(), Flat(), []
    batch = {
        "pixel_values": torch.rand(images, 3, 2, 2), "labels": torch.arange(images) % 3,
        "bias": torch.zeros(3), "names": ["a"] * images,
    }  # fmt: skip

    def compute_loss(model, inputs):
        went.append((model, inputs))
        logits = model(inputs["pixel_values"])
        return nn.functional.cross_entropy(logits, inputs.pop("labels")), {"logits": logits.half()}

    passes = Passes(compute_loss, itertools.chain([wrapped], itertools.repeat(again)), batch, per_item)
    return passes, batch, wrapped, again, went


def test_the_first_pass_goes_through_the_wrapped_model_whoever_asks_for_it():
    passes, batch, wrapped, again, went = make_passes()
    half = passes.rows(slice(0, 2))
    half(batch["pixel_values"][:2])
    passes(batch["pixel_values"])
    passes.rows(slice(2, None))(batch["pixel_values"][2:])
    assert [model for model, _ in went] == [wrapped, again, again]


def test_every_pass_has_a_batch_of_its_own():
    """Trainer takes the labels out of what it is given."""
    passes, batch, *_ = make_passes()
    first, second = passes(batch["pixel_values"]), passes(batch["pixel_values"])
    assert first.loss.shape == second.loss.shape == () and "labels" in batch
    assert first.logits.dtype == torch.float32 and first.logits.shape == (4, 3)


def test_rows_take_from_the_batch_what_is_one_an_image():
    passes, batch, _, _, went = make_passes()
    part = passes.rows(slice(1, 3))
    assert part.labels.tolist() == [1, 2]
    part(batch["pixel_values"][1:3])
    assert went[0][1]["bias"] is batch["bias"] and went[0][1]["names"] is batch["names"]


def test_means_are_scaled_as_the_loss_is():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert make_passes()[0].mean(values) == 3
    assert make_passes(per_item=1 / 8)[0].mean(values) == 12 / 8


@pytest.mark.parametrize("attacked", [True, False])
def test_at_is_trainers_loss_on_the_images_at_hand(attacked):
    passes, batch, wrapped, _, went = make_passes()
    clean, adversarial = batch["pixel_values"], batch["pixel_values"] + 0.1
    loss = at(passes, clean, adversarial if attacked else None)
    used = adversarial if attacked else clean
    assert torch.equal(loss.total, nn.functional.cross_entropy(wrapped(used), batch["labels"]))
    assert len(went) == 1 and went[0][1]["pixel_values"] is used and loss.parts == {}
