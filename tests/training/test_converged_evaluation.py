"""`AdversarialTrainer` with eval_attack_steps="auto": the converged figures of `evaluate_robustness`."""

import json

import pytest
from colour_classifier import ColourClassifier
from conftest import run_script

from hf_robust_ft import evaluate_robustness

OPTIONS = {"eval_attack_steps": "auto", "eval_epsilons": ["0", "2/255", "4/255", "8/255"], "eps": "8/255"}


class Trained(ColourClassifier):
    """With a loss, as Trainer wants it."""

    def forward(self, pixel_values, labels=None):
        logits = super().forward(pixel_values)
        return {"logits": logits} if labels is None else {"loss": logits.logsumexp(1).mean(), "logits": logits}


def measured(make_trainer, **changes):
    trainer = make_trainer(Trained(), **(OPTIONS | changes))
    return trainer, trainer.evaluate()


@pytest.mark.parametrize("protocol", ["paper", "reliable"])
def test_it_agrees_with_evaluate_robustness(make_trainer, dataset, protocol, all_images_checked):
    steps = {"eval_attack_steps": None} if protocol == "reliable" else {}
    trainer, metrics = measured(make_trainer, eval_protocol=protocol, **steps)
    report = evaluate_robustness(
        Trained(),
        dataset,
        threat_model=trainer.args.threat_model,
        epsilons=trainer.args.evaluation_grid,
        pixel_space=trainer.pixel_space,
        attack_steps="auto",
        protocol=protocol,
        batch_size=8,
        progress=False,
    )
    mine = trainer.robustness_report
    assert mine.convergence == report.convergence and mine.accuracies == report.accuracies
    assert mine.smallest_epsilons == report.smallest_epsilons and mine.attack == report.attack
    assert mine.protocol == protocol and bool(mine.convergence.get("closing")) == (protocol == "reliable")
    assert mine.checks == report.checks and len(mine.checks) == 8
    assert metrics["eval_adversarial_accuracy"] == report.adversarial_accuracy
    first = report.convergence["rounds"][0]
    assert metrics["eval_adversarial_accuracy_10_steps"] == first["adversarial_accuracy"]
    assert metrics["eval_expected_robustness_10_steps"] == first["expected_robustness"]
    assert metrics["eval_attack_steps"] == report.attack["steps"] >= 20 and metrics["eval_attack_settled"] == 1.0


def test_the_limit_holds(make_trainer):
    trainer, metrics = measured(make_trainer, eval_attack_steps_limit=10)
    assert metrics["eval_attack_steps"] == 10 and metrics["eval_attack_settled"] == 0.0
    (check,) = [check for check in trainer.robustness_report.checks if check["name"] == "converged"]
    assert not check["passed"] and "raise eval_attack_steps_limit above 10" in check["sentence"]


def test_a_clean_evaluation_has_no_rounds(make_trainer):
    _, metrics = measured(make_trainer, robust_eval="no")
    assert not any("attack" in name or "adversarial" in name for name in metrics)


def test_each_evaluation_set_and_each_evaluation_logs_the_same_keys(make_trainer, dataset):
    trainer = make_trainer(Trained(), **OPTIONS, eval_strategy="epoch", robust_eval="epoch", num_train_epochs=2)
    trainer.train()
    trainer.eval_dataset = {"left": dataset, "right": dataset}
    trainer.evaluate()
    names = [
        {name.removeprefix("eval_") for name in entry}
        for entry in trainer.state.log_history
        if "eval_attack_steps" in entry
    ]
    assert len(names) == 2 and names[0] == names[1]
    for part in ("left", "right"):
        assert any(f"eval_{part}_adversarial_accuracy_10_steps" in entry for entry in trainer.state.log_history)


@pytest.mark.parametrize("value", ["many", 0, "-1", 2.5])
def test_bad_steps_are_refused(make_args, value):
    with pytest.raises(ValueError, match="eval_attack_steps is a whole number of at least 1, or 'auto'"):
        make_args(eval_attack_steps=value)


def test_protocols_that_a_trainer_cannot_measure_by_are_refused(make_args):
    with pytest.raises(ValueError, match=r"eval_protocol='exact' does not: choose paper or reliable, .* exact"):
        make_args(eval_protocol="exact")
    with pytest.raises(ValueError, match=r"Unknown protocol 'fast'\. Valid protocols: paper, exact, reliable"):
        make_args(eval_protocol="fast")
    with pytest.raises(ValueError, match=r"Protocol reliable takes as many .* got eval_attack_steps 20: leave"):
        make_args(eval_protocol="reliable", eval_attack_steps=20)


def test_a_bad_limit_is_refused(make_args):
    with pytest.raises(ValueError, match=r"eval_attack_steps_limit is the most steps.*at least 10; got 9"):
        make_args(eval_attack_steps_limit=9)
    with pytest.raises(ValueError, match=r"steps_limit=40 does nothing with eval_attack_steps=2, which are"):
        make_args(eval_attack_steps_limit=40)


def test_training_takes_no_auto(make_args):
    with pytest.raises(ValueError, match="attack_steps='auto' is for measuring, eval_attack_steps; training takes a"):
        make_args(attack_steps="auto")


SCRIPT = """
import json
import test_converged_evaluation as cases

trainer, metrics = cases.measured(make_trainer, per_device_eval_batch_size=5)
report = trainer.robustness_report
found = {"convergence": report.convergence, "smallest": sorted(e or 9 for e in report.smallest_epsilons)}
(folder / f"{trainer.args.process_index}.json").write_text(json.dumps(found))
"""


def test_two_processes_converge_as_one(make_trainer, tmp_path):
    done = run_script(SCRIPT, tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr
    trainer, _ = measured(make_trainer, per_device_eval_batch_size=10)
    report = trainer.robustness_report
    for rank in (0, 1):
        found = json.loads((tmp_path / "two" / f"{rank}.json").read_text())
        assert found["convergence"] == report.convergence
        assert found["smallest"] == sorted(eps or 9 for eps in report.smallest_epsilons)
