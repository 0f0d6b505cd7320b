"""A grid small enough for tests: a tiny ViT on 48 coloured images, two epochs."""

import json

import pytest

from hf_robust_ft.experiments.grid.arguments import GridArguments


@pytest.fixture
def backbone(make_model, processor, tmp_path):
    folder = tmp_path / "tinyvit"
    make_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(images, tmp_path):
    folder = tmp_path / "colours"
    for index, row in enumerate(images):
        for split in ("train", "test"):
            place = folder / split / f"c{row['label']}"
            place.mkdir(parents=True, exist_ok=True)
            row["image"].save(place / f"{split}{index}.png")
    return str(folder)


FLAGS = [
    "--config", "quickstart", "--image_size", "none", "--num_train_epochs", "2", "--attack_steps", "1",
    "--eval_attack_steps", "1", "--per_device_train_batch_size", "8", "--learning_rate", "1e-3", "--use_cpu",
    "--disable_tqdm", "true",
]  # fmt: skip


@pytest.fixture
def flags():
    """Options of `train` for every cell."""
    return list(FLAGS)


@pytest.fixture
def make_options(backbone, photos, tmp_path):
    def make(**changes):
        settings = {
            "models": [backbone], "datasets": [photos], "epsilons": ["16/255"], "settings": ["standard", "fix"],
            "eval_points": 2, "trust_checks": False, "output_dir": str(tmp_path / "grid"), **changes,
        }  # fmt: skip
        return GridArguments(**settings)

    return make


@pytest.fixture
def grid_argv(backbone, photos, tmp_path):
    """The same as a command."""
    own = [
        "--models", backbone, "--datasets", photos, "--epsilons", "16/255", "--settings", "standard", "fix",
        "--eval_points", "2", "--trust_checks", "false", "--output_dir", str(tmp_path / "grid"),
    ]  # fmt: skip
    return ["reproduce", *own, *FLAGS]


@pytest.fixture
def kept(tmp_path):
    """What a cell's file says but for the time it took."""

    def read(name: str) -> dict:
        content = json.loads((tmp_path / "grid" / "cells" / f"{name}.json").read_text())
        return {key: content[key] for key in ("validation", "passes", "configuration")} | {
            "measured": {key: value for key, value in content["report"].items() if key != "metadata"}
        }

    return read
