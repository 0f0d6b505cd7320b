import shutil

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Image, concatenate_datasets
from PIL import Image as PILImage

from hf_robust_ft import load_image_dataset


@pytest.fixture
def imagefolder(tmp_path):
    """Three classes of twelve images, train only."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "emu"):
        folder = tmp_path / "pets" / "train" / name
        folder.mkdir(parents=True)
        for index in range(12):
            PILImage.fromarray(rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return str(tmp_path / "pets")


def on_disk(tmp_path, **splits):
    path = tmp_path / "saved"
    DatasetDict(splits).save_to_disk(path)
    return str(path)


def test_imagefolder_is_split_by_class_and_nothing_is_lost(imagefolder):
    splits = load_image_dataset(imagefolder, test_size=0.25, validation_size=1 / 3)
    assert {name: len(split) for name, split in splits.items()} == {"train": 18, "validation": 9, "test": 9}
    for split in splits.values():
        assert split.column_names == ["image", "label"] and split.features["label"].names == ["cat", "dog", "emu"]
        assert len(set(np.bincount(split["label"]))) == 1
    contents = [np.asarray(image).tobytes() for split in splits.values() for image in split["image"]]
    assert len(contents) == len(set(contents)) == 36


def test_splitting_is_deterministic_in_its_seed(imagefolder):
    pictures = [
        np.asarray(load_image_dataset(imagefolder, seed=seed)["test"][0]["image"]).tobytes() for seed in (1, 1, 2)
    ]
    assert pictures[0] == pictures[1] != pictures[2]


def test_validation_serves_as_test_where_there_is_none(images, tmp_path, caplog):
    half = images.select(range(24))
    path = on_disk(tmp_path, train=half, validation=images.select(range(24, 48)))
    splits = load_image_dataset(path, validation_size=0.25)
    assert len(splits["test"]) == 24 and len(splits["train"]) + len(splits["validation"]) == 24
    assert "its validation split serves as test" in caplog.text


def test_existing_splits_are_kept(images, tmp_path):
    parts = {
        name: images.select(range(start, start + 16)) for name, start in (("train", 0), ("valid", 16), ("test", 32))
    }
    splits = load_image_dataset(on_disk(tmp_path, **parts))
    assert {name: len(split) for name, split in splits.items()} == {"train": 16, "validation": 16, "test": 16}


@pytest.mark.parametrize("labels", [["b", "a", "c"], [1, 0, 2]], ids=["strings", "integers"])
def test_plain_labels_become_class_labels(images, tmp_path, labels):
    column = [labels[index % 3] for index in range(48)]
    dataset = images.remove_columns("label").add_column("species", column)
    splits = load_image_dataset(on_disk(tmp_path, train=dataset), label_column="species")
    names = splits["train"].features["label"].names
    assert names == (["a", "b", "c"] if isinstance(labels[0], str) else ["0", "1", "2"])


def test_string_classes_that_train_lacks_are_refused(images, tmp_path):
    train, test = (
        images.remove_columns("label").add_column("label", [names[index % 2] for index in range(48)])
        for names in ("ab", "bc")
    )
    with pytest.raises(ValueError, match=r"split test holds the labels \['c'\], which train lacks"):
        load_image_dataset(on_disk(tmp_path, train=train, test=test))


def test_integer_classes_without_images_are_said(images, tmp_path, caplog):
    dataset = images.remove_columns("label").add_column("label", [1, 4] * 24)
    splits = load_image_dataset(on_disk(tmp_path, train=dataset))
    assert splits["train"].features["label"].names == list("01234")
    assert "3 classes have no image" in caplog.text


def test_images_come_upright_and_in_rgb(images, tmp_path):
    transparent = images.map(lambda row: {"image": PILImage.new("LA", (6, 4), (0, 0))})
    splits = load_image_dataset(on_disk(tmp_path, train=transparent))
    assert all(
        row["image"].mode == "RGB" and row["image"].getpixel((0, 0)) == (255,) * 3
        for split in splits.values()
        for row in split
    )


def test_the_parts_can_be_put_together_again(imagefolder):
    splits = load_image_dataset(imagefolder)
    whole = concatenate_datasets(list(splits.values()))
    assert len(whole) == sum(splits.facts["split_sizes"].values()) == 36


def test_columns_are_found_or_asked_for(images, tmp_path):
    two = images.add_column("coarse", images["label"]).cast_column("coarse", ClassLabel(names=list("abcd")))
    path = on_disk(tmp_path, train=two.rename_column("image", "photo"))
    with pytest.raises(ValueError, match=r"several label columns, \['label', 'coarse'\].*label_column"):
        load_image_dataset(path)
    splits = load_image_dataset(path, label_column="coarse")
    assert splits["train"].features["label"].names == list("abcd")
    with pytest.raises(ValueError, match="no column 'picture'; it has"):
        load_image_dataset(path, image_column="picture")


def test_missing_columns_are_named(tmp_path, images):
    with pytest.raises(ValueError, match="no image column among"):
        load_image_dataset(on_disk(tmp_path, train=Dataset.from_dict({"text": ["a"], "label": [0]})))
    with pytest.raises(ValueError, match="no label column among"):
        load_image_dataset(on_disk(tmp_path / "b", train=images.remove_columns("label")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "none"}, "no 'train' split, only"),
        ({"label": [[0, 1]] * 48}, r"Column 'label' of .* must hold one class an image .*multi-hot"),
        ({"label": [0.5] * 48}, r"Column 'label' of .* holds Value\('float64'\); it must hold one class an image"),
        ({"label": [True, False] * 24}, r"Column 'label' of .* holds Value\('bool'\)"),
        ({"label": [-1] * 24 + [1] * 24}, "filter out unlabelled images"),
        ({"label": [None] * 4 + [1, 0] * 22}, r"4 of 48 images .* have no label"),
        ({"names": ["only"]}, "one class only"),
    ],
)
def test_unusable_datasets_are_refused(images, tmp_path, changes, message):
    dataset = images
    if "label" in changes:
        dataset = images.remove_columns("label").add_column("label", changes["label"])
    if "names" in changes:
        dataset = images.remove_columns("label").add_column("label", [0] * 48)
        dataset = dataset.cast_column("label", ClassLabel(names=changes["names"]))
    path = on_disk(tmp_path, **{"test" if "train" in changes else "train": dataset})
    with pytest.raises(ValueError, match=message):
        load_image_dataset(path)


def test_a_folder_that_is_not_there_and_bad_shares_are_refused(imagefolder):
    with pytest.raises(ValueError, match="is not a folder"):
        load_image_dataset("/no/such/folder")
    for share in (0, 1, -0.5, 12):
        with pytest.raises(ValueError, match="between 0 and 1"):
            load_image_dataset(imagefolder, validation_size=share)


def test_a_class_too_small_to_split_is_refused_with_the_cure(images, tmp_path):
    path = on_disk(tmp_path, train=images.select([0, 4, 8, 12, 16, 20, 1]))
    with pytest.raises(ValueError, match="none could be split off train"):
        load_image_dataset(path)


def test_an_unlabelled_test_split_counts_as_missing(images, tmp_path, caplog):
    hidden = images.select(range(32, 48)).map(lambda _: {"label": -1})
    path = on_disk(tmp_path, train=images.select(range(32)), test=hidden)
    splits = load_image_dataset(path, test_size=0.25, validation_size=0.25)
    assert {name: len(split) for name, split in splits.items()} == {"train": 18, "validation": 6, "test": 8}
    assert "(test) has no labels: it is left out" in caplog.text


def test_a_dataset_of_test_images_alone(images, tmp_path):
    path = on_disk(tmp_path, test=images)
    with pytest.raises(ValueError, match="no 'train' split"):
        load_image_dataset(path)
    assert len(load_image_dataset(path, require_train=False)["test"]) == 48


def test_a_column_that_holds_no_images_is_refused(images, tmp_path):
    with pytest.raises(ValueError, match=r"'label' .* not images"):
        load_image_dataset(on_disk(tmp_path, train=images), image_column="label")


def test_one_class_folder_is_refused_with_the_reason(imagefolder):
    for name in ("dog", "emu"):
        shutil.rmtree(f"{imagefolder}/train/{name}")
    with pytest.raises(ValueError, match="two class folders or more"):
        load_image_dataset(imagefolder)


def test_embedded_digits():
    splits = load_image_dataset("digits")
    assert {name: len(split) for name, split in splits.items()} == {"train": 1293, "validation": 144, "test": 360}
    assert splits["train"].features["label"].names == [str(digit) for digit in range(10)]
    assert isinstance(splits["train"].features["image"], Image)
    pixels = np.asarray(splits["train"][0]["image"])
    assert pixels.shape == (8, 8, 3) and pixels.max() > 200
    with pytest.raises(ValueError, match="takes no"):
        load_image_dataset("digits", revision="main")
