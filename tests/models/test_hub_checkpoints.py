"""The real clients against a Hub on 127.0.0.1: short names, open_clip repositories, refusals and damage."""

import pytest
import torch
from hub_server import HubServer

from hf_robust_ft.benchmarks.backbone_round_trip import write_checkpoint
from hf_robust_ft.models import BACKBONES

SCRIPT = """
import torch
from PIL import Image
from hf_robust_ft import load_image_classifier

torch.set_num_threads(1)
names = ["cat", "dog"]

def describe(model_id, **options):
    model, processor = load_image_classifier(model_id, label_names=names, **options)
    pixel_values = processor(Image.new("RGB", (50, 40)), return_tensors="pt")["pixel_values"]
    return [type(model).__name__, list(model.config.id2label.values()), list(pixel_values.shape)]

for alias in ("vit", "swin", "cnx", "r50", "clip_vit", "clip_cnx"):
    found[alias] = attempt(describe, alias)
found["by id"] = attempt(describe, "laion/CLIP-convnext_base_w-laion2B-s13B-b82K", revision="main")
found["zero_shot"] = attempt(describe, "clip_cnx", head="zero_shot")
found["gated"] = attempt(describe, "someone/gated")
found["missing"] = attempt(describe, "someone/nothing")
found["empty"] = attempt(describe, "someone/empty")
found["weightless"] = attempt(describe, "someone/weightless")
found["damaged"] = attempt(describe, "someone/damaged")
found["damaged clip"] = attempt(describe, "someone/damaged_clip")
found["failing clip"] = attempt(describe, "someone/failing_clip")

import errno
from huggingface_hub import file_download

def no_space(*args, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

file_download.http_get = no_space
for name in ("failing_clip", "unseen"):
    found["full " + name] = attempt(describe, "someone/" + name)
"""

OFFLINE = """
from hf_robust_ft import load_image_classifier

for alias in ("vit", "clip_cnx"):
    found["offline " + alias] = attempt(lambda: type(load_image_classifier(alias, num_labels=2)[0]).__name__)
found["offline unknown"] = attempt(load_image_classifier, "someone/new", num_labels=2)
"""


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    workspace = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    with HubServer() as hub:
        files = {}
        for alias, backbone in BACKBONES.items():
            write_checkpoint(alias, workspace / alias, full=False)
            files[alias] = files_of(workspace / alias)
            hub.create(backbone.hub_id, files[alias])
        hub.create("someone/gated", files["cnx"], gated=True)
        hub.create("someone/empty", {"README.md": "nothing"})
        hub.create("someone/weightless", {"open_clip_config.json": files["clip_cnx"]["open_clip_config.json"]})
        hub.create("someone/damaged", {**files["cnx"], "README.md": "other"})
        hub.create("someone/damaged_clip", {**files["clip_cnx"], "README.md": "other"})
        hub.create("someone/failing_clip", {**files["clip_cnx"], "README.md": "another"})
        hub.create("someone/unseen", {**files["cnx"], "README.md": "unseen"})
        hub.fail(r"someone/failing_clip/.*safetensors", method="GET")
        hub.fail(r"someone/damaged.*/\w*model\.safetensors", kind="corrupt", method="GET", times=None)
        found = hub.run(SCRIPT, workspace / "client", timeout=170)
        return found | hub.run(OFFLINE, workspace / "client", HF_HUB_OFFLINE="1")


@pytest.mark.parametrize("alias", BACKBONES)
def test_a_short_name_is_its_hub_checkpoint_at_the_papers_size(found, alias):
    assert found[alias].get("value") == ["TimmWrapperForImageClassification", ["cat", "dog"], [1, 3, 224, 224]]


def test_an_open_clip_repository_keeps_its_own_size(found):
    assert found["by id"].get("value") == ["TimmWrapperForImageClassification", ["cat", "dog"], [1, 3, 32, 32]]
    assert found["zero_shot"].get("value") == ["TimmWrapperForImageClassification", ["cat", "dog"], [1, 3, 224, 224]]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("gated", ["someone/gated", "gated repo"]),
        ("missing", ["someone/nothing", "not a valid model identifier"]),
        ("empty", ["someone/empty", "config.json"]),
        ("weightless", ["someone/weightless", "open_clip_model.safetensors"]),
    ],
)
def test_what_the_hub_refuses_is_named(found, name, parts):
    message = found[name]["message"]
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("name", ["damaged", "damaged clip"])
def test_a_file_of_the_right_size_and_wrong_bytes_is_refused(found, name):
    assert found[name]["error"] == "ValueError" and "was damaged on the way" in found[name]["message"], found[name]


def test_open_clip_weights_that_do_not_come_are_not_taken_for_absent(found):
    assert "500" in found["failing clip"]["message"] and "but none of" not in found["failing clip"]["message"]


@pytest.mark.parametrize("name", ["failing_clip", "unseen"])
def test_a_full_disk_is_named_with_the_folder_and_the_ways_out(found, name):
    message = found[f"full {name}"]["message"]
    assert f"The disk is full: someone/{name} could not be downloaded to " in message and "HF_HOME" in message


def test_what_was_downloaded_once_loads_offline(found):
    assert found["offline vit"] == found["offline clip_cnx"] == {"value": "TimmWrapperForImageClassification"}
    assert "someone/new" in found["offline unknown"]["message"]
