"""APGD under every norm with every loss, and its float16 loss scale."""

import pytest
import torch
from torch import nn

from hf_robust_ft import APGD, PixelClassifier, ThreatModel, apgd
from hf_robust_ft.attacks import apgd_run as run_module
from hf_robust_ft.attacks.apgd_run import FIRST_SCALE, ApgdRun
from hf_robust_ft.attacks.balls import BALLS
from hf_robust_ft.attacks.losses import LOSSES, get_loss

RADII = {"Linf": 8 / 255, "L2": 1.0, "L1": 8.0}
EVERY_NORM = pytest.mark.parametrize("norm", list(BALLS))
# What is of features is attacked by training alone, whose function has them: test_fare.py.
OF_IMAGES = [name for name, loss in LOSSES.items() if not (loss.dense or loss.given)]
EVERY_LOSS = pytest.mark.parametrize("loss", [name for name in OF_IMAGES if not get_loss(name).of_features])


def threat(norm, factor=1.0):
    return ThreatModel(norm, factor * RADII[norm])


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(8, 3, 16, 16, generator=generator), torch.arange(8) % 4


@pytest.fixture(params=["vit", "resnet"])
def classifier(request, make_model):
    return PixelClassifier(make_model(request.param)).eval()


@pytest.fixture
def vit(make_model):
    return PixelClassifier(make_model("vit")).eval()


def grey(num_images: int = 4) -> torch.Tensor:
    """Images whose pixels have room on both sides."""
    return 0.45 + 0.1 * torch.rand(num_images, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def linear(num_classes: int = 2):
    matrix = torch.randn(3 * 16 * 16, num_classes, generator=torch.Generator().manual_seed(0))
    return matrix, lambda pixels: pixels.flatten(1) @ matrix


def assert_inside(result, pixels, threat_model, eps=None):
    x, eps = result.adversarial, torch.as_tensor(threat_model.eps if eps is None else eps, dtype=torch.float64)
    order = {"Linf": float("inf"), "L2": 2, "L1": 1}[threat_model.norm]
    assert ((x.double() - pixels.double()).flatten(1).norm(order, dim=1) <= eps).all()
    assert x.min() >= 0 and x.max() <= 1 and x.dtype == torch.float32 and x.shape == pixels.shape


@EVERY_NORM
@EVERY_LOSS
def test_result_is_inside_the_ball_and_consistent(classifier, batch, norm, loss):
    pixels, labels = batch
    for settings in ({"steps": 7, "random_start": get_loss(loss).needs_reference}, {"steps": 3, "select": "fooled"}):
        result = apgd(classifier, pixels, labels, threat(norm), loss=loss, **settings)
        assert_inside(result, pixels, threat(norm))
        with torch.no_grad():
            logits = classifier(result.adversarial)
        assert torch.equal(result.predictions, logits.argmax(1))
        assert torch.equal(result.fooled, logits.argmax(1) != labels)


@EVERY_NORM
@pytest.mark.parametrize("loss", [name for name in OF_IMAGES if not get_loss(name).needs_reference])
def test_loss_is_never_below_the_clean_loss_without_random_start(classifier, batch, norm, loss):
    pixels, labels = batch
    targets = None
    if get_loss(loss).targeted:
        with torch.no_grad():
            targets = classifier(pixels).scatter(1, labels[:, None], -torch.inf).argmax(1)
    with torch.no_grad():
        clean = get_loss(loss).value(get_loss(loss).objective(classifier(pixels), labels, targets))
    for steps in (1, 6):
        result = apgd(classifier, pixels, labels, threat(norm), steps=steps, loss=loss, random_start=False)
        assert (result.loss >= clean - 1e-6).all() and (result.loss > clean + 1e-3).any()


@EVERY_NORM
@EVERY_LOSS
def test_no_data_dependent_host_sync(norm, loss):
    """A meta tensor has no values: anything that reads one raises."""
    pixels, labels, eps = torch.empty(8, 3, 4, 4), torch.zeros(8, dtype=torch.int64), torch.empty(8)
    pixels, labels, eps = (tensor.to("meta") for tensor in (pixels, labels, eps))
    settings = {"steps": 3, "loss": loss, "num_targets": 1}
    found = [
        apgd(lambda x: x.flatten(1)[:, :4], pixels, labels, threat(norm), **settings, **more)
        for more in ({"eps": eps, "select": "fooled"}, {"random_start": False, "start": pixels})
    ]
    assert all(result.adversarial.device.type == "meta" for result in found)
    assert all(result.adversarial.shape == pixels.shape and result.fooled.shape == (8,) for result in found)


def test_linear_model_is_taken_to_its_closed_form_optimum_in_l2():
    pixels, labels = grey(), torch.arange(4) % 2
    matrix, logits_fn = linear()
    result = apgd(logits_fn, pixels, labels, ThreatModel("L2", 0.5), steps=10, random_start=False)
    towards = (matrix[:, 1] - matrix[:, 0]).view(1, 3, 16, 16) * (1 - 2 * labels).view(-1, 1, 1, 1)
    optimum = pixels + 0.5 * towards / towards.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(result.adversarial, optimum, atol=1e-5)


def test_l1_steps_are_sparse_and_beat_a_dense_step_of_the_same_budget(classifier):
    pixels = grey()
    with torch.no_grad():
        labels = classifier(pixels).argmax(1)
    threat_model = ThreatModel("L1", 4.0)
    result = apgd(classifier, pixels, labels, threat_model, steps=30, random_start=False)
    assert ((result.adversarial != pixels).flatten(1).float().mean(1) < 0.5).all()
    leaf = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(classifier(leaf), labels, reduction="sum"), leaf)
    dense = pixels + threat_model.eps / pixels[0].numel() * gradient.sign()
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(classifier(x), labels, reduction="none") for x in (pixels, dense))
    assert ((result.loss - before) > 1.5 * (after - before)).all()


def test_linear_model_is_nearly_taken_to_its_optimum_in_l1():
    pixels, labels = torch.full((4, 3, 16, 16), 0.5), torch.arange(4) % 2
    matrix, logits_fn = linear()
    result = apgd(logits_fn, pixels, labels, ThreatModel("L1", 4.0), steps=50, random_start=False)
    towards = matrix[:, 1] - matrix[:, 0]
    gained = ((result.adversarial - pixels).flatten(1) @ towards) * (1 - 2 * labels)
    best = 0.5 * towards.abs().topk(8).values.sum()  # 4 of L1 norm is the whole room of 8 pixel values
    assert ((result.adversarial != pixels).flatten(1).sum(1) < 0.1 * matrix.shape[0]).all()
    assert (gained > 0.9 * best).all() and (gained < best * 1.0001).all()


@EVERY_NORM
def test_one_eps_per_image(vit, batch, norm):
    pixels, labels = batch
    eps = torch.linspace(0, 2, len(pixels)) * RADII[norm]
    result = apgd(vit, pixels, labels, threat(norm), eps=eps, random_start=False)
    assert_inside(result, pixels, threat(norm), eps.double())
    assert torch.equal(result.adversarial[0], pixels[0]) and not torch.equal(result.adversarial[1], pixels[1])
    alone = apgd(vit, pixels[[5]], labels[[5]], threat(norm), eps=eps[5].item(), random_start=False)
    assert torch.allclose(alone.loss, result.loss[[5]], rtol=1e-3)


@EVERY_NORM
@EVERY_LOSS
def test_restarts_keep_the_better_run_of_each_image(vit, batch, norm, loss):
    pixels, labels = batch
    settings = {"steps": 2, "loss": loss, "num_targets": 1}
    one, three = (apgd(vit, pixels, labels, threat(norm), restarts=count, **settings) for count in (1, 3))
    assert (three.loss >= one.loss).all() and (three.loss > one.loss).any()


@EVERY_NORM
def test_more_targets_never_fool_fewer(vit, batch, norm):
    pixels, labels = batch
    with torch.no_grad():
        labels = vit(pixels).argmax(1)
    settings = {"steps": 4, "loss": "dlr_targeted", "random_start": False, "select": "fooled"}
    fooled = [apgd(vit, pixels, labels, threat(norm), num_targets=count, **settings).fooled for count in (1, 2, 3)]
    assert (fooled[1] | ~fooled[0]).all() and (fooled[2] | ~fooled[1]).all()


@pytest.mark.parametrize(("num_targets", "runs"), [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_there_are_at_most_k_minus_1_targets(vit, batch, num_targets, runs):
    forwards, settings = [], {"steps": 2, "loss": "dlr_targeted", "num_targets": num_targets}
    apgd(lambda x: forwards.append(len(x)) or vit(x), *batch, threat("L2"), **settings)
    assert len(forwards) == 1 + 3 * runs  # one ranks the classes, each run takes n + 1


def test_a_targeted_attack_moves_to_the_likeliest_wrong_classes():
    pixels, logits_fn = grey(1), linear(4)[1]
    ranked = logits_fn(pixels)[0].argsort(descending=True).tolist()
    attack = APGD(loss="dlr_targeted", num_targets=3)
    ball = ThreatModel("L2", 0.5).ball(pixels)
    targets = [target.item() for _, target in attack.starts(logits_fn, ball, torch.tensor([ranked[1]]))]
    assert targets == [ranked[0], ranked[2], ranked[3]]


@EVERY_NORM
@EVERY_LOSS
def test_random_starts_follow_the_generator_alone(batch, norm, loss):
    pixels, labels = batch
    logits_fn = linear(4)[1]
    settings = {"steps": 1, "loss": loss, "num_targets": 1}
    before = torch.get_rng_state()
    default, again = (apgd(logits_fn, pixels, labels, threat(norm), **settings).adversarial for _ in range(2))
    one, same, other = (
        apgd(logits_fn, pixels, labels, threat(norm), generator=torch.Generator().manual_seed(seed), **settings)
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(default, again)
    assert torch.equal(one.adversarial, same.adversarial) and not torch.equal(one.adversarial, other.adversarial)


def test_a_warm_start_and_a_random_start_exclude_each_other(batch):
    pixels, labels = batch
    for eps in (None, 0.0):
        with pytest.raises(ValueError, match="one starting point"):
            apgd(linear(4)[1], pixels, labels, threat("L2"), start=pixels, eps=eps)


@EVERY_NORM
@EVERY_LOSS
def test_a_warm_start_is_projected_and_never_made_worse(vit, batch, norm, loss):
    pixels, labels = batch
    settings = {"loss": loss, "random_start": False, "num_targets": 1}
    begun = settings | {"random_start": get_loss(loss).needs_reference}
    cold = apgd(vit, pixels, labels, threat(norm, 2), steps=3, **begun)
    visited = []
    settings |= {"steps": 3, "start": cold.adversarial}
    warm = apgd(lambda x: visited.append(x.detach()) or vit(x), pixels, labels, threat(norm), **settings)
    start = threat(norm).ball(pixels).project(cold.adversarial)
    first = visited[int(get_loss(loss).needs_reference)]
    assert torch.equal(first, start) and not torch.equal(start, cold.adversarial)
    assert_inside(warm, pixels, threat(norm))
    with torch.no_grad():
        logits = vit(start)
    targets = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
    if get_loss(loss).needs_reference:
        targets = vit(pixels).detach().log_softmax(1)
    before = get_loss(loss).value(get_loss(loss).objective(logits, labels, targets))
    assert (warm.loss >= before - 1e-6).all() and (warm.loss > before).any()


@EVERY_NORM
def test_iterate_stays_float32_and_in_the_ball_under_bf16_autocast(classifier, batch, norm):
    pixels, labels = batch
    with torch.autocast("cpu", torch.bfloat16):
        result = apgd(classifier, pixels, labels, threat(norm), steps=4)
    assert result.loss.dtype == torch.float32 and result.loss.isfinite().all()
    assert_inside(result, pixels, threat(norm))


class HalfInside(nn.Module):
    """A two-class linear model whose input gradient passes through float16, (N, 3, 16, 16) -> (N, 2)."""

    def __init__(self, size: float):
        super().__init__()
        sign = torch.randn(768, generator=torch.Generator().manual_seed(0)).sign()
        self.register_buffer("weight", size * sign)

    def forward(self, pixels):
        margin = (pixels.half().float() - 0.5).flatten(1) @ self.weight
        return torch.stack([torch.zeros_like(margin), margin], 1)

    def optimum(self, pixels, eps):
        """Of label 0 under Linf."""
        return (pixels + eps * self.weight.sign().view(3, 16, 16)).clamp(0, 1)


def test_gradients_that_underflow_in_float16_still_lead_the_attack():
    model, pixels, labels = HalfInside(2e-8), grey(), torch.zeros(4, dtype=torch.int64)
    leaf = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), labels, reduction="sum"), leaf)
    assert not gradient.any()  # what an attack without a loss scale sees
    result = apgd(model, pixels, labels, ThreatModel("Linf", 0.2), steps=3, random_start=False)
    assert torch.allclose(result.adversarial, model.optimum(pixels, 0.2), atol=1e-6)


def test_a_scale_too_small_for_the_gradient_grows():
    model, pixels, labels = HalfInside(2e-11), grey(), torch.zeros(4, dtype=torch.int64)
    run = ApgdRun(APGD(steps=5), model, threat("Linf").ball(pixels), labels, pixels)
    assert not run.current.gradient.any() and (run.scale == FIRST_SCALE * 2**5).all()
    run.step()
    assert run.current.gradient.any()


@pytest.mark.parametrize("steps", [6, 10, 20])
def test_gradients_that_overflow_in_float16_make_the_scale_back_off(steps):
    model, pixels, labels = HalfInside(200.0), grey(), torch.zeros(4, dtype=torch.int64)
    pixels = (pixels - 0.02 * model.weight.sign().view(3, 16, 16)).clamp(0, 1)  # confidently class 0
    threat_model = ThreatModel("Linf", 4 / 255)
    run = ApgdRun(APGD(steps=steps), model, threat_model.ball(pixels), labels, pixels)
    assert run.current.gradient.isfinite().all() and (run.scale < FIRST_SCALE).all()
    assert (run.scale.log2() == run.scale.log2().round()).all()
    before = run.scale
    run.step()
    assert torch.equal(run.current.x, pixels)  # no usable gradient: it stays
    for _ in range(steps - 1):
        assert run.current.x.isfinite().all() and (run.current.x - pixels).abs().max() <= threat_model.eps
        run.step()
    assert torch.equal(run.scale, before)  # small enough now
    assert torch.allclose(run.result.x, model.optimum(pixels, 4 / 255), atol=1e-6)


@EVERY_NORM
@EVERY_LOSS
def test_the_scale_changes_nothing_in_float32(classifier, batch, norm, loss, monkeypatch):
    pixels, labels = batch
    settings = {"steps": 5, "loss": loss, "num_targets": 1}
    scaled = apgd(classifier, pixels, labels, threat(norm), **settings)
    monkeypatch.setattr(run_module, "FIRST_SCALE", 1.0)
    plain = apgd(classifier, pixels, labels, threat(norm), **settings)
    assert torch.equal(scaled.adversarial, plain.adversarial) and torch.equal(scaled.loss, plain.loss)
