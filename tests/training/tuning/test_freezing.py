import pytest
import torch
from conftest import weights
from torch import nn

from hf_robust_ft.training.tuning.freezing import freeze_parameters, frozen_norms
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
