"""A finished run's folder, as `hf-robust-ft train` leaves it, without the training."""

from pathlib import Path

import torch
from blank_pictures import rendering
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from hf_robust_ft import RobustnessReport
from hf_robust_ft.provenance.record import environment_facts, write_run_record
from hf_robust_ft.provenance.weight_hashes import hash_weight_files
from hf_robust_ft.reporting import write_evidence

COMMAND = "hf-robust-ft train --model timm/base --dataset someone/colours --eps 8/255"
PUBLISHED = {
    "config.json", "model.safetensors", "preprocessor_config.json", "README.md", "robustness_report.json",
    "accuracy_eps_curve.png", "training.png", "recipe.yaml", "provenance.json", "examples/example_000.png",
}  # fmt: skip
KEPT_HERE = {"training_args.bin", "trainer_state.json", "optimizer.pt", "checkpoint-3/model.safetensors",
             "examples/examples.npz"}  # fmt: skip


def write_run(folder: Path, seed: int = 0) -> Path:
    """A tiny checkpoint with its evidence, and beside it what training leaves and nobody should get."""
    write_checkpoint(folder, seed)
    facts = {
        **environment_facts(), "command": COMMAND, "recipes": ["paper_default"], "seeds": {"seed": 0},
        "dataset": "someone/colours", "dataset_on_hub": True, "dataset_commit": "3" * 40, "split": "test",
        "training": {"eps": "8/255"}, "base_model": "timm/base", "weights_sha256": hash_weight_files(folder),
    }  # fmt: skip
    (folder / "examples").mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "examples" / "example_000.png")
    Image.new("RGB", (8, 8), "blue").save(folder / "training.png")
    write_run_record(folder, {"dataset": "someone/colours", "eps": "8/255", "norm": "Linf"}, facts)
    with rendering():
        write_evidence(report(facts), folder)
    for name in KEPT_HERE:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"of training")
    return folder


def write_checkpoint(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def report(facts: dict | None = None) -> RobustnessReport:
    return RobustnessReport(
        clean_accuracy=0.9,
        adversarial_accuracy=0.5,
        expected_robustness=0.7,
        epsilons=[0.0, 4 / 255, 8 / 255],
        accuracies=[0.9, 0.7, 0.5],
        threat_model={"norm": "Linf", "eps": 8 / 255},
        attack={"steps": 10, "loss": "ce", "random_start": False, "restarts": 1, "select": "fooled"},
        protocol="paper",
        num_samples=200,
        metadata=facts or {},
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
