"""What one process measures is shared by two, and their shares are compared."""

import doctest

import pytest
import torch
from colour_classifier import ColourClassifier

from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.benchmarks import evaluation_scaling
from hf_robust_ft.benchmarks.checkpoint import Checkpoint


def test_a_share_counts_a_gradient_as_three_forwards(monkeypatch):
    def look_and_step(classifier, images, **settings):
        x = torch.stack([each["pixel_values"] for each in images])
        classifier(x)
        attacked = x.clone().requires_grad_()
        torch.autograd.grad(classifier(attacked).sum(), attacked)

    monkeypatch.setattr(evaluation_scaling, "evaluate_robustness", look_and_step)
    checkpoint = Checkpoint(
        ColourClassifier(), "contiguous", PixelSpace(), torch.rand(6, 3, 8, 8), torch.zeros(6, dtype=torch.long)
    )
    share = evaluation_scaling.share_of_this_process(checkpoint, ThreatModel("Linf", "1/255"), 4, False)
    assert share["passes"] == 6 * 1 + 6 * 3


def test_the_measured_evaluation_is_the_packages():
    pixels = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = ColourClassifier()
    checkpoint = Checkpoint(model, "contiguous", PixelSpace(), pixels, model(pixels).argmax(1))
    share = evaluation_scaling.share_of_this_process(
        checkpoint, ThreatModel("Linf", "1/255"), 4, False, protocol="paper", attack_steps=2
    )
    assert share["passes"] > 6 * (1 + 2 * 3) and share["wall seconds"] > 0


def test_two_that_halve_the_work_are_linear_and_a_double_share_is_told():
    one = [{"passes": 100, "wall seconds": 10.0}]
    even = evaluation_scaling.compared(one, [{"passes": 50, "wall seconds": 5.0}] * 2)
    assert even["passes"] == {"together / one process": 1, "busiest / mean": 1, "speed-up": 2, "of linear": 1}
    assert "together / one process" not in even["wall seconds"]
    uneven = evaluation_scaling.compared(
        one, [{"passes": 80, "wall seconds": 8.0}, {"passes": 20, "wall seconds": 2.0}]
    )
    assert uneven["passes"]["busiest / mean"] == pytest.approx(1.6)
    assert "| passes | 1.0 | 1.6 |" in evaluation_scaling.markdown(uneven)


def test_its_example_holds():
    assert not doctest.testmod(evaluation_scaling).failed
