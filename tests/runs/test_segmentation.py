"""The road of a user with masks: train, evaluate, rank, by the command line; the result by transformers alone."""

import json
import os

import numpy as np
import pytest
import yaml
from forked import LIBRARIES
from grid_results import make_result
from hub_server import HubServer
from huggingface_hub import ModelCard
from scene_folders import SIDE, write_scenes
from transformers import SegformerImageProcessor

from hf_robust_ft.cli.main import main


@pytest.fixture(scope="module")
def went(tmp_path_factory):
    """A folder with `scenes`, the checkpoint `run` and its `evaluation`."""
    from tiny_segmenters import segformer

    root = tmp_path_factory.mktemp("segmentation")
    write_scenes(root / "scenes", 20)
    segformer(3).save_pretrained(root / "pretrained")
    SegformerImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(root / "pretrained")
    usual = ["--dataset", str(root / "scenes"), "--eps", "2/255"]
    main(
        ["train", "--model", str(root / "pretrained"), *usual, "--output_dir", str(root / "run"), "--use_cpu",
         "--num_train_epochs", "2", "--attack_steps", "1", "--eval_attack_steps", "2", "--batch_norm", "trainer",
         "--per_device_train_batch_size", "4", "--learning_rate", "1e-2", "--disable_tqdm", "true",
         "--augmentation", "crop", "--bf16", "false", "--schedule", "constant", "--weight_decay", "0"]
    )  # fmt: skip
    main(
        ["evaluate", "--model", str(root / "run"), *usual, "--output_dir", str(root / "evaluation"), "--device", "cpu",
         "--attack_steps", "3", "--save_examples", "2"]
    )  # fmt: skip
    return root


def test_training_leaves_a_checkpoint_with_its_evidence(went):
    files = {path.name for path in (went / "run").iterdir()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "robustness_report.json", "README.md",
            "accuracy_eps_curve.png", "training.png", "recipe.yaml", "provenance.json"} <= files  # fmt: skip
    assert yaml.safe_load((went / "run" / "recipe.yaml").read_text())["task"] == "image-segmentation"


@pytest.mark.parametrize("folder", ["run", "evaluation"])
def test_the_card_shows_mean_iou_and_overlays_under_the_hubs_tag(folder, went):
    card = ModelCard((went / folder / "README.md").read_text())
    report = json.loads((went / folder / "robustness_report.json").read_text())
    assert card.data.pipeline_tag == report["task"] == "image-segmentation"
    told = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert told["mean_iou"] == pytest.approx(report["clean_mean_iou"], abs=1e-6)
    assert told["expected_mean_iou"] == pytest.approx(report["expected_mean_iou"], abs=1e-6)
    assert f"{100 * report['adversarial_mean_iou']:.2f} %" in str(card) and "| red |" in str(card)
    pictures = sorted(path.name for path in (went / folder / "examples").glob("example_*.png"))
    assert pictures and all(f"examples/{name}" in str(card) for name in pictures)


def test_a_report_is_verified_by_measuring_again(went, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(went)  # a report names a local folder without the folders above it
    told = ["verify", str(went / "evaluation"), "--model", str(went / "run"), "--device", "cpu"]
    main(told)
    out = capsys.readouterr().out
    for name in ("weights", "image files", "scores", "images", "clean scores", "under attack"):
        assert any(line.startswith(f"ok     {name}") for line in out.splitlines()), out
    assert "measured again, the figures are the same" in out
    content = json.loads((went / "evaluation" / "robustness_report.json").read_text())
    content["mean_ious"][-1] += 0.02
    content["adversarial_mean_iou"] += 0.02
    (tmp_path / "robustness_report.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="scores, under attack"):
        main(["verify", str(tmp_path), *told[2:]])
    with pytest.raises(SystemExit):
        main([*told, "--examples", "x"])
    assert "a report of masks has none" in capsys.readouterr().err


def test_the_result_loads_by_transformers_alone(went, tmp_path):
    script = (
        "import sys; from transformers import pipeline; from PIL import Image\n"
        f"found = pipeline('image-segmentation', {str(went / 'run')!r})(Image.open({str(went)!r} + "
        "'/scenes/images/0.png'))\n"
        "assert 'hf_robust_ft' not in sys.modules; print(sorted(part['label'] for part in found))"
    )
    (tmp_path / "script.py").write_text(script)
    done = LIBRARIES.run(tmp_path / "script.py", [{**os.environ}], tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout.replace("'", '"'))) <= {"ground", "red", "blue"}


def test_the_leaderboard_ranks_by_mean_iou_and_names_the_task(went, capsys):
    main(["leaderboard", str(went / "run"), str(went / "evaluation"), "--task", "segmentation"])
    told = capsys.readouterr().out
    report = json.loads((went / "evaluation" / "robustness_report.json").read_text())
    assert "image-segmentation on scenes" in told and f"{100 * report['expected_mean_iou']:.2f} %" in told


def test_the_page_shows_both_scores_of_masks_their_training_and_overlays(went, tmp_path, capsys):
    main(["report", str(went / "run"), str(went / "evaluation"), "--html", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    report = json.loads((went / "run" / "robustness_report.json").read_text())
    for name in ("clean_mean_iou", "expected_pixel_accuracy"):
        assert f"{100 * report[name]:.1f} %" in page
    told = ("Mean IoU at", "Pixel accuracy at", "Validation mean IoU and eps by epoch", "expected IoU", "pixels",
            "From left to right: an image", "Protocol paper: at each eps every image", "APGD-PIXEL-CE-2")  # fmt: skip
    assert [words for words in told if words not in page] == []
    assert page.count('class="strip"') == len(list((went).glob("*/examples/example_*.png"))) > 0
    classifier = make_result().report
    classifier.to_json(tmp_path / "robustness_report.json")
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), str(went / "run"), "--html", str(tmp_path / "both.html")])
    assert "are of different ones: make a page of each" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--autoattack", "5"], "--autoattack is for image-classification"),
        (["--store_examples", "--output_dir", "x"], "--store_examples is for image-classification"),
        (["--attack_loss", "dlr"], "dlr"),
        (["--protocol", "reliable", "--attack_loss", "segpgd"], "has its own losses"),
        (["--split", "training"], "split"),
    ],
)
def test_options_of_evaluate_that_mean_nothing_are_refused(flags, message, went, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", str(went / "run"), "--dataset", str(went / "scenes"), *flags])
    assert message in capsys.readouterr().err


def test_a_model_of_other_classes_is_refused(went, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", str(went / "run"), "--dataset", "digits_scenes"])
    assert "tells 3 classes apart, the dataset has 11" in capsys.readouterr().err


def test_overlays_leave_the_most_frequent_class_uncoloured():
    from hf_robust_ft.reporting.segmentation.overlays import colour_of, overlaid

    image, mask = np.full((4, 4, 3), 0.5), np.zeros((2, 2), dtype=int)
    mask[0, 0] = 1
    shown = overlaid(image, mask, background=0)
    assert np.allclose(shown[2:, 2:], 0.5) and np.allclose(shown[0, 0], 0.125 + 0.75 * np.array(colour_of(1)))
    assert len({colour_of(label) for label in range(10)}) == 10


def test_the_shipped_recipe_is_a_whole_run():
    from hf_robust_ft.runs.fine_tune import DataArguments, ModelArguments
    from hf_robust_ft.runs.options import BASE_RECIPE, parse_options
    from hf_robust_ft.training.arguments import AdversarialTrainingArguments

    types = (ModelArguments, DataArguments, AdversarialTrainingArguments)
    options = parse_options("train", ["--config", "segmentation"], types, ("a", "b", "c"), "", BASE_RECIPE)
    assert options.recipes == ["segmentation"] and options.parsed[1].task == "image-segmentation"
    assert options.parsed[0].augmentation == "none"


def test_publishing_puts_it_on_the_hub_under_its_task(went):
    with HubServer() as hub:
        folders = [str(went / name) for name in ("run", "evaluation")]
        publish = ["publish", folders[0], "tester/scenes", "--report", folders[1], "--license", "mit"]
        hub.run(f"from hf_robust_ft.cli.main import main\nmain({publish!r})", went, token=hub.token, HF_HUB_OFFLINE="0")
        *_, commit = hub.find("tester/scenes").commits.values()
    card = ModelCard(commit.files["README.md"].content.decode())
    assert card.data.pipeline_tag == "image-segmentation" and card.data.license == "mit"
    assert {"model.safetensors", "robustness_report.json", "examples/example_000.png"} <= set(commit.files)
