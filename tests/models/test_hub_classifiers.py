"""`load_image_classifier` by Hub id, through the real clients: the paper's six backbones, and a Hub that fails."""

import pytest
from hub_server import HubServer
from safetensors.torch import load

from hf_robust_ft.benchmarks.backbone_round_trip import write_checkpoint
from hf_robust_ft.models import BACKBONES

TIMM = sorted(alias for alias, backbone in BACKBONES.items() if backbone.hub_id.startswith("timm/"))
IMAGENET, CLIP, HALF = [0.485, 0.456, 0.406], [0.48145466, 0.4578275, 0.40821073], [0.5, 0.5, 0.5]
MEANS = {"vit": HALF, "swin": IMAGENET, "cnx": IMAGENET, "r50": IMAGENET, "clip_vit": CLIP, "clip_cnx": CLIP}
FAULTY = ("gated", "private", "nowhere", "head_500", "get_500", "cut", "shorten", "corrupt")

SCRIPT = """
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification
from hf_robust_ft import PixelSpace, load_image_classifier

torch.set_num_threads(1)
pixels = torch.rand(1, 3, 32, 32)

def backbone(alias):
    model, processor = load_image_classifier(alias, num_labels=5, image_size=32)
    stored = load_file({checkpoints!r} + f"/{{alias}}.safetensors") if alias in {timm!r} else {{}}
    here = model.state_dict()
    shared = [name for name in stored if "head" not in name and name.split(".")[0] != "fc"]
    same = [name for name in shared if torch.equal(here[f"timm_model.{{name}}"], stored[name])]
    mean = PixelSpace.from_processor(processor).mean
    logits = list(model(pixels).logits.shape)
    return {{"class": type(model).__name__, "mean": torch.as_tensor(mean).flatten().tolist(), "logits": logits,
             "shared": len(shared), "same": len(same), "stored": len(stored)}}

def faulty(name, **options):
    model, _ = load_image_classifier(f"faulty/{{name}}", num_labels=5, image_size=32, **options)
    return [tensor.sum().item() for name, tensor in sorted(model.state_dict().items()) if "head" not in name]

def push():
    model, processor = load_image_classifier("vit", num_labels=5, image_size=32)
    model.eval().push_to_hub("tester/robust")
    processor.push_to_hub("tester/robust")
    again = AutoModelForImageClassification.from_pretrained("tester/robust").eval()
    AutoImageProcessor.from_pretrained("tester/robust")
    return (model(pixels).logits - again(pixels).logits).abs().max().item()

for alias in {aliases!r}:
    found[alias] = attempt(backbone, alias)
for name in {faulty!r}:
    found[name] = attempt(faulty, name)
found["again"] = attempt(faulty, "corrupt")
found["mended"] = attempt(faulty, "corrupt", force_download=True)
found["token"] = attempt(faulty, "gated", token={token!r})
found["revision"] = attempt(faulty, "cut", revision="v9")
os.environ["HF_TOKEN"] = {token!r}
found["pushed"] = attempt(push)
"""


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifiers")
    with HubServer() as hub:
        for alias, backbone in BACKBONES.items():
            write_checkpoint(alias, folder / alias, full=False)
            hub.create(backbone.hub_id, read_files(folder / alias))
            if alias in TIMM:
                (folder / alias / "model.safetensors").rename(folder / f"{alias}.safetensors")
        checkpoint = hub.find(BACKBONES["vit"].hub_id).files()
        for name in set(FAULTY) - {"nowhere"}:
            access = {"gated": name == "gated", "private": name == "private", "readers": {hub.user}}
            hub.create(f"faulty/{name}", checkpoint, **access)
        hub.fail("faulty/head_500", method="HEAD")
        hub.fail("store/faulty/get_500")
        for kind in ("cut", "shorten", "corrupt"):
            hub.fail(f"store/faulty/{kind}", kind)
        names = {"aliases": list(BACKBONES), "timm": TIMM, "faulty": FAULTY}
        script = SCRIPT.format(checkpoints=str(folder), token=hub.token, **names)
        yield hub, hub.run(script, folder / "client")


@pytest.mark.parametrize("alias", BACKBONES)
def test_backbone_comes_as_the_hub_holds_it(outcome, alias):
    hub, found = outcome
    loaded = found[alias]["value"]
    assert loaded["class"] == "TimmWrapperForImageClassification" and loaded["logits"] == [1, 5]
    assert loaded["mean"] == pytest.approx(MEANS[alias])
    assert hub.requests("GET", f"store/{BACKBONES[alias].hub_id}")
    if alias in TIMM:
        assert loaded["same"] == loaded["shared"] >= loaded["stored"] - 4 > 0


def test_loaded_weights_are_compared_with_the_hubs_checksums(outcome):
    _, found = outcome
    for name in ("corrupt", "again"):
        assert found[name]["error"] == "ValueError"
        assert "model.safetensors" in found[name]["message"] and "force_download=True" in found[name]["message"]
    assert found["mended"] == found["cut"] and len(found["cut"]["value"]) > 10


def test_lost_connections_and_a_failing_head_are_mended(outcome):
    hub, found = outcome
    assert found["head_500"] == found["cut"]
    assert [entry.status for entry in hub.requests("GET", "store/faulty/cut")] == [200, 200]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gated", "gated repo"),
        ("private", "token"),
        ("nowhere", "faulty/nowhere is not"),
        ("get_500", "500 Internal Server Error"),
        ("shorten", "Consistency check failed"),
        ("revision", "v9 is not a valid git identifier"),
    ],
)
def test_what_cannot_be_mended_is_told(outcome, name, words):
    _, found = outcome
    assert found[name]["error"] == "OSError" and words in found[name]["message"]


def test_gated_classifier_loads_with_a_token(outcome):
    _, found = outcome
    assert found["token"] == found["cut"]


def test_pushed_classifier_reloads_with_the_same_logits(outcome):
    hub, found = outcome
    assert found["pushed"] == {"value": pytest.approx(0, abs=1e-6)}
    files = hub.find("tester/robust").files()
    assert {"config.json", "model.safetensors"} <= set(files)  # timm models keep their preprocessing in the config
    assert any("head" in name for name in load(files["model.safetensors"]))
