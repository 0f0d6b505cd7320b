"""Training a detector under attack: Trainer's own loss on other pixels, as for a classifier; experimental."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from conftest import assert_same_weights, weights
from dense_training import FOLLOWING, SPACE, builder, check_attacks, logged
from tiny_detectors import CLASSES, DETECTORS, detr, fitted, rt_detr, squares, yolos
from transformers import AutoModelForObjectDetection, Trainer

from hf_robust_ft import SCHEDULES, AdversarialTrainer, ThreatModel
from hf_robust_ft.evaluation.batches import stack_boxes
from hf_robust_ft.evaluation.detection.evaluate import evaluate_detection
from hf_robust_ft.evaluation.detection.report import DetectionReport
from hf_robust_ft.training.tasks import TASKS, ObjectDetection, task_of


@pytest.fixture(scope="module")
def data():
    return squares(8)


@pytest.fixture
def build(make_args, data):
    return builder(make_args, data, yolos, stack_boxes, per_device_eval_batch_size=4)


# RT-DETR draws boxes with noise in training, so this also tells that nothing else draws.
@pytest.mark.parametrize("kind", ["yolos", "rt_detr"])
def test_at_eps_zero_training_is_bitwise_the_plain_trainers(build, kind):
    both = []
    for trainer_cls in (AdversarialTrainer, Trainer):
        model = yolos(dropout=0.1) if kind == "yolos" else rt_detr()
        trainer = build(model, trainer_cls, eps=0, eval_epsilons=None, batch_norm="trainer")
        trainer.train()
        both.append((weights(trainer.model), logged(trainer, "loss")))
    assert_same_weights(both[0][0], both[1][0])
    assert both[0][1] == both[1][1]


@pytest.mark.parametrize("kind", DETECTORS)
def test_each_image_is_attacked_inside_its_ball_and_the_model_trains_on_what_was_found(build, monkeypatch, kind):
    trainer = build(DETECTORS[kind](), eps_schedule="constant")
    before = weights(trainer.model)
    check_attacks(trainer, monkeypatch, count=2)
    assert not hasattr(trainer.model, "_loss_function")
    assert any(not torch.equal(value, before[name]) for name, value in weights(trainer.model).items())


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "per_sample"])
def test_no_schedule_asks_what_a_label_is(build, schedule):
    granularity = {"schedule_granularity": "step"} if schedule not in ("auto", "loss_driven") else {}
    changes = {"schedule_args": {"a": 2.0, "b": 2.0}} if schedule == "beta" else {}
    trainer = build(
        eps_schedule=schedule, num_train_epochs=2, attack_steps=1, **granularity, **changes,
        **FOLLOWING.get(schedule, {}),
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 4


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_stopped(build, tmp_path):
    saved = {"output_dir": str(tmp_path / "whole"), "save_strategy": "steps", "save_steps": 1}
    saved |= {"schedule_granularity": "step", "eps_schedule": "linear_warmup"}
    whole = build(rt_detr(), **saved)
    whole.train()
    resumed = build(rt_detr(), **saved)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert_same_weights(whole.model, resumed.model)
    state = json.loads(Path(tmp_path, "whole", "checkpoint-2", "trainer_state.json").read_text())
    assert state["global_step"] == 2


def test_accumulated_batches_are_one_batch_where_each_has_as_many_boxes(build, data):
    """The loss is over the boxes of a batch, and Trainer's the mean over its batches."""
    alike = [data[0], data[1]] * 4
    both = []
    for size, accumulated in ((8, 1), (2, 4)):
        trainer = build(
            per_device_train_batch_size=size, gradient_accumulation_steps=accumulated, eps_schedule="constant",
            max_steps=1, train_dataset=alike, train_sampling_strategy="sequential",
        )  # fmt: skip
        trainer.train()
        both.append(weights(trainer.model))
    assert all(torch.allclose(both[0][name], both[1][name], atol=1e-5) for name in both[0])


def test_a_checkpoint_is_a_plain_model_of_transformers(build, tmp_path):
    trainer = build(detr(), eps_schedule="constant")
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path / "saved")
    assert_same_weights(loaded, trainer.model)


def test_a_pixel_mask_reaches_the_model_and_padding_is_not_attacked(build, data):
    masks = torch.ones(32, 32, dtype=torch.long)
    masks[24:] = 0
    padded = [{**each, "pixel_values": each["pixel_values"] * masks, "pixel_mask": masks} for each in data]
    trainer = build(detr(), train_dataset=padded, attack_steps=3)
    batch = stack_boxes(padded[:4])
    result = trainer.adversary.attack(
        trainer.model, batch, trainer.args.threat_model, eps=8 / 255, attack=trainer.args.train_attack
    )
    moved = (result.adversarial - batch["pixel_values"]).abs().amax((0, 1))
    assert moved[:24].max() > 0 and moved[24:].max() == 0
    trainer.train()
    assert trainer.state.global_step == 2


SETTINGS = [
    {"freeze": "backbone"},
    {"ema_decay": 0.9},
    {"awp_gamma": 0.005},
    {"bf16": True},
    {"norm": "L2", "eps": 0.5, "eval_epsilons": ["0", "0.5"], "attack_random_start": True},
    {"norm": "L1", "eps": 5, "eval_epsilons": ["0", "5"]},
    {"memory_format": "channels_last"},
    {"attacked_share": 0.5},
    {"attack_warm_start": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["-".join(map(str, next(iter(each.items())))) for each in SETTINGS])
def test_what_is_set_for_classifiers_holds_for_detectors(build, settings):
    trainer = build(detr(), eps_schedule="constant", max_steps=1, **settings)
    before = weights(trainer.model)
    trainer.train()
    changed = [name for name, value in weights(trainer.model).items() if not torch.equal(value, before[name])]
    assert changed
    if settings.get("freeze") == "backbone":
        assert not any("backbone" in name for name in changed)


# ---- Task ----------------------------------------------------------------------------


def test_the_class_of_a_model_says_its_task():
    assert TASKS["object-detection"] is ObjectDetection
    assert all(task_of(make()).name == "object-detection" for make in DETECTORS.values())
    assert task_of(torch.nn.DataParallel(yolos())).name == "object-detection"


def test_a_detector_of_one_class_trains(build, data):
    one = [{**each, "labels": {**each["labels"], "class_labels": each["labels"]["class_labels"] * 0}} for each in data]
    trainer = build(yolos(num_labels=1), train_dataset=one, eps_schedule="constant")
    trainer.train()
    assert trainer.state.global_step == 2


REFUSED = [
    ({"objective": "trades", "attack_random_start": True}, "objective='trades' compares answers of one class"),
    ({"attack_loss": "dlr"}, "attack_loss='dlr' is of classes"),
    ({"eps_schedule": "per_sample"}, "a detection model and eps_schedule='per_sample' exclude each other"),
    ({"attack_guard": 0.5, "attack_steps_schedule": "hinge"}, "a detection model and attack_guard=0.5 exclude each"),
    ({"eval_attack_steps": "auto"}, "a detection model and eval_attack_steps='auto' exclude each other"),
    ({"eval_protocol": "reliable", "eval_attack_steps": None}, "a detection model and eval_protocol='reliable'"),
    ({"label_smoothing_factor": 0.1}, "a detection model and label_smoothing_factor=0.1 exclude each other"),
    ({"mixup_alpha": 1.0}, "a detection model and mixup_alpha=1.0 exclude each other: it mixes the labels"),
    ({"torch_compile": True}, "a detection model and torch_compile=True exclude each other: the matching"),
    ({"push_to_hub": True}, "a detection model and push_to_hub=True exclude each other"),
    ({"metric_for_best_model": "eval_clean_accuracy", "eval_strategy": "epoch"}, "loss, clean_map"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=[next(iter(each)) for each, _ in REFUSED])
def test_what_means_nothing_with_boxes_is_refused(build, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(**changes)


def test_a_loss_that_the_attack_would_not_climb_is_refused(build, make_args, data):
    with pytest.raises(ValueError, match=r"compute_loss_func exclude each other.*model\.loss_function"):
        AdversarialTrainer(
            model=yolos(), args=make_args(), train_dataset=data, pixel_space=SPACE, data_collator=stack_boxes,
            compute_loss_func=lambda outputs, labels, num_items_in_batch=None: outputs.loss,
        )  # fmt: skip


def test_a_classifier_is_not_attacked_by_a_detectors_loss(build, make_model):
    with pytest.raises(ValueError, match="'set_loss' is a detection model's own, and this is a classifier"):
        build(make_model("vit"), attack_loss="set_loss")


def first_with(data, **labels):
    return [{**data[0], "labels": {**data[0]["labels"], **labels}}, *data[1:]]


NONE = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
BAD = [
    (lambda data: first_with(data, class_labels=data[0]["labels"]["class_labels"] * 0 + CLASSES), r"in 0..3-1, got 3"),
    (lambda data: first_with(data, boxes=data[0]["labels"]["boxes"] * 32), "as shares of the image, within it"),
    (lambda data: first_with(data, boxes=data[0]["labels"]["boxes"] * 0), "larger than nothing"),
    (lambda data: first_with(data, class_labels=torch.zeros(7, dtype=torch.long)), r"boxes float \(n, 4\), got"),
    (lambda data: [{**each, "labels": {"boxes": torch.zeros(0, 4)}} for each in data], "must hold 'class_labels'"),
    (lambda data: [{**each, "labels": NONE} for each in data], "No image of this batch has a box"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), BAD)
def test_boxes_that_nothing_can_be_learnt_from_are_refused_before_the_first_step(build, data, change, sentence):
    trainer = build(train_dataset=change(data), per_device_train_batch_size=8)
    with pytest.raises(ValueError, match=sentence):
        trainer.train()
    assert trainer.state.global_step == 0


def test_an_image_without_boxes_is_learnt_from_and_attacked_with_others(build, data):
    some = [{**data[0], "labels": NONE}, *data[1:]]
    trainer = build(rt_detr(), train_dataset=some, eps_schedule="constant", per_device_train_batch_size=8)
    trainer.train()
    assert trainer.state.global_step == 1


# ---- Evaluation ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt(data):
    """A DETR that has begun to learn the squares: some are found, and an attack hides some."""
    return fitted(detr(auxiliary_loss=False), data, steps=40)


def test_evaluate_gives_what_evaluate_detection_measures(build, data, learnt):
    trainer = build(copy.deepcopy(learnt), eval_epsilons=["0", "16/255", "32/255"], eps="32/255", eval_attack_steps=3)
    metrics = trainer.evaluate()
    report = evaluate_detection(
        learnt, data, threat_model=ThreatModel("Linf", "32/255"), epsilons=["0", "16/255", "32/255"], attack_steps=3,
        batch_size=4, progress=False,
    )  # fmt: skip
    for name in ObjectDetection.metrics:
        assert metrics[f"eval_{name}"] == getattr(report, name), name
    ours = trainer.robustness_report
    assert (ours.maps, ours.losses, ours.image_hashes) == (report.maps, report.losses, report.image_hashes)
    assert ours.attack == report.attack and ours.metadata.training["attack_loss"] == "set_loss"
    assert metrics["eval_adversarial_map"] < metrics["eval_clean_map"]


def test_without_a_robust_evaluation_only_clean_scores_are_measured(build, learnt):
    metrics = build(copy.deepcopy(learnt), robust_eval="no").evaluate()
    assert metrics["eval_clean_map"] > 0 and metrics["eval_clean_map_50"] >= metrics["eval_clean_map"]
    assert not any("adversarial" in name for name in metrics)


def test_the_best_checkpoint_is_told_by_what_of_boxes_is_measured_under_attack(build, learnt):
    trainer = build(
        copy.deepcopy(learnt), robust_eval="epoch", eval_strategy="epoch", save_strategy="epoch", num_train_epochs=2,
        metric_for_best_model="adversarial_map_50", load_best_model_at_end=True,
    )  # fmt: skip
    trainer.train()
    measured = logged(trainer, "eval_adversarial_map_50")
    assert len(measured) == 2 and trainer.state.best_metric == max(measured)


def test_what_measures_map_is_asked_for_before_training(build, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'hf_robust_ft\[detection\]'"):
        build(eval_strategy="epoch")


def test_pushing_is_refused_by_name_and_the_card_says_that_figures_are_experimental(build, learnt, tmp_path):
    trainer = build(copy.deepcopy(learnt), output_dir=str(tmp_path))
    trainer.evaluate()
    with pytest.raises(ValueError, match="push_to_hub: detection models are not published"):
        trainer.push_to_hub()
    trainer.create_model_card()
    report = DetectionReport.from_json(tmp_path / "robustness_report.json")
    assert report.maps == trainer.robustness_report.maps and "Experimental" in report.limits
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: object-detection" in card and report.limits.partition(":")[2] in card
    assert (tmp_path / "accuracy_eps_curve.png").is_file() and f"{100 * report.expected_map:.2f} %" in card
