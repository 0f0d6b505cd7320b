import errno
import os

import pytest
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError
from PIL import Image as PILImage

from hf_robust_ft import load_image_dataset
from hf_robust_ft.data import sources


def failing_with(monkeypatch, error, cause=None):
    def fail(*args, **options):
        raise error from cause

    monkeypatch.setattr(sources, "load_dataset", fail)


def gated():
    error = GatedRepoError.__new__(GatedRepoError)
    Exception.__init__(error, "403")
    return error


def test_a_full_disk_names_the_folders_and_the_ways_out(monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device", "/cache/x.arrow")
    for error, cause in ((full, None), (DatasetGenerationError("generating"), full)):
        failing_with(monkeypatch, error, cause)
        with pytest.raises(
            OSError, match=r"disk is full: some/data .*/cache/x\.arrow.*HF_HOME.*streaming=True"
        ) as caught:
            load_image_dataset("some/data", cache_dir="/elsewhere")
        assert caught.value.errno == errno.ENOSPC and "/elsewhere" in str(caught.value)
    failing_with(monkeypatch, OSError("Not enough disk space. Needed: 6 GiB"))
    with pytest.raises(OSError, match="disk is full"):
        load_image_dataset("some/data")


def test_a_disk_that_fills_up_while_splitting_is_explained_too(images, tmp_path, monkeypatch):
    path = tmp_path / "saved"
    DatasetDict(train=images).save_to_disk(path)

    def fail(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Dataset, "train_test_split", fail)
    with pytest.raises(OSError, match="disk is full"):
        load_image_dataset(str(path))


def test_a_local_folder_has_no_revision(tmp_path):
    with pytest.raises(ValueError, match="lies on this machine and has no revision 'v2'"):
        load_image_dataset(str(tmp_path), revision="v2")


def test_other_errors_of_the_system_pass_unchanged(monkeypatch):
    failing_with(monkeypatch, PermissionError(errno.EACCES, "Permission denied", "/cache"))
    with pytest.raises(PermissionError, match="/cache"):
        load_image_dataset("some/data")


def test_a_gated_dataset_says_how_to_get_in(monkeypatch):
    failing_with(monkeypatch, DatasetNotFoundError("Dataset 'some/data' is a gated dataset on the Hub."), gated())
    with pytest.raises(
        ValueError, match=r"is gated: ask for access on https://huggingface\.co/datasets/some/data.*HF_TOKEN"
    ):
        load_image_dataset("some/data")


def test_a_gated_dataset_is_known_by_the_words_alone(monkeypatch):
    failing_with(monkeypatch, DatasetNotFoundError("Dataset 'some/data' is a gated dataset on the Hub. You must ..."))
    with pytest.raises(ValueError, match="ask for access"):
        load_image_dataset("some/data")


def test_an_unknown_dataset_lists_the_known_names(monkeypatch):
    failing_with(monkeypatch, DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub or cannot be accessed."))
    with pytest.raises(ValueError, match=r"Did you mean stanford_dogs"):
        load_image_dataset("standford_dogs")
    with pytest.raises(
        ValueError, match=r"cannot be accessed\. Known names: caltech256, .*digits\. Otherwise give a Hub id"
    ):
        load_image_dataset("some/data")


def test_a_broken_file_names_the_first_cause(monkeypatch):
    failing_with(monkeypatch, DatasetGenerationError("generating"), ValueError("Parquet magic bytes not found"))
    with pytest.raises(ValueError, match=r"could not be read: Parquet magic bytes.*force_redownload"):
        load_image_dataset("some/data")


def test_a_parquet_file_and_a_folder_of_them(images, tmp_path):
    folder = tmp_path / "pets"
    folder.mkdir()
    images.to_parquet(folder / "train.parquet")
    images.to_parquet(folder / "test.parquet")
    splits = load_image_dataset(str(folder), validation_size=0.25, cache_dir=str(tmp_path / "cache"))
    assert splits.facts["split_sizes"] == {"train": 36, "validation": 12, "test": 48}
    one = load_image_dataset(str(folder / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert sum(one.facts["split_sizes"].values()) == 48
    assert one["train"].features["label"].names == images.features["label"].names


def test_a_cut_parquet_file_is_an_error(images, tmp_path):
    path = tmp_path / "train.parquet"
    images.to_parquet(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"could not be read: .*[Pp]arquet"):
        load_image_dataset(str(path), cache_dir=str(tmp_path / "cache"))


def test_files_and_folders_that_are_no_datasets(tmp_path):
    PILImage.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a file, but not a \.parquet file"):
        load_image_dataset(str(tmp_path / "a.png"))
    with pytest.raises(ValueError, match="is not a folder or parquet file"):
        load_image_dataset("no/such.parquet")


def test_the_commit_is_read_off_the_cache(images, tmp_path):
    folder = tmp_path / ("0" * 39 + "a") / "data"
    images.save_to_disk(folder)
    assert sources.loaded_commit(Dataset.load_from_disk(folder)) == "0" * 39 + "a"
    images.to_parquet(tmp_path / "x.parquet")
    local = load_dataset("parquet", data_files=str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache"))
    assert sources.loaded_commit(local["train"]) is None and sources.loaded_commit(images) is None


def image_folder(path):
    for label in ("cat", "dog"):
        (path / "train" / label).mkdir(parents=True)
        for index in range(10):
            PILImage.new("RGB", (8, 8), (20 * index, 0, 0)).save(path / "train" / label / f"{index}.png")
    return path / "train" / "cat"


def test_files_that_are_passed_over_are_counted(tmp_path, caplog):
    inside = image_folder(tmp_path)
    for name in ("a.avif", "b.AVIF", "plain", "notes.txt", ".hidden.xyz"):
        (inside / name).write_bytes(b"")
    (inside / "gone.png").symlink_to("nowhere.png")
    (inside / "more.JPG").write_bytes((inside / "0.png").read_bytes())
    splits = load_image_dataset(str(tmp_path))
    assert sum(map(len, splits.values())) == 21
    assert "4 files beside the images are not read: .avif (2)" in caplog.text
    assert "no ending (1)" in caplog.text and "broken links (1)" in caplog.text


def test_a_folder_with_images_alone_gives_no_such_warning(tmp_path, caplog):
    image_folder(tmp_path)
    (tmp_path / "README.md").write_text("photos")
    load_image_dataset(str(tmp_path))
    assert "not read" not in caplog.text


def test_a_folder_called_like_a_known_dataset_is_said_to_be_left_aside(tmp_path, monkeypatch, caplog):
    image_folder(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert sum(map(len, load_image_dataset("digits").values())) == 1797
    assert "digits means the embedded dataset here, not what lies in this folder: that is ./digits" in caplog.text
    caplog.clear()
    assert sum(map(len, load_image_dataset("./digits").values())) == 20
    assert "means" not in caplog.text
