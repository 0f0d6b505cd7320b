import pytest
import torch
from tiny_detectors import rt_detr, yolos
from transformers import AutoModelForObjectDetection, RTDetrImageProcessor, YolosImageProcessor, pipeline

from hf_robust_ft.models.backbones import BACKBONES
from hf_robust_ft.models.detection import detects, load_detection_model
from hf_robust_ft.provenance.class_names import class_names

NAMES = ["cat", "dog"]


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny RT-DETR with unnamed classes."""
    rt_detr().save_pretrained(tmp_path)
    RTDetrImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture(scope="module")
def embedded():
    return load_detection_model("efficientnet_lite0", label_names=NAMES, image_size=64)


def test_the_embedded_model_is_a_plain_rt_detr_on_imagenet_features(embedded, tmp_path):
    model, processor = embedded
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert detects(str(tmp_path))
    again, same = load_detection_model(str(tmp_path))
    assert class_names(again.config) == NAMES and dict(same.size)["height"] == 64
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    found = pipeline("object-detection", str(tmp_path), threshold=0.0)
    assert found.model.config.model_type == "rt_detr"


def test_a_new_embedded_head_depends_on_its_seed_alone(embedded):
    random = torch.get_rng_state()
    again, _ = load_detection_model("efficientnet_lite0", label_names=NAMES, image_size=64)
    other, _ = load_detection_model("efficientnet_lite0", label_names=NAMES, image_size=64, seed=1)
    assert torch.equal(random, torch.get_rng_state())
    state = embedded[0].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    backbone = {name for name in state if "backbone" in name}
    differing = {name for name, value in other.state_dict().items() if not torch.equal(value, state[name])}
    assert differing and not differing & backbone


def test_a_checkpoint_gets_a_new_head_with_names_and_keeps_the_rest(checkpoint):
    model, _ = load_detection_model(checkpoint, label_names=NAMES)
    before = AutoModelForObjectDetection.from_pretrained(checkpoint).state_dict()
    after = model.state_dict()
    assert class_names(model.config) == NAMES
    new = {name for name, value in after.items() if value.shape != before[name].shape}
    assert new and all("class" in name or "score" in name for name in new)
    same = load_detection_model(checkpoint, num_labels=3, head="new")[0].state_dict()
    drawn = {name for name, value in same.items() if not torch.equal(value, before[name])}
    assert drawn and all("class" in name or "score" in name for name in drawn)


def test_images_of_no_one_size_and_what_is_no_detector_are_refused(tmp_path, make_model):
    yolos().save_pretrained(tmp_path / "yolos")
    YolosImageProcessor().save_pretrained(tmp_path / "yolos")
    with pytest.raises(ValueError, match=r"give image_size, e\.g\. 640"):
        load_detection_model(str(tmp_path / "yolos"))
    _, processor = load_detection_model(str(tmp_path / "yolos"), image_size=32)
    assert dict(processor.size)["height"] == dict(processor.size)["width"] == 32
    make_model("vit").save_pretrained(tmp_path / "vit")
    assert not detects(str(tmp_path / "vit"))
    with pytest.raises(ValueError, match=r"\(vit\) is no model for object detection"):
        load_detection_model(str(tmp_path / "vit"))
    with pytest.raises(ValueError, match="has no detection head in transformers"):
        load_detection_model(next(iter(BACKBONES)))
