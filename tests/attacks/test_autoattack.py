import random
import sys
from contextlib import nullcontext
from itertools import count

import numpy as np
import pyautoattack
import pytest
import torch
from torch import nn

from hf_robust_ft import PixelClassifier, ThreatModel
from hf_robust_ft.attacks.autoattack import autoattack, check_autoattack

LINF = ThreatModel("Linf", "8/255")


@pytest.fixture
def pixels():
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make_linear():
    """A linear classifier that small perturbations fool on some images only."""

    def make(num_classes: int = 4) -> PixelClassifier:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return PixelClassifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, num_classes))).eval()

    return make


@pytest.fixture
def classifier(make_linear):
    return make_linear()


@pytest.fixture
def labels(classifier, pixels):
    return predicted(classifier, pixels)  # so that every image is attacked


@pytest.fixture
def few_steps(monkeypatch):
    """The library's attacks, in the same order, with 10 steps and 50 queries."""
    set_version = pyautoattack.AutoAttack._set_version

    def shortened(self, version):
        set_version(self, version)
        for attack in (self.apgd, self.apgd_targeted, self.fab):
            attack.n_iter = attack.n_iter_orig = 10
        self.square.n_queries = 50

    monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", shortened)


@pytest.fixture
def replace_run(monkeypatch):
    """Replace the library's run by a function of (adversary, pixels, labels); returns the list of its calls."""

    def replace(run=lambda adversary, x, y: x):
        calls = []

        def recorded(adversary, x, y, batch_size):
            calls.append((adversary, x.clone(), y.clone(), batch_size))
            return run(adversary, x, y), y

        monkeypatch.setattr(pyautoattack.AutoAttack, "run_standard_evaluation", recorded)
        return calls

    return replace


def predicted(classifier, pixels):
    with torch.no_grad():
        return classifier(pixels).argmax(1)


def over_seeds(run):
    """The results of `run(seed)`: seed 0 in two global random states, and another seed."""
    results = []
    for global_seed, seed in ((1, 0), (2, 0), (2, 1)):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            results.append(run(seed))
    return results


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "8/255"), ("L2", 0.3), ("L1", 3.0)])
def test_result_is_inside_the_ball_and_judged_by_a_forward_of_its_own(few_steps, classifier, pixels, labels, norm, eps):
    threat_model = ThreatModel(norm, eps)
    result = autoattack(classifier, pixels, labels, threat_model)
    assert result.adversarial.shape == pixels.shape and result.adversarial.dtype == torch.float32
    assert (threat_model.ball(pixels).distance(result.adversarial) <= threat_model.eps + 1e-6).all()
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    with torch.no_grad():
        logits = classifier(result.adversarial)
    assert torch.equal(result.predictions, logits.argmax(1))
    assert torch.equal(result.fooled, logits.argmax(1) != labels)
    assert torch.allclose(result.loss, nn.functional.cross_entropy(logits, labels, reduction="none"), atol=1e-5)
    assert result.fooled.any() and not result.fooled.all()  # else the lines above say little
    assert not result.adversarial.requires_grad and not result.loss.requires_grad


def test_points_are_the_librarys_own(few_steps, classifier, pixels, labels):
    result = autoattack(classifier, pixels, labels, LINF, seed=3, batch_size=4)
    adversary = pyautoattack.AutoAttack(classifier, norm="Linf", eps=LINF.eps, seed=3)
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 3
    with torch.random.fork_rng():
        expected, _ = adversary.run_standard_evaluation(pixels, labels, batch_size=4)
    assert torch.equal(result.adversarial, expected)


@pytest.mark.parametrize(
    ("version", "attacks", "eot"),
    [("standard", ["apgd-ce", "apgd-t", "fab-t", "square"], 1), ("rand", ["apgd-ce", "apgd-dlr"], 20)],
)
def test_settings_are_the_librarys_own(replace_run, make_linear, pixels, version, attacks, eot):
    classifier, calls = make_linear(12), replace_run()
    autoattack(classifier, pixels, predicted(classifier, pixels), LINF, version=version)
    ((adversary, *_, batch_size),) = calls
    assert adversary.attacks_to_run == attacks and adversary.apgd.eot_iter == eot
    assert (adversary.norm, adversary.epsilon, adversary.seed, batch_size) == ("Linf", 8 / 255, 0, 64)
    assert (adversary.apgd.n_iter, adversary.apgd_targeted.n_iter, adversary.fab.n_iter) == (100, 100, 100)
    assert (adversary.square.n_queries, adversary.apgd.n_restarts) == (5000, 1)


@pytest.mark.parametrize(
    ("num_classes", "norm", "apgd_targets", "fab_targets"),
    [(4, "Linf", 3, 3), (9, "Linf", 8, 8), (10, "L2", 9, 9), (12, "Linf", 9, 9), (4, "L1", 3, 3), (12, "L1", 5, 9)],
)
def test_no_more_targets_than_wrong_classes(
    replace_run, make_linear, pixels, num_classes, norm, apgd_targets, fab_targets
):
    classifier, calls = make_linear(num_classes), replace_run()
    autoattack(classifier, pixels, predicted(classifier, pixels), ThreatModel(norm, 0.5))
    adversary = calls[0][0]
    assert (adversary.apgd_targeted.n_target_classes, adversary.fab.n_target_classes) == (apgd_targets, fab_targets)


@pytest.mark.parametrize(
    ("version", "num_classes", "fewest"), [("standard", 3, 4), ("plus", 2, 4), ("standard", 2, 4), ("rand", 2, 3)]
)
def test_too_few_classes_are_refused_with_the_cure(replace_run, make_linear, pixels, version, num_classes, fewest):
    classifier, calls = make_linear(num_classes), replace_run()
    with pytest.raises(ValueError, match=rf"at least {fewest} classes, the model has {num_classes}.*APGD\(steps=100"):
        autoattack(classifier, pixels, predicted(classifier, pixels), LINF, version=version)
    assert not calls


def test_misclassified_images_are_not_attacked(replace_run, classifier, pixels, labels):
    calls = replace_run(lambda adversary, x, y: (x + 0.01).clamp(max=1))
    labels[[1, 4]] = (labels[[1, 4]] + 1) % 4
    result = autoattack(classifier, pixels, labels, LINF)
    ((_, attacked, attacked_labels, _),) = calls
    assert torch.equal(attacked, pixels[[0, 2, 3, 5]]) and torch.equal(attacked_labels, labels[[0, 2, 3, 5]])
    assert torch.equal(result.adversarial[[1, 4]], pixels[[1, 4]]) and result.fooled[[1, 4]].all()
    assert torch.equal(result.adversarial[[0, 2, 3, 5]], (pixels[[0, 2, 3, 5]] + 0.01).clamp(max=1))


@pytest.mark.parametrize(("eps", "fooled"), [(0, False), ("8/255", True)], ids=["eps is 0", "all misclassified"])
def test_nothing_to_attack(replace_run, classifier, pixels, labels, eps, fooled):
    calls = replace_run()
    result = autoattack(classifier, pixels, (labels + fooled) % 4, ThreatModel("Linf", eps))
    assert not calls and torch.equal(result.adversarial, pixels)
    assert result.fooled.tolist() == [fooled] * 6


def test_fooled_does_not_depend_on_the_librarys_records(replace_run, classifier, pixels, labels):
    def claims_success(adversary, x, y):
        y += 1  # the predictions that the library would return
        return x

    replace_run(claims_success)
    result = autoattack(classifier, pixels, labels, LINF)
    assert not result.fooled.any() and torch.equal(result.predictions, predicted(classifier, pixels))


@pytest.mark.parametrize("change", [lambda x: (x + 0.032).clamp(max=1), lambda x: x - 0.03, lambda x: x * torch.nan])
def test_a_point_that_is_no_adversarial_example_is_an_error(replace_run, classifier, pixels, labels, change):
    replace_run(lambda adversary, x, y: change(x))
    with pytest.raises(RuntimeError, match="left the threat model Linf 8/255"):
        autoattack(classifier, pixels, labels, LINF)


@pytest.mark.parametrize("fails_at", [None, 1, 8, 60])  # the check for dynamic models, which swaps the tracer, is at 8
def test_everything_the_library_changes_is_put_back(few_steps, classifier, pixels, labels, fails_at):
    def tracer(frame, event, argument):
        return None

    def draw_and_fail(module, inputs):
        random.random(), np.random.rand()
        if next(calls) == fails_at:
            raise MemoryError("boom")

    calls = count(1)
    parameters = list(classifier.parameters())
    classifier(pixels).sum().backward()
    parameters[1].grad = None
    gradient, before = parameters[0].grad, parameters[0].grad.clone()
    random_states = (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())
    classifier.register_forward_pre_hook(draw_and_fail)
    previous = sys.gettrace()
    sys.settrace(tracer)
    try:
        with pytest.raises(MemoryError, match="boom") if fails_at else nullcontext():
            autoattack(classifier, pixels, labels, LINF)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(previous)
    assert parameters[0].grad is gradient and torch.equal(gradient, before) and parameters[1].grad is None
    assert random.getstate() == random_states[0]
    assert np.array_equal(np.random.get_state()[1], random_states[1])
    assert torch.equal(torch.get_rng_state(), random_states[2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_random_state_of_the_device_is_put_back(few_steps, classifier, pixels, labels):
    before = torch.cuda.get_rng_state_all()
    result = autoattack(classifier.cuda(), pixels.cuda(), labels.cuda(), LINF)
    assert result.adversarial.is_cuda
    assert all(map(torch.equal, torch.cuda.get_rng_state_all(), before))


def test_result_depends_on_the_seed_alone(few_steps, classifier, pixels, labels):
    results = over_seeds(lambda seed: autoattack(classifier, pixels, labels, LINF, seed=seed).adversarial)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_channels_last_images_are_attacked_alike(few_steps, classifier, pixels, labels, norm):
    threat_model = ThreatModel(norm, 0.03 if norm == "Linf" else 0.3)
    plain, channels_last = (
        autoattack(classifier, images, labels, threat_model).adversarial
        for images in (pixels, pixels.to(memory_format=torch.channels_last))
    )
    assert torch.equal(plain, channels_last)


def test_half_precision_model_is_compared_in_float32(replace_run, make_model, pixels):
    classifier, calls = PixelClassifier(make_model("resnet").bfloat16()).eval(), replace_run()
    result = autoattack(classifier, pixels, predicted(classifier, pixels), LINF)
    assert result.adversarial.dtype == result.loss.dtype == torch.float32
    assert calls[0][0].get_logits(pixels).dtype == torch.float32


def test_nothing_is_printed_or_warned_of_a_sound_model(few_steps, make_model, pixels, capsys, caplog):
    classifier = PixelClassifier(make_model("vit")).eval()
    autoattack(classifier, pixels, predicted(classifier, pixels), ThreatModel("Linf", 0.1))
    assert not any(capsys.readouterr()) and not caplog.records


def test_a_model_with_random_outputs_is_noticed_and_judged_by_the_seed(
    few_steps, replace_run, classifier, pixels, labels, caplog
):
    classifier.register_forward_hook(lambda module, inputs, logits: logits + 0.3 * torch.randn_like(logits))
    autoattack(classifier, pixels, labels, LINF)
    assert "randomized defense" in caplog.text
    replace_run()  # nothing seeds torch on the way any more
    results = over_seeds(lambda seed: autoattack(classifier, pixels, labels, LINF, version="rand", seed=seed).loss)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "custom"}, "Unknown AutoAttack version 'custom'. Valid: 'standard', 'plus', 'rand'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"logits_fn": lambda x: x.flatten(1)}, "needs a torch module .* got a function"),
        ({"pixels": torch.full((6, 3, 16, 16), -2.0)}, r"pixels in \[0, 1\], got values from -2 to -2"),
        ({"pixels": torch.zeros(6, 3, 16, 16, dtype=torch.uint8)}, "pixels must be a float tensor"),
        ({"labels": torch.zeros(5, dtype=torch.long)}, "labels must be class indices of shape"),
    ],
    ids=["version", "batch size", "seed", "no seed", "no module", "normalised", "bytes", "labels"],
)
def test_bad_input_is_named(replace_run, classifier, pixels, labels, changes, message):
    arguments = {"logits_fn": classifier, "pixels": pixels, "labels": labels, "threat_model": LINF} | changes
    calls = replace_run()
    with pytest.raises(ValueError, match=message):
        autoattack(**arguments)
    assert not calls


def test_missing_library_is_named_with_its_cure(monkeypatch, classifier, pixels, labels):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    for call in (lambda: autoattack(classifier, pixels, labels, LINF), lambda: check_autoattack(10)):
        with pytest.raises(ImportError, match=r'pip install "hf_robust_ft\[autoattack\]"'):
            call()


@pytest.mark.parametrize("number", [0, -1, 2.5, True])
def test_check_refuses_what_is_no_number_of_images(number):
    check_autoattack(1)
    with pytest.raises(ValueError, match=f"number of images .* got {number!r}"):
        check_autoattack(number)
