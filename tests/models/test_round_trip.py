"""Load, train a step, save, and reload in a process without hf_robust_ft: one process for all architectures."""

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_robust_ft import PixelSpace, load_image_classifier
from hf_robust_ft.benchmarks.backbone_round_trip import (
    MINIATURE_CLIP,
    load_step_save,
    reload_outside,
    write_checkpoint,
    write_open_clip,
)
from hf_robust_ft.models import BACKBONES

HALF = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
STATISTICS = {
    "vit": HALF,  # augreg: not ImageNet's
    "swin": IMAGENET,
    "cnx": IMAGENET,
    "r50": IMAGENET,
    "clip_vit": CLIP,
    "clip_cnx": CLIP,
    "without_twin": CLIP,
    "efficientnet_lite0": HALF,
}
WITHOUT_TWIN = {
    **MINIATURE_CLIP,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("round_trip")


@pytest.fixture(scope="module")
def rows(workspace):
    torch.manual_seed(0)
    rows = {}
    for alias in BACKBONES:
        write_checkpoint(alias, workspace / "hub" / alias, full=False)
        rows[alias] = load_step_save(workspace / "hub" / alias, workspace / alias)
    write_open_clip(workspace / "hub" / "without_twin", WITHOUT_TWIN)
    rows["without_twin"] = load_step_save(workspace / "hub" / "without_twin", workspace / "without_twin")
    rows["efficientnet_lite0"] = load_step_save("efficientnet_lite0", workspace / "efficientnet_lite0", image_size=32)
    for name, found in reload_outside([workspace / name for name in rows]).items():
        rows[name]["outside"] = found
    return rows


@pytest.mark.parametrize("name", STATISTICS)
def test_the_reloaded_classifier_is_the_trained_one(rows, name):
    row, outside = rows[name], rows[name]["outside"]
    assert row["moved"] > 10  # the step did train the backbone too
    assert outside["pixels"] <= 1e-6 and outside["logits"] <= 1e-5 and outside["scores"] <= 1e-5
    assert outside["labels"] == row["labels"]


@pytest.mark.parametrize("name", STATISTICS)
def test_only_a_tower_without_twin_needs_its_own_code(rows, name):
    own = name == "without_twin"
    assert rows[name]["outside"]["own_code"] == own
    assert rows[name]["outside"]["class"] == (
        "OpenClipForImageClassification" if own else "TimmWrapperForImageClassification"
    )


@pytest.mark.parametrize("name", STATISTICS)
def test_mean_and_std_are_the_checkpoints(rows, workspace, name):
    """As the saved processor really maps constant colours, and as PixelSpace reads it."""
    mean, std = (torch.tensor(values) for values in STATISTICS[name])
    processor = AutoImageProcessor.from_pretrained(workspace / name)
    for colour in ((0, 0, 0), (255, 255, 255), (10, 100, 250)):
        made = processor(Image.new("RGB", (40, 40), colour), return_tensors="pt")["pixel_values"]
        expected = (torch.tensor(colour) / 255 - mean) / std
        assert torch.allclose(made, expected.view(1, 3, 1, 1).expand_as(made), atol=1e-5)
    space = PixelSpace.from_processor(processor)
    assert space == rows[name]["space"] == PixelSpace(*STATISTICS[name])


def test_with_hf_robust_ft_a_tower_without_twin_needs_no_foreign_code(rows, workspace):
    folder = workspace / "without_twin"
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert type(model).__module__ == "hf_robust_ft.models.open_clip_classifier"
    expected = torch.load(folder / "expected.pt", weights_only=True)
    assert torch.allclose(model.eval()(expected["pixel_values"]).logits, expected["logits"], atol=1e-5)
    again, _ = load_image_classifier(str(folder))
    assert torch.equal(again.classifier.weight, model.classifier.weight)
