"""A normalisation that no argument gives is taken from what states it, and said; sources that differ are an error."""

import functools

import open_clip
import pytest
import timm
import torch
from datasets import Dataset
from torch import nn
from torchvision import transforms
from torchvision.transforms import v2
from transformers import CLIPConfig, CLIPForImageClassification, CLIPImageProcessor, ViTImageProcessor

from hf_robust_ft import AdversarialTrainer, PixelSpace
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.training.pixel_space_sources import find_pixel_space, stated_by_data, stated_by_model

MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
SPACE = PixelSpace(MEAN, STD)
CLIP = PixelSpace.from_processor(CLIPImageProcessor())
PLAIN = [{"pixel_values": torch.zeros(3, 16, 16), "labels": label} for label in range(4)]
compose = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
processor_of_script = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=MEAN, image_std=STD)


def by_global(batch):
    return {"pixel_values": [compose(image) for image in batch["image"]], "labels": batch["label"]}


def by_helper(batch):
    return by_global(batch)


def by_processor(batch):
    return {**processor_of_script(batch["image"], return_tensors="pt"), "labels": batch["label"]}


def by_closure():
    steps = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(MEAN), list(STD))])
    return lambda batch: {"pixel_values": [steps(image) for image in batch["image"]], "labels": batch["label"]}


def by_argument(steps, batch):
    return {"pixel_values": [steps(image) for image in batch["image"]], "labels": batch["label"]}


class Own:
    def __init__(self):
        self.steps = nn.Sequential(v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD))

    def __call__(self, batch):
        return {"pixel_values": [self.steps(image) for image in batch["image"]], "labels": batch["label"]}


TRANSFORMS = {
    "global": by_global,
    "helper": by_helper,
    "processor": by_processor,
    "closure": by_closure(),
    "partial": functools.partial(by_argument, compose),
    "object": Own(),
    "method": Own().__call__,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_of_the_data_tells_and_training_runs(images, make_args, make_model, name, caplog):
    data = images.with_transform(TRANSFORMS[name])
    trainer = AdversarialTrainer(
        make_model(), make_args(max_steps=1), stack_examples, train_dataset=data, eval_dataset=data
    )
    assert trainer.pixel_space == SPACE
    assert caplog.text.count("The normalisation of pixel_values") == 1 and "in the dataset's transform" in caplog.text
    trainer.train()


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: torch.utils.data.Subset(data, [0])])
@pytest.mark.parametrize("attribute", ["transform", "transforms"])
def test_datasets_of_torchvision_tell(attribute, wrap):
    data = torch.utils.data.TensorDataset(torch.zeros(1))
    setattr(data, attribute, compose)
    (found,) = stated_by_data(wrap(data))
    assert found == (f"Normalize in the dataset's .{attribute}", SPACE)
    both = torch.utils.data.ConcatDataset([data, data])
    assert {space for _, space in stated_by_data(both)} == {SPACE}


class ByAnotherName(torch.utils.data.Dataset):
    def __init__(self, steps):
        self.images, self.augment = [], steps


class ByItem(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return {"pixel_values": compose(index), "labels": 0}


def test_classes_of_a_script_tell_whatever_they_call_their_transform():
    for data, where in ((ByAnotherName(compose), "the dataset's .augment"), (ByItem(), "the dataset's __getitem__")):
        assert stated_by_data(torch.utils.data.Subset(data, [0])) == [(f"Normalize in {where}", SPACE)]
    named = ByAnotherName(transforms.Normalize((-1.0,) * 3, (2.0,) * 3))  # to show images, say
    named.transform = compose
    assert [space for _, space in stated_by_data(named)] == [SPACE]


def test_a_collator_tells(caplog):
    assert find_pixel_space(None, None, None, [PLAIN], by_processor) == SPACE
    assert "in the data collator" in caplog.text
    with pytest.raises(ValueError, match="needs to know how pixel_values were normalised"):
        find_pixel_space(None, None, None, [PLAIN], stack_examples)


def test_one_value_holds_for_all_channels_the_model_takes(images, make_model):
    data = images.with_transform(functools.partial(by_argument, transforms.Normalize((0.5,), (0.25,))))
    assert find_pixel_space(None, None, make_model(), [data]) == PixelSpace((0.5,) * 3, (0.25,) * 3)


def clip_model(**sizes):
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    return CLIPForImageClassification(CLIPConfig(text_config=tower, vision_config=vision, num_labels=4))


def test_the_processor_beside_the_checkpoint_tells(tmp_path, make_args, caplog):
    clip_model().save_pretrained(tmp_path / "clip")
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(tmp_path / "clip")
    model = CLIPForImageClassification.from_pretrained(tmp_path / "clip")
    trainer = AdversarialTrainer(model, make_args(), train_dataset=PLAIN, eval_dataset=PLAIN)
    assert trainer.pixel_space == CLIP
    assert f"is taken from the image processor of {tmp_path / 'clip'}" in caplog.text


def test_a_checkpoint_that_is_not_there_tells_nothing(make_model):
    model = make_model()
    model.config._name_or_path = "someone/not-cached"
    assert stated_by_model(model) == []
    with pytest.raises(ValueError, match="needs to know how pixel_values were normalised"):
        find_pixel_space(None, None, model, [PLAIN, None])


def open_clip_tower():
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(8, vision, text)
    open_clip.set_model_preprocess_cfg(model, {"mean": MEAN, "std": STD, "size": 16})
    return model


class Wrapped(nn.Module):
    def __init__(self, backbone, **others):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(8, 4)
        for name, value in others.items():
            setattr(self, name, value)


MODELS = {
    "open_clip": (open_clip_tower, "the model.visual.preprocess_cfg", SPACE),
    "open_clip inside": (lambda: Wrapped(open_clip_tower()), "the model.backbone.visual.preprocess_cfg", SPACE),
    "tower inside": (lambda: Wrapped(open_clip_tower().visual), "the model.backbone.preprocess_cfg", SPACE),
    "timm": (
        lambda: timm.create_model("test_vit"),
        "the model.pretrained_cfg",
        PixelSpace((0.5,) * 3, (0.5,) * 3),
    ),
    "timm inside": (
        lambda: Wrapped(timm.create_model("resnet18")),
        "the model.backbone.pretrained_cfg",
        PixelSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_tells(name):
    make, where, space = MODELS[name]
    assert stated_by_model(make()) == [(where, space)]


def test_a_wrapper_of_timm_in_transformers_tells(make_model):
    assert stated_by_model(make_model("timm")) == [("the model.config.pretrained_cfg", SPACE)]


def test_what_wraps_a_model_that_tells_goes_before():
    """open_clip's towers from timm carry timm's own statistics inside."""
    tower = Wrapped(timm.create_model("resnet18"), preprocess_cfg={"mean": MEAN, "std": STD})
    assert stated_by_model(tower) == [("the model.preprocess_cfg", SPACE)]


def test_the_data_go_before_a_model_made_for_other_statistics(images, caplog):
    """CIFAR's statistics under a model of ImageNet's, as scripts have them: what is in the data is what was done."""
    data = images.with_transform(by_global)
    assert find_pixel_space(None, None, timm.create_model("test_vit"), [data]) == SPACE
    assert "not what the model was made for (the model.pretrained_cfg: PixelSpace(mean=(0.5, 0.5, 0.5)" in caplog.text


def test_sources_that_differ_are_an_error_naming_both(images, make_model):
    data = images.with_transform(by_global)
    other = images.with_transform(functools.partial(by_argument, transforms.Normalize((0.1,) * 3, (0.9,) * 3)))
    with pytest.raises(ValueError, match="stated in different ways") as told:
        find_pixel_space(None, None, None, [data, other])
    for part in ("Normalize in the dataset's transform", "(0.9, 0.9, 0.9)", str(SPACE), "pixel_space="):
        assert part in str(told.value)
    two = transforms.Compose([transforms.Normalize(MEAN, STD), transforms.Normalize((0.1,) * 3, (0.9,) * 3)])
    with pytest.raises(ValueError, match="stated in different ways"):
        find_pixel_space(None, None, None, [images.with_transform(functools.partial(by_argument, two))])
    assert find_pixel_space(None, None, make_model("timm"), [data]) == SPACE


def test_what_is_given_goes_before_and_needs_no_words(images, caplog):
    given = PixelSpace((0.1,) * 3, (0.2,) * 3)
    data = images.with_transform(by_global)
    assert find_pixel_space(given, None, timm.create_model("test_vit"), [data]) == given
    assert find_pixel_space(None, CLIPImageProcessor(), None, [data]) == CLIP
    assert caplog.text == ""
    with pytest.raises(ValueError, match="must be a PixelSpace, got str"):
        find_pixel_space("imagenet", None, None, [])


def test_what_a_function_merely_refers_to_is_no_statement(make_model):
    model = timm.create_model("test_vit")

    def transform(batch):
        return {"labels": [model, torch, stack_examples, batch], "pixel_values": []}

    assert stated_by_data(Dataset.from_dict({"image": [0]}).with_transform(transform)) == []


def test_a_found_map_is_checked_on_the_first_batch(make_args):
    """The model states its statistics, the data are in [0, 1]."""
    data = [{"pixel_values": torch.rand(3, 32, 32), "labels": label % 4} for label in range(16)]

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = timm.create_model("resnet18", num_classes=4)

        def forward(self, pixel_values, labels=None):
            logits = self.net(pixel_values)
            loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
            return {**loss, "logits": logits}

    trainer = AdversarialTrainer(Loss(), make_args(), train_dataset=data, eval_dataset=data)
    with pytest.raises(ValueError, match="Normalize, or the processor's do_normalize, is missing"):
        trainer.train()
