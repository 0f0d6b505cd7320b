"""A local folder of images and masks as pairs of files of one name.

Layouts, with any names of `MASK_FOLDERS` and of splits (`SPLIT_NAMES`):

- `images/`, `masks/`: all is train, from which the other splits are drawn.
- `train/images/`, `train/masks/`, `validation/images/`, ...
- `images/train/`, `masks/train/`, ..., as ADE20K has it.

A mask has the name of its image, the ending aside; a suffix of `SUFFIXES` (`0001_mask.png`) is allowed.
"""

import os
from pathlib import Path

from datasets import Dataset, Features, Image
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from hf_robust_ft.data.image_folders import named
from hf_robust_ft.data.splits import split_called

IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "segmentation_masks", "segmentations")
SUFFIXES = ("", "_mask", "_label", "_labels", "_seg", "_labelIds", "_labelTrainIds")


def load_mask_folder(root: str, dataset_id: str) -> dict[str, Dataset] | None:
    """The splits of a folder of pairs, with columns `image` and `mask`; None where it has no such layout.

    Raises:
        ValueError: an image without a mask, a mask without an image, or several masks for one image.
    """
    pairs = _pair_folders(Path(root))
    if not pairs:
        return None
    return {split: _split(images, masks, root, dataset_id) for split, (images, masks) in pairs.items()}


def _pair_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """The folder of images and that of masks by split."""
    images, masks = _child(root, IMAGE_FOLDERS), _child(root, MASK_FOLDERS)
    if images and masks:
        inner = {split: folder for folder in _folders(images) if (split := split_called(folder.name))}
        matched = {folder.name: folder for folder in _folders(masks)}
        if not inner:
            return {"train": (images, masks)}
        lacking = [folder.name for folder in inner.values() if folder.name not in matched]
        if lacking:
            raise ValueError(f"{masks} has no folder {lacking[0]}, which {images} has: name both alike.")
        return {split: (folder, matched[folder.name]) for split, folder in inner.items()}
    found = {}
    for folder in _folders(root):
        images, masks = _child(folder, IMAGE_FOLDERS), _child(folder, MASK_FOLDERS)
        if images and masks and (split := split_called(folder.name)):
            found[split] = (images, masks)
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _child(folder: Path, names: tuple[str, ...]) -> Path | None:
    found = {path.name.lower(): path for path in _folders(folder)}
    return next((found[name] for name in names if name in found), None)


def _split(images: Path, masks: Path, root: str, dataset_id: str) -> Dataset:
    pictures, drawn = _files(images), _files(masks)
    by_name: dict[str, list[Path]] = {}
    for path in drawn:
        by_name.setdefault(_stem(path, masks), []).append(path)
    pairs = {path: _masks_of(_stem(path, images), by_name) for path in pictures}
    lonely = [path for path, found in pairs.items() if not found]
    several = [path for path, found in pairs.items() if len(found) > 1]
    used = {mask for found in pairs.values() for mask in found}
    unused = [path for path in drawn if path not in used]
    for paths, wrong in (
        (lonely, f"Images without a mask of their name in {masks.name}/"),
        (several, f"Images with several masks in {masks.name}/"),
        (unused, f"Masks without an image of their name in {images.name}/"),
    ):
        if paths:
            raise ValueError(
                f"{dataset_id}: {wrong} ({len(paths)} of {len(pictures)}): {named(map(str, paths), root)}. Name each "
                "mask as its image, or move it away."
            )
    if not pairs:
        raise ValueError(f"{dataset_id} has no images in {os.path.relpath(images, root)}.")
    columns = {"image": [str(path) for path in pairs], "mask": [str(found[0]) for found in pairs.values()]}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "mask": Image()}))


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in ImageFolder.EXTENSIONS and not path.name.startswith(".")
    )


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _masks_of(stem: str, by_name: dict[str, list[Path]]) -> list[Path]:
    return [path for suffix in SUFFIXES for path in by_name.get(stem + suffix, ())]
