"""The paper's command, two names and a schedule, through the real clients: swin on FGVC-Aircraft, in miniature."""

import json

import pytest
from hub_server import HubServer
from loopback_hub.replicas import REPLICAS, replica_files

from hf_robust_ft import RobustnessReport
from hf_robust_ft.benchmarks.backbone_round_trip import write_checkpoint
from hf_robust_ft.models import BACKBONES

# By name; then by the dataset's own id, of which only its cached files can tell how large it is.
SCRIPT = """
import contextlib, io
from hf_robust_ft.cli.main import main

command = ["train", "--model", "swin", "--dataset", "fgvc_aircraft", "--eps", "4/255", "--schedule", "hinge"]
by_id = [*command[:4], "Donghyun99/FGVC-Aircraft", "--label_column", "variation", *command[5:]]
small = "--image_size 32 --max_train_samples 16 --max_eval_samples 8 --num_train_epochs 2 --eval_strategy no --use_cpu"
small += " --per_device_train_batch_size 8 --eval_attack_steps 1 --attack_steps 1 --disable_tqdm true"

def printed(words):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(words)
        except SystemExit as stop:
            return f"exit {stop.code}"
    return out.getvalue()

found["first"] = printed([*command, "--dry-run", "--bf16", "--plan_json", "plan.json"])
found["uncached"] = printed([*by_id, "--dry-run"])
open("trained", "w").close()
found["trained"] = printed([*command, *small.split()])
os.remove("trained")
found["cached"] = printed([*by_id, "--dry-run"])
found["again"] = printed([*command, *small.split()])
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    write_checkpoint("swin", folder / "checkpoint", full=False)
    replica = REPLICAS["fgvc_aircraft"]
    with HubServer() as hub:
        hub.create(
            BACKBONES["swin"].hub_id, {path.name: path.read_bytes() for path in (folder / "checkpoint").iterdir()}
        )
        hub.create(replica.repo_id, replica_files(replica), kind="dataset", sha=replica.sha)
        seen = []
        original = hub.next_fault

        def note(stage, method, path):
            seen.append((folder / "client" / "trained").exists())
            return original(stage, method, path)

        hub.next_fault = note
        found = hub.run(SCRIPT, folder / "client", timeout=170)
    return found, seen, folder / "client"


def test_only_training_asks_the_hub(outcome):
    found, seen, _ = outcome
    assert seen and all(seen)
    assert found["uncached"] == "exit 2" and "Give --samples TRAIN VALIDATION TEST" in found["stderr"]


def test_the_plan_is_the_papers_protocol(outcome):
    found, _, folder = outcome
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["dataset"]["sizes"] == {"train": 3334, "validation": 3333, "test": 1000}
    assert plan["model"]["input_size"] == [224, 224] and plan["model"]["parameters"] == pytest.approx(86.8e6, rel=1e-2)
    settings = plan["configuration"]
    assert (settings["num_train_epochs"], settings["attack_steps"], settings["eval_attack_steps"]) == (50, 7, 10)
    assert plan["training"]["attacked_images"] == 37 * 3334
    assert "From recipe paper_default" in found["first"] and BACKBONES["swin"].hub_id in found["first"]
    assert "images: train 3334, validation 3333, test 3333 (from the data itself)" in found["cached"]


def test_the_run_records_where_its_data_came_from(outcome):
    found, _, folder = outcome
    assert "Checkpoint, report, pictures and card: runs/swin-fgvc_aircraft-Linf-4_255-hinge-seed42" in found["trained"]
    run = folder / "runs" / "swin-fgvc_aircraft-Linf-4_255-hinge-seed42"
    facts = RobustnessReport.from_json(run / "robustness_report.json").metadata
    assert facts["base_model"] == BACKBONES["swin"].hub_id and facts["recipes"] == ["paper_default"]
    assert facts["dataset"] == REPLICAS["fgvc_aircraft"].repo_id and facts["dataset_alias"] == "fgvc_aircraft"
    assert facts["dataset_commit"] == facts["dataset_revision"] == REPLICAS["fgvc_aircraft"].sha
    assert facts["split_sizes"] == {"train": 16, "validation": 3333, "test": 8}
    card = (run / "README.md").read_text()
    for part in (
        "Maji", "Licence of the pretrained weights: mit.", "The paper's sizes are 1000 (test).", "horizontal flip",
        "| head_learning_rate | 0.004 |", "| eps_schedule | hinge |",
    ):  # fmt: skip
        assert part in card, part


def test_the_same_command_again_does_not_touch_the_finished_run(outcome):
    found, _, _ = outcome
    assert found["again"] == "exit 2" and "holds the results of an earlier run" in found["stderr"]
