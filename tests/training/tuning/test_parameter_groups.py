"""Every trainable parameter in one group, at the rate its depth says; norms and biases without decay."""

import math
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    Trainer,
)

from hf_robust_ft.training.tuning.parameter_groups import parameter_groups, spared_by_decay
from hf_robust_ft.training.tuning.parts import head_modules, layer_numbers

TINY_VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}


@pytest.fixture
def build(make_model):
    def make(name: str):
        if name in ("vit", "resnet"):
            return make_model(name)
        if name == "swin":
            return SwinForImageClassification(
                SwinConfig(image_size=32, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4, num_labels=4)
            )
        if name == "convnext":
            return ConvNextForImageClassification(
                ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, num_labels=4)
            )
        if name == "clip":
            return CLIPForImageClassification(CLIPConfig(vision_config=TINY_VISION, num_labels=4))
        return TimmWrapperForImageClassification(TimmWrapperConfig(architecture=name, num_labels=4))

    return make


EMBEDDER = "resnet.embedder.embedder"

# Name -> (depth with the head, a parameter below the head, one of the stem)
MODELS = {
    "vit": (4, "vit.layers.1.mlp.fc1.weight", "vit.embeddings.cls_token"),
    "swin": (5, "swin.encoder.layers.1.blocks.1.mlp.fc1.weight", "swin.embeddings.norm.weight"),
    "convnext": (5, "convnext.encoder.stages.1.layers.1.dwconv.weight", "convnext.embeddings.layernorm.weight"),
    "resnet": (4, "resnet.encoder.stages.1.layers.0.layer.1.convolution.weight", f"{EMBEDDER}.convolution.weight"),
    "clip": (4, "vision_model.encoder.layers.1.mlp.fc1.weight", "vision_model.pre_layrnorm.weight"),
    "test_vit": (8, "timm_model.blocks.5.mlp.fc1.weight", "timm_model.pos_embed"),
    "test_resnet": (6, "timm_model.layer4.0.conv1.weight", "timm_model.bn1.weight"),
    "test_convnext": (11, "timm_model.head.norm.weight", "timm_model.stem.0.weight"),
    "tf_efficientnet_lite0": (18, "timm_model.conv_head.weight", "timm_model.conv_stem.weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_rates_fall_by_the_layer_and_every_parameter_stands_in_one_group(build, name):
    model = build(name)
    depth, last, stem = MODELS[name]
    rates = {"learning_rate": 1.0, "weight_decay": 0.5, "head_learning_rate": 7.0, "layer_decay": 0.5}
    named = dict(model.named_parameters())
    decayed = named.keys() - spared_by_decay(model)
    groups = parameter_groups(model, decayed, **rates)
    placed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(placed) == sorted(map(id, named.values()))
    rate_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    decay_of = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert len(set(rate_of.values())) == depth
    head = f"{head_modules(model)[0]}."
    assert {rate_of[id(p)] for n, p in named.items() if n.startswith(head)} == {7.0}
    assert rate_of[id(named[last])] == 0.5 and rate_of[id(named[stem])] == 0.5 ** (depth - 1)
    assert all((decay_of[id(p)] == 0.5) == (n in decayed) for n, p in named.items())
    assert groups[0]["lr"] == 0.5  # what Trainer logs: the rate closest to learning_rate


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet", "test_convnext"])
def test_rates_are_timms(architecture):
    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture=architecture, num_labels=4))
    plain = timm.create_model(architecture, num_classes=4)
    theirs = param_groups_layer_decay(plain, layer_decay=0.5)
    scale = {id(parameter): group["lr_scale"] for group in theirs for parameter in group["params"]}
    ours = parameter_groups(model, set(), learning_rate=1.0, weight_decay=0.0, layer_decay=0.5)
    rate = {id(parameter): group["lr"] for group in ours for parameter in group["params"]}
    own = dict(model.timm_model.named_parameters())
    for name, parameter in plain.named_parameters():
        # timm counts ConvNeXt's last norm with the head, which here learns at a rate of its own.
        expected = 0.5 if name.startswith("head.norm") else scale[id(parameter)]
        assert rate[id(own[name])] == expected, name


def test_stages_are_counted_where_a_model_has_them(build):
    depths = {name: max(layer_numbers(build(name), by_stage=True).values()) - 1 for name in ("swin", "test_convnext")}
    assert depths == {"swin": 2, "test_convnext": 4}


def test_a_model_whose_depth_or_head_cannot_be_told_is_refused():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match="head of Sequential cannot be told"):
        parameter_groups(plain, set(), learning_rate=1.0, weight_decay=0.0, head_learning_rate=2.0)
    flat = nn.Sequential()
    flat.body, flat.head = nn.Linear(4, 4), nn.Linear(4, 2)
    with pytest.raises(ValueError, match="depth of Sequential's layers cannot be told"):
        layer_numbers(flat)


@pytest.mark.parametrize(
    "kind", ["vit", "resnet", "timm", "swin", "test_vit", "test_convnext", "tf_efficientnet_lite0"]
)
def test_no_norm_bias_or_scale_decays(build, make_model, make_trainer, kind):
    model = make_model("timm") if kind == "timm" else build(kind)
    trainer = make_trainer(model, weight_decay=0.1, no_decay="norms_biases")
    groups = trainer.create_optimizer().param_groups
    decaying = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim <= 1 or name.endswith(("timm_model.pos_embed", "timm_model.cls_token", "bias_table"))
        assert (id(parameter) in decaying) != spared, name


def test_trainers_own_rule_is_the_default_and_decays_batch_norm(make_model, make_trainer):
    def decayed(**changes):
        trainer = make_trainer(make_model("timm"), weight_decay=0.1, **changes)
        return set(trainer.get_decay_parameter_names(trainer.model)), trainer

    kept, trainer = decayed()
    assert kept == set(Trainer.get_decay_parameter_names(trainer, trainer.model))
    ours, _ = decayed(no_decay="norms_biases")
    assert ours < kept and "timm_model.bn1.weight" in kept - ours


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_decay": 0.9}, "learning rate .* where the arguments now say"),
        ({"weight_decay": 0.2}, "weight decay 0.1, where the arguments now say .* and 0.2"),
        ({"head_learning_rate": 3e-2}, "give these, or start anew"),
    ],
)
def test_rates_that_resuming_would_ignore_are_refused(make_model, make_trainer, changes, message):
    settings = {"layer_decay": 0.5, "head_learning_rate": 1e-2, "weight_decay": 0.1, "eps": "0", "eval_epsilons": None}
    settings |= {"num_train_epochs": 2, "save_strategy": "epoch", "robust_eval": "no"}
    make_trainer(make_model(), **settings).train()
    resumed = make_trainer(make_model(), **settings)
    first = min(Path(resumed.args.output_dir).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    resumed.train(resume_from_checkpoint=str(first))
    with pytest.raises(ValueError, match=message):
        changed = {**settings, **changes, "force_resume": True}  # without it, all other settings are refused
        make_trainer(make_model(), **changed).train(resume_from_checkpoint=str(first))


def test_warm_up_and_cosine_scale_every_group_with_accumulation(make_model, make_trainer):
    rates = []

    class Recording(type(make_trainer())):
        def training_step(self, *args, **kwargs):
            rates.append([group["lr"] for group in self.optimizer.param_groups])
            return super().training_step(*args, **kwargs)

    trainer = make_trainer(
        make_model(),
        trainer_cls=Recording,
        gradient_accumulation_steps=2,
        head_learning_rate=1e-2,
        layer_decay=0.5,
        lr_scheduler_type="cosine",
        warmup_steps=0.25,
        num_train_epochs=4,
        robust_eval="no",
        eps="0",
        eval_epsilons=None,
    )
    trainer.train()
    assert trainer.state.max_steps == 12 and len(rates) == 24
    peaks = [group["initial_lr"] for group in trainer.optimizer.param_groups]
    assert sorted(set(peaks)) == [1e-3 / 8, 1e-3 / 4, 1e-3 / 2, 1e-2]
    for step in range(12):
        factor = step / 3 if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / 9))
        assert rates[2 * step] == rates[2 * step + 1] == pytest.approx([peak * factor for peak in peaks])


def test_rates_for_an_optimizer_that_cannot_have_them_are_refused(make_model, make_args, make_trainer, dataset):
    trainer_cls = type(make_trainer())
    model, args = make_model(), make_args(layer_decay=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer that you made yourself"):
        trainer_cls(
            model=model, args=args, optimizers=(optimizer, None), processing_class=make_trainer().processing_class
        )
