"""The road of a user with boxes: train and evaluate by the command line; the result by transformers alone."""

import json
import shutil

import numpy as np
import pytest
import yaml
from datasets import Dataset, Features, Image
from page_runs import make_report
from PIL import Image as PILImage
from tiny_detectors import squares, yolos
from transformers import YolosImageProcessor, pipeline

from hf_robust_ft.cli.main import main
from hf_robust_ft.data.detection.digit_boxes import FEATURES

SIDE = 32


def write_squares(path, count):
    """The tiny detectors' squares as a parquet file, as a Hub dataset has them."""
    images, objects = [], []
    for example in squares(count):
        pixels = example["pixel_values"].permute(1, 2, 0).mul(255).round().byte().numpy()
        boxes = example["labels"]["boxes"] * SIDE
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], 1)
        images.append(PILImage.fromarray(pixels))
        objects.append({"bbox": corners.tolist(), "category": example["labels"]["class_labels"].tolist()})
    features = Features({"image": Image(), "objects": FEATURES["objects"]})
    Dataset.from_dict({"image": images, "objects": objects}, features=features).to_parquet(path)


@pytest.fixture(scope="module")
def went(tmp_path_factory):
    """A folder with the data, the checkpoint `run` and its `evaluation`."""
    root = tmp_path_factory.mktemp("detection")
    write_squares(root / "squares.parquet", 16)
    yolos(10).save_pretrained(root / "pretrained")
    YolosImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(root / "pretrained")
    usual = ["--dataset", str(root / "squares.parquet"), "--eps", "2/255"]
    main(
        ["train", "--model", str(root / "pretrained"), *usual, "--output_dir", str(root / "run"), "--use_cpu",
         "--num_train_epochs", "1", "--attack_steps", "1", "--eval_attack_steps", "2", "--augmentation", "none",
         "--per_device_train_batch_size", "4", "--disable_tqdm", "true", "--bf16", "false", "--schedule", "constant"]
    )  # fmt: skip
    main(
        ["evaluate", "--model", str(root / "run"), *usual, "--output_dir", str(root / "evaluation"), "--device", "cpu",
         "--attack_steps", "3", "--epsilons", "0", "2/255"]
    )  # fmt: skip
    return root


def test_training_leaves_a_checkpoint_with_its_report_and_card(went):
    files = {path.name for path in (went / "run").iterdir()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "robustness_report.json", "README.md",
            "accuracy_eps_curve.png", "recipe.yaml", "provenance.json"} <= files  # fmt: skip
    assert yaml.safe_load((went / "run" / "recipe.yaml").read_text())["task"] == "object-detection"
    for folder in ("run", "evaluation"):
        report = json.loads((went / folder / "robustness_report.json").read_text())
        assert report["task"] == "object-detection" and "Experimental" in report["limits"]
        assert report["metadata"]["dataset"] == "squares.parquet" and report["num_boxes"] > 0


def test_the_result_loads_by_transformers_alone(went):
    found = pipeline("object-detection", str(went / "run"), threshold=0.0)(PILImage.new("RGB", (SIDE, SIDE)))
    assert {each["label"] for each in found} <= set(map(str, range(10)))


def refused(capsys, *argv):
    with pytest.raises(SystemExit):
        main([str(word) for word in argv])
    return capsys.readouterr().err


def test_what_does_not_know_detection_says_so_before_any_work(went, capsys):
    data = ["--dataset", went / "squares.parquet", "--eps", "2/255"]
    model = ["--model", went / "pretrained"]
    out = ["--output_dir", went / "other"]
    assert "object-detection takes augmentation none" in refused(capsys, "train", *model, *data, *out)
    none = ["--augmentation", "none"]
    assert "--ignore_index is about masks" in refused(capsys, "train", *model, *data, *out, *none, "--ignore_index", 3)
    assert "push_to_hub=True exclude" in refused(capsys, "train", *model, *data, *out, *none, "--push_to_hub")
    assert "for image-classification" in refused(capsys, "train", *model, *data, *out, *none, "--dry_run")
    assert "is measured by one attack" in refused(capsys, "evaluate", *model, *data, "--protocol", "reliable")
    assert "autoattack is for" in refused(capsys, "evaluate", *model, *data, "--autoattack", 8)


def test_what_shows_results_to_others_names_reports_of_detection(went, tmp_path, capsys):
    unmeasured = shutil.copytree(went / "run", tmp_path / "unmeasured", ignore=lambda *_: ["robustness_report.json"])
    for folder in (went / "run", unmeasured):
        assert "not published from here yet" in refused(capsys, "publish", folder, "me/boxes")
    (tmp_path / "digits").mkdir()
    make_report().to_json(tmp_path / "digits" / "robustness_report.json")
    for target in (went / "run", went / "evaluation", went / "evaluation" / "robustness_report.json"):
        assert "is a report of object-detection" in refused(capsys, "verify", target)
        page = tmp_path / "page.html"
        assert "is a report of object-detection" in refused(
            capsys, "report", tmp_path / "digits", target, "--html", page
        )
        assert not page.exists()
    assert "evaluation: robustness_report.json: it is of object-detection" in refused(capsys, "leaderboard", went)
    main(["leaderboard", str(tmp_path / "digits"), str(went / "evaluation"), str(unmeasured)])
    ranked, left_out = capsys.readouterr().out.split("## Not read")
    assert "| digits |" in ranked and "evaluation" not in ranked
    assert "- evaluation: robustness_report.json: it is of object-detection, which is experimental" in left_out
    assert "- unmeasured: it holds neither" in left_out
