import pytest

from hf_robust_ft.runs.arguments import DataArguments, ModelArguments
from hf_robust_ft.runs.fine_tune import prepare_run
from hf_robust_ft.runs.task_arguments import CLASSIFICATION, SEGMENTATION
from hf_robust_ft.runs.tasks import TASKS


@pytest.mark.parametrize("name", ["segmentation", "semantic-segmentation", "image-segmentation"])
def test_the_task_goes_by_the_hubs_name_and_in_short(name):
    assert DataArguments("photos", task=name).settle_task("nvidia/mit-b0", "photos") == SEGMENTATION


def test_the_task_is_found_from_the_embedded_data_or_the_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["SegformerForSemanticSegmentation"]}')
    assert DataArguments("digits_scenes").settle_task("efficientnet_lite0", "digits_scenes") == SEGMENTATION
    assert DataArguments("photos").settle_task(str(tmp_path), "photos") == SEGMENTATION
    (tmp_path / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    for model in ("efficientnet_lite0", "swin", str(tmp_path), "timm/resnet18.a1_in1k"):
        found = DataArguments("digits")
        assert found.settle_task(model, "digits") == CLASSIFICATION and found.task is None


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match=r"depth-estimation.*object-detection"):
        DataArguments("photos", task="depth-estimation")


@pytest.mark.parametrize(
    "task, dataset, own",
    [
        ("classification", "digits_scenes", "image-segmentation"),
        ("detection", "digits_scenes", "image-segmentation"),
        ("segmentation", "digits_boxes", "object-detection"),
        ("classification", "digits_boxes", "object-detection"),
    ],
)
def test_embedded_data_of_another_task_is_refused(task, dataset, own):
    with pytest.raises(ValueError, match=f"{dataset} is embedded data of {own}, and this is .*{task}.*--task {own}"):
        DataArguments(dataset, task=task).settle_task("efficientnet_lite0", dataset)


@pytest.mark.parametrize(
    "task, dataset, changes, message",
    [
        ("segmentation", "digits_scenes", {"objective": "mart"}, "objective='mart'"),
        ("segmentation", "digits_scenes", {"attack_loss": "dlr"}, "attack_loss='dlr'"),
        ("detection", "digits_boxes", {"objective": "trades", "attack_random_start": True}, "objective"),
    ],
)
def test_training_arguments_of_classifiers_are_refused_before_anything_is_loaded(
    task, dataset, changes, message, monkeypatch, make_args
):
    for kind in TASKS.values():
        monkeypatch.setattr(type(kind), "load_data", lambda self, *given: pytest.fail("data were loaded"))
    model = ModelArguments("efficientnet_lite0", image_size=64, augmentation="none")
    with pytest.raises(ValueError, match=message):
        prepare_run(model, DataArguments(dataset, task=task), make_args(**changes))


@pytest.mark.parametrize("option", [{"reduce_labels": True}, {"ignore_index": 0}, {"id2label": "names.json"}])
def test_options_of_masks_mean_nothing_for_a_classifier(option):
    with pytest.raises(ValueError, match=f"--{next(iter(option))} is about masks"):
        DataArguments("digits", **option).settle_task("swin", "digits")


@pytest.mark.parametrize(
    "model, data, message",
    [
        ({"architecture": "timm/resnet18"}, {}, "--architecture is for image-classification"),
        ({"prompts": ["a {}."]}, {}, "--prompts is for image-classification"),
        ({"head": "zero_shot"}, {}, "head"),
        ({}, {"streaming": True}, "--streaming is for image-classification"),
    ],
)
def test_options_of_classifiers_are_refused_by_name(model, data, message):
    with pytest.raises(ValueError, match=message):
        TASKS[SEGMENTATION].check(ModelArguments("efficientnet_lite0", **model), DataArguments("photos", **data))


def test_crops_are_of_masks_alone():
    arguments = ModelArguments("swin", augmentation="crop"), DataArguments("digits")
    TASKS[SEGMENTATION].check(*arguments)
    with pytest.raises(ValueError, match="augmentation"):
        TASKS[CLASSIFICATION].check(*arguments)


@pytest.mark.parametrize("command", ["search", "diagnose"])
def test_commands_that_know_classifiers_alone_say_so(command):
    with pytest.raises(ValueError, match=f"{command} is for image-classification, and this is image-segmentation"):
        DataArguments("digits_scenes").refuse_other_tasks(command, "efficientnet_lite0", "digits_scenes")
