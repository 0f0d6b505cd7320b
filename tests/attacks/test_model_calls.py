"""Forms of forward and of output that people's classifiers have."""

import dataclasses
from collections import UserDict, namedtuple

import pytest
import torch
from colour_classifier import ColourClassifier
from torch import nn
from torch.nn.parallel import DataParallel
from transformers.modeling_outputs import ImageClassifierOutput

from hf_robust_ft import PixelClassifier
from hf_robust_ft.attacks.model_calls import extract_logits, needs_keyword

LOGITS, FEATURES, MAP, LOSS = torch.rand(2, 4), torch.rand(2, 7), torch.rand(2, 7, 3, 3), torch.tensor(1.0)
Named = namedtuple("Named", "loss features logits")


@dataclasses.dataclass
class Answer:
    features: torch.Tensor
    logits: torch.Tensor


OUTPUTS = {
    "tensor": LOGITS,
    "dict": {"loss": LOSS, "features": FEATURES, "logits": LOGITS},
    "mapping": UserDict(features=FEATURES, logits=LOGITS),
    "hidden states": ImageClassifierOutput(loss=LOSS, logits=LOGITS, hidden_states=(MAP, MAP)),
    "dataclass": Answer(FEATURES, LOGITS),
    "named tuple": Named(LOSS, FEATURES, LOGITS),
    "tuple": (LOGITS, None),
    "loss first": (LOSS, LOGITS, (MAP, MAP)),
    "losses of two devices": (torch.ones(2), LOGITS),
    "feature map first": [MAP, LOGITS],
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_logits_are_found_wherever_they_stand(name):
    assert extract_logits(OUTPUTS[name]) is LOGITS


@pytest.mark.parametrize("output", [(FEATURES, LOGITS), (LOSS, LOGITS, FEATURES)])
def test_two_candidates_in_a_tuple_are_refused_with_the_cure(output):
    with pytest.raises(ValueError, match=r"which of them are the logits is unclear. Let it return \{'logits'"):
        extract_logits(output)


class Form(ColourClassifier):
    """The colour classifier behind another signature."""


class KeywordOnly(Form):
    def forward(self, *, pixel_values, labels=None):
        return super().forward(pixel_values)


class LabelsFirst(Form):
    def forward(self, labels=None, pixel_values=None):
        assert labels is None
        return super().forward(pixel_values)


class AnyName(Form):
    def forward(self, x, **kwargs):
        return super().forward(x)


class OnlyKeywords(Form):
    def forward(self, **inputs):
        return super().forward(inputs["pixel_values"])


class HandsOn(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


FORMS = {
    "plain": ColourClassifier,
    "keyword only": KeywordOnly,
    "labels first": LabelsFirst,
    "any name": AnyName,
    "only keywords": OnlyKeywords,
    "wrapper": lambda: HandsOn(LabelsFirst()),
    "wrapper of any name": lambda: HandsOn(HandsOn(AnyName())),
    "DataParallel": lambda: DataParallel(LabelsFirst()),
    "compiled": lambda: torch.compile(LabelsFirst(), backend="eager"),
    "sequential": lambda: nn.Sequential(AnyName()),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_model_is_given_its_images_as_its_forward_takes_them(name):
    pixels = torch.rand(2, 3, 16, 16)
    assert torch.equal(PixelClassifier(FORMS[name]())(pixels), ColourClassifier()(pixels))


def test_a_peft_model_goes_by_the_model_inside(make_model):
    from peft import LoraConfig, get_peft_model

    class Other(type(make_model())):
        def forward(self, labels=None, pixel_values=None):
            return super().forward(pixel_values, labels)

    model = make_model()
    assert not needs_keyword(get_peft_model(model, LoraConfig(target_modules=["q_proj"])))
    model.__class__ = Other
    assert needs_keyword(get_peft_model(model, LoraConfig(target_modules=["q_proj"])))


def test_torchscript_takes_its_first_argument():
    assert not needs_keyword(torch.jit.script(nn.Linear(2, 2)))


@pytest.mark.parametrize("bf16", [False, True])
def test_the_form_is_still_seen_after_accelerate_changed_forward(bf16):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    model = Accelerator(cpu=True, mixed_precision="bf16" if bf16 else "no").prepare(LabelsFirst())
    AcceleratorState._reset_state(reset_partial_state=True)
    assert needs_keyword(model)
