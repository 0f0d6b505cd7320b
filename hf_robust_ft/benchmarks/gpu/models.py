"""ViT-B/16, Swin-B, ConvNeXt-B and ResNet-50 with random weights at 224 px, tiny ones of their kind, random images."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    PretrainedConfig,
    ResNetConfig,
    SwinConfig,
    TrainingArguments,
    ViTConfig,
    ViTImageProcessor,
)

from hf_robust_ft.attacks import use_fast_memory_format
from hf_robust_ft.attacks.pixels import PixelClassifier
from hf_robust_ft.benchmarks import attack_cost
from hf_robust_ft.benchmarks.gpu.cases import Setup
from hf_robust_ft.benchmarks.training_subjects import Subject

EPS = "4/255"
TINY_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
# Of each: its configuration, the arguments of the model that is meant, and those of a tiny one for 32 px.
ARCHITECTURES: dict[str, tuple[type[PretrainedConfig], dict[str, Any], dict[str, Any]]] = {
    "ViT-B/16": (ViTConfig, {}, {**TINY_VIT, "patch_size": 8}),
    "Swin-B": (
        SwinConfig,
        {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
        {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    ),
    "ConvNeXt-B": (
        ConvNextConfig,
        {"hidden_sizes": [128, 256, 512, 1024], "depths": [3, 3, 27, 3]},
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    ),
    "ResNet-50": (ResNetConfig, {}, {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]}),
}


def image_size(small: bool) -> int:
    return 32 if small else 224


def build_model(name: str, small: bool, device: str = "cpu") -> nn.Module:
    """One of `ARCHITECTURES` with the same random weights each time; on "meta" it has none and takes no time."""
    config, whole, tiny = ARCHITECTURES[name]
    torch.manual_seed(0)
    settings = {"image_size": image_size(small), "num_labels": 10 if small else 1000, **(tiny if small else whole)}
    if config is ResNetConfig:
        settings.pop("image_size")
    with torch.device(device):
        return AutoModelForImageClassification.from_config(config(**settings))


def random_pixels(setup: Setup) -> Tensor:
    """(N, 3, H, W), uniform in [0, 1]."""
    size = (setup.batch_size, 3, *[image_size(setup.small)] * 2)
    return torch.rand(size, generator=torch.Generator().manual_seed(0))


class RandomImages(Dataset):
    """A batch of normalised images, over and over, so that loading takes no time."""

    def __init__(self, pixel_values: Tensor, num_labels: int, batches: int = 8):
        self.pixel_values, self.num_labels, self.batches = pixel_values, num_labels, batches

    def __len__(self) -> int:
        return self.batches * len(self.pixel_values)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.pixel_values[index % len(self.pixel_values)], "labels": index % self.num_labels}


class RandomSubject(Subject):
    """What a Trainer needs, on random images and the CPU if `on_cpu`."""

    eps = EPS
    on_cpu = False

    def arguments(self, cls: type[TrainingArguments], **changes: Any) -> TrainingArguments:
        return super().arguments(cls, use_cpu=self.on_cpu, **changes)


def training_subject(setup: Setup, name: str) -> RandomSubject:
    """For `training_cost`'s tools, from freshly made weights."""
    model = build_model(name, setup.small)
    processor = ViTImageProcessor(size={"height": image_size(setup.small), "width": image_size(setup.small)})
    subject = RandomSubject(name, model, processor, None, None, setup.batch_size)
    images = RandomImages(subject.pixel_space.from_pixels(random_pixels(setup)), model.config.num_labels)
    subject.train = subject.test = images
    subject.on_cpu = setup.device == "cpu"
    return subject


def attacked_subject(setup: Setup, name: str) -> attack_cost.Subject:
    """For `attack_cost`'s tools: frozen, in evaluation mode, right on every image, in its fast layout."""
    subject = training_subject(setup, name)
    memory_format = use_fast_memory_format(subject.model)
    classifier = PixelClassifier(subject.model.to(setup.device), subject.pixel_space).eval().requires_grad_(False)
    pixels = random_pixels(setup).to(setup.device)
    with torch.no_grad():
        labels = classifier(pixels).argmax(1)
    return attack_cost.Subject(classifier, pixels, labels, memory_format)
