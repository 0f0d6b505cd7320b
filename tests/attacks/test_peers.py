"""Other attack libraries run on a `PixelClassifier` as they are: it is the classifier of pixels they expect."""

import os

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # foolbox imports GitPython, which demands a git executable

import foolbox
import pytest
import timm
import torch
import torchattacks
from open_clip import CLIP
from peft import LoraConfig, get_peft_model
from pyautoattack.autopgd_base import APGDAttack
from torch import nn
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification
from transformers.utils import ModelOutput

from hf_robust_ft import PixelClassifier, PixelSpace

SPACE = PixelSpace(mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
EPS = 64 / 255


class ZeroShot(nn.Module):
    """CLIP with fixed class embeddings: images (N, 3, 16, 16) -> logits (N, 4)."""

    def __init__(self):
        super().__init__()
        vision = {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2}
        text = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
        self.clip = CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
        self.register_buffer("class_embeddings", nn.functional.normalize(torch.randn(4, 16), dim=-1))

    def forward(self, images):
        return 10 * self.clip.encode_image(images, normalize=True) @ self.class_embeddings.T


class AsDict(nn.Module):
    """A model that returns a plain dict, its logits not first."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return {"features": pixel_values, "logits": self.model(pixel_values).logits}


def timm_wrapper():
    size = {"img_size": 16, "patch_size": 8}
    return TimmWrapperForImageClassification(TimmWrapperConfig(architecture="test_vit", num_labels=4, model_args=size))


def lora(model):
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], init_lora_weights=False
    )
    return get_peft_model(model, config)


# Of each kind: how it is made, what it is called with, and what it returns.
MODELS = {
    "transformers ViT": (lambda make: make("vit"), {}, ModelOutput),
    "transformers ViT, tuples": (lambda make: make("vit"), {"return_dict": False}, tuple),
    "plain dict": (lambda make: AsDict(make("vit")), {}, dict),
    "transformers TimmWrapper": (lambda make: timm_wrapper(), {}, ModelOutput),
    "PEFT ViT": (lambda make: lora(make("vit")), {}, ModelOutput),
    "timm": (lambda make: timm.create_model("test_vit", num_classes=4, img_size=16, patch_size=8), {}, torch.Tensor),
    "open_clip": (lambda make: ZeroShot(), {}, torch.Tensor),
}


def torchattacks_pgd(classifier, pixels, labels):
    return torchattacks.PGD(classifier, eps=EPS, alpha=EPS / 4, steps=5)(pixels, labels)


def torchattacks_apgd(classifier, pixels, labels):
    return torchattacks.APGD(classifier, norm="Linf", eps=EPS, steps=5)(pixels, labels)


def foolbox_pgd(classifier, pixels, labels):
    model = foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu")
    _, adversarial, _ = foolbox.attacks.LinfPGD(steps=5, rel_stepsize=0.25)(model, pixels, labels, epsilons=EPS)
    return adversarial


def pyautoattack_apgd(classifier, pixels, labels):
    attack = APGDAttack(classifier, norm="Linf", eps=EPS, n_iter=5, seed=0, loss="ce", device="cpu")
    return attack.perturb(pixels, labels)


@pytest.fixture(params=MODELS)
def classifier(request, make_model):
    make, inputs, _ = MODELS[request.param]
    with torch.random.fork_rng():  # the libraries draw from, and seed, the global random state
        torch.manual_seed(0)
        yield PixelClassifier(make(make_model), SPACE, inputs).eval()


@pytest.mark.parametrize("attack", [torchattacks_pgd, torchattacks_apgd, foolbox_pgd, pyautoattack_apgd])
def test_attack_runs_unchanged_and_raises_the_loss(classifier, attack):
    pixels = torch.rand(8, 3, 16, 16)
    with torch.no_grad():
        logits = classifier(pixels)
    labels = logits.argmax(1)
    adversarial = attack(classifier, pixels, labels)
    assert adversarial.shape == pixels.shape and (adversarial - pixels).abs().max() <= EPS + 1e-6
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    with torch.no_grad():
        attacked = classifier(adversarial)
    before, after = (nn.functional.cross_entropy(found, labels) for found in (logits, attacked))
    assert after > before + 0.01 and (attacked.argmax(1) != labels).any()
    assert not any(module.training for module in classifier.modules())


@pytest.mark.parametrize("name", MODELS)
def test_each_model_returns_what_it_stands_for(make_model, name):
    make, inputs, kind = MODELS[name]
    assert isinstance(make(make_model).eval()(torch.rand(2, 3, 16, 16), **inputs), kind)
