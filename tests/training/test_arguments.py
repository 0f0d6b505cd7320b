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


def test_only_the_evaluation_under_l1_begins_with_larger_eps(make_args):
    found = {norm: make_args(norm=norm, eps=0.5, eval_epsilons=None) for norm in ("Linf", "L2", "L1")}
    assert [norm for norm, args in found.items() if args.eval_attack.larger_eps] == ["L1"]
    assert not any(args.train_attack.larger_eps for args in found.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 4}, "Did you mean eps='4/255'"),
        ({"eps": "4"}, "Did you mean eps='4/255'"),
        ({"eps": "-1/255"}, "not negative"),
        ({"eps": float("nan")}, "finite"),
        ({"eps": "4/0"}, "divides by zero"),
        ({"norm": "linf"}, "Valid norms: Linf"),
        ({"eps_schedule": "cosin"}, "Valid schedules: none, constant, linear_warmup, hinge"),
        ({"schedule_start": 0.9, "schedule_end": 0.5}, "is after schedule_end"),
        ({"schedule_start": 12}, r"must lie in \[0, 1\]"),
        ({"schedule_args": ["patience=3"]}, r"'hinge' does not take patience\. Its arguments: hinge\(start"),
        ({"schedule_args": {"start": 0.3}}, "start is schedule_start"),
        ({"schedule_args": ["0.3"]}, "key=value"),
        ({"eps_schedule": "auto"}, "set eval_strategy='epoch'.*Got eval_strategy='no', eval_delay=0"),
        ({"eps_schedule": "auto", "eval_strategy": "steps"}, "Got eval_strategy='steps'"),
        ({"eps_schedule": "auto", "eval_strategy": "epoch", "eval_delay": 2}, "eval_delay=2"),
        ({"schedule_overshoot": 0.5}, "factor on eps_g of at least 1"),
        ({"schedule_overshoot": float("nan")}, "factor on eps_g of at least 1"),
        ({"eps": "0.9", "schedule_overshoot": 1.2, "eval_epsilons": None}, "=1.2 times eps=0.9: .*whole pixel"),
        ({"attack_steps_schedule": "auto"}, "follow progress alone"),
        ({"attack_steps_schedule": "hinge", "attack_steps_args": ["end=2"]}, r"end=2 must lie in"),
        ({"attack_steps_schedule": "hinge", "attack_steps_args": ["start=abc"]}, r"start=abc must lie in"),
        ({"attack_steps_schedule": "hinge", "attack_steps_min": 3}, "between 1 and attack_steps=2, got 3"),
        ({"attack_steps_schedule": "hinge", "attack_steps_min": 0}, "between 1 and attack_steps=2, got 0"),
        ({"attack_steps_schedule": "epsilon"}, "Unknown attack steps schedule 'epsilon'. Valid schedules: eps, none"),
        ({"attack_steps_schedule": "eps", "attack_steps_args": ["end=0.5"]}, "{'end': 0.5} do nothing"),
        ({"attack_steps_schedule": "eps", "eps_schedule": "per_sample"}, "needs one eps a batch"),
        ({"attack_steps_min": 2}, "does nothing without attack_steps_schedule"),
        ({"schedule_granularity": "batch"}, "Valid: epoch, step"),
        ({"attack_loss": "dlr2"}, "Valid losses: ce"),
        ({"attack_steps": 0}, "at least 1"),
        ({"eval_attack_steps": -1}, "at least 1"),
        ({"robust_eval": "always"}, "Valid: end, epoch, no"),
        ({"eval_epsilons": ["0", "4/255"]}, "must end at the threat model's eps"),
        ({"eval_epsilons": ["4/255", "8/255"]}, "must start at 0"),
        ({"eval_epsilons": ["0", "x", "8/255"]}, "neither a number nor a fraction"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1, got 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1, got 0"),
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


def test_attack_steps_run_from_the_fewest_to_all(make_args):
    args = make_args(attack_steps=7, attack_steps_schedule="hinge", attack_steps_min=3)
    assert [args.train_attack_at(share).steps for share in (0, 0.1, 0.125, 0.5, 0.9, 1)] == [3, 3, 4, 5, 7, 7]
    assert args.train_attack_at(1) == args.train_attack


def test_schedule_arguments_have_one_form_and_stand_in_the_settings(make_args):
    args = make_args(eps_schedule="smoothed_hinge", schedule_args=["bend=0.5"], schedule_overshoot=1.1)
    assert args.schedule_args == make_args(eps_schedule="smoothed_hinge", schedule_args={"bend": 0.5}).schedule_args
    settings = json.loads(json.dumps(args.training_settings()))
    assert settings["schedule_args"] == {"bend": 0.5} and settings["schedule_overshoot"] == 1.1
    assert "attack_steps_schedule" not in settings
    assert json.loads(args.to_json_string())["schedule_args"] == {"bend": 0.5}


def test_a_precision_of_the_launcher_stands_in_the_settings(make_args, monkeypatch):
    assert "mixed_precision" not in make_args(bf16=True).training_settings()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    settings = make_args().training_settings()
    assert settings["mixed_precision"] == "bf16" and not settings["bf16"]


def test_training_settings_are_json(make_args):
    settings = json.loads(json.dumps(make_args().training_settings()))
    assert settings["eps"] == "8/255" and settings["optim"].startswith("adamw")
