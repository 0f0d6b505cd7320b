import logging
import pickle

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from hf_robust_ft import load_image_classifier

NAMES = ["cat", "dog", "hen"]


@pytest.fixture
def trained():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=3).eval()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_file_of_a_stated_architecture_gives_the_same_logits(trained, tmp_path, suffix, wrapped):
    state = trained.state_dict()
    path = tmp_path / f"weights{suffix}"
    if wrapped:
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    model, processor = load_image_classifier(str(path), architecture="timm/test_resnet", label_names=NAMES)
    pixel_values = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(pixel_values).logits, trained(pixel_values))
    assert list(model.config.id2label.values()) == NAMES and processor.data_config["std"]
    plain, _ = load_image_classifier(str(path), architecture="timm/test_resnet")
    assert plain.config.num_labels == 3


def test_another_class_count_replaces_the_head_alone(trained, tmp_path, caplog):
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    options = {"architecture": "timm/test_resnet", "num_labels": 5}
    with caplog.at_level(logging.WARNING, "hf_robust_ft"):
        model, _ = load_image_classifier(str(tmp_path / "w.safetensors"), **options)
    assert "w.safetensors (3 classes) is replaced by a new one for 5" in caplog.text
    own = model.timm_model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in trained.state_dict().items() if "fc." not in name)
    with pytest.raises(ValueError, match="has 3 classes and 5 were given"):
        load_image_classifier(str(tmp_path / "w.safetensors"), head="keep", **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("conv1.0.weight"), "timm_model.conv1.0.weight is missing"),
        (lambda state: state.update(extra=torch.ones(1)), "timm_model.extra is not part of the model"),
        (lambda state: state.update({"bn1.bias": torch.ones(2)}), r"bn1.bias has shape \(2,\), the model \(\d+,\)"),
        (lambda state: (state.pop("fc.weight"), state.pop("fc.bias")), "holds no classification head"),
    ],
)
def test_every_name_and_shape_is_checked(trained, tmp_path, change, message):
    state = dict(trained.state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message):
        load_image_classifier(str(tmp_path / "w.pt"), architecture="timm/test_resnet")


class Payload:
    def __reduce__(self):
        return print, ("run",)


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        load_image_classifier(str(tmp_path / "w.pt"), architecture="timm/test_resnet")
    torch.save({"layer": Payload()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        load_image_classifier(str(tmp_path / "w.pt"), architecture="timm/test_resnet")
    assert "run" not in capsys.readouterr().out


def test_a_cut_off_file_is_named(trained, tmp_path):
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"w.safetensors cannot be read as plain tensors"):
        load_image_classifier(str(tmp_path / "w.safetensors"), architecture="timm/test_resnet")


def test_what_is_missing_is_said(trained, tmp_path):
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="architecture='timm/resnet18'"):
        load_image_classifier(str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match="A weight file takes no"):
        load_image_classifier(str(tmp_path / "w.safetensors"), architecture="timm/test_resnet", revision="main")
    (tmp_path / "w.txt").write_text("")
    with pytest.raises(ValueError, match=r"its name must end in \.safetensors"):
        load_image_classifier(str(tmp_path / "w.txt"), architecture="timm/test_resnet")


def test_a_folder_can_describe_the_architecture(make_model, processor, tmp_path):
    model = make_model("vit", num_labels=3).eval()
    model.config.save_pretrained(tmp_path / "described")
    processor.save_pretrained(tmp_path / "described")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    loaded, _ = load_image_classifier(
        str(tmp_path / "w.pth"), architecture=str(tmp_path / "described"), label_names=NAMES
    )
    pixel_values = torch.randn(1, 3, 16, 16)
    assert torch.equal(loaded(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.parametrize("head", ["own", "new"])
def test_a_file_of_a_saved_transformers_checkpoint_fits_its_folder(make_model, processor, tmp_path, head):
    """transformers saves a ViT under other tensor names than the model has."""
    model = make_model("vit", num_labels=3).eval()
    model.save_pretrained(tmp_path / "saved")
    make_model("vit", num_labels=7).config.save_pretrained(tmp_path / "described")
    processor.save_pretrained(tmp_path / "described")
    options = {"architecture": str(tmp_path / "described")} | ({"num_labels": 5} if head == "new" else {})
    path = tmp_path / "saved" / "model.safetensors"
    loaded, _ = load_image_classifier(str(path), **options)
    backbone = model.vit.state_dict()
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in loaded.vit.state_dict().items())
    if head == "own":
        assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    else:
        assert loaded.classifier.weight.shape[0] == 5 and not loaded.classifier.weight.is_meta
    state = load_file(path)
    state.pop(next(name for name in state if "query" in name or "q_proj" in name))
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"q_proj\.\w+ is missing"):
        load_image_classifier(str(tmp_path / "less.safetensors"), **options)


def test_a_name_of_the_paper_is_an_architecture(trained, tmp_path):
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    for alias, meant in (("r50", r"timm/resnet50\.a1_in1k"), ("clip_cnx", "open_clip:convnext_base_w")):
        with pytest.raises(ValueError, match=f"does not fit {meant}"):
            load_image_classifier(str(tmp_path / "w.safetensors"), architecture=alias, num_labels=3)


def test_a_file_that_is_not_there_is_said_to_be(tmp_path):
    for path in (str(tmp_path / "none.pth"), "none.pth", "some/none.safetensors"):
        with pytest.raises(ValueError, match=f"There is no weight file {path}"):
            load_image_classifier(path, architecture="timm/test_resnet", num_labels=3)
