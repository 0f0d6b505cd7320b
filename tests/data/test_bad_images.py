import logging

import pytest
from datasets import DatasetDict, Image
from PIL import Image as PILImage

from hf_robust_ft import load_image_dataset
from hf_robust_ft.data import UndecodableImageError
from hf_robust_ft.data.bad_images import without_bad_images


@pytest.fixture
def pets(tmp_path):
    """An imagefolder of 2 x 12 images, three of them broken: cut short, not an image, empty."""
    for name in ("cat", "dog"):
        folder = tmp_path / "pets" / "train" / name
        folder.mkdir(parents=True)
        for index in range(12):
            PILImage.new("RGB", (8, 8), (index * 9, 100, 20)).save(folder / f"{index:02}.png")
    cat = tmp_path / "pets" / "train" / "cat"
    (cat / "01.png").write_bytes((cat / "01.png").read_bytes()[:50])
    (cat / "05.png").write_bytes(b"<html>not found</html>")
    (tmp_path / "pets" / "train" / "dog" / "11.png").write_bytes(b"")
    return tmp_path / "pets"


def load(pets, **options):
    return load_image_dataset(str(pets), cache_dir=str(pets.parent / "cache"), **options)


def test_without_being_asked_nothing_is_skipped_and_reading_names_the_file(pets):
    splits = load(pets)
    assert sum(splits.facts["split_sizes"].values()) == 24 and "skipped_images" not in splits.facts
    with pytest.raises(UndecodableImageError, match=r"pets \((train|validation|test)\): .*(01|05|11)\.png"):
        for split in splits.values():
            split[:]


def test_asked_to_skip_they_are_counted_and_named(pets, caplog):
    splits = load(pets, skip_bad_images=True)
    assert sum(splits.facts["split_sizes"].values()) == 21
    for split in splits.values():
        assert len(split[:]["image"]) == len(split)
    (bad,) = splits.facts["skipped_images"].values()
    assert [entry["index"] for entry in bad] == [1, 5, 23]
    assert [entry["file"][-10:] for entry in bad] == ["cat/01.png", "cat/05.png", "dog/11.png"]
    assert (
        "3 of 24 images cannot be decoded and are skipped" in caplog.text and "cat/05.png: not an image" in caplog.text
    )
    caplog.clear()
    again = load(pets, skip_bad_images=True)
    assert again.facts["skipped_images"] == splits.facts["skipped_images"], "from the cache as well"
    assert "3 of 24 images" in caplog.text


def test_a_sound_dataset_loses_nothing(images, caplog):
    with caplog.at_level(logging.WARNING):
        kept, bad = without_bad_images(images, "colours", "train")
    assert kept is images and bad == [] and not caplog.text


def test_nothing_left_is_an_error(images):
    cells = [{"bytes": b"?", "path": None}] * len(images)
    broken = images.remove_columns("image").add_column("image", cells, feature=Image())
    with pytest.raises(ValueError, match=r"None of the 48 images of colours \(train\) can be decoded"):
        without_bad_images(broken, "colours", "train")


def test_splits_saved_with_bad_images_are_read_as_they_are(images, tmp_path):
    """Skipping before splitting: the same images are held out whether or not the check found any."""
    DatasetDict(train=images).save_to_disk(tmp_path / "saved")
    plain, checked = (load_image_dataset(str(tmp_path / "saved"), skip_bad_images=flag) for flag in (False, True))
    assert checked.facts["skipped_images"] == {"train": []}
    assert [part["label"][:] for part in plain.values()] == [part["label"][:] for part in checked.values()]
