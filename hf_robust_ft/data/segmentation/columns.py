"""Which columns of a segmentation dataset hold images and masks."""

from typing import Any

from datasets import Features, Image, Value

IMAGE_NAMES = ("image", "images", "pixel_values", "img", "picture")
MASK_NAMES = (
    "mask", "masks", "label", "labels", "annotation", "annotations", "segmentation_mask", "segmentation_map",
    "semantic_segmentation", "segmentation", "seg_map", "label_map", "semantic_mask", "sem_seg",
)  # fmt: skip


def find_mask_columns(features: Features, dataset_id: str, image: str | None, mask: str | None) -> tuple[str, str]:
    """The names of the image and the mask column: those given, else the only candidates.

    Raises:
        ValueError: a name that is not there, none or several candidates, or columns of the wrong type.
    """
    for name in (image, mask):
        if name is not None and name not in features:
            raise ValueError(f"{dataset_id} has no column {name!r}; it has {list(features)}.")
    mask = mask or _only(_masks(features, image), "mask", features, dataset_id, "label_column")
    if not _may_be_masks(features[mask]):
        raise ValueError(
            f"Column {mask!r} of {dataset_id} holds {_kind(features[mask])}; masks are images of class indices, or "
            "arrays (height, width) of integers. Name another column, label_column; for a dataset with one class an "
            "image, use --task image-classification."
        )
    images = [name for name, feature in features.items() if isinstance(feature, Image) and name != mask]
    image = image or _only(_preferred(images, IMAGE_NAMES), "image", features, dataset_id, "image_column")
    if not isinstance(features[image], Image) or image == mask:
        raise ValueError(f"Column {image!r} of {dataset_id} holds {_kind(features[image])}, not images.")
    return image, mask


def _masks(features: Features, image: str | None) -> list[str]:
    able = [name for name, feature in features.items() if _may_be_masks(feature) and name != image]
    named = [name for name in able if name.lower() in MASK_NAMES]
    pictured = [name for name in able if isinstance(features[name], Image) and name.lower() not in IMAGE_NAMES]
    return named or pictured


def _preferred(names: list[str], known: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.lower() in known] or names


def _only(names: list[str], what: str, features: Features, dataset_id: str, option: str) -> str:
    if len(names) == 1:
        return names[0]
    found = f"no {what} column" if not names else f"several {what} columns, {names}"
    raise ValueError(f"{dataset_id} has {found} among {list(features)}. Name the one to use: {option}.")


def _may_be_masks(feature: Any) -> bool:
    """Images, `Array2D`, or lists of lists."""
    if isinstance(feature, Image):
        return True
    if isinstance(feature, Value) or not hasattr(feature, "dtype"):
        inner = getattr(feature, "feature", None)
        return getattr(inner, "feature", None) is not None
    return len(getattr(feature, "shape", ())) == 2


def _kind(feature: Any) -> str:
    return "images" if isinstance(feature, Image) else str(feature)
