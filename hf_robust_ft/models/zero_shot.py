"""Class prompts through a CLIP text tower, folded into the linear head of an image classifier.

CLIP's zero-shot logits are `scale * <f(x) / |f(x)|, t_k> + bias` for image features `f(x) = P g(x)` and unit text
embeddings `t_k`. All but the division by `|f(x)|` is linear in g(x) and is folded exactly: `W = scale / c * T P`.
That division differs from image to image and is no linear map, so it is replaced by a constant `c`, the mean norm over
synthetic images. Predictions and their ranking stay those of zero-shot classification, for `|f(x)|` scales all
logits of an image alike (and a bias common to all classes moves none); only the softmax temperature of each image is
off by `|f(x)| / c`. Training starts there and adapts it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_robust_ft.models.heads import last_linear_layers

DEFAULT_PROMPTS = ("a photo of a {}.",)


class ZeroShot(NamedTuple):
    """A zero-shot classifier, all that is not the image tower.

    Args:
        text: unit class embeddings (K, D).
        scale: of the cosine similarity.
        bias: added to all logits (SigLIP; 0 for CLIP).
    """

    text: Tensor
    scale: float
    bias: float = 0.0

    def logits(self, features: Tensor) -> Tensor:
        """Exact zero-shot logits (N, K) of image features (N, D)."""
        return self.scale * F.normalize(features, dim=-1) @ self.text.T + self.bias


def check_prompts(prompts: Sequence[str], labels: dict[str, Any]) -> list[str]:
    """The prompts as a list, once class names and prompts are fit for zero-shot.

    Raises:
        ValueError: no class names, no prompts, or a prompt without the place `{}` for the class name.
    """
    if "id2label" not in labels:
        raise ValueError("head='zero_shot' needs label_names: the class names go through the text tower.")
    bad = [prompt for prompt in prompts if prompt.count("{}") != 1]
    if isinstance(prompts, str) or not prompts or bad:
        raise ValueError(
            "prompts must be a list of templates with one {} for the class name, e.g. ['a photo of a {}.']; "
            f"got {prompts!r}."
        )
    return list(prompts)


def embed_classes(encode: Callable[[list[str]], Tensor], names: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """Unit embeddings (K, D): the mean over the prompts of each class's unit text embeddings, as CLIP does.

    Args:
        encode: texts to text features (N, D), of any norm.
        names: the classes.
        prompts: templates with one `{}`.
    """
    with torch.no_grad():
        rows = [F.normalize(encode([prompt.format(name) for prompt in prompts]), dim=-1).mean(0) for name in names]
    return F.normalize(torch.stack(rows).float(), dim=-1)


def probe_images(pretrained_cfg: dict[str, Any], count: int = 8) -> Tensor:
    """Normalised synthetic images (count, 3, H, W): seeded noise from coarse blobs to fine grain."""
    generator = torch.Generator().manual_seed(0)
    size = tuple(pretrained_cfg["input_size"][-2:])
    grains = [min(2 ** (1 + index), min(size)) for index in range(count)]
    pixels = torch.cat(
        [
            F.interpolate(torch.rand(1, 3, grain, grain, generator=generator), size=size, mode="bilinear")
            for grain in grains
        ]
    )
    mean, std = (torch.tensor(pretrained_cfg[name]).view(-1, 1, 1) for name in ("mean", "std"))
    return (pixels - mean) / std


def fold_zero_shot(
    model: nn.Module, projection: nn.Linear | None, zero_shot: ZeroShot, features: Tensor, pixel_values: Tensor
) -> None:
    """Write the zero-shot classifier into the model's linear head and verify its logits.

    Args:
        model: the classifier, whose head reads the tower's features before their projection.
        projection: the tower's last layer; None where the features are the embedding.
        zero_shot: the text side.
        features: the tower's features (N, D) of `pixel_values`, before normalisation.
        pixel_values: normalised images.

    Raises:
        ValueError: the folded head does not reproduce the zero-shot logits.
    """
    (head,) = last_linear_layers(model).values()
    norms = features.norm(dim=-1, keepdim=True)
    factor = zero_shot.scale / norms.mean()
    with torch.no_grad():
        head.weight.copy_(
            factor
            * zero_shot.text
            @ (projection.weight if projection is not None else torch.eye(zero_shot.text.shape[1]))
        )
        head.bias.fill_(zero_shot.bias)
        if projection is not None and projection.bias is not None:
            head.bias.add_(factor * zero_shot.text @ projection.bias)
        logits = model(pixel_values).logits
        unscaled = (logits - zero_shot.bias) * norms.mean() / norms + zero_shot.bias
    wanted = zero_shot.logits(features)
    error = (unscaled - wanted).abs().max().item() / max(1.0, wanted.abs().max().item())
    if not error <= 1e-4:
        raise ValueError(f"The folded zero-shot head is off by {error:.2g} of the zero-shot logits.")
