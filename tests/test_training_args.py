import json

import pytest

from hf_robust_ft import APGD, ThreatModel


def test_defaults_are_the_papers(make_args):
    args = make_args(eps="4/255", attack_steps=7, eval_attack_steps=10, eval_epsilons=None)
    assert args.threat_model == ThreatModel("Linf", 4 / 255)
    assert (args.eps_schedule, args.schedule_start, args.schedule_end) == ("hinge", 12 / 50, 37 / 50)
    assert args.train_attack == APGD(steps=7, random_start=False)
    assert args.eval_attack.steps == 10 and args.eval_attack.loss == "ce"
    assert args.evaluation_grid == [k / 255 for k in range(4)] + [4 / 255]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 4}, "Did you mean eps='4/255'"),
        ({"eps": "4"}, "Did you mean eps='4/255'"),
        ({"eps": "-1/255"}, "not negative"),
        ({"eps": float("nan")}, "finite"),
        ({"eps": "4/0"}, "divides by zero"),
        ({"norm": "linf"}, "Valid norms: Linf"),
        ({"eps_schedule": "cosin"}, "Valid schedules: constant, linear_warmup, hinge"),
        ({"schedule_start": 0.9, "schedule_end": 0.5}, "is after schedule_end"),
        ({"schedule_start": 12}, r"must lie in \[0, 1\]"),
        ({"schedule_granularity": "batch"}, "Valid: epoch, step"),
        ({"attack_loss": "dlr2"}, "Valid losses: ce"),
        ({"attack_steps": 0}, "at least 1"),
        ({"eval_attack_steps": -1}, "at least 1"),
        ({"robust_eval": "always"}, "Valid: end, epoch, no"),
        ({"eval_epsilons": ["0", "4/255"]}, "must end at the threat model's eps"),
        ({"eval_epsilons": ["4/255", "8/255"]}, "must start at 0"),
        ({"eval_epsilons": ["0", "x", "8/255"]}, "neither a number nor a fraction"),
        ({"metric_for_best_model": "expected_robustness"}, "robust_eval='epoch'"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "ZeRO-3"),
    ],
)
def test_bad_arguments_are_refused_at_construction(make_args, changes, message):
    with pytest.raises(ValueError, match=message):
        make_args(**changes)


def test_zero_3_is_found_in_a_config_file_too(make_args, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    with pytest.raises(ValueError, match="ZeRO-3"):
        make_args(deepspeed=str(path))


def test_training_settings_are_json(make_args):
    settings = json.loads(json.dumps(make_args().training_settings()))
    assert settings["eps"] == "8/255" and settings["optim"].startswith("adamw")
