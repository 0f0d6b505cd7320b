"""Imports go one way: a file may import from the rows above its own."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "hf_robust_ft"

LAYERS = [
    ("balls", "class_names", "model_calls", "processor_maps", "confidence_intervals"),
    (
        "threat_models",
        "schedules",
        "pixels",
        "losses",
        "convergence_text",
        "trust_verdicts",
        "downloads",
        "sample_ids",
        "image_hashes",
        "stored_examples",
        "validation_curves",
        "paper",
        "weight_hashes",
        "shown_command",
        "command_parser",
        "random_state",
        "file_names",
        "source_names",
        "plain_text",
        "checkpoints",
        "loader_workers",
        "storage_errors",
        "wrapped_models",
    ),
    ("normalisation_checks", "reliability"),
    (
        "batch_checks",
        "attacks",
        "metrics",
        "results_store",
        "batches",
        "shared_work",
        "evaluated_model",
        "rehearsal",
        "diagnosis",
    ),
    ("output_checks", "second_opinion", "checked_images"),
    ("trust_checks", "protocols", "run_record", "termination", "divergence", "precision"),
    ("reports", "measured_evidence"),
    ("convergence",),
    ("evaluation_work",),
    ("evaluation",),
    ("models", "data"),
    ("reporting", "run_arguments", "sharding", "launching", "lone_images"),
    ("durable_trainer", "hub", "leaderboard", "verification"),
    ("mended_trainer",),
    ("tuning", "overfitting_guard", "attacked_model", "pixel_space_sources"),
    ("attack_reach",),
    ("training_args",),
    ("callbacks", "readable_logs"),
    ("trainer_checks", "evaluation_record", "publishing_trainer", "resuming", "attack_watch", "training_batches"),
    ("evaluating_trainer",),
    ("best_model",),
    ("trainer",),
    ("finetuning", "recipes", "search"),
    ("quickstart", "measuring", "searching", "planning", "sweeping"),
    ("options", "diagnosing", "verifying"),
    ("grid",),
    ("sharing_commands",),
    ("cli",),
    ("__main__", "benchmarks"),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules():
    return [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name for name in names if name.startswith("hf_robust_ft."))
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.startswith("hf_robust_ft."))
    return {name.split(".")[1] for name in found}


def unit(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own = unit(path)
    assert own in RANK, f"{own} has no row in LAYERS"
    upward = {name for name in imported_modules(path) - {own} if RANK[name] >= RANK[own]}
    assert not upward, f"{own} may not import {upward}"


def test_what_is_imported_is_there():
    """Also inside functions, where nothing else would tell before the command is used."""
    missing = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_robust_ft"):
                found = importlib.import_module(node.module)
                submodules = {each.stem for folder in getattr(found, "__path__", []) for each in Path(folder).iterdir()}
                names = [alias.name for alias in node.names if not hasattr(found, alias.name)]
                missing += [f"{path.name}: {node.module}.{name}" for name in names if name not in submodules]
    assert not missing


@pytest.mark.parametrize(
    "path", [path for path in modules() if RANK.get(unit(path), 0) < 5], ids=lambda path: str(path.relative_to(ROOT))
)
def test_attacks_know_nothing_of_transformers(path):
    source = ast.parse(path.read_text(encoding="utf-8"))
    roots = {
        (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0]
        for node in ast.walk(source)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    forbidden = {"transformers", "accelerate", "timm"} | (set() if unit(path) == "metrics" else {"datasets"})
    assert not roots & forbidden
