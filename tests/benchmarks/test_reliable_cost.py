import json
import sys

import pytest
import torch

from hf_robust_ft import APGD, PixelSpace, ThreatModel
from hf_robust_ft.attacks.pixels import PixelClassifier
from hf_robust_ft.benchmarks import reliable_cost, small_networks
from hf_robust_ft.benchmarks.reliable_cost import MASKS, MaskedClassifier, measure_costs


def fifty_steps(logits_fn, pixels, labels, threat_model, *, batch_size):
    """In the place of AutoAttack, which takes its time."""
    return APGD(steps=50, random_start=False, select="fooled")(logits_fn, pixels, labels, threat_model)


@pytest.fixture
def classifier(make_model):
    return PixelClassifier(make_model("resnet"), PixelSpace((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))).eval()


def test_all_ways_are_measured_on_the_same_images(classifier, monkeypatch):
    monkeypatch.setattr(reliable_cost, "autoattack", fifty_steps)
    pixels = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = classifier(pixels).argmax(1)
    labels[:3] = (labels[:3] + 1) % 4
    costs = measure_costs(classifier, pixels, labels, ThreatModel("Linf", "1/255"), whole_grid=True, batch_size=8)
    assert costs["images"] == 12 and costs["clean accuracy"] == 0.75
    ways = ("paper", "reliable", "autoattack", "reliable, whole grid")
    assert 0.75 >= costs["paper"]["accuracy"] >= costs["reliable"]["accuracy"]
    assert costs["reliable"]["accuracy"] == costs["reliable, whole grid"]["accuracy"]
    difference = len(costs["only autoattack fools"]) - len(costs["only reliable fools"])
    assert difference / 12 == pytest.approx(costs["reliable"]["accuracy"] - costs["autoattack"]["accuracy"])
    assert all(costs[way]["seconds"] > 0 for way in ways)
    # The images that are wrong as they are cost 50 gradients there, one by protocol.
    assert costs["paper"]["gradients an image"] <= 10 < costs["autoattack"]["gradients an image"] <= 51
    assert costs["autoattack / reliable"]["gradients an image"] == pytest.approx(
        costs["autoattack"]["gradients an image"] / costs["reliable"]["gradients an image"]
    )


@pytest.mark.parametrize("mask", MASKS)
def test_masks_hide_gradients(classifier, mask):
    masked = MaskedClassifier(classifier.model, classifier.pixel_space, mask).eval()
    pixels = (torch.randint(0, 17, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 16).requires_grad_()
    (gradient,) = torch.autograd.grad(masked(pixels)[:, 0].sum(), pixels)
    if mask == "quantised":
        assert not gradient.any() and torch.equal(masked(pixels), classifier(pixels))
    else:
        assert torch.equal(masked(pixels).argmax(1), classifier(pixels).argmax(1))
        assert (masked(pixels).sum(1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("kind", small_networks.RATES)
def test_the_programs_train_a_network_and_measure_it(kind, monkeypatch, tmp_path, capsys):
    pytest.importorskip("sklearn")
    folder = str(tmp_path / kind)
    small_networks.train_small_network(kind, folder, epochs=1, images=64)
    monkeypatch.setattr(reliable_cost, "autoattack", fifty_steps)
    options = ["--model", folder, "--images", "10", "--eps", "2/255", "--mask", "saturated", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["reliable_cost", *options])
    capsys.readouterr()
    reliable_cost.main()
    costs = json.loads(capsys.readouterr().out)
    assert costs["images"] == 10 and costs["mask"] == "saturated" and "reliable, whole grid" not in costs
