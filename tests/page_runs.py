"""Runs for the tests of the page: made from chosen outcomes, with text that must stay text."""

import json

import numpy as np

from hf_robust_ft import APGD, ThreatModel
from hf_robust_ft.attacks.threat_model import default_epsilons
from hf_robust_ft.evaluation.scoring import build_report
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck
from hf_robust_ft.reporting.example_pairs import ExamplePairs

EVIL = "<script>window.hacked = 1</script>"
EVIL_IMAGE = '"><img src=x onerror="window.hacked=1">'
CLASSES = ["cat", EVIL, "a very long name of a class that no axis has room for"]


def make_report(seed=0, *, eps="8/255", norm="Linf", protocol="paper", images=60, **metadata):
    """A report of random outcomes; under "paper" they lie on the grid, as the attack finds them there."""
    rng = np.random.default_rng(seed)
    threat_model = ThreatModel(norm, eps)
    grid = np.array(default_epsilons(threat_model.eps, norm))
    smallest = rng.gamma(2, threat_model.eps / 2.5, images) * (rng.random(images) > 0.1)
    if protocol == "paper":
        smallest = grid[np.minimum(np.searchsorted(grid, smallest), len(grid) - 1)]
    smallest = np.where((smallest > grid[-1]) | (rng.random(images) < 0.1), np.inf, smallest)
    labels = np.arange(images) % len(CLASSES)
    report = build_report(
        labels,
        smallest,
        (labels + 1) % len(CLASSES),
        threat_model=threat_model,
        epsilons=grid,
        attack=APGD(random_start=False, select="fooled"),
        protocol=protocol,
        checks=[
            TrustCheck("gradients", True, 0.0, "The attack can see where to go."),
            TrustCheck("converged", False, 0.3, f"The attack stopped too early {EVIL}."),
        ],
        class_names=CLASSES,
    )
    return report.with_metadata(dataset="digits", split="test", **metadata)


def make_pairs(count=3, size=6, threat_model="Linf 8/255"):
    rng = np.random.default_rng(1)
    clean = rng.random((count, 3, size, size), dtype=np.float32)
    change = rng.uniform(-8 / 255, 8 / 255, clean.shape).astype(np.float32)
    names = np.array(CLASSES)[np.arange(count) % len(CLASSES)]
    return ExamplePairs(clean, (clean + change).clip(0, 1), names, names, names[::-1], threat_model)


LOG_HISTORY = [
    {"loss": 2.0, "eps": 0.0, "epoch": 1.0},
    {"eval_clean_accuracy": 0.5, "eval_adversarial_accuracy": 0.1, "eps": 0.0, "epoch": 1.0},
    {"loss": 1.0, "eps": 4 / 255, "epoch": 2.0},
    {"eval_clean_accuracy": 0.75, "eval_adversarial_accuracy": 0.25, "eps": 4 / 255, "epoch": 2.0},
    {"test_clean_accuracy": 0.9, "epoch": 2.0},
]


def write_run(folder, report, *, pairs=None, log_history=None):
    """A run's folder as the commands leave it."""
    folder.mkdir(parents=True)
    report.to_json(folder / "robustness_report.json")
    if pairs is not None:
        (folder / "examples").mkdir()
        pairs.save(folder / "examples")
    if log_history is not None:
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": log_history}))
    return folder
