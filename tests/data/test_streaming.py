import io

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_robust_ft import load_image_dataset
from hf_robust_ft.data import Streaming, UndecodableImageError, with_pixel_values
from hf_robust_ft.data import loading as loading_module
from hf_robust_ft.evaluation.batches import stack_examples

CLASSES = ["red", "green"]


def cell(number, bad=False):
    buffer = io.BytesIO()
    PILImage.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return {"bytes": b"?" if bad else buffer.getvalue(), "path": f"{number}.png"}


def number_of(image):
    red, green, _ = image.getpixel((0, 0))
    return red + 256 * green


def stream(numbers, bad=(), labels=None, features=None, shards=4):
    """Sorted by class, as many sources are: the first half is red."""
    rows = {
        "image": [cell(number, number in bad) for number in numbers],
        "label": [int(index >= len(numbers) / 2) for index in range(len(numbers))] if labels is None else labels,
        "other": [0.5] * len(numbers),
    }
    features = features or {"label": ClassLabel(names=CLASSES)}
    types = Features({"image": Image(), "other": Value("float64"), **features})
    return Dataset.from_dict(rows, features=types).to_iterable_dataset(num_shards=shards)


@pytest.fixture
def load(monkeypatch):
    def call(source, **options):
        seen = {}

        def fake(dataset_id, load_options):
            seen.update(load_options)
            return dict(source)

        monkeypatch.setattr(loading_module, "load_source", fake)
        splits = load_image_dataset("some/data", **{"streaming": Streaming(20, 30), **options})
        assert seen["streaming"] is True
        return splits

    return call


def numbers_in(split):
    return [number_of(row["image"]) for row in split]


def test_own_splits_are_kept_and_evaluation_images_are_bounded(load):
    splits = load({"train": stream(range(100)), "validation": stream(range(100, 200)), "test": stream(range(200, 300))})
    assert isinstance(splits["train"], IterableDataset) and list(splits["train"].features) == ["image", "label"]
    assert splits.facts["split_sizes"] == {"validation": 30, "test": 30}
    train = numbers_in(splits["train"])
    assert sorted(train) == list(range(100)) and train != list(range(100))
    sample = numbers_in(splits["test"])
    assert set(sample) <= set(range(200, 300)) and 8 <= sum(number < 250 for number in sample) <= 22
    assert [int(number >= 250) for number in sample] == splits["test"]["label"][:]


def test_what_is_held_out_never_trains_and_does_not_depend_on_the_order(load, caplog):
    splits = load({"train": stream(range(400))}, streaming=Streaming(50, 1000))
    parts = {name: set(numbers_in(split)) for name, split in splits.items()}
    assert set().union(*parts.values()) == set(range(400)) and sum(map(len, parts.values())) == 400
    assert 20 <= len(parts["validation"]) <= 60 and 55 <= len(parts["test"]) <= 105
    assert "one pass over train, to hold out about 10 % for validation" in caplog.text
    mixed = np.random.default_rng(0).permutation(400).tolist()
    labels = [int(number >= 200) for number in mixed]
    again = load({"train": stream(mixed, labels=labels, shards=1)}, streaming=Streaming(50, 1000))
    assert {name: set(numbers_in(split)) for name, split in again.items()} == parts
    other = load({"train": stream(range(400))}, streaming=Streaming(50, 1000), seed=1)
    assert set(numbers_in(other["test"])) != parts["test"]


def test_half_of_validation_serves_where_test_is_missing_or_hidden(load, caplog):
    sources = {"train": stream(range(20)), "validation": stream(range(100, 200))}
    for hidden in ({}, {"test": stream(range(200, 400), labels=[-1] * 200)}):
        splits = load(sources | hidden)
        validation, test = (set(numbers_in(splits[name])) for name in ("validation", "test"))
        assert len(validation | test) == len(validation) + len(test) == 60
        assert validation | test <= set(range(100, 200))
    assert "(test) has no labels" in caplog.text


def test_each_epoch_is_shuffled_anew_and_runs_repeat(load):
    train = load({"train": stream(range(100)), "validation": stream(range(5)), "test": stream(range(5))})["train"]
    first = numbers_in(train)
    assert first == numbers_in(train)
    train.set_epoch(1)
    second = numbers_in(train)
    assert second != first and sorted(second) == sorted(first)


def test_a_stream_trains_through_a_loader_with_workers(load, processor):
    train = load({"train": stream(range(50)), "validation": stream(range(5)), "test": stream(range(5))})["train"]
    lazy = with_pixel_values(train, processor, "paper")
    batches = list(DataLoader(lazy, batch_size=10, num_workers=2, collate_fn=stack_examples))
    assert sum(len(batch["labels"]) for batch in batches) == 50
    assert batches[0]["pixel_values"].shape[1:] == (3, 16, 16)


def test_a_stream_trains_a_model(load, processor, make_trainer):
    splits = load({"train": stream(range(40)), "validation": stream(range(5)), "test": stream(range(5))})
    lazy = with_pixel_values(splits["train"], processor)
    trainer = make_trainer(train_dataset=lazy, max_steps=3, schedule_granularity="step")
    assert trainer.train().global_step == 3


def test_bad_images_of_a_stream_are_named_or_skipped(load, processor, caplog):
    source = {"train": stream(range(9), bad=[4]), "validation": stream(range(5), bad=[1]), "test": stream(range(5))}
    with pytest.raises(UndecodableImageError, match=r"some/data \(train\).*4\.png"):
        list(with_pixel_values(load(source)["train"], processor))
    splits = load(source, skip_bad_images=True)
    assert sorted(numbers_in(splits["train"])) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert splits.facts["split_sizes"]["validation"] == 4
    assert "skipped in the stream: 4.png" in caplog.text
    assert [entry["file"] for entry in splits.facts["skipped_images"]["validation"]] == ["1.png"]
    del source["train"]
    assert len(load(source, skip_bad_images=True, require_train=False)["validation"]) == 4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"features": {"label": Value("string")}, "labels": ["a"] * 9},
            "Column 'label'.*Streaming needs the class names",
        ),
        ({"features": {"label": Value("float32")}, "labels": [0.5] * 9}, "must hold one class an image"),
        ({"labels": [0, -1] + [1] * 7}, "1 of 9 images .* have no label"),
    ],
)
def test_unusable_streams_are_refused(load, source, message):
    with pytest.raises(ValueError, match=message):
        load({"train": stream(range(4)), "test": stream(range(9), **source)})


def test_what_cannot_be_streamed_says_so():
    with pytest.raises(ValueError, match="embedded: there is nothing to stream"):
        load_image_dataset("digits", streaming=True)
    with pytest.raises(ValueError, match="caltech256 are drawn over all its images"):
        load_image_dataset("caltech256", streaming=True)
    with pytest.raises(ValueError, match="shuffle_buffer must be at least 1"):
        Streaming(shuffle_buffer=0)
