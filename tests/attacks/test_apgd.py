import pytest
import torch
from torch import nn

from hf_robust_ft import APGD, PixelClassifier, ThreatModel, apgd
from hf_robust_ft.attacks import attack_mode

LINF = ThreatModel("Linf", "8/255")


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(12, 3, 16, 16, generator=generator), torch.arange(12) % 4


@pytest.fixture(params=["vit", "resnet"])
def classifier(request, make_model):
    return PixelClassifier(make_model(request.param)).eval()


def linear(num_classes: int = 2, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(3 * 16 * 16, num_classes, generator=generator)
    return matrix, lambda pixels: pixels.flatten(1) @ matrix.to(pixels.device)


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("select", ["loss", "fooled"])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_result_is_inside_the_ball_and_consistent(classifier, batch, random_start, select, steps):
    pixels, labels = batch
    result = apgd(classifier, pixels, labels, LINF, steps=steps, random_start=random_start, select=select)
    assert result.adversarial.shape == pixels.shape and result.adversarial.dtype == torch.float32
    assert (result.adversarial - pixels).abs().max().item() <= LINF.eps
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    with torch.no_grad():
        logits = classifier(result.adversarial)
    assert torch.equal(result.predictions, logits.argmax(1))
    assert torch.equal(result.fooled, logits.argmax(1) != labels)
    assert torch.allclose(result.loss, nn.functional.cross_entropy(logits, labels, reduction="none"), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 7, 10])
def test_loss_is_never_below_the_clean_loss_without_random_start(classifier, batch, steps):
    pixels, labels = batch
    clean = apgd(classifier, pixels, labels, LINF, eps=0.0)
    attacked = apgd(classifier, pixels, labels, LINF, steps=steps, random_start=False)
    assert (attacked.loss >= clean.loss).all() and (attacked.loss > clean.loss).any()


def test_best_point_is_the_highest_loss_visited(classifier, batch):
    pixels, labels = batch
    visited = []

    def spy(x):
        logits = classifier(x)
        visited.append(nn.functional.cross_entropy(logits.detach(), labels, reduction="none"))
        return logits

    result = apgd(spy, pixels, labels, LINF, steps=10, random_start=True)
    assert len(visited) == 11  # n gradients and one more forward, nothing else
    assert torch.allclose(result.loss, torch.stack(visited).amax(0), rtol=1e-5)


def test_cost_is_n_gradients_and_one_forward(batch):
    pixels, labels = batch
    with_gradient = []
    _, logits_fn = linear(4)

    def spy(x):
        with_gradient.append(x.requires_grad)
        return logits_fn(x)

    apgd(spy, pixels, labels, LINF, steps=7)
    assert with_gradient == [True] * 7 + [False]


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0], ids=["small", "large", "huge margins"])
def test_linear_model_is_taken_to_its_closed_form_optimum(batch, scale):
    pixels, labels = batch
    labels = labels % 2
    matrix, logits_fn = linear(2)
    matrix *= scale
    result = apgd(logits_fn, pixels, labels, LINF, steps=10, random_start=False)
    # Two classes: cross-entropy falls with the margin, which is linear, so the optimum is a corner of the box.
    towards = (matrix[:, 1] - matrix[:, 0]).view(1, 3, 16, 16) * (1 - 2 * labels).view(-1, 1, 1, 1)
    optimum = torch.where(towards > 0, (pixels + LINF.eps).clamp(max=1), (pixels - LINF.eps).clamp(min=0))
    assert torch.allclose(result.adversarial, optimum, atol=1e-6)


def test_same_generator_same_result_and_another_one_differs(classifier, batch):
    pixels, labels = batch
    runs = [
        apgd(classifier, pixels, labels, LINF, steps=3, generator=torch.Generator().manual_seed(seed)).adversarial
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_global_random_state_is_untouched(classifier, batch):
    pixels, labels = batch
    before = torch.get_rng_state()
    first = apgd(classifier, pixels, labels, LINF, steps=2, restarts=2)
    second = apgd(classifier, pixels, labels, LINF, steps=2, restarts=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.adversarial, second.adversarial)


def test_restarts_keep_the_better_run_of_each_image(classifier, batch):
    pixels, labels = batch
    one, five = (apgd(classifier, pixels, labels, LINF, steps=2, restarts=count) for count in (1, 5))
    assert (five.loss >= one.loss).all() and (five.loss > one.loss).any()


def test_selecting_the_fooled_finds_at_least_as_many(make_model, batch):
    pixels, labels = batch
    classifier = PixelClassifier(make_model("resnet")).eval()
    by_loss, by_error = (
        apgd(classifier, pixels, labels, ThreatModel(eps=0.2), steps=10, select=select, random_start=False)
        for select in ("loss", "fooled")
    )
    assert (by_error.fooled | ~by_loss.fooled).all()


def test_model_state_is_untouched(make_model, batch):
    pixels, labels = batch
    model = make_model("resnet")
    model.train()
    model.classifier.eval()  # a mode of its own, as a frozen layer would have
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    with attack_mode(model):
        assert not any(module.training for module in model.modules())
        apgd(PixelClassifier(model), pixels, labels, LINF, steps=2)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(buffers[name], tensor) for name, tensor in model.named_buffers())


def test_model_state_comes_back_after_an_exception(make_model):
    model = make_model("resnet").train()
    with pytest.raises(RuntimeError, match="boom"), attack_mode(model):
        raise RuntimeError("boom")
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_existing_gradients_survive(make_model, batch):
    pixels, labels = batch
    model = make_model("vit")
    model(pixels, labels=labels).loss.backward()
    before = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    with attack_mode(model):
        apgd(PixelClassifier(model), pixels, labels, LINF, steps=2)
    after = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(before) == len(after) and all(map(torch.equal, before, after))


def test_one_eps_per_image(classifier, batch):
    pixels, labels = batch
    eps = torch.linspace(0, 0.1, len(pixels))
    result = apgd(classifier, pixels, labels, LINF, eps=eps, random_start=False)
    distance = (result.adversarial - pixels).abs().flatten(1).amax(1)
    assert (distance <= eps).all() and distance[0] == 0 and distance[-1] > 0.09
    for index in (3, 11):
        alone = apgd(classifier, pixels[[index]], labels[[index]], LINF, eps=eps[index].item(), random_start=False)
        assert torch.allclose(alone.adversarial, result.adversarial[[index]], atol=1e-6)


def test_eps_zero_is_skipped_for_one_forward(classifier, batch):
    pixels, labels = batch
    calls = []
    result = apgd(lambda x: calls.append(x.requires_grad) or classifier(x), pixels, labels, LINF, eps=0)
    assert calls == [False] and torch.equal(result.adversarial, pixels)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_no_data_dependent_host_sync(make_model, batch, kind):
    """A meta tensor has no values: anything that reads one raises."""
    pixels, labels = (tensor.to("meta") for tensor in batch)
    classifier = PixelClassifier(make_model(kind).to("meta")).eval()
    for eps in (None, torch.empty(12, device="meta")):
        result = apgd(classifier, pixels, labels, LINF, steps=10, restarts=2, select="fooled", eps=eps)
        assert result.adversarial.device.type == "meta" and result.adversarial.shape == pixels.shape


def test_runs_under_no_grad(classifier, batch):
    pixels, labels = batch
    expected = apgd(classifier, pixels, labels, LINF, steps=3)
    with torch.no_grad():
        result = apgd(classifier, pixels, labels, LINF, steps=3)
    assert torch.equal(result.adversarial, expected.adversarial)


def test_iterate_stays_float32_and_in_the_ball_under_bf16_autocast(classifier, batch):
    pixels, labels = batch
    with torch.autocast("cpu", torch.bfloat16):
        result = apgd(classifier, pixels, labels, LINF, steps=5)
    assert result.adversarial.dtype == result.loss.dtype == torch.float32
    assert (result.adversarial - pixels).abs().max().item() <= LINF.eps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "mse"}, "Unknown attack loss 'mse'. Valid losses: ce"),
        ({"steps": 0}, "steps to be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, "steps to be a whole number"),
        ({"restarts": 0}, "restarts to be a whole number"),
        ({"select": "best"}, "Unknown selection 'best'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        APGD(**settings)


def test_bad_shapes_are_refused(batch):
    pixels, labels = batch
    _, logits_fn = linear(4)
    with pytest.raises(ValueError, match="pixels must be a float tensor"):
        apgd(logits_fn, (pixels * 255).to(torch.uint8), labels, LINF)
    with pytest.raises(ValueError, match=r"labels must be class indices of shape \(12,\)"):
        apgd(logits_fn, pixels, labels[:5], LINF)


@pytest.mark.parametrize(
    ("eps", "message"),
    [
        (4, "Did you mean eps='4/255'"),
        (-0.1, "not negative"),
        (float("nan"), "finite"),
        (torch.full((5,), 0.1), r"one per image, \(12,\)"),
    ],
    ids=["255ths", "negative", "nan", "length"],
)
def test_a_bad_eps_of_the_call_is_refused(batch, eps, message):
    _, logits_fn = linear(4)
    with pytest.raises(ValueError, match=message):
        apgd(logits_fn, *batch, LINF, eps=eps)


def test_settings_read_well():
    assert str(APGD(steps=7, random_start=False)) == "APGD-CE-7, clean start"


def test_a_model_that_sums_its_input_is_attacked():
    """Its gradient is one number, expanded over all pixels, which cannot be written to."""
    pixels = torch.full((2, 3, 4, 4), 0.5)
    model = lambda x: torch.stack([24 - x.sum((1, 2, 3)), torch.zeros(len(x))], 1)  # noqa: E731
    result = apgd(model, pixels, torch.zeros(2, dtype=torch.int64), ThreatModel("Linf", 0.01), steps=2)
    assert result.fooled.all()
