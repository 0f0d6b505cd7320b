"""Which folders are a checkpoint with its image processor."""

import pytest
from transformers import AutoImageProcessor
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_robust_ft.hub.contents import check_loads, checkpoint_files

OWN = {"input_size": [3, 16, 16], "mean": [0.1, 0.2, 0.3], "std": [0.9, 0.8, 0.7], "crop_pct": 1.0}


def test_a_timm_checkpoint_has_its_processor_in_the_configuration(make_model, tmp_path):
    make_model("timm").save_pretrained(tmp_path)
    files = checkpoint_files(tmp_path)
    assert files == ["config.json", "model.safetensors"]
    check_loads(tmp_path, files)


@pytest.mark.parametrize("kind", ["timm", "resnet"])
def test_a_checkpoint_without_processor_is_refused_with_its_own_cure(make_model, tmp_path, kind):
    model = make_model(kind)
    if kind == "timm":
        model.config.pretrained_cfg = None
    model.save_pretrained(tmp_path)
    cure = {"timm": r"set model\.config\.pretrained_cfg", "resnet": r"processor\.save_pretrained\(folder\)"}[kind]
    with pytest.raises(ValueError, match=rf"has no image processor .*{cure}"):
        checkpoint_files(tmp_path)


@pytest.mark.parametrize("stored", [None, {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3}])
def test_the_trainer_saves_the_timm_processor_it_was_given(make_trainer, make_model, tmp_path, stored):
    model, processor = make_model("timm"), TimmWrapperImageProcessor(pretrained_cfg=OWN, architecture="test_resnet")
    model.config.pretrained_cfg = stored
    make_trainer(model, processing_class=processor, train_dataset=None, eval_dataset=None).save_model()
    saved = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert saved.data_config == processor.data_config
    assert checkpoint_files(tmp_path / "out") == ["config.json", "model.safetensors"]
