"""A local folder of images -> which files train, validate and test, and which folders are their classes.

`datasets` looks for words as train and test anywhere in a path (`bullet_train/`, `train/test/`) and reads what it finds
so, once, twice or not at all. So the files are listed here, and its imagefolder builder reads these lists.

- Splits are the top-level folders with exactly a name of `SPLIT_NAMES`, in capitals or not. Without any, all images
  are of `train`.
- One folder of such a name beside others, all of them with images right inside, is a class (`bus`, `car`, `train`);
  every other mixture is an error.
- The class of an image is the folder it lies in, at one depth for all images of a split; or the rows of a metadata
  file (`metadata.csv`, `.jsonl` or `.parquet`, as `datasets` reads it) hold the labels.
- Hidden files and folders are passed over. So is what is no image by its ending; the log counts it.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

from datasets import Dataset, Image
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from hf_robust_ft.data.splits import SPLIT_NAMES, split_called

METADATA = tuple(ImageFolder.METADATA_FILENAMES)
TABLES = (".arrow", ".csv", ".json", ".jsonl", ".parquet", ".tar")  # other kinds of local datasets
# Beside images on purpose.
NO_IMAGES = {*TABLES, ".db", ".html", ".ini", ".ipynb", ".md", ".py", ".pyc", ".sh", ".txt", ".xml", ".yaml", ".yml"}
LAYOUT = "two class folders or more, train/<class>/<image>"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFiles:
    """The images of a local folder by split; each file by its path.

    Args:
        root: the folder.
        dataset_id: as it was named, for messages.
        folders: of each split; `root` where there are no split folders.
        images: in the order in which they are read.
        metadata: files that hold the labels; none where folders are the classes.
    """

    root: str
    dataset_id: str
    folders: dict[str, str]
    images: dict[str, list[str]]
    metadata: dict[str, list[str]] = field(default_factory=dict)

    def load_options(self) -> dict[str, object]:
        """What makes `datasets.load_dataset(root)` read these files and no others."""
        lists = {}
        for split, images in self.images.items():
            files = [*images, *self.metadata.get(split, [])]
            # The times tell its cache when a file has changed.
            lists[split] = DataFilesList(files, [(str(os.stat(path).st_mtime_ns),) for path in files])
        return {"data_files": DataFilesDict(lists)} | ({} if self.metadata else {"drop_labels": False})

    def check_all_read(self, splits: Mapping[str, Dataset]) -> None:
        """Raise unless each image on disk is one row of its split.

        Raises:
            ValueError: rows of a metadata file leave some out, or name them twice.
        """
        for split, images in self.images.items():
            rows = Counter(os.path.abspath(path) for path in _stored_paths(splits[split]))
            unread = [path for path in images if not rows[os.path.abspath(path)]]
            twice = [path for path, count in rows.items() if count > 1]
            for paths, wrong in ((unread, "are in no row"), (twice, "are in several rows")):
                if paths:
                    raise ValueError(
                        f"{len(paths)} of the {len(images)} images of {self.dataset_id} ({split}) {wrong} of its "
                        f"metadata: {named(paths, self.root)}. Give each image one row, or move it away."
                    )


def find_image_files(root: str, dataset_id: str) -> ImageFiles | None:
    """The images of a local folder by split; None where it holds another kind of dataset (parquet, arrow, ...).

    Args:
        root: the folder.
        dataset_id: as it was named, for messages.

    Raises:
        ValueError: images in no split or in two, folders that may be classes or splits, images without a class,
            classes that train lacks, or archives.
    """
    root = os.path.abspath(root)
    files = list(_files_in(root))
    images = sorted(path for path in files if _is_image(path) and os.path.exists(path))
    metadata = [path for path in files if os.path.basename(path) in METADATA]
    tables = [path for path in files if path.endswith(TABLES) and path not in metadata]
    archives = [path for path in files if path.lower().endswith(".zip")]
    if len(images) < len(tables) or not (images or archives):
        return None
    if archives:
        raise ValueError(
            f"{dataset_id} holds archives, which are not read: {named(archives, root)}. Unpack them to {LAYOUT}, and "
            "move them away."
        )
    folders, by_split = _by_split(images, metadata, root, dataset_id)
    found = ImageFiles(root, dataset_id, folders, by_split)
    _check_distinct(found)
    if metadata:
        found.metadata.update(_metadata_by_split(metadata, found))
    else:
        _check_classes(found)
    _check_readable(files, found)
    return found


def named(paths: Iterable[str], root: str) -> str:
    """The first few of some files, as they lie below `root`."""
    shown = sorted(os.path.relpath(path, root) for path in paths)
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")


def _files_in(folder: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """All files below a folder that are not hidden; links to folders are followed, except in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        shown = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in shown:
        if entry.is_dir():
            yield from _files_in(entry.path, above | {real})
        else:
            yield entry.path


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in ImageFolder.EXTENSIONS


def _folders_to(path: str, root: str) -> tuple[str, ...]:
    """The names of the folders on the way from `root` to a file."""
    return tuple(os.path.relpath(path, root).split(os.sep)[:-1])


def _by_split(
    images: list[str], metadata: list[str], root: str, dataset_id: str
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The folder and the images of each split."""
    tops: dict[str, list[str]] = {}
    for path in images:
        tops.setdefault("".join(_folders_to(path, root)[:1]), []).append(path)
    split_of = {top: split for top in tops if (split := split_called(top))}
    outside = [path for top, paths in tops.items() if top not in split_of for path in paths]
    # `bus`, `car` and `train` are three classes: one such name, and nothing that tells the folders apart.
    flat = not metadata and all(len(_folders_to(path, root)) == 1 for path in images)
    if outside and flat and len(split_of) == 1:
        logger.warning("%s: %s is taken for a class, as the folders beside it are.", dataset_id, *split_of)
        split_of = {}
    if not split_of:
        return {"train": root}, {"train": images}
    if outside:
        raise ValueError(
            f"{dataset_id} has the split folders {', '.join(split_of)}, and {len(outside)} of its {len(images)} images "
            f"lie in no split: {named(outside, root)}. Move them into a split, or away; if all of these folders are "
            "classes, move all into one folder train/."
        )
    for one, other in combinations(split_of, 2):
        if split_of[one] == split_of[other]:
            raise ValueError(
                f"{dataset_id} has two folders for {split_of[one]}, {one} and {other}: put them together, or rename "
                f"one. Names of splits are {', '.join(SPLIT_NAMES)}."
            )
    order = sorted(split_of, key=lambda top: list(SPLIT_NAMES).index(split_of[top]))
    return {split_of[top]: os.path.join(root, top) for top in order}, {split_of[top]: tops[top] for top in order}


def _check_distinct(found: ImageFiles) -> None:
    """Raise where one file is in two splits, by a link to it or to its folder."""
    seen: dict[tuple[int, int], tuple[str, str]] = {}
    for split, images in found.images.items() if len(found.images) > 1 else ():
        for path in images:
            status = os.stat(path)
            other, first = seen.setdefault((status.st_dev, status.st_ino), (split, path))
            if other != split and status.st_ino:  # 0 where a file system has no such numbers
                raise ValueError(
                    f"{found.dataset_id} has one file in the two splits {other} and {split}, by a link: "
                    f"{named([first, path], found.root)}. Remove one of them."
                )


def _metadata_by_split(metadata: list[str], found: ImageFiles) -> dict[str, list[str]]:
    by_split = {
        split: [path for path in metadata if path.startswith(os.path.join(folder, ""))]
        for split, folder in found.folders.items()
    }
    outside = set(metadata) - {path for paths in by_split.values() for path in paths}
    if outside or not all(by_split.values()):
        raise ValueError(
            f"{found.dataset_id} has the splits {', '.join(by_split)}, and metadata in {named(metadata, found.root)}: "
            f"each split needs a metadata file in its own folder, or none has one, with {LAYOUT}."
        )
    return by_split


def _check_classes(found: ImageFiles) -> None:
    """Raise unless each image lies in a class folder, and the other splits have no classes that train lacks."""
    classes = {split: _classes(split, found) for split in found.images}
    every = set().union(*classes.values())
    if len(every) < 2:
        raise ValueError(f"{found.dataset_id} has one class only, {every.pop()}: it needs {LAYOUT}.")
    for split, names in classes.items():
        unknown = sorted(names - classes.get("train", every))
        if unknown:
            raise ValueError(
                f"{found.dataset_id} has classes in {split} that train lacks: {', '.join(unknown[:5])}. Train has "
                f"{', '.join(sorted(classes['train'])[:5])}, ...: name class folders alike in all splits."
            )


def _classes(split: str, found: ImageFiles) -> set[str]:
    """The names of the class folders of a split."""
    examples: dict[tuple[str, ...], str] = {}
    for path in found.images[split]:
        examples.setdefault(_folders_to(path, found.folders[split]), path)
    if () in examples:
        raise ValueError(
            f"{found.dataset_id} has images without a class ({split}), as {named([examples[()]], found.root)}: it "
            f"needs {LAYOUT}, or a metadata file with labels. Unlabelled images belong elsewhere."
        )
    depths = {len(folders): path for folders, path in examples.items()}
    if len(depths) > 1:
        raise ValueError(
            f"{found.dataset_id} has images at several depths ({split}), as {named(depths.values(), found.root)}, "
            f"which leaves open what their classes are: it needs {LAYOUT}."
        )
    passed = next((name for folders in examples for name in folders[:-1] if split_called(name)), None)
    if passed or all(split_called(folders[-1]) for folders in examples):
        raise ValueError(
            f"{found.dataset_id} has folders with names of splits that are not at its top, as "
            f"{named(examples.values(), found.root)}: name the folder in which the splits lie, or rename them if they "
            "are none."
        )
    twice = [name for name, count in Counter(folders[-1] for folders in examples).items() if count > 1]
    if twice:
        places = [path for folders, path in examples.items() if folders[-1] == twice[0]]
        raise ValueError(
            f"{found.dataset_id} has several folders {twice[0]} ({split}), as {named(places, found.root)}, which "
            f"leaves open what the classes are: it needs {LAYOUT}."
        )
    if 1 not in depths:
        logger.warning(
            "%s (%s): classes are the folders in which the images lie, as in %s.",
            found.dataset_id, split, named(examples.values(), found.root),
        )  # fmt: skip
    return {folders[-1] for folders in examples}


def _check_readable(files: list[str], found: ImageFiles) -> None:
    """Count files that are passed over beside the images; raise where a class would be lost with them.

    Raises:
        ValueError: a folder beside class folders holds files, and none that is read.
    """
    holding = {os.path.dirname(path) for images in found.images.values() for path in images}
    unread: Counter[str] = Counter()
    lost: dict[str, Counter[str]] = {}
    for path in files:
        folder, ending = os.path.dirname(path), os.path.splitext(path)[1].lower()
        broken = not os.path.exists(path)
        if not broken and (_is_image(path) or ending in NO_IMAGES):
            continue
        kind = "broken links" if broken else ending or "no ending"
        if folder in holding:
            unread[kind] += 1
        elif not found.metadata and os.path.dirname(folder) in {os.path.dirname(each) for each in holding}:
            lost.setdefault(folder, Counter())[kind] += 1
    if lost:
        counts = ", ".join(f"{ending} ({count})" for ending, count in sum(lost.values(), Counter()).most_common(8))
        raise ValueError(
            f"{found.dataset_id} has folders beside its classes with files that are not read, and no images: "
            f"{named(lost, found.root)}; {counts}. Convert or rename those that are images, or move the folders away."
        )
    if unread:
        counts = ", ".join(f"{ending} ({count})" for ending, count in unread.most_common(8))
        logger.warning(
            "%s: %d files beside the images are not read: %s. Convert or rename those that are images.",
            found.dataset_id, unread.total(), counts,
        )  # fmt: skip


def _stored_paths(dataset: Dataset) -> Iterator[str]:
    """Where the images of a dataset lie; decodes none."""
    names = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    table = dataset.with_format("arrow", columns=names)[:]
    for name in names:
        yield from (value["path"] for value in table[name].to_pylist() if value and value["path"])
