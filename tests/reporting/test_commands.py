import dataclasses

import pytest
from finished_run import report

from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.protocols import resolve_epsilons
from hf_robust_ft.reporting.commands import evaluate_command, how_to_measure_again, model_to_name
from hf_robust_ft.runs.arguments import DataArguments
from hf_robust_ft.runs.evaluation_arguments import EvaluationArguments
from hf_robust_ft.runs.options import parse_options


def parsed(command: str):
    words = command.split()
    assert words[:2] == ["hf-robust-ft", "evaluate"]
    return parse_options("evaluate", words[2:], (EvaluationArguments, DataArguments), ("e", "d"), "").parsed


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "8/255"), ("L2", "1.5"), ("L1", "40")])
def test_the_command_measures_what_the_report_measured(norm, eps):
    threat_model = ThreatModel(norm, eps)
    splitting = {"validation_size": 0.25, "test_size": 0.2, "split_seed": 3, "max_eval_samples": 100}
    facts = {"dataset": "someone/colours", "dataset_config": "small", "dataset_commit": "3" * 40, "split": "validation",
             "splitting": splitting}  # fmt: skip
    measured = dataclasses.replace(
        report(facts),
        threat_model={"norm": norm, "eps": threat_model.eps},
        epsilons=[0.0, threat_model.eps / 2, threat_model.eps],
        attack={"steps": 20, "loss": "dlr"},
        protocol="exact",
        autoattack_samples=64,
    )
    options, data = parsed(evaluate_command(measured, "tester/robust", output_dir="out"))
    assert (options.model, options.norm, options.split, options.output_dir) == (
        "tester/robust",
        norm,
        "validation",
        "out",
    )
    assert (options.attack_steps, options.attack_loss, options.protocol, options.autoattack) == (20, "dlr", "exact", 64)
    assert ThreatModel(options.norm, options.eps).eps == pytest.approx(threat_model.eps)
    assert resolve_epsilons(options.epsilons, threat_model) == pytest.approx(measured.epsilons)
    assert (data.dataset, data.dataset_config, data.dataset_revision) == ("someone/colours", "small", "3" * 40)
    assert {name: getattr(data, name) for name in splitting} == splitting


@pytest.mark.parametrize(
    ("facts", "model", "told"),
    [
        ({"repo_id": "you/robust", "training": {"eps": "8/255"}}, "you/robust", "again, with"),
        ({"training": {"eps": "8/255"}, "base_model": "timm/resnet18"}, ".", "again in this folder, with"),
        ({"base_model": "somebody/else"}, "somebody/else", "again, with"),
        ({"base_model_text": "my-run"}, "MODEL", "again, MODEL being the folder that was measured, with"),
    ],
)
def test_a_cards_command_names_the_model_as_its_reader_has_it(facts, model, told):
    command = evaluate_command(report({"dataset": "digits", **facts}), model_to_name(facts))
    assert parsed(command)[0].model == model
    assert told in how_to_measure_again(command)


def test_what_is_usual_is_not_said():
    measured = report({"dataset": "x/flowers", "dataset_alias": "flowers", "dataset_commit": "3" * 40, "split": "test"})
    measured = dataclasses.replace(measured, epsilons=resolve_epsilons(None, ThreatModel("Linf", "8/255")))
    assert evaluate_command(measured, "tester/robust") == (
        "hf-robust-ft evaluate --model tester/robust --dataset flowers --norm Linf --eps 8/255 --attack_steps 10"
    )
