"""The paper's six architectures with random weights, from a Hub-format folder through a step to a foreign process.

    python -m hf_robust_ft.benchmarks.backbone_round_trip [--full]

Each is written as its publisher stores it (timm's `save_for_hf`, open_clip's config and weights), loaded with a new
head, trained for one SGD step, saved, and reloaded by AutoModelForImageClassification, AutoImageProcessor and pipeline
in one process that cannot import hf_robust_ft. Without --full the networks are miniatures. Prints a Markdown table.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import PreTrainedModel

from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.models import BACKBONES, load_image_classifier

MINIATURES: dict[str, dict[str, Any]] = {
    "vit": {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "swin": {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
    "cnx": {"depths": [1, 1, 1, 1], "dims": [4, 8, 12, 16]},
    "r50": {"layers": [1, 1, 1, 1], "channels": [4, 8, 12, 16]},
    "clip_vit": {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
}
MINIATURE_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
_OUTSIDE = """
import json, pathlib, sys, time
sys.modules["hf_robust_ft"] = None
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
torch.set_num_threads(1)
rows = {}
for folder in map(pathlib.Path, sys.argv[1:]):
    start = time.perf_counter()
    code = {"trust_remote_code": True} if "auto_map" in json.loads((folder / "config.json").read_text()) else {}
    model = AutoModelForImageClassification.from_pretrained(folder, **code)
    processor = AutoImageProcessor.from_pretrained(folder)
    expected = torch.load(folder / "expected.pt", weights_only=True)
    image = Image.open(folder / "image.png")
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model.eval()(pixel_values).logits
    answer = pipeline("image-classification", str(folder), **code)(image, top_k=logits.shape[1])
    by_name = {entry["label"]: entry["score"] for entry in answer}
    scores = torch.tensor([by_name[model.config.id2label[index]] for index in range(logits.shape[1])])
    rows[folder.name] = {
        "seconds": time.perf_counter() - start,
        "class": type(model).__name__,
        "own_code": bool(code),
        "labels": [model.config.id2label[index] for index in range(logits.shape[1])],
        "pixels": (pixel_values - expected["pixel_values"]).abs().max().item(),
        "logits": (logits - expected["logits"]).abs().max().item(),
        "scores": (scores - expected["logits"].softmax(1)[0]).abs().max().item(),
    }
print(json.dumps(rows))
"""


def write_open_clip(folder: Path, config: dict[str, Any]) -> None:
    """A random-weight open_clip model in the format of its Hub repositories."""
    statistics = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": statistics}))
    parts = copy.deepcopy(config)
    clip = (open_clip.CustomTextCLIP if parts.pop("custom_text", False) else open_clip.CLIP)(**parts)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")


def write_checkpoint(alias: str, folder: Path, full: bool) -> None:
    """A random-weight replica of a backbone, in the format of its Hub repository.

    Args:
        alias: one of the paper's six.
        folder: where to.
        full: the real architecture instead of a miniature.
    """
    backbone = BACKBONES[alias]
    folder.mkdir(parents=True, exist_ok=True)
    if alias == "clip_cnx":
        write_open_clip(folder, open_clip.get_model_config("convnext_base_w") if full else MINIATURE_CLIP)
        return
    architecture = backbone.hub_id.removeprefix("timm/")
    arguments = {} if full else MINIATURES[alias]
    size = {} if full else {"pretrained_cfg_overlay": {"input_size": (3, 32, 32), "crop_pct": 1.0}}
    model = timm.create_model(architecture, pretrained=False, **arguments, **size)
    timm.models.save_for_hf(model, folder, model_args=arguments or None, safe_serialization=True)


def train_one_step(model: PreTrainedModel, pixel_values: torch.Tensor, labels: torch.Tensor) -> None:
    """One plain SGD step in training mode, BatchNorm statistics and all."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    model(pixel_values, labels=labels).loss.backward()
    optimizer.step()
    model.eval()


def load_step_save(source: Path | str, target: Path, **options: Any) -> dict[str, Any]:
    """Load a checkpoint with a new head, train a step and save; its row so far.

    What the reload must reproduce lies in `target`: an image, its pixel values and logits.

    Args:
        source: the checkpoint's folder, or what else `load_image_classifier` takes.
        target: where to save.
        options: of `load_image_classifier`.
    """
    names = ["cat", "dog", "hen", "cow", "pig"]
    start = time.perf_counter()
    model, processor = load_image_classifier(str(source), label_names=names, **options)
    loaded = time.perf_counter()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    stepping = time.perf_counter()
    turned = torch.cat([pixel_values.rot90(turns, (2, 3)) for turns in range(4)])  # BatchNorm needs images that differ
    train_one_step(model, turned, torch.tensor([0, 1, 2, 3]))
    stepped = time.perf_counter()
    moved = sum(not torch.equal(before[name], tensor) for name, tensor in model.named_parameters())
    model.save_pretrained(target)
    processor.save_pretrained(target)
    saved = time.perf_counter()
    with torch.no_grad():
        logits = model(pixel_values).logits
    torch.save({"pixel_values": pixel_values, "logits": logits}, target / "expected.pt")
    image.save(target / "image.png")
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "moved": moved,
        "load": loaded - start,
        "step": stepped - stepping,
        "save": saved - stepped,
        "labels": names,
        "space": PixelSpace.from_processor(processor),
        "input": tuple(pixel_values.shape[-2:]),
    }


def reload_outside(folders: list[Path]) -> dict[str, dict[str, Any]]:
    """What one Python process that cannot import hf_robust_ft finds in the folders, by folder name.

    Raises:
        RuntimeError: it failed.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [sys.executable, "-c", _OUTSIDE, *map(str, folders)],
            capture_output=True,
            text=True,
            cwd=elsewhere,
            env=environment,
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def round_trip(workspace: Path, full: bool = False) -> dict[str, dict[str, Any]]:
    """All six backbones, one after another; a row each."""
    rows = {}
    for alias, backbone in BACKBONES.items():
        source = workspace / "hub" / alias
        write_checkpoint(alias, source, full)
        rows[alias] = load_step_save(source, workspace / alias, image_size=backbone.image_size if full else None)
    for alias, found in reload_outside([workspace / alias for alias in BACKBONES]).items():
        rows[alias]["outside"] = found
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="real sizes (about 4 GB of disk) instead of miniatures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as workspace:
        rows = round_trip(Path(workspace), options.full)
    print("| backbone | M parameters | input | mean / std | load s | step s | save s | reload outside s | pixels | "
          "max logit difference | max score difference |")  # fmt: skip
    print("|---" * 11 + "|")
    for alias, row in rows.items():
        outside, space = row["outside"], row["space"]
        statistics = f"{space.mean[0]:.3f} / {space.std[0]:.3f}"
        print(
            f"| {alias} | {row['parameters'] / 1e6:.2f} | {row['input'][0]} | {statistics} | {row['load']:.1f} | "
            f"{row['step']:.1f} | {row['save']:.1f} | {outside['seconds']:.1f} | {outside['pixels']:.1e} | "
            f"{outside['logits']:.1e} | {outside['scores']:.1e} |"
        )


if __name__ == "__main__":
    main()
