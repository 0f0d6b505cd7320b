import torch
from torch import nn

from hf_robust_ft import APGD, ThreatModel
from hf_robust_ft.attacks.pass_meter import PassMeter


def test_an_attack_of_n_steps_is_n_gradients_and_one_forward_more():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    pixels, labels = torch.rand(5, 3, 4, 4), torch.zeros(5, dtype=torch.int64)
    with PassMeter(model) as meter:
        APGD(steps=4, random_start=False)(model, pixels, labels, ThreatModel("Linf", "8/255"))
    assert (meter.forwards, meter.gradients) == (5 * 5, 5 * 4)
    model(pixels)
    assert meter.forwards == 25, "it counts only while it is entered"


def test_forwards_without_gradient_are_told_apart():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    with PassMeter(model) as meter, torch.no_grad():
        model(torch.rand(7, 3, 4, 4))
    assert (meter.forwards, meter.gradients) == (7, 0)
