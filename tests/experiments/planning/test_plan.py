import json
import sys
from pathlib import Path

import pytest
from forked import LIBRARIES
from scene_folders import SIDE, write_scenes
from tiny_segmenters import segformer
from transformers import SegformerImageProcessor

from hf_robust_ft.experiments.planning import PlanArguments, plan_run
from hf_robust_ft.experiments.planning import plan as planning
from hf_robust_ft.runs.fine_tune import DataArguments, ModelArguments

# Notes every attempt to reach anything, and lets none succeed.
NO_NETWORK = """
import socket
attempts = []

def refuse(*args, **kwargs):
    attempts.append(repr(args))
    raise OSError("no network here")

socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
from hf_robust_ft.cli.main import main

for command in COMMANDS:
    main(command)
assert not attempts, attempts
print("NO ATTEMPTS")
"""


@pytest.fixture
def settings(make_args):
    return lambda **changes: make_args(per_device_train_batch_size=128, num_train_epochs=50, **changes)


def plan(args, model="r50", dataset="cub200", data=None, model_options=None, **options):
    model_args = ModelArguments(model, **(model_options or {}))
    return plan_run(model_args, DataArguments(dataset, **(data or {})), args, PlanArguments(dry_run=True, **options))


def test_a_dry_run_reaches_for_nothing(make_model, processor, images, tmp_path):
    """Not even where nothing tells the libraries to stay offline."""
    make_model("resnet").save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for index, example in enumerate(images):
        folder = tmp_path / "data" / "train" / str(example["label"])
        folder.mkdir(parents=True, exist_ok=True)
        example["image"].save(folder / f"{index}.png")
    run = ["--dry-run", "--eps", "4/255", "--output_dir", str(tmp_path / "run")]
    commands = [
        ["train", "--model", "r50", "--dataset", "fgvc_aircraft", "--schedule", "hinge", "--bf16", *run],
        ["train", "--model", "efficientnet_lite0", "--image_size", "32", "--dataset", "digits", *run],
        ["train", "--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "data"), *run],
        ["train", "--model", "r50", "--dataset", "ethz/food101", "--samples", "75000", "750", "25250", *run],
        ["train", "--config", "segmentation", "--image_size", "32", "--samples", "100", "10", "20", *run],
    ]
    environment = {"PATH": "", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ":".join(sys.path)}
    (tmp_path / "script.py").write_text(f"COMMANDS = {commands!r}\n{NO_NETWORK}")
    done = LIBRARIES.run(tmp_path / "script.py", [environment], Path.cwd(), timeout=300)
    assert done.returncode == 0, done.stderr
    assert "NO ATTEMPTS" in done.stdout and not (tmp_path / "run").exists()
    counts = ["train 3334, validation 3333, test 1000", "train 1293", "train 34", "train 75000", "train 100"]
    assert [count for count in counts if count not in done.stdout] == []
    assert done.stdout.count("Plan: nothing is trained") == 5


def test_the_plan_says_what_it_rests_on(settings, tmp_path):
    made = plan(settings(), gpu="a100", utilisation=0.5, data={"max_eval_samples": 100})
    assert made.dataset["sizes"] == {"train": 5394, "validation": 600, "test": 100} and made.dataset["classes"] == 200
    text = str(made)
    for part in (
        "r50 = timm/resnet50.a1_in1k", "cub200 = Donghyun99/CUB-200-2011@", "no weights read", "the dataset's spec",
        "NVIDIA A100, fp32, peak 19.5 TFLOPS (NVIDIA A100 Tensor Core GPU data sheet)", "50% of the peak are assumed",
        "eps_schedule                 hinge", "attack in test (1 budgets), at most", "GFLOPs an image: forward 8.1",
    ):  # fmt: skip
        assert part in text, part
    made.to_json(tmp_path / "new" / "plan.json")
    content = json.loads((tmp_path / "new" / "plan.json").read_text())
    assert content["flops"] == sum(phase["flops"] for phase in content["phases"]) == made.flops()
    assert content["gpu_hours"] == pytest.approx(made.flops() / (19.5e12 * 0.5) / 3600)
    assert content["training"]["steps"] == 50 * 43
    assert "validation_size" not in content["configuration"]  # the splits follow from the spec


def test_freezing_and_lora_make_training_cheaper_but_not_the_attack(settings):
    model = "timm/vit_tiny_patch16_224"
    whole = plan(settings(), model)
    for changes in ({"freeze": "backbone"}, {"lora_rank": 4}):
        part = plan(settings(**changes), model)
        assert part.model["trained_parameters"] < 0.1 * whole.model["trained_parameters"]
        assert part.flops_per_image.training < 0.8 * whole.flops_per_image.training
        assert part.flops_per_image.input_gradient >= whole.flops_per_image.input_gradient
        assert part.phases == whole.phases


def test_what_a_method_refuses_of_the_architecture_is_not_planned(settings):
    twins = {"twins_lambda": 0.4, "batch_norm": "trainer"}
    with pytest.raises(ValueError, match=r"TWINS pairs BatchNorm layers, and .* has none"):
        plan(settings(**twins), "vit")
    for changes in (twins, {"autolora": True, "autolora_rate": "off"}, {"objective": "pmg_aft"}):
        made, bare = plan(settings(**changes)), plan(settings())
        assert made.model == bare.model and made.flops_per_image == bare.flops_per_image


def test_precision_follows_the_arguments(settings):
    hours = {
        precision: plan(settings(**changes)).to_dict()["gpu_hours"]
        for precision, changes in (("bf16", {"bf16": True}), ("fp32", {}))
    }
    assert hours["fp32"] / hours["bf16"] == pytest.approx(989.4 / 66.9)
    with pytest.raises(ValueError, match="NVIDIA T4 has no fast bf16"):
        plan(settings(bf16=True), gpu="t4")


def test_what_is_neither_known_nor_local_nor_cached_is_asked_for(settings):
    with pytest.raises(ValueError, match="Give --samples TRAIN VALIDATION TEST"):
        plan(settings(), dataset="someone/photos")
    made = plan(settings(), dataset="someone/photos", samples=[1000, 100, 100])
    assert made.dataset["sizes"]["train"] == 1000
    assert made.dataset["classes"] == planning.ASSUMED_CLASSES and "1000 classes is assumed" in str(made)
    stream, streamed = {"streaming": True}, settings(max_steps=4, schedule_granularity="step")
    with pytest.raises(ValueError, match="digits as a stream has no length: give --samples"):
        plan(streamed, dataset="digits", data=stream)
    sizes = plan(streamed, dataset="digits", data=stream, samples=[9, 9, 1200]).dataset["sizes"]
    assert sizes == {"train": 9, "validation": 9, "test": 1000}  # at most stream_eval_samples
    with pytest.raises(ValueError, match="give --max_steps N"):
        plan(settings(), dataset="digits", data=stream, samples=[9, 9, 9])
    with pytest.raises(ValueError, match="cub200 has the paper's splits, so validation_size"):
        plan(settings(), data={"validation_size": 0.2})
    with pytest.raises(ValueError, match=r"hf download someone/model --include '\*config\.json'"):
        plan(settings(), "someone/model")


def test_no_folder_of_this_machine_is_shown(settings, make_model, processor, tmp_path):
    make_model("resnet").save_pretrained(tmp_path / "mine")
    processor.save_pretrained(tmp_path / "mine")
    made = plan(settings(), str(tmp_path / "mine"), "cub200")
    assert made.model["checkpoint"] == made.model["name"] == "mine"
    assert str(tmp_path) not in str(made)


def test_masks_are_planned_with_every_attack_at_every_eps(make_args, tmp_path):
    write_scenes(tmp_path / "scenes", 12)
    segformer(3).save_pretrained(tmp_path / "segformer")
    SegformerImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(tmp_path / "segformer")
    model, data = str(tmp_path / "segformer"), str(tmp_path / "scenes")
    options = {"eps": "4/255", "eval_epsilons": None, "per_device_train_batch_size": 4, "num_train_epochs": 2}
    parts = {}
    for protocol, steps in (("paper", "20"), ("reliable", None)):
        made = plan(make_args(**options, eval_protocol=protocol, eval_attack_steps=steps), model, data)
        assert made.dataset["classes"] == 3 and made.model["input_size"] == (SIDE, SIDE)
        parts[protocol] = {phase.name: phase for phase in made.phases}
    test = parts["paper"]["test"].images
    assert parts["paper"]["attack in test (4 budgets, 20 steps)"].input_gradient == test * 4 * 20
    assert parts["reliable"]["attack in test (4 budgets, 100 steps)"].input_gradient == test * 4 * 4 * 100
    assert not any(phase.at_most for name, phase in parts["paper"].items() if name.startswith("attack"))
    with pytest.raises(ValueError, match="mixup_alpha"):
        plan(make_args(**options, mixup_alpha=0.2), model, data)
