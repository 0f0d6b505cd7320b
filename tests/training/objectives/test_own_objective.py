"""The guide's objective of one's own is one."""

import re

import pytest
from conftest import REPOSITORY, assert_same_weights

from hf_robust_ft.training.objectives import OBJECTIVES

GUIDE = (REPOSITORY / "notebooks" / "guides" / "objectives.md").read_text(encoding="utf-8")


@pytest.fixture
def consistent():
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", GUIDE, flags=re.S) if "def " in block)
    scope = {}
    exec(code, scope)
    return scope["consistent"]


def test_it_trains_and_is_plain_at_eps_0(make_trainer, make_model, consistent, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "consistent", consistent)
    changes = {"eps_schedule": "constant", "num_train_epochs": 1}
    own, at = (make_trainer(make_model(), objective=name, **changes) for name in ("consistent", "at"))
    for trainer in (own, at):
        trainer.train()
    assert own.state.log_history[0]["loss"] > at.state.log_history[0]["loss"]
    own, at = (make_trainer(make_model(), objective=name, eps="0", eval_epsilons=None) for name in ("consistent", "at"))
    for trainer in (own, at):
        trainer.train()
    assert_same_weights(own.model, at.model)


def test_the_guide_knows_every_objective():
    losses = GUIDE.split("| source |")[1].split("\n\n")[0]
    assert re.findall(r"(?m)^\| `(\w+)` \|", losses) == list(OBJECTIVES)
