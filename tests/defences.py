"""Networks that look more robust than they are, each by one trick around a small classifier of digits (N, 1, 8, 8)."""

import functools
import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hf_robust_ft import APGD, ThreatModel

Classifier = Callable[[Tensor], Tensor]


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels in [0, 1] and labels of 1400 digits to train on, and of the other 397."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(found.images / 16, dtype=torch.float32)[order, None]
    labels = torch.tensor(found.target)[order]
    return pixels[:1400], labels[:1400], pixels[1400:], labels[1400:]


@functools.cache
def trained(eps: float, epochs: int) -> nn.Module:
    """A small CNN; trained adversarially at Linf `eps`, or plainly at 0. It takes 2 to 4 seconds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
        pixels, labels, _, _ = digits()
        optimizer, generator = torch.optim.Adam(model.parameters(), 3e-3), torch.Generator().manual_seed(0)
        for epoch in range(epochs):
            for rows in torch.randperm(len(pixels)).split(64):
                x, y = pixels[rows], labels[rows]
                if eps and epoch:
                    x = APGD(steps=3)(model, x, y, ThreatModel("Linf", eps), generator=generator).adversarial
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
    return model.eval().requires_grad_(False)


def backward_as(backward: Callable[[Tensor], Tensor], forward: Callable = lambda x: x.clone()) -> Callable:
    """`forward`, whose gradient is what `backward` makes of it."""

    class Pretended(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return forward(x)

        @staticmethod
        def backward(ctx, gradient):
            return backward(gradient)

    return Pretended.apply


def junk(gradient: Tensor) -> Tensor:
    return torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1))


def rounded(x: Tensor) -> Tensor:
    return (8 * x).round() / 8


def jpeg_like(x: Tensor) -> Tensor:
    """The 8 x 8 cosine transform, rounded."""
    n = torch.arange(8.0)
    basis = torch.cos(torch.pi * (2 * n[None] + 1) * n[:, None] / 16) * torch.where(n == 0, 0.125, 0.25).sqrt()[:, None]
    return (basis.T @ ((basis @ x @ basis.T) / 0.25).round() * 0.25 @ basis).clamp(0, 1)


def jpeg(x: Tensor) -> Tensor:
    """Through a JPEG file of quality 75; without a gradient."""

    def through_a_file(image: Tensor) -> Tensor:
        file = io.BytesIO()
        Image.fromarray((255 * image[0]).round().clamp(0, 255).byte().numpy()).save(file, "JPEG", quality=75)
        return torch.from_numpy(np.array(Image.open(file)))[None] / 255

    return torch.stack([through_a_file(image) for image in x.detach()]) + 0 * x


def nan_off_the_grid(model: Classifier) -> Classifier:
    """Not a number for what is no image of whole sixteenths."""

    def logits(x: Tensor) -> Tensor:
        on_grid = ((16 * x - (16 * x).round()).abs() < 1e-4).flatten(1).all(1)
        return torch.where(on_grid[:, None], model(x), torch.nan)

    return logits


def hashed(x: Tensor) -> Tensor:
    """A number in [0, 1) for each image that any change of it changes, (N,)."""
    return (x.detach().flatten(1).double() @ torch.linspace(1, 2, 64, dtype=torch.float64) * 1e6).frac().abs()


def floored_with_a_shifted_gradient(model: Classifier) -> Classifier:
    """Floored pixels whose gradient is the one of the pixel beside: of some use, and mostly wrong."""
    return lambda x: model(backward_as(lambda gradient: gradient.roll(1, 3), lambda x: (32 * x).floor() / 32)(x))


def brightest_half(model: Classifier) -> Classifier:
    """Sees the 32 brightest pixels only, a set that attacks change at every step."""

    def logits(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return model(torch.where(flat >= flat.topk(32, 1).values[:, -1:], flat, 0.0).view_as(x))

    return logits


def temperature_by_the_input(model: Classifier) -> Classifier:
    """Logits of another size, by up to a million, for every other image: the loss of two points compares nothing."""
    return lambda x: model(x) * 10 ** (6 * hashed(x) - 5).float()[:, None]


def crops_by_the_input(model: Classifier) -> Classifier:
    """The mean over three shifts of a pixel, drawn by a hash of the image."""

    def logits(x: Tensor) -> Tensor:
        shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        moved = torch.stack([model(torch.roll(x, shift, (2, 3))) for shift in shifts], 1)
        drawn = (9 * torch.stack([hashed(x + draw) for draw in (0, 0.1, 0.2)], 1)).long()
        return moved.gather(1, drawn[..., None].expand(-1, -1, moved.shape[2])).mean(1)

    return logits


def direction(classes: int) -> Tensor:
    return torch.randn(64, classes, generator=torch.Generator().manual_seed(3))


def sine(model: Classifier, size: float, frequency: float) -> Classifier:
    """A fast sine of the input on top of the logits."""
    return lambda x: model(x) + size * torch.sin(frequency * (x.flatten(1) @ direction(10)))


def honeypot(model: Classifier, classes: int = 1, size: float = 1.0, frequency: float = 3.0) -> Classifier:
    """Classes held below the top one, the closer the further one follows a wave of the input, and never above it."""

    def logits(x: Tensor) -> Tensor:
        found = model(x)
        wave = 1.05 + torch.sin(frequency * (x.flatten(1) @ direction(1)))
        below = size / 2 * wave * torch.arange(1, classes + 1)
        return torch.cat([found, found.amax(1, keepdim=True) - below], 1)

    return logits


def one_hot(model: Classifier) -> Classifier:
    def logits(x: Tensor) -> Tensor:
        found = model(x)
        return 1000.0 * F.one_hot(found.argmax(1), found.shape[1]) + 1e-6 * found

    return logits


def infinite_top(model: Classifier) -> Classifier:
    def logits(x: Tensor) -> Tensor:
        found = model(x)
        return found.masked_fill(found == found.amax(1, keepdim=True), torch.inf)

    return logits


def noisy(model: Classifier) -> Classifier:
    generator = torch.Generator().manual_seed(0)
    return lambda x: model((x + 0.2 * torch.randn(x.shape, generator=generator)).clamp(0, 1))


def seeded_by_input(model: Classifier) -> Classifier:
    """Noise that is another one for every other image, and always the same for the same."""

    def noise(image: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(int(image.double().sum().item() * 1e9) % 2**31)
        return 0.1 * torch.randn(image.shape, generator=generator)

    return lambda x: model((x + torch.stack([noise(image) for image in x])).clamp(0, 1))


def gradient_of_one_class(model: Classifier) -> Classifier:
    """Without a gradient but where the prediction is class 0."""

    def logits(x: Tensor) -> Tensor:
        found = model(x)
        return torch.where((found.argmax(1) == 0)[:, None], found, found.detach() + 0 * found)

    return logits


def among_others(model: Classifier) -> Classifier:
    """Shifted by what the batch looks like on average."""
    return lambda x: model((x - x.mean(0, keepdim=True) + 0.3).clamp(0, 1))


DEFENCES: dict[str, Callable[[Classifier], Classifier]] = {
    "softmax of 20 z": lambda model: lambda x: (20 * model(x)).softmax(1),
    "one-hot": one_hot,
    "fast sine": lambda model: sine(model, 1.0, 2000),
    "small, faster sine": lambda model: sine(model, 0.1, 20000),
    "honeypot": honeypot,
    "rippled honeypot": lambda model: honeypot(model, size=0.2, frequency=200),
    "three honeypots": lambda model: honeypot(model, classes=3),
    "logits of 1e-4": lambda model: lambda x: 1e-4 * model(x),
    "saturating tanh": lambda model: lambda x: (5 * model(x)).tanh(),
    "sigmoid": lambda model: lambda x: model(x).sigmoid(),
    "clamped logits": lambda model: lambda x: model(x).clamp(-2, 2),
    "infinite top logit": infinite_top,
    "rounded input": lambda model: lambda x: model(rounded(x)),
    "JPEG-like": lambda model: lambda x: model(jpeg_like(x)),
    "steep input": lambda model: lambda x: model((200 * (x - 0.5)).sigmoid()),
    "reversed gradient": lambda model: lambda x: model(backward_as(torch.neg)(x)),
    "junk gradient": lambda model: lambda x: model(backward_as(junk)(x)),
    "detached": lambda model: lambda x: model(x.detach()) + 0 * x.sum(),
    "gradient of one class": gradient_of_one_class,
    "random noise": noisy,
    "noise seeded by the input": seeded_by_input,
    "normalised by its batch": among_others,
    "JPEG": lambda model: lambda x: model(jpeg(x)),
    "NaN off the grid": nan_off_the_grid,
    "floored, shifted gradient": floored_with_a_shifted_gradient,
    "temperature by the input": temperature_by_the_input,
    "crops by the input": crops_by_the_input,
    "brightest half": brightest_half,
}

HARMLESS: dict[str, Callable[[Classifier], Classifier]] = {
    "none": lambda model: model,
    "softmax": lambda model: lambda x: model(x).softmax(1),
    "logits of 1e4": lambda model: lambda x: 1e4 * model(x),
    "classes nobody has": lambda model: lambda x: F.pad(model(x), (0, 5), value=-50.0),
    "rounded, gradient let through": lambda model: lambda x: model(backward_as(lambda g: g, rounded)(x)),
}
