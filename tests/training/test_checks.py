import pytest
import torch
from conftest import NUM_CLASSES
from datasets import Dataset
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ImageGPTImageProcessor,
    TrainingArguments,
)

from hf_robust_ft import AdversarialTrainer, EpsilonSchedulerCallback, PixelSpace
from hf_robust_ft.attacks.batch_checks import check_labels as check_batch_labels
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.training.checks import check_sharded


@pytest.fixture
def build(make_model, make_args, dataset, processor):
    def make(**changes):
        settings = {
            "model": make_model(),
            "args": make_args(),
            "train_dataset": dataset,
            "eval_dataset": dataset,
            "processing_class": processor,
            "data_collator": stack_examples,
        }
        return AdversarialTrainer(**(settings | changes))

    return make


def test_plain_training_arguments_are_refused_with_the_cure(build, make_args):
    with pytest.raises(TypeError, match="replace TrainingArguments"):
        build(args=make_args(TrainingArguments))


def test_a_missing_processor_is_refused_and_a_pixel_space_serves(build):
    ready = [{"pixel_values": torch.zeros(3, 16, 16), "labels": label} for label in range(4)]
    with pytest.raises(ValueError, match=r"processing_class=AutoImageProcessor"):
        build(processing_class=None, train_dataset=ready, eval_dataset=ready)
    space = PixelSpace((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    assert build(processing_class=None, pixel_space=space).pixel_space == space


def test_a_processor_that_is_no_map_is_refused(build):
    with pytest.raises(ValueError, match="its normalisation is unknown"):
        build(processing_class=ImageGPTImageProcessor())


def test_reentrant_checkpointing_is_refused(build, make_args, make_model):
    args = make_args(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match="'use_reentrant': False"):
        build(args=args)
    model = make_model()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match="'use_reentrant': False"):
        build(model=model)


def test_zero_3_from_a_launcher_is_refused(build, make_args):
    args = make_args()
    args.deepspeed_plugin = type("Plugin", (), {"zero_stage": 3})()
    with pytest.raises(ValueError, match="ZeRO-3"):
        build(args=args)


def test_doubled_steps_are_refused_under_fsdp_before_training(make_args):
    args = make_args(eval_attack_steps="auto")
    check_sharded(args, is_fsdp_enabled=False)
    with pytest.raises(ValueError, match=r"eval_attack_steps='auto'.*give a number of steps"):
        check_sharded(args, is_fsdp_enabled=True)
    for never in ({"robust_eval": "no"}, {"eps": "0", "eval_epsilons": None}, {"eval_attack_steps": "20"}):
        assert check_sharded(make_args(**{"eval_attack_steps": "auto", **never}), is_fsdp_enabled=True) is None


@pytest.mark.parametrize("metric", ["eval_b_accuracy", "eval_c_loss", "clean_accuracy", "loss"])
def test_a_best_metric_that_no_eval_set_gives_is_refused(build, make_args, dataset, metric):
    args = make_args(metric_for_best_model=metric, eval_strategy="epoch")
    with pytest.raises(ValueError, match=rf"{metric}.*several eval_datasets.*eval_a_loss.*eval_b_clean_accuracy"):
        build(args=args, eval_dataset={"a": dataset, "b": dataset})


@pytest.mark.parametrize("metric", ["b_loss", "eval_a_clean_accuracy", "eval_b_adversarial_accuracy"])
def test_a_best_metric_of_one_eval_set_is_taken(build, make_args, dataset, metric):
    args = make_args(metric_for_best_model=metric, eval_strategy="epoch", robust_eval="epoch", num_train_epochs=1)
    trainer = build(args=args, eval_dataset={"a": dataset, "b": dataset})
    trainer.train()
    name = f"eval_{metric.removeprefix('eval_')}"
    assert [trainer.state.best_metric] == [logged[name] for logged in trainer.state.log_history if name in logged]


def test_a_best_metric_of_ones_own_is_taken(build, make_args, dataset):
    args = make_args(metric_for_best_model="eval_a_f1", eval_strategy="epoch", num_train_epochs=1)
    trainer = build(args=args, eval_dataset={"a": dataset}, compute_metrics=lambda prediction: {"f1": 0.25})
    trainer.train()
    assert trainer.state.best_metric == 0.25


@pytest.mark.parametrize("metric", ["adversarial_accuracy", "eval_b_adversarial_accuracy", "b_expected_robustness"])
@pytest.mark.parametrize("changes", [{}, {"robust_eval": "epoch", "eps": "0", "eval_epsilons": None}])
def test_a_robust_best_metric_needs_robust_evaluations(make_args, metric, changes):
    with pytest.raises(ValueError, match="robust_eval='epoch' and eps above 0"):
        make_args(metric_for_best_model=metric, eval_strategy="epoch", **changes)


def test_a_lazy_transform_needs_its_columns(build, make_args):
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        build(args=make_args(remove_unused_columns=True))


def test_a_dataset_without_pixel_values_is_refused(build, make_args, images):
    with pytest.raises(ValueError, match="no 'pixel_values'"):
        build(args=make_args(remove_unused_columns=True), train_dataset=images)


def test_a_batch_without_pixel_values_is_refused_at_the_first_step(build):
    rows = Dataset.from_dict({"x": [[0.0]] * 8, "labels": [0, 1] * 4})
    trainer = build(train_dataset=rows, data_collator=lambda rows: {"x": torch.zeros(len(rows)), "labels": rows})
    with pytest.raises(ValueError, match="must hold 'pixel_values' and 'labels'"):
        trainer.train()


def test_one_class_is_refused(build, dataset, make_model):
    only_red = dataset.select([0, 4, 8, 12])
    with pytest.raises(ValueError, match="one class only"):
        build(train_dataset=only_red)
    with pytest.raises(ValueError, match="nothing to confuse it with"):
        build(model=make_model(num_labels=1))


def test_several_labels_an_image_are_refused_and_told_apart_from_shares(build, make_model):
    model = make_model()
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match=r"Several labels an image.*problem_type='multi_label"):
        build(model=model)
    several, shares = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[0.3, 0.7, 0.0]])
    with pytest.raises(ValueError, match="Several labels an image"):
        check_batch_labels(several, 1, 3)
    with pytest.raises(ValueError, match="mixup"):
        check_batch_labels(shares, 1, 3)


def test_a_model_without_a_loss_is_refused_with_the_one_that_has_it(build):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = DeiTForImageClassificationWithTeacher(DeiTConfig(**small, image_size=8, patch_size=4))
    with pytest.raises(ValueError, match=r"takes no labels.*Load DeiTForImageClassification "):
        build(model=model)


@pytest.mark.parametrize("labels", [[0, -100, 1], [0, -1, 2], [0, 1, NUM_CLASSES]])
def test_labels_out_of_range_are_refused_before_training(build, labels):
    rows = Dataset.from_dict({"pixel_values": [[0.0]] * 3, "labels": labels})
    with pytest.raises(ValueError, match=r"class indices in 0\.\.4-1, found"):
        build(train_dataset=rows)
    with pytest.raises(ValueError, match=r"class indices in 0\.\.4-1, found"):
        build(eval_dataset={"one": rows})


def test_another_normalisation_is_refused_at_the_first_step(build, dataset):
    class Doubled(torch.utils.data.Dataset):
        def __len__(self):
            return len(dataset)

        def __getitem__(self, index):
            example = dataset[index]
            return {**example, "pixel_values": 2 * example["pixel_values"]}

    with pytest.raises(ValueError, match="are not the image processor's normalisation"):
        build(train_dataset=Doubled()).train()
    with pytest.raises(ValueError, match="are not the image processor's normalisation"):
        build(eval_dataset=Doubled()).evaluate()


def test_two_schedulers_are_refused(build):
    with pytest.raises(ValueError, match="at most one EpsilonSchedulerCallback, got 2"):
        build(callbacks=[EpsilonSchedulerCallback("8/255"), EpsilonSchedulerCallback("8/255")])
    trainer = build()
    trainer.add_callback(EpsilonSchedulerCallback("8/255"))
    with pytest.raises(ValueError, match="exactly one EpsilonSchedulerCallback, found 2"):
        _ = trainer.current_eps


def test_a_scheduler_with_another_target_is_refused(build):
    with pytest.raises(ValueError, match="leads to eps=4/255, but the arguments say eps=8/255"):
        build(callbacks=[EpsilonSchedulerCallback("4/255")])


def test_a_users_scheduler_is_the_one_in_force(build):
    callback = EpsilonSchedulerCallback("8/255", "constant")
    trainer = build(callbacks=[callback])
    assert trainer.scheduler_callback is callback and trainer.current_eps == 8 / 255


def test_a_model_without_logits_is_refused_at_the_first_step(build):
    class Headless(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, pixel_values, labels=None):
            return {"loss": (self.scale * pixel_values).mean(), "last_hidden_state": pixel_values}

    with pytest.raises(ValueError, match="returned no logits"):
        build(model=Headless()).train()
