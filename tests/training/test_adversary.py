"""The attack on training batches, without a Trainer."""

import pytest
import torch

from hf_robust_ft import APGD, PixelSpace, ThreatModel
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.training.adversary import Adversary

TARGET = ThreatModel("Linf", "8/255")


@pytest.fixture
def batch(dataset):
    return stack_examples([dataset[index] for index in range(8)])


@pytest.fixture
def adversary(processor):
    return Adversary(PixelSpace.from_processor(processor))


def distance(adversary, batch, found):
    space = adversary.pixel_space
    moved = space.to_pixels(found["pixel_values"]) - space.to_pixels(batch["pixel_values"])
    return moved.abs().amax((1, 2, 3))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_images_move_within_the_ball_and_nothing_else_changes(adversary, make_model, batch, kind):
    model = make_model(kind).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = adversary.attack(model, batch, TARGET, eps=4 / 255, attack=APGD(steps=2))
    found = adversary.exchange(batch, result)
    assert (distance(adversary, batch, found) <= 4 / 255 + 1e-6).all()
    assert distance(adversary, batch, found).max() > 3 / 255
    assert found["labels"] is batch["labels"] and found.keys() == batch.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_each_image_has_its_own_eps_and_the_first_few_can_be_attacked_alone(adversary, make_model, batch):
    model, eps = make_model(), torch.linspace(0, 8 / 255, 8, dtype=torch.float64)
    all_images = adversary.attack(model, batch, TARGET, eps=eps, attack=APGD(steps=2))
    assert (distance(adversary, batch, adversary.exchange(batch, all_images)) <= eps + 1e-6).all()
    few = adversary.attack(model, batch, TARGET, eps=eps, attack=APGD(steps=2), first=3)
    torch.testing.assert_close(few.loss, all_images.loss[:3], atol=1e-3, rtol=0)  # rounding depends on the batch


def test_random_starts_depend_on_the_key_alone(adversary, make_model, batch):
    model, attack = make_model(), APGD(steps=1, random_start=True)

    def found(*key):
        return adversary.attack(model, batch, TARGET, eps=8 / 255, attack=attack, key=key).adversarial

    first, state = found(0, 0, 1), torch.get_rng_state()
    torch.rand(3)
    assert not torch.equal(found(0, 0, 2), first) and torch.equal(found(0, 0, 1), first)
    torch.set_rng_state(state)
    assert not torch.equal(found(0, 1, 1), first) and torch.equal(torch.get_rng_state(), state)


def test_what_it_is_compiled_to_serves_once_the_first_batch_was_checked(processor, make_model, batch):
    compiled = []

    def count(model):
        compiled.append(model)
        return model

    adversary, model = Adversary(PixelSpace.from_processor(processor), compiled=count), make_model()
    adversary.check(model, batch, TARGET)
    assert adversary.is_ready and compiled == [] and adversary.num_labels(model) == 4
    for _ in range(2):
        adversary.attack(model, batch, TARGET, eps=8 / 255, attack=APGD(steps=1))
    assert compiled == [model]
    other = make_model()  # of the next trial of a search
    adversary.attack(other, batch, TARGET, eps=8 / 255, attack=APGD(steps=1))
    assert compiled == [model, other]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.full((8,), 7)}, "labels must be class indices in 0..4-1, got 7"),
        ({"pixel_values": torch.full((8, 3, 32, 32), 9.0)}, "pixel_values are not the image processor's"),
    ],
)
def test_a_batch_no_attack_can_work_on_is_refused_at_once(adversary, make_model, batch, change, message):
    with pytest.raises(ValueError, match=message):
        adversary.check(make_model(), batch | change, TARGET)
    assert not adversary.is_ready


def test_logits_without_a_gradient_are_refused_where_they_are_to_be_attacked(adversary, batch):
    class Detached(torch.nn.Linear):
        def forward(self, pixel_values):
            return super().forward(pixel_values.flatten(1).detach())

    model = Detached(batch["pixel_values"][0].numel(), 4)
    with pytest.raises(ValueError, match="no gradient with respect to its input"):
        adversary.check(model, batch, TARGET)
    adversary.check(model, batch, ThreatModel("Linf", 0))
