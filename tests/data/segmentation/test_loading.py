import json

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from transformers import SegformerConfig

from hf_robust_ft.data.segmentation import load_segmentation_dataset

SIZE = (8, 6)  # width, height


def image(seed=0):
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))


def mask(high=2, seed=0):
    values = np.random.default_rng(seed).integers(0, high + 1, (SIZE[1], SIZE[0]), dtype=np.uint8)
    values[0, : high + 1] = range(high + 1)
    return PILImage.fromarray(values)


def write_pairs(root, count=10, images="images", masks="masks", suffix="", **kinds):
    for folder in (images, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image(index).save(root / images / f"{index}.png")
        mask(seed=index, **kinds).save(root / masks / f"{index}{suffix}.png")


def saved(tmp_path, features=None, **columns):
    """A dataset in parquet with as many rows as its columns have."""
    (tmp_path / "data").mkdir()
    dataset = Dataset.from_dict(columns, features=features)
    dataset.to_parquet(tmp_path / "data" / "train.parquet")
    return str(tmp_path)


def pairs(count=10, **named):
    features = Features({name: Image() for name in named})
    return features, {name: [make(seed=index) for index in range(count)] for name, make in named.items()}


@pytest.mark.parametrize("names", [("image", "mask"), ("pixel_values", "label"), ("image", "annotation")])
def test_image_and_mask_columns_are_found(names, tmp_path):
    features, columns = pairs(**dict(zip(names, (image, mask), strict=True)))
    splits = load_segmentation_dataset(saved(tmp_path, features, **columns))
    assert {name: len(split) for name, split in splits.items()} == {"train": 7, "validation": 1, "test": 2}
    assert splits["train"].column_names == ["image", "mask"] and splits.class_names == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_pairs_in_folders_are_read_by_name(tmp_path):
    write_pairs(tmp_path, suffix="_mask")
    (tmp_path / "id2label.json").write_text(json.dumps({"0": "road", "1": "car", "2": "sky"}))
    splits = load_segmentation_dataset(str(tmp_path))
    assert splits.class_names == ["road", "car", "sky"] and sum(map(len, splits.values())) == 10


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
def test_both_layouts_of_splits_are_read(layout, tmp_path):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        folders = [layout.format(split=split, kind=kind) for kind in ("images", "annotations")]
        write_pairs(tmp_path, count, *folders)
    sizes = {name: len(split) for name, split in load_segmentation_dataset(str(tmp_path)).items()}
    assert sizes == {"train": 4, "validation": 2, "test": 3}


def test_an_imagefolder_with_a_mask_column_is_read(tmp_path):
    write_pairs(tmp_path, 6, images="all", masks="all", suffix="_m")
    rows = [{"file_name": f"all/{index}.png", "mask_file_name": f"all/{index}_m.png"} for index in range(6)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = load_segmentation_dataset(str(tmp_path))
    assert sum(map(len, splits.values())) == 6
    assert np.asarray(splits["train"][0]["mask"]).max() == 2


def test_classes_are_named_by_the_columns_type(tmp_path):
    features = Features({"image": Image(), "mask": List(List(ClassLabel(names=["a", "b", "c"])))})
    columns = {"image": [image(i) for i in range(10)], "mask": [np.asarray(mask(seed=i)).tolist() for i in range(10)]}
    assert load_segmentation_dataset(saved(tmp_path, features, **columns)).class_names == ["a", "b", "c"]


def test_masks_may_be_arrays(tmp_path):
    features = Features({"image": Image(), "mask": Array2D((SIZE[1], SIZE[0]), "int32")})
    columns = {"image": [image(i) for i in range(10)], "mask": [np.asarray(mask(seed=i)) for i in range(10)]}
    assert len(load_segmentation_dataset(saved(tmp_path, features, **columns)).class_names) == 3


def test_reduced_labels_leave_class_zero_out(tmp_path):
    write_pairs(tmp_path)
    splits = load_segmentation_dataset(str(tmp_path), reduce_labels=True, id2label={0: "car", 1: "sky"})
    assert splits.class_names == ["car", "sky"] and splits.reader().reduce_labels


def test_the_readers_order_is_the_models(tmp_path):
    write_pairs(tmp_path)
    splits = load_segmentation_dataset(str(tmp_path), id2label=dict(enumerate("abc")))
    config = SegformerConfig(id2label=dict(enumerate("cab")), label2id={"c": 0, "a": 1, "b": 2})
    assert splits.reader(config).order == (1, 2, 0)
    with pytest.raises(ValueError, match="tells 2 classes apart, the dataset has 3"):
        splits.reader(SegformerConfig(num_labels=2))


def spoil(root, index, picture):
    picture.save(root / "masks" / f"{index}.png")


BAD_PAIRS = {
    "another size": (PILImage.new("L", (4, 4)), r"mask has 4 x 4 pixels.*its image 6 x 8"),
    "no labelled pixel": (PILImage.new("L", SIZE, 255), "no pixel of its mask is labelled"),
    "colours": (PILImage.new("RGB", SIZE, (1, 0, 0)), "the mask holds colours"),
}


@pytest.mark.parametrize("kind", BAD_PAIRS)
def test_a_pair_that_cannot_be_used_is_named_or_left_out(kind, tmp_path):
    picture, message = BAD_PAIRS[kind]
    write_pairs(tmp_path)
    spoil(tmp_path, 3, picture)
    with pytest.raises(ValueError, match=rf"1 of 10 pairs.*pair 3: .*{message}.*skip_bad_images"):
        load_segmentation_dataset(str(tmp_path))
    splits = load_segmentation_dataset(str(tmp_path), skip_bad_images=True)
    assert sum(map(len, splits.values())) == 9
    assert [entry["index"] for entry in splits.facts["skipped_images"]["train"]] == [3]


def test_an_image_turned_by_exif_has_the_size_of_its_mask(tmp_path):
    write_pairs(tmp_path)
    exif = PILImage.Exif()
    exif[0x0112] = 6
    (tmp_path / "images" / "3.png").unlink()
    PILImage.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "3.jpg", exif=exif)
    assert sum(map(len, load_segmentation_dataset(str(tmp_path)).values())) == 10


@pytest.mark.parametrize(
    "options, message",
    [
        ({"label_column": "masks"}, "has no column 'masks'; it has"),
        ({"id2label": {0: "a", 1: "b"}}, r"\(train\), pair \d, .*\d\.png: labels \[2\] are beyond the 2 classes"),
        ({"id2label": {1: "a", 2: "b"}}, "must give each index from 0 on"),
        ({"id2label": "nowhere.json"}, "there is no file nowhere.json"),
        ({"validation_size": 1.5}, "must be a share"),
    ],
)
def test_bad_options_are_refused(options, message, tmp_path):
    write_pairs(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset(str(tmp_path), **options)


def test_a_mask_or_an_image_without_the_other_is_named(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "masks" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"Images without a mask of their name in masks/ \(1 of 10\): images/3.png"):
        load_segmentation_dataset(str(tmp_path))


def test_datasets_without_masks_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"digits has one class an image.*digits_scenes"):
        load_segmentation_dataset("digits")
    features = Features({"image": Image(), "label": Value("int64")})
    path = saved(tmp_path, features, image=[image()] * 4, label=[0, 1, 0, 1])
    with pytest.raises(ValueError, match="has no mask column among"):
        load_segmentation_dataset(path)
    with pytest.raises(ValueError, match=r"holds Value.*--task image-classification"):
        load_segmentation_dataset(path, label_column="label")


def test_masks_of_0_and_255_are_told_to_be_pictures(tmp_path):
    write_pairs(tmp_path)
    for index in range(10):
        values = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
        values[0] = 255
        spoil(tmp_path, index, PILImage.fromarray(values))
    with pytest.raises(ValueError, match=r"one class only.*0 and 255 are stored as pictures"):
        load_segmentation_dataset(str(tmp_path))


def test_saved_datasets_keep_their_splits(tmp_path):
    features, columns = pairs(4, image=image, mask=mask)
    part = Dataset.from_dict(columns, features=features)
    DatasetDict(train=part, validation=part, test=part).save_to_disk(tmp_path / "saved")
    splits = load_segmentation_dataset(str(tmp_path / "saved"))
    assert {name: len(split) for name, split in splits.items()} == dict.fromkeys(("train", "validation", "test"), 4)
