import pytest
from PIL import Image

from hf_robust_ft import load_image_dataset


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Makes a folder of small images, each of another colour, and of text files with the given content."""
    monkeypatch.chdir(tmp_path)

    def make(*images, root="photos", **texts):
        for number, name in enumerate(images):
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(path, format="PNG")
        for name, text in texts.items():
            (tmp_path / root / name.replace("__", "/").replace("_csv", ".csv")).write_text(text)
        return root

    return make


def each(*folders, count=10, ending=".png"):
    return [f"{name}/{index}{ending}" for name in folders for index in range(count)]


def contents(split):
    return [
        (picture.getpixel((0, 0))[:2], label) for picture, label in zip(split["image"], split["label"], strict=True)
    ]


def classes(splits):
    (names,) = {tuple(split.features["label"].names) for split in splits.values()}
    return list(names)


@pytest.mark.parametrize(
    ("images", "names", "sizes"),
    [
        (each("bus", "car", "bullet_train", "freight_train"), ["bullet_train", "bus", "car", "freight_train"], {}),
        (each("train/beaker", "train/test", "train/pipette"), ["beaker", "pipette", "test"], {}),
        (each("beaker", "test", "pipette"), ["beaker", "pipette", "test"], {}),
        (each("bus", "car", "train"), ["bus", "car", "train"], {}),
        (each("valid", "invalid"), ["invalid", "valid"], {}),
        (each("train/valid", "train/invalid", "test/valid", "test/invalid"), ["invalid", "valid"], {"test": 20}),
        (each("Train/a", "Train/b", "VAL/a", "VAL/b", "Eval/a", "Eval/b"), list("ab"), {"test": 20, "validation": 20}),
        (each("training/a", "training/b", "testing/a"), list("ab"), {"test": 10}),
        (each("train/c", "train/a", "train/b", "test/c", "test/b"), list("abc"), {"test": 20}),
        ([f"{name}/{word}_{n}.png" for name in "ab" for word in ("test", "val") for n in range(5)], ["a", "b"], {}),
        (each("a", "b", ending=".JPG"), list("ab"), {}),
        (each("train/__background__", "train/x[1]", "train/y*"), ["__background__", "x[1]", "y*"], {}),
        (each("data/cat", "data/dog"), ["cat", "dog"], {}),
    ],
)  # fmt: skip
def test_every_image_is_in_one_split_with_the_class_of_its_folder(folder, images, names, sizes):
    splits = load_image_dataset(folder(*images))
    assert classes(splits) == names
    assert {name: len(splits[name]) for name in sizes} == sizes
    found = sorted(entry for split in splits.values() for entry in contents(split))
    assert found == sorted(((n % 256, n // 256), names.index(path.split("/")[-2])) for n, path in enumerate(images))


def test_files_in_folders_of_splits_stay_in_them(folder):
    images = each("train/a", "train/b", "valid/a", "valid/b", "test/a", "test/b")
    splits = load_image_dataset(folder(*images))
    of_split = {"train": "train", "validation": "valid", "test": "test"}
    for name, top in of_split.items():
        expected = {(n, 0) for n, path in enumerate(images) if path.startswith(f"{top}/")}
        assert {colour for colour, _ in contents(splits[name])} == expected


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (each("train/a", "train/b", "extra"), r"10 of its 30 images lie in no split: extra/0\.png, extra/1\.png"),
        ([*each("train/a", "train/b"), "cover.png"], r"1 of its 21 images lie in no split: cover\.png"),
        (each("train", "test", "other"), r"10 of its 30 images lie in no split: other/0\.png"),
        (each("train/a", "train/b", "val/a", "valid/b"), "two folders for validation, val and valid"),
        (each("train/a", "train/b", "Train/a"), "two folders for train, Train and train"),
        (each("train/a", "train/b/young"), r"images at several depths \(train\), as train/a/0\.png, train/b/young/0"),
        ([*each("train/a", "train/b"), "train/x.png"], r"without a class \(train\), as train/x\.png"),
        (each("train/a", "train/b", "test"), r"without a class \(test\), as test/0\.png"),
        (each("train", "test"), r"without a class \(train\)"),
        (["0.png", "1.png"], r"without a class \(train\), as 0\.png.*two class folders or more"),
        (each("train/cat/images", "train/dog/images"), "several folders images .train., as train/cat/images/0.png"),
        (each("data/train/a", "data/train/b"), "names of splits that are not at its top, as data/train/a"),
        (each("data/train", "data/test"), "names of splits that are not at its top"),
        (each("train/Cat", "train/dog", "test/cat"), "classes in test that train lacks: cat. Train has Cat, dog"),
        (each("train/a"), "has one class only, a: it needs two class folders"),
        ([*each("a", "b"), "more.zip"], r"holds archives, which are not read: more\.zip"),
    ],
)
def test_what_is_not_clear_is_asked_before_anything_is_loaded(folder, images, message):
    with pytest.raises(ValueError, match=message):
        load_image_dataset(folder(*images))


def test_hidden_files_are_passed_over_and_lost_classes_are_not(folder, tmp_path):
    root = folder(*each("a", "b"), "a/._0.png", ".cache/c/0.png", README_md="photos")
    assert sum(map(len, load_image_dataset(root).values())) == 20
    (tmp_path / root / "c").mkdir()
    (tmp_path / root / "c" / "0.heic").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no images: c; \.heic \(1\)\. Convert"):
        load_image_dataset(root)


def test_links(folder, tmp_path):
    root = tmp_path / folder(*each("train/a", "train/b"))
    (root / "train" / "b" / "round").symlink_to(root / "train")  # a circle is no second copy
    elsewhere = tmp_path / folder(*each("c"), root="elsewhere")
    (root / "train" / "c").symlink_to(elsewhere / "c")
    assert sum(map(len, load_image_dataset(str(root)).values())) == 30
    (root / "test").symlink_to(root / "train")
    with pytest.raises(ValueError, match=r"one file in the two splits train and test, by a link: test/a/0\.png, train"):
        load_image_dataset(str(root))


def rows(names, label="ab"):
    return "file_name,label\n" + "".join(f"{name},{label[n % len(label)]}\n" for n, name in enumerate(names))


def test_metadata_files_hold_the_labels(folder):
    images = [f"{n}.png" for n in range(20)]
    splits = load_image_dataset(folder(*images, metadata_csv=rows(images)))
    assert classes(splits) == ["a", "b"] and sum(map(len, splits.values())) == 20
    names = [f"{split}/{n}.png" for split in ("train", "test") for n in range(10)]
    root = folder(*names, root="both", train__metadata_csv=rows(images[:10]), test__metadata_csv=rows(images[:10]))
    assert len(load_image_dataset(root, validation_size=0.3)["test"]) == 10


@pytest.mark.parametrize(
    ("names", "texts", "message"),
    [
        (each("x", count=4), {"x__metadata_csv": rows(["0.png", "1.png", "2.png"])}, r"1 of the 4 .* in no row .*x/3"),
        (each("x", count=2), {"x__metadata_csv": rows(["0.png", "1.png", "1.png"])}, r"1 of the 2 .*in several rows"),
        (each("train", "test"), {"metadata_csv": rows(["train/0.png"])}, "each split needs a metadata file in its own"),
        (each("train", "test"), {"train__metadata_csv": rows(["0.png"])}, "each split needs a metadata file"),
    ],
)
def test_metadata_that_leaves_images_out_is_refused(folder, names, texts, message):
    with pytest.raises(ValueError, match=message):
        load_image_dataset(folder(*names, **texts))


def test_a_card_that_maps_files_to_splits_counts(folder, tmp_path):
    root = folder(*each("one/a", "one/b", "two/a", "two/b"))
    configs = "configs:\n- config_name: default\n  data_files:\n  - {split: train, path: 'one/**'}\n"
    (tmp_path / root / "README.md").write_text(f"---\n{configs}  - {{split: test, path: 'two/**'}}\n---\n")
    splits = load_image_dataset(root)
    assert len(splits["test"]) == 20 and len(splits["train"]) + len(splits["validation"]) == 20


def test_streams_read_the_same_splits(folder):
    root = folder(*each("bus", "car", "bullet_train"))
    splits = load_image_dataset(root, streaming=True, test_size=0.3, validation_size=0.3)
    assert splits["test"].features["label"].names == ["bullet_train", "bus", "car"]
    assert len(list(splits["train"])) + len(splits["validation"]) + len(splits["test"]) == 30


def test_a_class_with_the_name_of_a_split_and_deeper_classes_are_told(folder, caplog):
    load_image_dataset(folder(*each("bus", "car", "train")))
    assert "train is taken for a class" in caplog.text
    load_image_dataset(folder(*each("train/pets/cat", "train/pets/dog"), root="deep"))
    assert "classes are the folders in which the images lie, as in train/pets/cat/0.png" in caplog.text


def test_parquet_files_that_would_not_be_read_are_named(images, tmp_path):
    for name in ("part0", "bullet_train"):
        images.to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"1 of the 2 data files .* in no split, by their names: part0\.parquet"):
        load_image_dataset(str(tmp_path))
