import json
import sys

import pytest

from hf_robust_ft.benchmarks import objective_cost, training_subjects
from hf_robust_ft.benchmarks.attack_cost import count_passes
from hf_robust_ft.benchmarks.training_cost import STEPS, BareSteps
from hf_robust_ft.benchmarks.training_subjects import Subject

BATCH = 8


@pytest.fixture
def subject(make_model, dataset, processor, monkeypatch):
    monkeypatch.setitem(training_subjects.EPS, "efficientnet_lite0", "8/255")
    return Subject("efficientnet_lite0", make_model("resnet"), processor, dataset.select(range(16)), dataset, BATCH)


def test_the_limit_is_the_passes_that_are_asked_for(subject):
    bare = BareSteps(subject, 1, passes=2, forwards=2)
    assert count_passes(bare.attacked, bare.step, BATCH) == {"with gradient": STEPS, "without": 2}
    seen = []
    bare.trained.register_forward_hook(lambda *_: seen.append(1))
    bare.step()
    assert len(seen) == 2


def test_each_objective_is_set_beside_its_own_passes(subject, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(objective_cost, "load_subject", lambda name: subject)
    output = tmp_path / "cost.json"
    argv = "objective_cost --models efficientnet_lite0 --rounds 1 --steps-a-round 2 --threads 1 --output"
    monkeypatch.setattr(sys, "argv", [*argv.split(), str(output)])
    objective_cost.main()
    found = json.loads(output.read_text())["models"]["efficientnet_lite0"]
    passes = {name: tuple(each["passes"].values()) for name, each in found.items()}
    assert passes == {
        "at": (1, 1, STEPS), "trades, attack on cross-entropy": (2, 1, STEPS), "trades": (2, 2, STEPS),
        "mart": (2, 1, STEPS), "pmg_aft": (2, 2, STEPS), "fare": (1, 2, STEPS),
        "twins_at": (1, 1, STEPS), "autolora": (2, 1, STEPS),
    }  # fmt: skip
    assert all(each["ratio"]["median"] > 0 for each in found.values())
    assert "| efficientnet_lite0 | mart |" in capsys.readouterr().out
