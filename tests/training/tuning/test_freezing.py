import pytest
import torch
from conftest import weights
from torch import nn
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_robust_ft.training.tuning.freezing import freeze_parameters, frozen_norms, still_modules
from hf_robust_ft.training.tuning.parts import layer_numbers

HEADS = {"vit": "classifier.", "resnet": "classifier.1.", "timm": "timm_model.fc."}


@pytest.mark.parametrize("kind", HEADS)
def test_linear_probing_moves_the_head_alone_and_no_statistics(make_trainer, make_model, kind):
    trainer = make_trainer(make_model(kind), freeze="backbone", num_train_epochs=2, eps_schedule="constant")
    before = weights(trainer.model)
    trainer.train()
    moved = {name for name, tensor in weights(trainer.model).items() if not torch.equal(tensor, before[name])}
    assert moved == {f"{HEADS[kind]}weight", f"{HEADS[kind]}bias"}


@pytest.mark.parametrize("kind", ["resnet", "timm"])
def test_first_stages_stand_still_with_their_statistics_and_the_rest_moves(make_trainer, make_model, kind):
    trainer = make_trainer(
        make_model(kind), freeze=1, num_train_epochs=2, eps_schedule="constant", batch_norm="trainer"
    )
    depths = layer_numbers(trainer.model, by_stage=True)
    frozen = {name.rpartition(".")[0] for name, depth in depths.items() if depth <= 1}
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == (name.rpartition(".")[0] in frozen), name


def test_batch_norm_moves_where_it_is_not_asked_to_stand_still(make_trainer, make_model):
    """A user's own frozen parameters are Trainer's business: its rule is that statistics move."""
    model = make_model("resnet")
    model.resnet.requires_grad_(False)
    trainer = make_trainer(model, num_train_epochs=1, eps_schedule="constant", batch_norm="trainer")
    before = weights(model)
    trainer.train()
    name = "resnet.embedder.embedder.normalization.running_mean"
    assert not torch.equal(model.state_dict()[name], before[name])


def test_patterns_freeze_what_they_match(make_model):
    model = make_model("vit")
    freeze_parameters(model, "*.embeddings.*, vit.layers.0.*")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in frozen | set(weights(model)) if ".embeddings." in name or ".layers.0." in name}
    assert len(frozen) == 4 + 16


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("Backbone", r"'Backbone' matches no parameter .* vit.embeddings.cls_token"),
        ("3", "freeze=3, but ViTForImageClassification has 2 stages"),
        ("*", "leaves no parameter to train"),
    ],
)
def test_what_cannot_be_frozen_is_refused(make_model, freeze, message):
    with pytest.raises(ValueError, match=message):
        freeze_parameters(make_model("vit"), freeze)


def test_a_norm_without_weights_goes_by_what_is_around_it():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)), nn.BatchNorm2d(4))
    assert frozen_norms(model) == []
    model[0].requires_grad_(False)
    assert frozen_norms(model) == [model[0][1]]


def vit_with_dropout():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    dropout = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    return ViTForImageClassification(ViTConfig(**sizes, **dropout, image_size=16, patch_size=8, num_labels=4))


def swin_with_drop_path():
    sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 16, "patch_size": 4}
    return SwinForImageClassification(SwinConfig(**sizes, num_labels=4, drop_path_rate=0.9, hidden_dropout_prob=0.5))


def timm_vit(**rates):
    pretrained_cfg = {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3}
    model_args = {"img_size": 16, "patch_size": 8} | rates
    config = TimmWrapperConfig(
        architecture="test_vit", num_labels=4, pretrained_cfg=pretrained_cfg, model_args=model_args
    )
    return TimmWrapperForImageClassification(config)


def timm_vit_with_everything():
    return timm_vit(pos_drop_rate=0.5, proj_drop_rate=0.5, drop_path_rate=0.9)


def two_inputs_of_the_head(trainer, head, batch):
    """What reaches the head in two training passes of one batch."""
    seen = []
    hook = trainer.model.get_submodule(head).register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].detach())
    )
    for _ in range(2):
        trainer.model.train()  # as Trainer does before every batch
        trainer.compute_loss(trainer.model, dict(batch))
    hook.remove()
    return seen[-2:]


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (vit_with_dropout, "classifier"),
        (swin_with_drop_path, "classifier"),
        (timm_vit_with_everything, "timm_model.head"),
    ],
)
@pytest.mark.parametrize("freeze", ["backbone", "none"])
def test_dropout_and_drop_path_of_a_frozen_backbone_are_off(make_trainer, make, head, freeze):
    torch.manual_seed(0)
    trainer = make_trainer(make(), freeze=freeze, eps_schedule="none")
    batch = {"pixel_values": torch.rand(4, 3, 16, 16) - 0.5, "labels": torch.arange(4)}
    first, second = two_inputs_of_the_head(trainer, head, batch)
    assert torch.equal(first, second) == (freeze == "backbone")
    still = [module for module in trainer.model.modules() if not module.training]
    assert bool(still) == (freeze == "backbone")  # without `freeze`, all is as Trainer has it


def test_the_dropout_in_front_of_the_head_is_the_heads(make_trainer):
    torch.manual_seed(0)
    trainer = make_trainer(timm_vit(drop_rate=0.5, pos_drop_rate=0.5), freeze="backbone", eps_schedule="none")
    batch = {"pixel_values": torch.rand(4, 3, 16, 16) - 0.5, "labels": torch.arange(4)}
    before_dropout = two_inputs_of_the_head(trainer, "timm_model.fc_norm", batch)
    behind_dropout = two_inputs_of_the_head(trainer, "timm_model.head", batch)
    assert torch.equal(*before_dropout) and not torch.equal(*behind_dropout)


def test_of_frozen_stages_the_dropout_is_off_and_of_trained_ones_on():
    model = timm_vit_with_everything()
    freeze_parameters(model, "1")
    still = {name for name, module in model.named_modules() if module in still_modules(model)}
    assert {"timm_model.patch_embed", "timm_model.pos_drop", "timm_model.blocks.0"} <= still
    assert not any(name.startswith(("timm_model.blocks.1", "timm_model.head_drop")) for name in still)
    assert "" not in still and "timm_model" not in still


def test_a_block_that_trains_in_part_keeps_its_drop_path():
    model = timm_vit_with_everything()
    freeze_parameters(model, "*.norm2.*,*.mlp.*")
    still = {name for name, module in model.named_modules() if module in still_modules(model)}
    assert {name.rpartition(".")[2] for name in still} == {"norm2", "mlp"}
