"""What `hf-robust-ft evaluate` refuses or warns of before it measures; the rest is in test_cli."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState

import hf_robust_ft.runs.evaluate as measuring
from hf_robust_ft.runs.evaluation_arguments import EvaluationArguments


def test_a_device_that_is_not_here_is_refused():
    state = PartialState(cpu=True)
    assert measuring._device(None, state) == measuring._device("cpu", state) == torch.device("cpu")
    assert measuring._device("meta", state) == torch.device("meta")
    for wanted in ("tpu", "cuda:99", "xla"):
        with pytest.raises(ValueError, match=f"device '{wanted}' cannot be used here"):
            measuring._device(wanted, state)


def test_one_device_for_several_processes_is_refused():
    state = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    assert measuring._device("cpu", state) == torch.device("cpu")
    with pytest.raises(ValueError, match="Each of the 2 processes has a device of its own"):
        measuring._device("cuda:1", state)


def test_a_broken_report_beside_the_model_is_a_warning(tmp_path, capsys):
    (tmp_path / "robustness_report.json").write_text("{}")
    measuring._warn_of_another_split(str(tmp_path), {"dataset": "colours"})
    assert "is unknown" in capsys.readouterr().err


def test_help_tells_what_the_defaults_are():
    help_of = {entry.name: entry.metadata["help"] for entry in dataclasses.fields(EvaluationArguments)}
    assert "under L2 and L1 8 equal steps" in help_of["epsilons"]
    assert "weights:0=1,2/255=3" in help_of["eps_distributions"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps_distributions": ["weights:9/255=1"]}, r"in \[0, eps_g\]"),
        ({"eps_distributions": ["beta"]}, "is no distribution of eps"),
        ({"device": "tpu"}, "cannot be used here"),
        ({"model": "nowhere"}, "Unknown model 'nowhere'"),
        ({"model": ".", "model_revision": "main"}, r"\. lies on this machine and has no revision 'main'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(changes, message):
    with pytest.raises(ValueError, match=message):
        measuring.measure(EvaluationArguments(**({"model": "some/model"} | changes)), None, "command")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "fast"}, "Unknown protocol 'fast'. Valid protocols: paper, exact, reliable."),
        (
            {"protocol": "reliable", "attack_steps": "20"},
            "Protocol reliable takes as many attack steps .* 20",
        ),
    ],
)
def test_a_protocol_that_cannot_be_is_refused_as_the_options_are_read(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluationArguments(model="some/model", **options)


@pytest.mark.parametrize(("protocol", "steps"), [("paper", 10), ("exact", 10), ("reliable", "auto")])
def test_the_steps_are_the_protocols_where_none_are_asked_for(protocol, steps):
    assert EvaluationArguments(model="some/model", protocol=protocol).attack_steps == steps


def test_the_card_of_a_checkpoint_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    options = EvaluationArguments(model=str(tmp_path), output_dir=str(tmp_path))
    with pytest.raises(ValueError, match="holds a checkpoint, whose report and card would be overwritten"):
        measuring.measure(options, None, "command")
