"""The compiled attack, with the backend that compiles nothing ("aot_eager"): is it one graph, and the same attack?"""

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from hf_robust_ft import APGD, PixelClassifier, ThreatModel
from hf_robust_ft.attacks import attack_mode, compile_attack

RADII = {"Linf": 0.1, "L2": 1.0, "L1": 8.0}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def assert_same_result(compiled, eager):
    assert torch.allclose(compiled.adversarial, eager.adversarial, atol=1e-5)
    assert torch.allclose(compiled.loss, eager.loss, rtol=1e-4)
    assert torch.equal(compiled.fooled, eager.fooled) and torch.equal(compiled.predictions, eager.predictions)


@pytest.mark.parametrize("norm", list(RADII))
def test_one_graph_for_every_eps_gives_the_eager_attack(make_model, norm):
    """`fullgraph=True` fails on any part of model, gradient or step rule that Dynamo cannot trace."""
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels, model = torch.arange(4), make_model("resnet")
    classifier, attack, threat_model = PixelClassifier(model), APGD(steps=2), ThreatModel(norm, RADII[norm])
    with attack_mode(model):
        compiled = compile_attack(attack, classifier, threat_model, backend="aot_eager")
        for eps in (0.5 * RADII[norm], torch.linspace(0, 1, 4) * RADII[norm]):
            generators = (torch.Generator().manual_seed(1) for _ in range(2))
            result = compiled(pixels, labels, eps=eps, generator=next(generators))
            eager = attack(classifier, pixels, labels, threat_model, eps=eps, generator=next(generators))
            assert_same_result(result, eager)
            assert not torch.equal(result.adversarial, pixels)
            assert graphs() == 1  # another eps is no reason to compile again
        skipped = compiled(pixels, labels, eps=0)
        assert torch.equal(skipped.adversarial, pixels) and graphs() == 1


def test_restarts_and_targets_are_calls_of_one_graph():
    pixels, labels = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    matrix = torch.randn(48, 4, generator=torch.Generator().manual_seed(1))
    attack = APGD(steps=2, loss="dlr_targeted", restarts=2, num_targets=2, select="fooled")
    threat_model = ThreatModel("Linf", 0.1)

    def logits_fn(x):
        return x.flatten(1) @ matrix

    compiled = compile_attack(attack, logits_fn, threat_model, backend="aot_eager")
    assert_same_result(compiled(pixels, labels), attack(logits_fn, pixels, labels, threat_model))
    assert graphs() == 1


def test_bad_arguments_are_refused_before_compiling():
    compiled = compile_attack(APGD(), lambda x: x.flatten(1), ThreatModel("Linf", 0.1), backend="aot_eager")
    with pytest.raises(ValueError, match="Did you mean eps='4/255'"):
        compiled(torch.rand(2, 3, 4, 4), torch.arange(2), eps=4)
    with pytest.raises(ValueError, match=r"labels must be class indices of shape \(2,\)"):
        compiled(torch.rand(2, 3, 4, 4), torch.arange(3))
    assert graphs() == 0
