"""Same seed, same weights: whatever is logged, evaluated or saved on the way, in any process, and from the report."""

import json
import os
from contextlib import nullcontext

import pytest
import torch
import yaml
from conftest import assert_same_weights
from forked import LIBRARIES_AND_OURS

import hf_robust_ft.training.trainer
from hf_robust_ft import RobustnessReport
from hf_robust_ft.cli.main import main
from hf_robust_ft.data import SeededAugmentation, with_pixel_values
from hf_robust_ft.provenance.weight_hashes import hash_weight_files

# Everything that draws random numbers: dropout, random starts, augmentation, a sampled eps, shuffling.
RANDOM = {
    "num_train_epochs": 2,
    "attack_random_start": True,
    "attack_steps": 1,
    "eps_schedule": "uniform",
    "gradient_accumulation_steps": 2,
}
BESIDE_TRAINING = [
    {"eval_strategy": "epoch", "robust_eval": "epoch"},
    {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "robust_eval": "epoch",
        "logging_strategy": "steps",
        "logging_steps": 1,
    },
    {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True, "per_device_eval_batch_size": 5},
    {"logging_strategy": "steps", "logging_steps": 100, "save_strategy": "steps", "save_steps": 1},
    {"save_strategy": "epoch", "eval_strategy": "epoch", "save_total_limit": 1},
]


@pytest.fixture
def trained(make_trainer, make_model, images, processor, tmp_path):
    def train(kind="vit", seeded=True, resume=None, **changes):
        run = make_trainer(
            make_model(kind, dropout=0.3),
            train_dataset=with_pixel_values(images, processor, "paper"),
            callbacks=[SeededAugmentation()] if seeded else [],
            **{**RANDOM, "output_dir": str(tmp_path / "beside"), **changes},
        )
        run.train(resume_from_checkpoint=resume)
        return run

    return train


@pytest.mark.parametrize("seeded", [True, False], ids=["seeded_augmentation", "global_augmentation"])
def test_logging_evaluating_and_saving_never_change_the_weights(trained, seeded):
    expected = trained(seeded=seeded).model
    for changes in BESIDE_TRAINING if seeded else BESIDE_TRAINING[:2]:
        assert_same_weights(trained(seeded=seeded, **changes).model, expected)


def test_evaluating_draws_and_would_change_them(trained, monkeypatch):
    """Every pass over a DataLoader takes a number from torch's global state, from which dropout draws too."""
    expected = trained().model
    monkeypatch.setattr(hf_robust_ft.training.trainer, "random_state_kept", nullcontext)
    with pytest.raises(AssertionError, match="tensors differ"):
        assert_same_weights(trained(eval_strategy="steps", eval_steps=1).model, expected)


def test_the_random_parts_are_random(trained):
    expected = trained().model
    for changes in ({"attack_random_start": False}, {"seed": 1}, {"eps_schedule": "constant"}):
        with pytest.raises(AssertionError, match="tensors differ"):
            assert_same_weights(trained(**changes).model, expected)


def test_resuming_within_an_epoch_redraws_the_random_starts_of_every_micro_batch(trained, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    whole = trained(**settings)
    # Evaluating on the way only after resuming: neither has a say.
    again = trained(
        **settings, resume=str(tmp_path / "beside" / "checkpoint-2"), eval_strategy="steps", eval_steps=1,
        output_dir=str(tmp_path / "resumed"),
    )  # fmt: skip
    assert_same_weights(again.model, whole.model)


@pytest.fixture
def determinism_restored(monkeypatch):
    for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "ASCEND_LAUNCH_BLOCKING", "HCCL_DETERMINISTIC"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("FLASH_ATTENTION_DETERMINISTIC", "")
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def test_a_run_is_repeated_from_its_report_alone_in_another_process(
    imagefolder, checkpoint, tmp_path, monkeypatch, determinism_restored
):
    monkeypatch.chdir(tmp_path)
    main([
        "train", "--model", "pretrained", "--dataset", "colours", "--output_dir", "first", "--eps", "8/255",
        "--full_determinism", "--attack_random_start", "--num_train_epochs", "2", "--attack_steps", "2", "--seed", "7",
        "--per_device_train_batch_size", "8", "--eval_attack_steps", "1", "--eval_epsilons", "0", "8/255",
        "--validation_size", "0.25", "--disable_tqdm", "true", "--max_train_samples", "16", "--schedule", "uniform",
    ])  # fmt: skip
    assert torch.are_deterministic_algorithms_enabled()  # --full_determinism reached the Trainer
    report = RobustnessReport.from_json("first/robustness_report.json")
    facts = report.metadata
    for name in ("recipe", "seeds", "versions", "hardware", "git", "dataset", "training"):
        assert facts.get(name) or (name == "git" and not facts.get("git")), name
    assert {"torch", "transformers", "python"} <= set(facts["versions"]) and facts["hardware"]["threads"] == 1
    assert facts["training"]["world_size"] == 1 and facts["recipe"]["bf16"] is False and facts["recipe"]["seed"] == 7
    places = {"model": "pretrained", "dataset": "colours"}  # here from anywhere, elsewhere as they were named
    assert facts["recipe"].items() >= {name: f"./{place}" for name, place in places.items()}.items()
    own = facts["recipe"] | {name: str(tmp_path / place) for name, place in places.items()}
    assert yaml.safe_load((tmp_path / "first" / "recipe.yaml").read_text()) == own

    (tmp_path / "from_report.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(facts["recipe"]))))
    # Where report and recipe name a folder of the first machine, that folder is at hand under its name.
    again = LIBRARIES_AND_OURS.run_module(
        ["hf_robust_ft", "train", "--config", "from_report.yaml", "--output_dir", "second"], {**os.environ}, tmp_path
    )
    assert again.returncode == 0, again.stderr
    assert hash_weight_files("second") == hash_weight_files("first") == facts["weights_sha256"]
    assert RobustnessReport.from_json("second/robustness_report.json").smallest_epsilons == report.smallest_epsilons
