import json
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from hf_robust_ft.attacks import use_memory_format
from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.benchmarks import training_cost, training_subjects
from hf_robust_ft.benchmarks.attack_cost import count_passes
from hf_robust_ft.benchmarks.plain_loop import fine_tune_in_a_loop
from hf_robust_ft.benchmarks.training_cost import STEPS, BareSteps, in_turn, markdown
from hf_robust_ft.benchmarks.training_subjects import Subject
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.runs.recipes import read_recipe

BATCH = 8


@pytest.fixture
def subject(make_model, dataset, processor, monkeypatch):
    monkeypatch.setitem(training_subjects.EPS, "efficientnet_lite0", "8/255")
    return Subject("efficientnet_lite0", make_model("resnet"), processor, dataset.select(range(16)), dataset, BATCH)


def test_the_limit_is_seven_gradients_one_forward_and_one_training_step(subject):
    bare = BareSteps(subject, 1)
    before = [parameter.clone() for parameter in bare.trained.parameters()]
    assert count_passes(bare.attacked, bare.step, BATCH) == {"with gradient": STEPS, "without": 1}
    assert any(not torch.equal(old, new) for old, new in zip(before, bare.trained.parameters(), strict=True))
    layouts = {use_memory_format(each, "keep") for each in (bare.trained, bare.attacked)}
    assert layouts == {"channels_last"}


def test_the_loop_trains_attacks_and_counts_what_it_attacked(make_model, dataset, processor):
    pytest.importorskip("torchattacks")
    model, begun = make_model("resnet"), []
    before = [parameter.clone() for parameter in model.parameters()]
    loader = DataLoader(dataset.select(range(16)), BATCH, collate_fn=stack_examples)
    done = fine_tune_in_a_loop(
        model,
        PixelSpace.from_processor(processor),
        loader,
        ThreatModel("Linf", "8/255"),
        epochs=2,
        learning_rate=1e-3,
        attack_steps=2,
        on_step=lambda: begun.append(1),
    )
    assert done.steps == len(begun) == 4 and 0 < done.attacked <= 1
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_every_round_begins_with_another_tool():
    order = []
    tools = {name: lambda name=name: order.append(name) or name for name in "abc"}
    assert in_turn(tools, 2) == {name: [name, name] for name in "abc"}
    assert order == ["a", "b", "c", "b", "c", "a"]


def test_the_program_measures_what_it_is_asked_for(subject, monkeypatch, tmp_path, capsys):
    pytest.importorskip("torchattacks")
    monkeypatch.setattr(training_cost, "load_subject", lambda *args, **kwargs: subject)
    monkeypatch.setattr(training_cost, "read_recipe", lambda name: read_recipe(name) | {"attack_guard_every": 1})
    output = tmp_path / "report.json"
    options = (
        "--models efficientnet_lite0 --only eps0 limit runs --rounds 1 --run-rounds 1 --steps-a-round 2 --epochs 4"
    )
    monkeypatch.setattr(sys, "argv", ["training_cost", *options.split(), "--threads", "1", "--output", str(output)])
    training_cost.main()
    found = json.loads(output.read_text())["models"]["efficientnet_lite0"]
    assert found.keys() == {"eps0", "limit", "runs"}
    assert found["runs"]["steps"] == {"loop": 8, "hinge": 8, "fast": 8}
    assert 0 < found["eps0"]["share waiting for data"]["median"] < 1
    table = capsys.readouterr().out
    assert "| efficientnet_lite0 | step at full eps / bare passes |" in table and "≥ 4 |" in table


def test_the_table_says_what_was_missed():
    ratio = {"median": 1.5, "min": 1.4, "max": 1.7}
    waits = {"median": 0.01, "min": 0.0, "max": 0.1}
    runs = {"speed-up": {"hinge": ratio | {"median": 2.0}, "fast": ratio}, "images the loop attacked": 0.9}
    found = {
        "eps0": {"ratio": ratio | {"median": 1.02}, "ratio to contiguous": ratio, "share waiting for data": waits},
        "limit": {"ratio": ratio},
        "runs": runs,
        "memory": {"loop": 100.4},
    }
    table = markdown({"models": {"efficientnet_lite0": found}}).splitlines()
    assert table[2].endswith("| 1.020 (1.400..1.700) | ≤ 1.02 | met |")
    assert table[3].endswith("≤ 1.05 | missed |")
    assert table[4].endswith("≥ 2 | met |") and table[5].endswith("≥ 4 | missed |")
    assert "| efficientnet_lite0 | loop | 100 |" in table
    assert "the loop attacked 90 % of its images" in table[-1]
