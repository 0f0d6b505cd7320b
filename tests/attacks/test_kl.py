"""The attack on the clean image's answer: from elsewhere than the image, inside the ball, and by nothing else."""

from dataclasses import replace

import pytest
import torch
import torch._dynamo

from hf_robust_ft import APGD, PixelClassifier, ThreatModel, apgd, evaluate_robustness
from hf_robust_ft.attacks import attack_mode, compile_attack
from hf_robust_ft.attacks.losses import kl_divergence
from hf_robust_ft.attacks.pass_meter import PassMeter
from hf_robust_ft.evaluation.protocols import evaluation_attack

RADII = {"Linf": 8 / 255, "L2": 0.5, "L1": 8.0}
KL = APGD(steps=5, loss="kl")


@pytest.fixture
def batch():
    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("norm", RADII)
def test_it_climbs_the_divergence_inside_the_ball(make_model, batch, kind, norm):
    (pixels, labels), threat_model = batch, ThreatModel(norm, RADII[norm])
    classifier = PixelClassifier(make_model(kind).eval())
    ball = threat_model.ball(pixels)
    start = next(KL.starts(classifier, ball, labels, generator=torch.Generator().manual_seed(3)))[0]
    found = KL(classifier, pixels, labels, threat_model, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        clean = classifier(pixels).log_softmax(1)
        at_start, at_end = (kl_divergence(classifier(x), clean) for x in (start, found.adversarial))
    assert (ball.distance(found.adversarial) <= RADII[norm] + 1e-5).all()
    assert (found.loss >= at_start).all() and found.loss.mean() > 1.5 * at_start.mean()
    assert torch.allclose(found.loss, at_end, atol=1e-6)
    other = KL(classifier, pixels, (labels + 1) % 4, threat_model, generator=torch.Generator().manual_seed(3))
    assert torch.equal(other.adversarial, found.adversarial)  # no label decides


def test_at_the_image_itself_it_is_refused_unless_it_goes_on_from_a_find(make_model, batch):
    (pixels, labels), threat_model = batch, ThreatModel("Linf", "8/255")
    classifier = PixelClassifier(make_model().eval())
    clean = replace(KL, random_start=False)
    for call in (
        lambda: clean(classifier, pixels, labels, threat_model),
        lambda: compile_attack(clean, classifier, threat_model, backend="eager"),
    ):
        with pytest.raises(ValueError, match=r"'kl' has no gradient at the image itself: set random_start=True, or"):
            call()
    found = KL(classifier, pixels, labels, threat_model)
    further = clean(classifier, pixels, labels, threat_model, start=found.adversarial)
    assert (further.loss >= found.loss - 1e-7).all()


def test_it_costs_one_forward_more(make_model, batch):
    (pixels, labels), threat_model = batch, ThreatModel("Linf", "8/255")
    classifier = PixelClassifier(make_model().eval())
    for loss, forwards in (("ce", 6), ("kl", 7)):
        with PassMeter(classifier) as meter:
            apgd(classifier, pixels, labels, threat_model, steps=5, loss=loss, restarts=1)
        assert (meter.forwards, meter.gradients) == (8 * forwards, 8 * 5)


def test_nothing_moves_at_eps_0(make_model, batch):
    classifier = PixelClassifier(make_model().eval())
    found = KL(classifier, *batch, ThreatModel("Linf", "8/255"), eps=0.0)
    assert torch.equal(found.adversarial, batch[0]) and found.loss.abs().max() == 0


def test_it_is_one_graph(make_model, batch):
    torch._dynamo.reset()
    (pixels, labels), threat_model, model = batch, ThreatModel("Linf", "8/255"), make_model("resnet")
    classifier, attack = PixelClassifier(model), replace(KL, steps=2)
    with attack_mode(model):
        compiled = compile_attack(attack, classifier, threat_model, backend="aot_eager")
        ours, eager = (
            run(pixels, labels, generator=torch.Generator().manual_seed(1))
            for run in (compiled, lambda *args, **more: attack(classifier, *args, threat_model, **more))
        )
    assert torch.allclose(ours.adversarial, eager.adversarial, atol=1e-5)
    torch._dynamo.reset()


def test_no_evaluation_attacks_by_it(make_model, dataset):
    with pytest.raises(ValueError, match="'kl' is for attacks in training"):
        evaluation_attack(loss="kl")
    with pytest.raises(ValueError, match="'kl' is for attacks in training"):
        evaluate_robustness(make_model(), dataset, threat_model=ThreatModel("Linf", "8/255"), attack=KL)
