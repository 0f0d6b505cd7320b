"""The whole road with real kinds: the paper's six architectures and the embedded default by command, three by script.

Small and random, as their publishers store them: train two steps, evaluate, publish, load with transformers alone.
"""

import json

import pytest
import torch
from hub_server import HubServer
from PIL import Image

from hf_robust_ft.benchmarks.backbone_round_trip import write_checkpoint
from hf_robust_ft.models import BACKBONES

KINDS = [*BACKBONES, "embedded"]
# All go by command. After loading, a script asks nothing of the architecture: one of timm's, one of open_clip's, ours.
WAYS = {"by_command": ("cli", KINDS), "by_script": ("script", ["vit", "clip_cnx", "embedded"])}
REPOS = [f"tester/{name}-{kind}" for name, kinds in WAYS.values() for kind in kinds]

ROAD = """
import pathlib
import numpy as np
import blank_pictures
import short_search
import torch
from hf_robust_ft import AdversarialTrainer, AdversarialTrainingArguments, load_image_classifier
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.cli.main import main
from hf_robust_ft.data import load_image_dataset, with_pixel_values
from PIL import Image

torch.set_num_threads(1)
TRAINING = dict(max_steps=2, eps="8/255", eps_schedule="constant", attack_steps=1, eval_attack_steps=1,
                eval_epsilons=["0", "8/255"], per_device_train_batch_size=8, per_device_eval_batch_size=8,
                save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True, dataloader_pin_memory=False)
ATTACKED = "--eps 8/255 --epsilons 0 8/255 --attack_steps 1 --device cpu --batch_size 8".split()


def words(settings):
    for name, value in settings.items():
        yield from ["--" + name, *([str(each) for each in value] if isinstance(value, list) else [str(value)])]


def logits_of(model, processor):
    with torch.no_grad():
        return model.eval()(processor(Image.open("image.png"), return_tensors="pt")["pixel_values"]).logits[0].tolist()


def by_command(kind, source, dataset):
    start = ["--config", "quickstart"] if kind == "embedded" else ["--model", source, "--dataset", dataset]
    main(["train", *start, *words(TRAINING), "--max_train_samples", "16", "--max_eval_samples", "8",
          "--output_dir", "cli-" + kind])
    data = ["--dataset", dataset, "--max_eval_samples", "8"]
    main(["evaluate", "--model", "cli-" + kind, *data, *ATTACKED, "--output_dir", "evaluation-" + kind])
    main(["publish", "cli-" + kind, "tester/cli-" + kind, "--report", "evaluation-" + kind])
    return logits_of(*load_image_classifier("cli-" + kind))


def by_script(kind, source, dataset):
    splits = load_image_dataset(dataset)
    names = splits["train"].features["label"].names
    size = {"image_size": 32} if kind == "embedded" else {}
    model, processor = load_image_classifier(source, label_names=names, **size)
    model.config.id2label = {str(index): name for index, name in enumerate(names)}  # as transformers' example scripts
    train, test = (with_pixel_values(splits[name].select(range(16)), processor) for name in ("train", "test"))
    args = AdversarialTrainingArguments(output_dir="script-" + kind, hub_model_id="tester/script-" + kind,
                                        remove_unused_columns=False, **TRAINING)
    trainer = AdversarialTrainer(model, args, train_dataset=train, eval_dataset=test, processing_class=processor,
                                 data_collator=stack_examples)
    trainer.train()
    trainer.evaluate()
    trainer.push_to_hub(finetuned_from=source, tasks="image-classification", tags=["vision"])
    return logits_of(trainer.model, processor)


for way in (by_command, by_script):
    for kind in WAYS[way.__name__][1]:
        source, dataset = ("efficientnet_lite0", "digits") if kind == "embedded" else (HUB + "/" + kind, COLOURS)
        found[way.__name__ + " " + kind] = attempt(way, kind, source, dataset)
"""

ALONE = """
import torch
from PIL import Image
from transformers import pipeline
torch.set_num_threads(1)
for repo in REPOS:
    def load():
        classify = pipeline("image-classification", repo)
        image = Image.open("image.png")
        with torch.no_grad():
            logits = classify.model(**classify.image_processor(image, return_tensors="pt")).logits[0]
        names = classify.model.config.id2label
        answer = {entry["label"]: entry["score"] for entry in classify(image, top_k=len(logits))}
        return {"logits": logits.tolist(), "scores": [answer[names[index]] for index in range(len(logits))],
                "names": [names[index] for index in range(len(logits))]}
    found[repo] = attempt(load)
"""


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """What each way found, what strangers found, and the server."""
    folder = tmp_path_factory.mktemp("road")
    torch.manual_seed(0)
    for kind in BACKBONES:
        write_checkpoint(kind, folder / "hub" / kind, full=False)
    generator = torch.Generator().manual_seed(0)
    for index in range(48):
        colour = tuple(torch.randint(256, (3,), generator=generator).tolist())
        place = folder / "colours" / ("test" if index >= 24 else "train") / ("warm" if index % 2 else "cold")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), colour).save(place / f"{index}.png")
    for place in ("inside", "alone"):
        (folder / place).mkdir()
        Image.linear_gradient("L").resize((40, 32)).convert("RGB").save(folder / place / "image.png")
    with HubServer() as hub:
        hub.create("tester/cli-vit", {"preprocessor_config.json": "{}"})  # of an earlier model
        given = f"WAYS, HUB, COLOURS = {WAYS!r}, {str(folder / 'hub')!r}, {str(folder / 'colours')!r}\n"
        inside = hub.run(given + ROAD, folder / "inside", token=hub.token, HF_HUB_OFFLINE="0", timeout=600)
        start = f'import sys\nsys.modules["hf_robust_ft"] = None\nREPOS = {REPOS!r}\n'
        alone = hub.run(start + ALONE, folder / "alone", HF_HUB_OFFLINE="0", timeout=600)
        yield inside, alone, hub


@pytest.mark.parametrize(
    ("way", "name", "kind"), [(way, name, kind) for way, (name, kinds) in WAYS.items() for kind in kinds]
)
def test_what_was_trained_is_what_anybody_loads(road, way, name, kind):
    inside, alone, hub = road
    trained, loaded = inside[f"{way} {kind}"], alone[f"tester/{name}-{kind}"]
    assert "value" in trained, trained
    assert "value" in loaded, loaded
    expected = torch.tensor(trained["value"])
    assert torch.allclose(torch.tensor(loaded["value"]["logits"]), expected, atol=1e-5)
    assert torch.allclose(torch.tensor(loaded["value"]["scores"]), expected.softmax(0), atol=1e-5)
    names = [str(digit) for digit in range(10)] if kind == "embedded" else ["cold", "warm"]
    assert loaded["value"]["names"] == names
    repository = hub.find(f"tester/{name}-{kind}")
    files = repository.files(repository.head.sha)
    assert "preprocessor_config.json" not in files  # timm's settings are the configuration's
    report = json.loads(files["robustness_report.json"])
    assert report["epsilons"] == [0.0, 8 / 255] and report["num_samples"] == (8 if way == "by_command" else 16)
    right = round(report["clean_accuracy"] * report["num_samples"])  # examples are of these
    shown = [name for name in files if name.startswith("examples/example_")]
    assert len(shown) == min(4, right) or way == "by_command"
