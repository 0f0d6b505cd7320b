from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_weights, weights
from datasets import Value
from huggingface_hub import ModelCard
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTImageProcessor

from hf_robust_ft import AdversarialTrainer, EpsilonSchedulerCallback, PixelSpace
from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.training.adversary import Adversary


def accuracy(prediction):
    return {"accuracy": float(np.mean(prediction.predictions.argmax(1) == prediction.label_ids))}


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize(
    "changes", [{}, {"label_smoothing_factor": 0.1}, {"bf16": True}], ids=["plain", "smooth", "bf16"]
)
def test_at_eps_zero_training_is_bitwise_the_plain_trainers(make_trainer, make_model, make_args, kind, changes):
    ours = make_trainer(make_model(kind, dropout=0.1), eps="0", eval_epsilons=None, batch_norm="trainer", **changes)
    ours.train()
    args = make_args(TrainingArguments, **changes)
    plain = make_trainer(make_model(kind, dropout=0.1), trainer_cls=Trainer, args=args)
    plain.train()
    assert_same_weights(ours.model, plain.model)
    losses = [[entry["loss"] for entry in each.state.log_history if "loss" in entry] for each in (ours, plain)]
    assert losses[0] == losses[1]


def test_the_first_phase_of_a_hinge_is_bitwise_the_plain_trainers(make_trainer, make_model, make_args):
    class StopAfterEpoch(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    ours = make_trainer(make_model("resnet"), callbacks=[StopAfterEpoch()], batch_norm="trainer")
    plain = make_trainer(
        make_model("resnet"), trainer_cls=Trainer, args=make_args(TrainingArguments), callbacks=[StopAfterEpoch()]
    )
    ours.train()
    plain.train()
    assert ours.current_eps == 0
    assert_same_weights(ours.model, plain.model)


def test_only_the_pixels_are_exchanged_and_they_stay_in_the_ball(make_trainer, make_model, processor, monkeypatch):
    given, handed_on = [], []

    class Recording(AdversarialTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            given.append(inputs)
            return super().compute_loss(model, inputs, *args, **kwargs)

    monkeypatch.setattr(Trainer, "compute_loss", spying(Trainer.compute_loss, handed_on))
    make_trainer(make_model(), trainer_cls=Recording).train()
    space = PixelSpace.from_processor(processor)
    assert len(given) == len(handed_on) == 24
    for before, (eps, after) in zip(given, handed_on, strict=True):
        assert before.keys() == after.keys() and torch.equal(before["labels"], after["labels"])
        clean, adversarial = (space.to_pixels(each["pixel_values"]) for each in (before, after))
        distance = (clean - adversarial).abs().max().item()
        assert 0.5 * eps <= distance <= eps + 1e-6
        assert adversarial.min() > -1e-6 and adversarial.max() < 1 + 1e-6
    assert {eps > 0 for eps, _ in handed_on} == {True, False}


def spying(compute_loss, seen):
    def spy(self, model, inputs, *args, **kwargs):
        if model.training:
            seen.append((self.current_eps, inputs))
        return compute_loss(self, model, inputs, *args, **kwargs)

    return spy


def test_no_attack_runs_at_eps_zero(make_trainer, make_model, monkeypatch):
    budgets = []
    attack = Adversary.attack

    def spy(self, model, inputs, *args, eps, **options):
        result = attack(self, model, inputs, *args, eps=eps, **options)
        budgets.append((eps, len(result.adversarial)))
        return result

    monkeypatch.setattr(Adversary, "attack", spy)
    make_trainer(make_model()).train()
    probe, *steps = budgets
    assert probe == (8 / 255, 2)  # the rehearsal on two images of the first batch
    assert len(steps) == 3 * 6 and all(eps > 0 for eps, _ in steps)  # 4 epochs of 6 steps, the first at eps 0


def test_attack_leaves_batchnorm_dropout_modes_and_gradients_alone(make_trainer, make_model, dataset):
    trainer = make_trainer(make_model("resnet"), eps_schedule="constant")
    batch = stack_examples([dataset[index] for index in range(8)])
    trainer.model.train()
    before, modes = weights(trainer.model), [module.training for module in trainer.model.modules()]
    rng = torch.get_rng_state()
    attack = trainer.args.train_attack
    result = trainer.adversary.attack(trainer.model, batch, trainer.args.threat_model, eps=8 / 255, attack=attack)
    adversarial = trainer.adversary.exchange(batch, result)["pixel_values"]
    assert not torch.equal(adversarial, batch["pixel_values"])
    assert_same_weights(trainer.model, before)
    assert [module.training for module in trainer.model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in trainer.model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_accumulated_batches_equal_one_large_batch(make_trainer, make_model, kind):
    first, second = (
        make_trainer(
            make_model(kind),
            eps_schedule="constant",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.1,
            num_train_epochs=2,
        )
        for size, accumulation in ((8, 1), (1, 8))
    )
    first.train()
    second.train()
    for (name, one), other in zip(first.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=2e-5), name


def test_plain_trainer_scales_the_loss_of_a_resnet_wrongly(make_args, make_trainer, make_model):
    """The upstream trap that ours mends: accumulated batches are summed, not averaged."""

    def logged_loss(trainer_cls, args):
        trainer = make_trainer(make_model("resnet"), trainer_cls=trainer_cls, args=args)
        trainer.train()
        return trainer.state.log_history[0]["loss"]

    settings = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 0.0, "num_train_epochs": 1,
    }  # fmt: skip
    plain = logged_loss(Trainer, make_args(TrainingArguments, **settings))
    ours = logged_loss(AdversarialTrainer, make_args(eps="0", eval_epsilons=None, batch_norm="trainer", **settings))
    assert plain == pytest.approx(4 * ours, rel=1e-3)


def test_a_users_loss_function_keeps_trainers_own_scaling(make_trainer, make_model):
    def loss_function(outputs, labels, num_items_in_batch=None):
        loss = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
        return loss / num_items_in_batch

    runs = [
        make_trainer(
            make_model(),
            compute_loss_func=loss_function,
            eps_schedule="constant",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            num_train_epochs=1,
        )
        for size, accumulation in ((8, 1), (2, 4))
    ]
    for trainer in runs:
        trainer.train()
    for one, other in zip(*(trainer.model.state_dict().values() for trainer in runs), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_eps_is_in_every_log(make_trainer, make_model):
    received = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            received.append(dict(logs))

    trainer = make_trainer(make_model(), callbacks=[Tracker()], eval_strategy="epoch")
    trainer.train()
    trainer.evaluate()
    assert all("eps" in entry for entry in trainer.state.log_history)
    assert all("eps" in entry for entry in received) and len(received) == len(trainer.state.log_history)
    budgets = [entry["eps"] for entry in trainer.state.log_history if "loss" in entry]
    expected = [8 / 255 * alpha for alpha in (0, 0.02, 0.52, 1)]
    assert budgets == pytest.approx(expected)


@pytest.mark.parametrize(("robust_eval", "during", "after"), [("end", 0, 1), ("epoch", 4, 1), ("no", 0, 0)])
def test_robust_eval_says_when_evaluation_attacks(make_trainer, make_model, robust_eval, during, after):
    trainer = make_trainer(make_model(), robust_eval=robust_eval, eval_strategy="epoch", compute_metrics=accuracy)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(history) == 4
    for entry in history:
        assert entry["eval_clean_accuracy"] == entry["eval_accuracy"]
    assert sum("eval_expected_robustness" in entry for entry in history) == during
    metrics = trainer.evaluate()
    assert ("eval_adversarial_accuracy" in metrics) == bool(after)
    assert ("eval_expected_robustness" in metrics) == bool(after)


def test_evaluation_agrees_with_evaluate_robustness(make_trainer, make_model, dataset):
    from hf_robust_ft import evaluate_robustness

    trainer = make_trainer(make_model("resnet"), eps_schedule="constant", eval_epsilons=None)
    trainer.train()
    metrics = trainer.evaluate()
    report = evaluate_robustness(
        trainer.model,
        dataset,
        threat_model=trainer.args.threat_model,
        pixel_space=trainer.pixel_space,
        attack=trainer.args.eval_attack,
        batch_size=trainer.args.per_device_eval_batch_size,
        progress=False,
    )
    assert trainer.robustness_report.accuracies == report.accuracies
    assert len(report.epsilons) == 9
    assert metrics["eval_clean_accuracy"] == report.clean_accuracy
    assert metrics["eval_adversarial_accuracy"] == report.adversarial_accuracy
    assert metrics["eval_expected_robustness"] == report.expected_robustness
    assert report.adversarial_accuracy <= report.clean_accuracy


def test_several_evaluation_sets(make_trainer, make_model, dataset):
    trainer = make_trainer(make_model())
    trainer.eval_dataset = {"left": dataset, "right": dataset}
    metrics = trainer.evaluate()
    assert metrics["eval_left_expected_robustness"] == metrics["eval_right_expected_robustness"]


def test_predict_is_left_as_it_is(make_trainer, make_model, dataset):
    output = make_trainer(make_model()).predict(dataset)
    assert output.predictions.shape == (48, 4)
    assert not any("clean" in key or "robust" in key for key in output.metrics)


def test_evaluation_leaves_the_weights_alone(make_trainer, make_model):
    trainer = make_trainer(make_model("resnet"), eval_strategy="epoch", robust_eval="epoch")
    silent = make_trainer(make_model("resnet"))
    trainer.train()
    silent.train()
    assert_same_weights(trainer.model, silent.model)


def test_random_starts_depend_on_the_step_alone(make_trainer, make_model):
    def run(**changes):
        trainer = make_trainer(make_model(), attack_random_start=True, eps_schedule="constant", **changes)
        trainer.train()
        return trainer.model

    assert_same_weights(run(), run(eval_strategy="epoch", logging_strategy="steps", logging_steps=1))
    other = run(seed=1, data_seed=42)
    with pytest.raises(AssertionError):
        assert_same_weights(run(), other)


def test_activation_checkpointing_without_reentrance_changes_nothing(make_trainer, make_model):
    models = []
    for settings in (
        {},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
    ):
        trainer = make_trainer(make_model(), eps_schedule="constant", num_train_epochs=1, **settings)
        trainer.train()
        models.append(trainer.model)
    assert_same_weights(*models)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(make_trainer, make_model, monkeypatch, value):
    trainer = make_trainer(make_model(), eps_schedule="constant", save_strategy="steps", save_steps=2)
    compute_loss = Trainer.compute_loss

    def poisoned(self, model, inputs, *args, **kwargs):
        loss, outputs = compute_loss(self, model, inputs, *args, **kwargs)
        if self.state.global_step == 5:
            self.weights_before = weights(self.model)
            loss = loss * value
        return loss, outputs

    monkeypatch.setattr(Trainer, "compute_loss", poisoned)
    with pytest.raises(FloatingPointError, match=r"after step 5 \(eps 8/255\).*checkpoint-4"):
        trainer.train()
    assert_same_weights(trainer.model, trainer.weights_before)


def test_peft_model_trains_and_evaluates(make_trainer, make_model):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        make_model(), peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    )
    trainer = make_trainer(model, eps_schedule="constant", num_train_epochs=1)
    trainer.train()
    assert "eval_expected_robustness" in trainer.evaluate()


def test_a_model_init_is_accepted(make_model, make_args, dataset, processor):
    trainer = AdversarialTrainer(
        model_init=lambda: make_model(),
        args=make_args(num_train_epochs=2, eps_schedule="constant"),
        train_dataset=dataset,
        processing_class=processor,
        data_collator=stack_examples,
    )
    trainer.train()
    assert trainer.state.global_step == 12


def test_the_card_is_ours_once_robustness_is_measured(make_trainer, make_model):
    trainer = make_trainer(make_model(), eps_schedule="constant", num_train_epochs=1, eval_strategy="epoch")
    trainer.train()
    trainer.create_model_card(model_name="before")
    folder = Path(trainer.args.output_dir)
    assert "expected_robustness" not in (folder / "README.md").read_text()
    trainer.evaluate()
    trainer.create_model_card(model_name="After", tags="colours", finetuned_from="org/base", dataset_tags="org/data")
    card = ModelCard((folder / "README.md").read_text())
    assert card.data.base_model == "org/base" and card.data.datasets == ["org/data"] and "colours" in card.data.tags
    assert {result.metric_type for result in card.data.eval_results} == {
        "accuracy", "adversarial_accuracy", "expected_robustness",
    }  # fmt: skip
    assert (folder / "robustness_report.json").is_file() and "# After" in card.text
    trainer.create_model_card("en", tasks="image-classification", dataset=["beans"], dataset_tags=["a/b", "c/d"])
    data = ModelCard((folder / "README.md").read_text()).data
    assert (data.language, data.datasets, data.eval_results[0].dataset_name) == ("en", ["a/b"], "beans")


def test_weights_that_are_not_finite_never_replace_a_checkpoint(make_trainer, make_model):
    class Poison(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 11:  # the last step of the second epoch
                next(model.parameters()).data.fill_(float("nan"))

    trainer = make_trainer(make_model(), callbacks=[Poison()], save_strategy="epoch", save_total_limit=1)
    with pytest.raises(FloatingPointError, match=r"nothing was saved.*checkpoint-6"):
        trainer.train()
    saved = [path.name for path in Path(trainer.args.output_dir).iterdir() if path.name.startswith("checkpoint")]
    assert saved == ["checkpoint-6"]


@pytest.mark.parametrize("bad", [-100, 9])
def test_a_bad_label_in_a_later_batch_is_named(make_trainer, make_model, dataset, bad):
    class Mislabelled(torch.utils.data.Dataset):
        def __len__(self):
            return len(dataset)

        def __getitem__(self, index):
            return {**dataset[index], "labels": bad if index == 17 else dataset[index]["labels"]}

    trainer = make_trainer(make_model(), train_dataset=Mislabelled(), per_device_eval_batch_size=8)
    with pytest.raises(ValueError, match=rf"in 0\.\.4-1, got {bad}"):
        trainer.train()
    trainer.eval_dataset = Mislabelled()
    with pytest.raises(ValueError, match=rf"in 0\.\.4-1, got {bad}"):
        trainer.evaluate()


def test_labels_a_transform_remaps_are_its_own_business(make_trainer, make_model, images, processor):
    shifted = images.cast_column("label", Value("int64")).map(lambda row: {"label": row["label"] + 1})

    def transform(batch):
        pixel_values = processor([image.convert("RGB") for image in batch["image"]], return_tensors="pt")[
            "pixel_values"
        ]
        return {"pixel_values": list(pixel_values), "labels": [label - 1 for label in batch["label"]]}

    trainer = make_trainer(make_model(), train_dataset=shifted.with_transform(transform), num_train_epochs=2)
    trainer.train()
    assert trainer.state.global_step == 12


def test_evaluate_attacks_after_an_interrupted_training(make_trainer, make_model):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    trainer = make_trainer(make_model(), callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert "eval_expected_robustness" in trainer.evaluate()


def test_the_models_other_inputs_reach_the_attack(make_trainer, make_model, images):
    """24-pixel images for a 16-pixel ViT, which the plain Trainer takes with interpolate_pos_encoding."""
    large = ViTImageProcessor(size={"height": 24, "width": 24})

    def collate(examples):
        return {**stack_examples(examples), "interpolate_pos_encoding": True}

    trainer = make_trainer(
        make_model(),
        train_dataset=with_pixel_values(images, large),
        num_train_epochs=2,
        eps_schedule="constant",
        data_collator=collate,
        processing_class=large,
        eval_dataset=with_pixel_values(images, large),
    )
    trainer.train()
    assert trainer.evaluate()["eval_adversarial_accuracy"] <= 1


def test_a_search_over_eps_reaches_schedule_and_evaluation(make_trainer, make_model):
    trainer = make_trainer(make_model(), eps_schedule="constant", eval_epsilons=None)
    trainer.args.eps = "2/255"  # as hyperparameter_search sets it
    trainer.train()
    assert trainer.current_eps == 2 / 255 and trainer.evaluate() and trainer.robustness_report.epsilons[-1] == 2 / 255


def test_the_report_names_the_schedule_in_force(make_trainer, make_model):
    trainer = make_trainer(make_model(), callbacks=[EpsilonSchedulerCallback("8/255", "constant")])
    trainer.evaluate()
    assert trainer.robustness_report.metadata["training"]["eps_schedule"] == "constant"
