"""Training a segmentation model under attack: Trainer's own loss on other pixels, as for a classifier."""

import copy
import json
from pathlib import Path

import pytest
import torch
from conftest import assert_same_weights, weights
from dense_training import FOLLOWING, builder, check_attacks, logged
from tiny_segmenters import CLASSES, IGNORED, SIZE, scenes, segformer, upernet
from transformers import AutoModelForSemanticSegmentation, Trainer

from hf_robust_ft import SCHEDULES, AdversarialTrainer, ThreatModel
from hf_robust_ft.evaluation.segmentation.evaluate import evaluate_segmentation
from hf_robust_ft.evaluation.segmentation.reliability import CHECKS
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.training.adversary import Adversary
from hf_robust_ft.training.tasks import TASKS, ImageSegmentation, task_of

MAKERS = {"segformer": segformer, "upernet": upernet}


@pytest.fixture(scope="module")
def data():
    return scenes()


@pytest.fixture
def build(make_args, data):
    return builder(make_args, data, segformer)


@pytest.mark.parametrize("changes", [{}, {"bf16": True}], ids=["plain", "bf16"])
@pytest.mark.parametrize("kind", MAKERS)
def test_at_eps_zero_training_is_bitwise_the_plain_trainers(build, kind, changes):
    make = segformer if kind == "segformer" else upernet
    dropout = {"dropout": 0.1} if kind == "segformer" else {}
    both = []
    for trainer_cls in (AdversarialTrainer, Trainer):
        trainer = build(make(**dropout), trainer_cls, eps=0, eval_epsilons=None, batch_norm="trainer", **changes)
        trainer.train()
        both.append((weights(trainer.model), logged(trainer, "loss")))
    assert_same_weights(both[0][0], both[1][0])
    assert both[0][1] == both[1][1]


@pytest.mark.parametrize("kind", MAKERS)
def test_each_image_is_attacked_inside_its_ball_and_the_model_trains_on_what_was_found(build, monkeypatch, kind):
    check_attacks(build(MAKERS[kind](), eps_schedule="constant"), monkeypatch, count=4)


def test_the_attack_climbs_the_models_own_loss(build, data):
    """Of SegFormer, whose loss is cross-entropy over the labelled pixels: no loss of its own beside it."""
    trainer = build(eps_schedule="constant", attack_steps=4)
    batch = {name: torch.stack([each[name] for each in data[:4]]) for name in data[0]}
    model = trainer.model.eval()
    result = trainer.adversary.attack(
        model, batch, trainer.args.threat_model, eps=0.1, attack=trainer.args.train_attack
    )
    with torch.no_grad():
        own = [
            float(model(pixel_values=pixels, labels=batch["labels"]).loss)
            for pixels in (batch["pixel_values"], result.adversarial)
        ]
    assert own[1] > own[0] and own[1] == pytest.approx(float(result.loss.mean()), rel=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_schedule_asks_what_a_label_is(build, data, schedule):
    granularity = {"schedule_granularity": "step"} if schedule not in ("auto", "loss_driven", "per_sample") else {}
    changes = {"schedule_args": {"a": 2.0, "b": 2.0}} if schedule == "beta" else {}
    numbered = [{**example, "sample_id": number} for number, example in enumerate(data)]
    trainer = build(
        train_dataset=numbered if schedule == "per_sample" else None, eps_schedule=schedule, num_train_epochs=2,
        **granularity, **changes, **FOLLOWING.get(schedule, {}),
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 8


def test_trades_is_the_loss_on_images_plus_beta_times_the_mean_divergence_of_labelled_pixels(build, data, monkeypatch):
    trainer = build(objective="trades", objective_beta=2.0, attack_loss="kl", attack_random_start=True,
                    eps_schedule="constant", max_steps=1, batch_norm="frozen")  # fmt: skip
    kept = {}
    attack = Adversary.attack

    def watched(self, model, inputs, *args, **kwargs):
        result = attack(self, model, inputs, *args, **kwargs)
        if self.is_ready:
            kept.update(inputs=inputs, adversarial=result.adversarial, model=copy.deepcopy(model).eval())
        return result

    monkeypatch.setattr(Adversary, "attack", watched)
    trainer.train()
    assert trainer.args.attack_loss == "pixel_kl"
    labels = kept["inputs"]["labels"]
    with torch.no_grad():
        clean = kept["model"](pixel_values=kept["inputs"]["pixel_values"], labels=labels)
        after = kept["model"](pixel_values=kept["adversarial"])
    up = lambda logits: torch.nn.functional.interpolate(logits, size=(SIZE, SIZE), mode="bilinear").log_softmax(1)  # noqa: E731
    p, q = up(clean.logits), up(after.logits)
    divergence = (p.exp() * (p - q)).sum(1)[labels != IGNORED].mean()
    assert logged(trainer, "loss_kl")[0] == pytest.approx(float(divergence), rel=1e-3)
    assert logged(trainer, "loss")[0] == pytest.approx(float(clean.loss + 2 * divergence), rel=1e-3)


def test_what_the_attack_achieves_reaches_the_step_that_learns(build):
    trainer = build(eps_schedule="constant", batch_norm="frozen", logging_strategy="steps")
    trainer.train()
    assert logged(trainer, "attack_loss_seen") == pytest.approx([1.0] * 4, rel=1e-3)


def test_the_guard_falls_back_to_all_steps_for_masks_too(build):
    trainer = build(
        eps_schedule="constant", attack_guard=0.5, attack_guard_every=1, attack_steps=2, attack_steps_schedule="none"
    )
    trainer.train()
    assert trainer.overfitting_guard.checked_at is not None


def test_accumulated_batches_are_one_batch_where_each_has_as_many_labelled_pixels(build, data):
    """SegFormer's loss is a mean over the labelled pixels of a batch, and Trainer's the mean over its batches."""
    both = []
    for size, accumulated in ((8, 1), (4, 2)):
        trainer = build(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            eps_schedule="constant",
            max_steps=1,
            batch_norm="frozen",
        )
        trainer.train()
        both.append(weights(trainer.model))
    assert all(torch.allclose(both[0][name], both[1][name], atol=1e-5) for name in both[0])


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_stopped(build, tmp_path):
    whole = build(output_dir=str(tmp_path / "whole"), save_strategy="steps", save_steps=2, schedule_granularity="step")
    whole.train()
    resumed = build(
        output_dir=str(tmp_path / "whole"), save_strategy="steps", save_steps=2, schedule_granularity="step"
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same_weights(whole.model, resumed.model)
    state = json.loads(Path(tmp_path, "whole", "checkpoint-4", "trainer_state.json").read_text())
    assert state["global_step"] == 4


def test_a_checkpoint_is_a_plain_model_of_transformers(build, tmp_path):
    trainer = build(eps_schedule="constant")
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved")
    assert_same_weights(loaded, trainer.model)


# ---- Tasks ---------------------------------------------------------------------------


def test_the_table_holds_each_task_by_the_hubs_name():
    assert list(TASKS) == ["image-classification", "image-segmentation", "object-detection"]
    assert all(task.name == name and len(task.metrics) >= 3 for name, task in TASKS.items())


def test_the_class_of_a_model_says_its_task_and_what_its_loss_leaves_out(make_model):
    assert task_of(segformer()) == ImageSegmentation(255) == task_of(upernet())
    assert task_of(make_model("vit")).name == "image-classification"
    model = segformer()
    model.config.semantic_loss_ignore_index = 0
    assert task_of(torch.nn.DataParallel(model)).ignore_index == 0

    class Own(type(model)):
        pass

    assert task_of(Own(model.config)).name == "image-segmentation"


def test_a_model_of_query_masks_is_refused_by_name(build):
    from transformers import Mask2FormerForUniversalSegmentation

    model = object.__new__(Mask2FormerForUniversalSegmentation)
    torch.nn.Module.__init__(model)
    with pytest.raises(ValueError, match="Mask2FormerForUniversalSegmentation answers with masks of queries"):
        build(model)


REFUSED = [
    ({"objective": "mart"}, "objective='mart' is of one answer an image"),
    ({"objective": "pmg_aft"}, "objective='pmg_aft' is of one answer an image"),
    ({"attack_loss": "dlr"}, "attack_loss='dlr' is of one label an image"),
    ({"label_smoothing_factor": 0.1}, "a segmentation model and label_smoothing_factor=0.1 exclude each other"),
    ({"cutmix_alpha": 1.0}, "a segmentation model and cutmix_alpha=1.0 exclude each other: it mixes the labels"),
    ({"twins_lambda": 1.0, "batch_norm": "trainer"}, "a segmentation model and twins_lambda=1.0 exclude each other"),
    (
        {"eval_protocol": "reliable", "eval_attack_steps": None, "eval_attack_steps_limit": 40},
        "a segmentation model and eval_attack_steps_limit=40 exclude each other",
    ),
    ({"eval_attack_steps": "auto"}, "a segmentation model and eval_attack_steps='auto' exclude each other"),
    ({"metric_for_best_model": "eval_clean_accuracy", "eval_strategy": "epoch"}, "loss, clean_pixel_accuracy"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=[next(iter(each)) for each, _ in REFUSED])
def test_what_means_nothing_with_one_label_a_pixel_is_refused(build, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(**changes)


def test_a_classifier_is_not_attacked_by_a_loss_of_pixels(build, make_model):
    with pytest.raises(ValueError, match="'segpgd' is of one label a pixel, and a classifier has one an image"):
        build(make_model("vit"), attack_loss="segpgd")


def with_labels(data, change):
    return [{**each, "labels": change(each["labels"].clone())} for each in data]


def put(value):
    def change(labels):
        labels[5, 5] = value
        return labels

    return change


BAD = [
    (put(CLASSES), r"Masks must hold class indices in 0..4-1 or 255 \(ignored\), got 4"),
    (put(-100), "got -100"),
    (lambda labels: torch.full_like(labels, IGNORED), "has no labelled pixel: all are 255"),
    (lambda labels: labels.to(torch.uint8), "got torch.uint8 of shape"),
    (lambda labels: labels[None], r"take a channel axis out with .squeeze\(1\)"),
    (lambda labels: labels[0, 0] * 0, "AutoModelForImageClassification"),
    (lambda labels: labels[:16], "The masks are 16 x 32 pixels and the images 32 x 32"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), BAD)
def test_masks_that_nothing_can_be_learnt_from_are_refused_before_the_first_step(build, data, change, sentence):
    trainer = build(train_dataset=with_labels(data, change))
    with pytest.raises(ValueError, match=sentence):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_classifier_given_masks_says_which_model_takes_them(build, make_model):
    with pytest.raises(ValueError, match="for these load the model with AutoModelForSemanticSegmentation"):
        build(make_model("vit"), train_dataset=scenes(4, size=16)).train()


def test_masks_of_half_the_size_train_where_the_models_loss_resizes_and_are_refused_where_not(build, data):
    half = with_labels(data, lambda labels: labels[::2, ::2])
    trainer = build(train_dataset=half, eps_schedule="constant")
    trainer.train()
    assert trainer.state.global_step == 4
    with pytest.raises(ValueError, match="the loss of UperNetForSemanticSegmentation does not take them"):
        build(upernet(), train_dataset=half).train()


# ---- Evaluation ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt(data):
    """A SegFormer that has learnt the scenes: most pixels are right, and an attack brings some down."""
    model = segformer()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    batch = {name: torch.stack([each[name] for each in data]) for name in data[0]}
    for _ in range(25):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def test_evaluate_gives_what_evaluate_segmentation_measures(build, data, learnt):
    settings = {"eval_epsilons": ["0", "8/255", "16/255"], "eps": "16/255", "eval_attack_steps": 3}
    trainer = build(copy.deepcopy(learnt), per_device_eval_batch_size=4, eval_dataset=data[:6], **settings)
    metrics = trainer.evaluate()
    report = evaluate_segmentation(
        learnt, data[:6], threat_model=ThreatModel("Linf", "16/255"), epsilons=["0", "8/255", "16/255"],
        attack_steps=3, checks=False, batch_size=4, progress=False,
    )  # fmt: skip
    for name in ImageSegmentation.metrics:
        assert metrics[f"eval_{name}"] == pytest.approx(getattr(report, name), abs=1e-9), name
    ours = trainer.robustness_report
    assert (ours.pixel_accuracies, ours.mean_ious) == (report.pixel_accuracies, report.mean_ious)
    assert ours.image_hashes == report.image_hashes and ours.attacks == report.attacks
    assert metrics["eval_clean_pixel_accuracy"] > 0.6
    assert metrics["eval_adversarial_pixel_accuracy"] < metrics["eval_clean_pixel_accuracy"]
    assert [check["name"] for check in ours.checks] == list(CHECKS)
    assert metrics["eval_reliable"] in (0.0, 1.0) and ours.metadata.training["attack_loss"] == "pixel_ce"


def test_without_a_robust_evaluation_only_clean_scores_are_measured(build, learnt):
    metrics = build(copy.deepcopy(learnt), robust_eval="no").evaluate()
    assert metrics["eval_clean_pixel_accuracy"] > 0.6 and metrics["eval_clean_mean_iou"] > 0
    assert not any("adversarial" in name for name in metrics)


def test_the_best_checkpoint_is_told_by_what_of_masks_is_measured_under_attack(build, learnt):
    trainer = build(
        copy.deepcopy(learnt), robust_eval="epoch", eval_strategy="epoch", save_strategy="epoch", num_train_epochs=2,
        metric_for_best_model="adversarial_mean_iou", load_best_model_at_end=True,
    )  # fmt: skip
    trainer.train()
    measured = logged(trainer, "eval_adversarial_mean_iou")
    assert len(measured) == 2 and trainer.state.best_metric == max(measured)


def test_the_reliable_protocol_is_the_worst_case_over_seas_losses(build):
    trainer = build(eval_protocol="reliable", eval_attack_steps=None)
    assert len(trainer.task.evaluation(trainer, None).settings.attacks) == 4


def test_a_report_a_card_and_overlays_go_beside_the_checkpoint(build, learnt, tmp_path, rendered_pictures):
    trainer = build(copy.deepcopy(learnt), eval_dataset=scenes(3), output_dir=str(tmp_path))
    trainer.evaluate()
    trainer.create_model_card()
    report = SegmentationReport.from_json(tmp_path / "robustness_report.json")
    assert report.pixel_accuracies == trainer.robustness_report.pixel_accuracies
    card = (tmp_path / "README.md").read_text()
    assert "image-segmentation" in card and "example_000.png" in card
    assert len(list(tmp_path.glob("examples/example_*.png"))) == 3


SETTINGS = [
    {"freeze": "backbone"},
    {"lora_rank": 2},
    {"memory_format": "channels_last"},
    {"awp_gamma": 0.005},
    {"ema_decay": 0.9},
    {"layer_decay": 0.7},
    {"attack_loss": "segpgd", "norm": "L2", "eps": 0.5, "eval_epsilons": ["0", "0.5"]},
    {"attack_loss": "js", "norm": "L1", "eps": 5, "eval_epsilons": ["0", "5"], "bf16": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["-".join(map(str, next(iter(each.items())))) for each in SETTINGS])
@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_set_for_classifiers_holds_for_segmenters(build, kind, settings):
    trainer = build(MAKERS[kind](), eps_schedule="constant", max_steps=1, **settings)
    before = weights(trainer.model)
    trainer.train()
    changed = [name for name, value in weights(trainer.model).items() if not torch.equal(value, before[name])]
    assert changed
    if settings.get("freeze") == "backbone":
        assert all("head" in name for name in changed)
