"""Each check is shown a model that it must catch, and all of them models that are fine."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from hf_robust_ft.attacks import APGD, attack_mode
from hf_robust_ft.attacks.pixels import PixelClassifier
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.second_opinion import check_second_opinion
from hf_robust_ft.evaluation.trust_checks import run_trust_checks
from hf_robust_ft.evaluation.trust_verdicts import OPENINGS, TrustCheck

pytestmark = pytest.mark.usefixtures("whole_search")
APGD_10 = APGD(steps=10, random_start=False, select="fooled")
ALL_TARGETS = dataclasses.replace(APGD_10, loss="dlr_targeted", steps=40)  # also of images at the foot of two hills


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int = 64, size: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=seeded(1))


def smooth_model(num_pixels: int = 3 * 8 * 8, num_classes: int = 4) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(num_pixels, 32), nn.Tanh(), nn.Linear(32, num_classes))
    generator = seeded()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    return model


def classify(inner: nn.Module, preprocess=lambda pixels: pixels, postprocess=lambda logits: logits):
    return lambda pixels: postprocess(inner(preprocess(pixels) - 0.5))


def check(logits_fn, pixels, labels=None, *, eps="8/255", norm="Linf", attack=APGD_10, **options):
    """The checks by name; without labels, every image counts as classified correctly."""
    if labels is None:
        with torch.no_grad():
            labels = logits_fn(pixels).argmax(1)
    checks = run_trust_checks(logits_fn, pixels, labels, ThreatModel(norm, eps), attack, **options)
    assert [entry.name for entry in checks] == list(OPENINGS)
    return {entry.name: entry for entry in checks}


def failures(checks: dict[str, TrustCheck]) -> set[str]:
    return {name for name, entry in checks.items() if not entry.passed}


class ReversedGradient(torch.autograd.Function):
    """The identity, whose gradient has the wrong sign where `far`, (N,) bool."""

    @staticmethod
    def forward(ctx, pixels, far):
        ctx.save_for_backward(far)
        return pixels.clone()

    @staticmethod
    def backward(ctx, gradient):
        (far,) = ctx.saved_tensors
        return torch.where(far.view(-1, 1, 1, 1), -gradient, gradient), None


def always_reversed(pixels):
    return ReversedGradient.apply(pixels, torch.ones(len(pixels), dtype=torch.bool))


@pytest.mark.parametrize("norm, eps", [("Linf", "8/255"), ("L2", 0.2)])
@pytest.mark.parametrize("kind", ["linear", "smooth"])
def test_a_plain_model_passes_every_check(kind, norm, eps):
    inner = smooth_model()
    if kind == "linear":
        inner = nn.Sequential(inner[0], nn.Linear(3 * 8 * 8, 2))
        inner[1].weight.data = torch.randn(2, 3 * 8 * 8, generator=seeded())
        inner[1].bias.data.zero_()
    attack = APGD_10 if kind == "linear" else ALL_TARGETS
    checks = check(classify(inner), random_images(), norm=norm, eps=eps, attack=attack)
    assert not failures(checks)
    assert checks["gradients"].value == checks["deterministic"].value == checks["monotone"].value == 0
    assert checks["alone"].passed and checks["alone"].value < 1e-5
    assert checks["huge_eps"].value == 1 and 0 < checks["random_noise"].value <= 1


def test_untargeted_steps_alone_are_told_by_how_much_they_fall_short():
    found = check(classify(smooth_model()), random_images())
    assert failures(found) == {"second_opinion"} and found["second_opinion"].value == 3 / 64
    assert "targeted APGD fools 3" in found["second_opinion"].sentence
    with torch.no_grad():
        labels = classify(smooth_model())(random_images()).argmax(1)
    strong = ALL_TARGETS(classify(smooth_model()), random_images(), labels, ThreatModel("Linf", "8/255")).fooled
    known = check(classify(smooth_model()), random_images(), standing=~strong)
    assert not failures(known) and known["second_opinion"].value == 0


@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr_targeted"])
def test_a_hub_style_classifier_passes_under_every_loss(make_model, loss):
    model = make_model("vit")
    attack = APGD(steps=5, loss=loss, random_start=False, select="fooled")
    with attack_mode(model):
        checks = check(PixelClassifier(model), random_images(8, 16), eps="16/255", attack=attack)
    assert checks["gradients"].passed and checks["deterministic"].passed and checks["monotone"].passed
    assert all(parameter.grad is None for parameter in model.parameters())


def test_confident_images_have_usable_gradients():
    """Cross-entropy itself underflows to zero here; the attack's objective does not."""
    checks = check(classify(smooth_model(), postprocess=lambda logits: 1e4 * logits), random_images())
    assert not failures(checks)


@pytest.mark.parametrize(
    "hide",
    [lambda pixels: torch.round(pixels * 4) / 4, lambda pixels: torch.sigmoid(1e5 * (pixels - 0.505))],
    ids=["rounded", "saturated"],
)
def test_hidden_gradients_are_found(hide):
    pixels = torch.round(random_images() * 15) / 15  # off the sigmoid's slope
    checks = check(classify(smooth_model(), hide), pixels)
    assert {"gradients", "huge_eps"} <= failures(checks)
    assert checks["gradients"].value == 1 and checks["huge_eps"].value == 0
    assert "zero in every pixel for 100.0%" in checks["gradients"].sentence
    assert "fools 0.0% of the 64 correctly classified images" in checks["huge_eps"].sentence


@pytest.mark.parametrize("count, hidden, passed", [(20, 1, True), (64, 1, True), (64, 2, False), (256, 2, True)])
def test_a_few_zero_gradients_are_tolerated(count, hidden, passed):
    def hide(pixels):
        mask = torch.arange(len(pixels)) < (hidden if len(pixels) == count else 0)
        return torch.where(mask.view(-1, 1, 1, 1), pixels.detach(), pixels)

    checks = check(classify(smooth_model(), hide), random_images(count), batch_size=count)
    assert checks["gradients"].value == hidden / count and checks["gradients"].passed == passed


@pytest.mark.parametrize("standing, passed", [(0, True), (1, False)])
def test_no_image_of_a_few_may_stand_at_the_huge_eps(standing, passed):
    fooled = {0.01: 0, 0.02: 0, 0.04: 0, 0.5: 12 - standing}
    assert check_scripted(12, fooled=fooled)["huge_eps"].passed == passed


def test_images_that_different_checks_find_are_added_up():
    """More steps find one, noise another: each is tolerated alone."""
    images = torch.full((64, 3, 2, 2), 0.9)
    images[2] = 0.5

    def bright(pixels):  # so bright that no attack within 0.04 reaches the boundary, the third one on it
        lowest = pixels.flatten(1).amin(1)
        return torch.stack([lowest - 0.4999, torch.zeros_like(lowest)], 1)

    fooled = {0.01: 0, 0.02: 0, 0.04: 1}  # the first one
    found = check_scripted(64, fooled=fooled, more_with_50_steps=1, images=images, model=bright)
    assert found["random_noise"].passed and found["converged"].passed and not found["second_opinion"].passed
    assert found["second_opinion"].value == 2 / 64 and "the other checks fool 2" in found["second_opinion"].sentence


def test_advice_is_of_what_the_protocol_did_not_do():
    hide = classify(smooth_model(), lambda pixels: torch.round(pixels * 4) / 4)
    pixels = random_images()
    alone, several = (check(hide, pixels, protocol=protocol) for protocol in ("paper", "reliable"))
    for name in ("gradients", "huge_eps", "second_opinion"):
        assert "measure by protocol reliable" in alone[name].sentence and "AutoAttack" not in alone[name].sentence
        assert "measure by AutoAttack" in several[name].sentence and "reliable" not in several[name].sentence
    assert "without having been tested" in alone["gradients"].sentence
    assert "only an attack without gradients (Square) has tested it" in several["gradients"].sentence
    assert "more steps" in alone["huge_eps"].sentence and "more steps" not in several["huge_eps"].sentence


def test_one_gradient_that_is_not_finite_fails():
    pixels = random_images(128)
    pixels[:, :, 0, 0] = 0.5
    pixels[0, :, 0, 0] = 0

    def add_root(pixels):
        return pixels + 0 * pixels[:, :, :1, :1].sqrt()

    checks = check(classify(smooth_model(), add_root), pixels)
    assert not checks["gradients"].passed and checks["gradients"].value == 1 / 128
    assert "not finite for 0.8%" in checks["gradients"].sentence


def test_half_precision_gradients_that_the_attack_can_use_pass():
    """float16 rounds these gradients to zero, unless the loss is scaled as the attack scales it."""
    model, pixels = smooth_model(), random_images(8)
    found = check(lambda pixels: model(pixels.half().float() * 1e-7), pixels)["gradients"]
    assert found.passed and found.value == 0


def test_noise_in_the_forward_is_found():
    noise = seeded(5)
    inner = smooth_model()

    def noisy(logits):
        return logits + 0.3 * torch.randn(logits.shape, generator=noise)

    labels = classify(inner)(random_images()).argmax(1)
    found = check(classify(inner, postprocess=noisy), random_images(), labels)["deterministic"]
    assert not found.passed and found.value > 0.01 and "expectation over transformation" in found.sentence


def test_rounding_between_two_passes_is_no_randomness():
    noise = seeded(5)

    def barely_noisy(logits):
        return logits * (1 + 1e-6 * torch.rand(logits.shape, generator=noise))

    found = check(classify(smooth_model(), postprocess=barely_noisy), random_images())["deterministic"]
    assert found.passed and 0 < found.value < 1e-5


def test_classes_ruled_out_by_minus_infinity_are_fine_and_nan_is_not():
    def rule_out(logits):
        return torch.cat([logits, torch.full_like(logits[:, :1], -torch.inf)], 1)

    assert check(classify(smooth_model(), postprocess=rule_out), random_images())["deterministic"].value == 0
    broken = check(classify(smooth_model(), postprocess=lambda logits: logits * torch.nan), random_images())
    assert not broken["deterministic"].passed and broken["deterministic"].value is None
    json.dumps([dataclasses.asdict(entry) for entry in broken.values()], allow_nan=False)


def test_an_attack_that_is_led_astray_loses_to_noise():
    """Few pixels, so that noise has a chance at all."""
    checks = check(classify(smooth_model(3 * 2 * 2), always_reversed), random_images(64, 2), eps="16/255")
    assert {"random_noise", "huge_eps"} <= failures(checks)
    assert checks["gradients"].passed  # they are there, only wrong
    assert checks["random_noise"].value < 0 and "fools 0.0% at Linf 16/255" in checks["random_noise"].sentence


def test_neither_attack_nor_noise_finding_anything_points_to_the_huge_eps():
    checks = check(classify(smooth_model(), always_reversed), random_images(), eps=1e-5)
    assert checks["random_noise"].passed and checks["random_noise"].value == 0
    assert "neither finds more than one image: huge_eps" in checks["random_noise"].sentence
    assert failures(checks) == {"huge_eps", "second_opinion"}  # whose loss never rose
    assert "accuracy counts images that nothing could test" in checks["second_opinion"].sentence


@pytest.mark.parametrize("by_attack, by_noise, passed", [(2, 1, True), (1, 1, True), (0, 1, False), (2, 2, False)])
def test_noise_must_find_less_than_the_attack_a_single_image_aside(by_attack, by_noise, passed):
    """A bright image is correct; `by_noise` of the images are at the boundary, where any noise will do."""
    images = torch.full((8, 3, 2, 2), 0.5)
    images[by_noise:] = 0.9

    def bright(pixels):
        lowest = pixels.flatten(1).amin(1)
        return torch.stack([lowest - 0.4999, torch.zeros_like(lowest)], 1)

    found = check_scripted(8, fooled={0.01: 0, 0.02: 0, 0.04: by_attack}, images=images, model=bright)["random_noise"]
    assert found.passed == passed and found.value == (by_attack - by_noise) / 8


def test_an_attack_that_leaves_nothing_standing_is_not_beaten_by_noise():
    images = torch.full((8, 3, 2, 2), 0.5)
    labels = torch.zeros(8, dtype=torch.int64)

    def peak(pixels):  # correct at the image itself only
        distance = (pixels - 0.5).abs().flatten(1).sum(1)
        return torch.stack([1e-4 - distance, torch.zeros_like(distance)], 1)

    tilted = check(lambda pixels: peak(pixels + 1e-6), images, labels)
    assert tilted["random_noise"].passed and tilted["random_noise"].value == 0
    assert tilted["converged"].passed and tilted["converged"].value == 0


def test_gradients_masked_beyond_a_radius_make_accuracy_rise_with_eps():
    """Wrong in a slab close by; past it the gradient leads away, so a first step that jumps over it never returns."""
    images = torch.full((32, 3, 8, 8), 0.5) + 0.002 * torch.randn(32, 3, 8, 8, generator=seeded(3))

    def slab(pixels):
        far = pixels.flatten(1).mean(1) > 0.53
        margin = (ReversedGradient.apply(pixels, far).flatten(1).mean(1) - 0.52).abs() - 0.012
        return torch.stack([100 * margin, torch.zeros_like(margin)], 1)

    found = check(slab, images, eps=0.08, attack=dataclasses.replace(APGD_10, steps=2))["monotone"]
    assert not found.passed and found.value == 1
    assert "0.0% at 0.02" in found.sentence and "100.0% at 0.08, a rise of 100.0%" in found.sentence


@pytest.mark.parametrize("num_images, lost, passed", [(64, 1, True), (64, 2, False), (300, 3, True), (300, 4, False)])
def test_a_rise_within_sampling_slack_passes(num_images, lost, passed):
    found = check_scripted(num_images, fooled={0.01: 10, 0.02: 10, 0.04: 10 - lost})["monotone"]
    assert found.value == lost / num_images and found.passed == passed


@pytest.mark.parametrize("num_images, gained, passed", [(64, 1, True), (64, 2, False), (300, 3, True), (300, 4, False)])
def test_a_fall_of_the_accuracy_with_more_steps_beyond_what_is_tolerated_fails(num_images, gained, passed):
    found = check_scripted(num_images, fooled={0.01: 5, 0.02: 5, 0.04: 5}, more_with_50_steps=gained)["converged"]
    assert found.value == gained / num_images and found.passed == passed
    assert f"{(num_images - 5) / num_images:.1%} after 10" in found.sentence
    assert f"{(num_images - 5 - gained) / num_images:.1%} after 50" in found.sentence


def check_scripted(num_images, fooled, more_with_50_steps=0, images=None, model=None):
    """An attack of APGD's interface that fools as many images as it is told."""

    @dataclasses.dataclass(frozen=True)
    class Scripted(APGD):
        def __call__(self, logits_fn, pixels, labels, threat_model, *, eps=None, generator=None):
            count = more_with_50_steps if self.steps == 50 else fooled.get(eps, len(pixels))
            result = APGD(steps=1)(logits_fn, pixels, labels, threat_model, eps=0.0)
            return dataclasses.replace(result, fooled=torch.arange(len(pixels)) < count)

    images, model = images if images is not None else random_images(num_images, 2), model or classify(smooth_model(12))
    attack = Scripted(steps=10, random_start=False, select="fooled")
    return check(model, images, eps=0.04, attack=attack, batch_size=num_images)


def test_too_few_steps_are_found():
    """The only wrong region is inside the ball, not at its corners, where a single step lands."""
    eps = 16 / 255
    centre = 0.3 + 0.4 * torch.rand(1, 3, 8, 8, generator=seeded(3))
    images = centre + 0.01 * torch.randn(32, 3, 8, 8, generator=seeded(4))
    pocket = centre + eps * (2 * torch.rand(1, 3, 8, 8, generator=seeded(5)) - 1)

    def curved(pixels):
        distance = ((pixels - pocket) / eps).square().flatten(1).mean(1)
        return torch.stack([20 * distance, torch.full_like(distance, 20 * 0.12)], 1)

    hasty, patient = (
        check(curved, images, eps=eps, attack=dataclasses.replace(APGD_10, steps=steps))["converged"]
        for steps in (1, 10)
    )
    assert patient.passed and not hasty.passed and hasty.value == 1
    assert "32 images at Linf 16/255 is 100.0% after 1 and 0.0% after 5 attack steps" in hasty.sentence
    assert "use at least 5 steps" in hasty.sentence


def test_the_change_of_the_loss_is_told():
    found = check(classify(smooth_model()), random_images())["converged"]
    assert "median change of the loss where the image stands both times: +" in found.sentence


@pytest.mark.parametrize(
    "norm, eps, huge", [("Linf", "4/255", "Linf 0.5"), ("L2", 0.1, "L2 6.9282"), ("L1", 1, "L1 96")]
)
def test_the_huge_eps_is_half_of_the_pixel_range_in_every_norm(norm, eps, huge):
    found = check(classify(smooth_model()), random_images(16), norm=norm, eps=eps)["huge_eps"]
    assert found.passed and found.value == 1 and huge in found.sentence


def test_only_correct_images_are_attacked_and_accuracies_count_all():
    pixels = random_images()
    labels = classify(smooth_model())(pixels).argmax(1)
    labels[::2] = (labels[::2] + 1) % 4
    checks = check(classify(smooth_model()), pixels, labels, eps=1e-4)
    assert "32 correctly classified images" in checks["gradients"].sentence
    assert "accuracy on 64 images" in checks["monotone"].sentence and "50.0% at 0.0001" in checks["monotone"].sentence


@pytest.mark.parametrize("case", ["eps 0", "all wrong"])
def test_what_cannot_be_checked_says_so(case):
    model, pixels = classify(smooth_model()), random_images(8)
    labels = (model(pixels).argmax(1) + (case == "all wrong")) % 4
    checks = check(model, pixels, labels, eps=0 if case == "eps 0" else "4/255")
    assert not failures(checks) and checks.pop("deterministic").value == 0 and checks.pop("alone").value < 1e-5
    why = "eps is 0" if case == "eps 0" else "no image is classified correctly"
    assert all(entry.value is None and entry.sentence.startswith("Not checked (") for entry in checks.values())
    assert all(why in entry.sentence for entry in checks.values())


def test_same_seed_same_result_and_the_global_random_state_is_untouched():
    attack = dataclasses.replace(APGD_10, steps=3, random_start=True)
    model = classify(smooth_model(12))
    before = torch.get_rng_state()
    first, second, other = (
        check(model, random_images(256, 2), attack=attack, eps=0.1, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first == second and first != other


@pytest.mark.parametrize("norm, eps", [("Linf", "16/255"), ("L2", 0.3), ("L1", 3.0)])
def test_the_batch_size_limits_what_runs_at_once_and_changes_nothing(norm, eps):
    inner, sizes = classify(smooth_model(3 * 2 * 2)), []

    def model(pixels):
        sizes.append(len(pixels))
        return inner(pixels)

    pixels = random_images(60, 2)
    options = {"norm": norm, "eps": eps, "labels": inner(pixels).argmax(1)}
    whole = check(model, pixels, batch_size=60, **options)
    sizes.clear()
    split = check(model, pixels, batch_size=7, **options)
    assert max(sizes) == 7
    assert whole == split and 0 < whole["random_noise"].value < 1  # noise fools some, so draws matter


def test_cost_stays_within_what_is_promised():
    pixels, steps = random_images(16), 4
    inner, passes = smooth_model(), []

    def spy(images):
        passes.append(len(images) * (1 if images.requires_grad else 0.3))
        return classify(inner)(images)

    labels = classify(inner)(pixels).argmax(1)
    attack = dataclasses.replace(APGD_10, steps=steps)
    check(spy, pixels, labels, eps=1e-4, attack=attack, classes=torch.arange(4))
    # Every attack ends with one more forward; two clean passes; noise draws as often as the attack steps.
    expected = 1 + 3 * steps + 5 * steps + steps + 0.3 * (5 + 2 + steps)
    # All stand: three targeted runs, the likeliest classes, a look at the outputs, and Square; eight images twice.
    expected += 3 * 10 + 0.3 * (3 + 1 + 1 + 301 + 8 * 2 / 16)
    assert sum(passes) / len(pixels) == pytest.approx(expected)


def test_json_round_trip():
    checks = list(check(classify(smooth_model()), random_images(8)).values())
    content = json.dumps([dataclasses.asdict(entry) for entry in checks], allow_nan=False)
    assert [TrustCheck(**entry) for entry in json.loads(content)] == checks


@pytest.mark.parametrize("count, num_labels, batch_size", [(0, 0, 8), (4, 3, 8), (4, 4, 0)])
def test_bad_arguments_are_refused(count, num_labels, batch_size):
    labels = torch.zeros(num_labels, dtype=torch.int64)
    with pytest.raises(ValueError, match="Trust checks need pixels"):
        check(classify(smooth_model()), random_images(count), labels, batch_size=batch_size)


@pytest.mark.parametrize("known", [None, torch.ones(8, dtype=torch.bool)], ids=["all fall", "all fell before"])
def test_a_network_is_never_asked_about_no_images(known):
    """As a ViT, which cannot reshape them, where every image that stood has fallen."""
    inner, pixels = smooth_model(), random_images(8)

    def logits_fn(pixels):
        assert len(pixels)
        return classify(inner)(pixels)

    labels = logits_fn(pixels).argmax(1)
    options = {"num_images": 8, "classes": torch.arange(4), "seed": 0, "batch_size": 4, "known": known}
    found = check_second_opinion(logits_fn, pixels, labels, ThreatModel("Linf", 0.5), **options)
    assert found.value == 1
