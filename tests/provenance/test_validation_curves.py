"""Curves from the files that Trainer leaves, and from our own."""

import json

import pytest
from conftest import NUM_CLASSES, REPOSITORY
from transformers import Trainer, TrainingArguments

from hf_robust_ft.provenance.validation_curves import ValidationCurve, read_run


@pytest.fixture
def state(tmp_path):
    """Writes a trainer_state.json as Trainer does, two steps an epoch."""

    def write(name="run", eps=0.0, accuracies=(0.1, 0.5), key="eval_clean_accuracy", **changes):
        log = []
        for epoch, accuracy in enumerate(accuracies, start=1):
            log += [
                {"epoch": float(epoch), "loss": 1.0, "eps": eps},
                {"epoch": float(epoch), key: accuracy, "eps": eps},
            ]
        content = {"log_history": log, "global_step": 2 * len(accuracies), "max_steps": 2 * len(accuracies)}
        content |= {"epoch": float(len(accuracies)), "num_train_epochs": len(accuracies), **changes}
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "trainer_state.json").write_text(json.dumps(content))
        return tmp_path / name

    return write


def test_a_run_of_ours_and_of_plain_trainer(make_trainer, make_model, dataset, processor, tmp_path):
    ours = make_trainer(eps_schedule="constant", eval_strategy="epoch", robust_eval="no", num_train_epochs=2)
    ours.train()
    ours.evaluate()  # a second measurement of the last epoch
    ours.save_state()
    ours.save_model()
    read = read_run(tmp_path / "out")
    logged = [entry["eval_clean_accuracy"] for entry in ours.state.log_history if "eval_clean_accuracy" in entry]
    assert len(logged) == 3 and read.accuracies == tuple(logged[:2]) and read.epochs == (1.0, 2.0)
    assert read.eps == 8 / 255 and read.is_complete and read.name == "out"
    assert read.facts["steps_per_epoch"] == 6 and len(read.facts["classes"]) == NUM_CLASSES

    args = TrainingArguments(
        str(tmp_path / "plain"), num_train_epochs=2, eval_strategy="epoch", save_strategy="epoch", use_cpu=True,
        per_device_train_batch_size=8, report_to="none", remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    plain = Trainer(
        model=make_model(), args=args, train_dataset=dataset, eval_dataset=dataset, data_collator=ours.data_collator,
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
    )  # fmt: skip
    plain.train()
    read = read_run(tmp_path / "plain")  # only its checkpoints hold the state; the newest counts
    logged = [entry["eval_accuracy"] for entry in plain.state.log_history if "eval_accuracy" in entry]
    assert (read.name, read.eps, read.accuracies) == ("plain", 0.0, tuple(logged))
    assert read.facts["steps_per_epoch"] == 6


def test_a_curve_survives_its_file(tmp_path):
    curve = ValidationCurve("fix", 4 / 255, (1.0, 2.0), (0.25, 1 / 3), 2.0, {"dataset": "digits"})
    curve.to_json(tmp_path / "curves" / "fix.json")
    assert read_run(tmp_path / "curves" / "fix.json") == curve
    assert [file.name for file in (tmp_path / "curves").iterdir()] == ["fix.json"]


def test_the_report_beside_a_state_names_the_dataset(state):
    folder = state()
    report = {"threat_model": {"norm": "L2"}, "metadata": {"dataset": "cars", "dataset_config": None, "license": "mit"}}
    (folder / "robustness_report.json").write_text(json.dumps(report))
    assert read_run(folder).facts == {"steps_per_epoch": 2, "dataset": "cars", "norm": "L2"}


def test_a_last_epoch_without_evaluation_is_not_taken_for_the_end(state):
    read = read_run(state(epoch=3.0, global_step=6, max_steps=6))
    assert read.num_epochs == 3 and not read.is_complete


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "eval_loss"}, r"run logged no eval_clean_accuracy or eval_accuracy \(of its evaluations: eval_loss\)"),
        ({"key": "train_loss"}, r"\(of its evaluations: nothing\)"),
        ({"global_step": 2}, "run stopped at step 2 of 4"),
        ({"log_history": None}, "is no trainer_state.json"),
        ({"max_steps": None, "epoch": "2"}, r"no whole trainer_state\.json: it lacks a number for max_steps, epoch"),
        ({"global_step": 0, "max_steps": 0, "epoch": 0}, "trained for 0 epochs"),
        (
            {"log_history": [{"epoch": 1.0, "eval_accuracy": 0.5, "eps": eps} for eps in (0.0, 0.1)]},
            "trained with a schedule: its eps went from 0 to 0.1",
        ),
        ({"accuracies": (10.0, 50.0)}, r"shares in \[0, 1\]"),
    ],
)
def test_what_is_no_finished_standard_or_fix_run_is_refused(state, changes, message):
    with pytest.raises(ValueError, match=message):
        read_run(state(**changes))


def test_paths_that_hold_no_run_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no trainer_state.json, nor checkpoints with one"):
        read_run(tmp_path)
    (tmp_path / "broken.json").write_text('{"log_history": [')
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        read_run(tmp_path / "broken.json")
    (tmp_path / "half.json").write_text('{"kind": "validation curve", "name": "fix"}')
    with pytest.raises(ValueError, match=r"half\.json is no whole validation curve \(KeyError: 'eps'\)"):
        read_run(tmp_path / "half.json")


@pytest.mark.parametrize(
    "content",
    [
        '{"setting": "fix", "validation": {}}',
        '{"setting": "fix", "validation": {"eps": []}, "report": {"metadata": {}}, "configuration": {}}',
        '{"setting": "fix", "validation": 1, "report": {"metadata": {}}}',
    ],
)
def test_a_damaged_cell_of_a_grid_is_named(content, tmp_path):
    (tmp_path / "cell.json").write_text(content)
    with pytest.raises(ValueError, match=r"cell\.json is no whole cell of a grid"):
        read_run(tmp_path / "cell.json")


def test_cells_of_a_grid_are_read_but_for_scheduled_ones():
    cells = REPOSITORY / "model_cards" / "reproduction" / "digits" / "cells"
    fix = read_run(cells / "efficientnet_lite0.digits.Linf.16_255.fix.seed0.json")
    standard = read_run(cells / "efficientnet_lite0.digits.Linf.16_255.standard.seed0.json")
    assert (fix.eps, standard.eps) == (16 / 255, 0.0) and fix.is_complete and fix.facts == standard.facts
    with pytest.raises(ValueError, match=r"eps changed while it trained \(hinge\)"):
        read_run(cells / "efficientnet_lite0.digits.Linf.16_255.hinge.seed0.json")
