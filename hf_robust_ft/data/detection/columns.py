"""Which columns of a detection dataset hold images and objects, and where in these boxes and categories stand."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from datasets import ClassLabel, Features, Image

IMAGE_NAMES = ("image", "images", "pixel_values", "img", "picture")
BOX_NAMES = ("bbox", "bboxes", "boxes")
CATEGORY_NAMES = ("category", "categories", "category_id", "label", "labels", "class", "class_label", "class_labels")


class ObjectColumns(NamedTuple):
    """The names of the image column, the column of objects, and of its boxes and categories."""

    image: str
    objects: str
    boxes: str
    categories: str

    def class_names(self, features: Features) -> list[str] | None:
        """What the categories' type calls the classes; None where it does not."""
        inner = _fields(features[self.objects])[self.categories]
        while hasattr(inner, "feature"):
            inner = inner.feature
        return list(inner.names) if isinstance(inner, ClassLabel) else None


def find_object_columns(
    features: Features, dataset_id: str, image: str | None = None, objects: str | None = None
) -> ObjectColumns:
    """The columns given, else the only candidates.

    Raises:
        ValueError: a name that is not there, none or several candidates, or columns of the wrong type.
    """
    for name in (image, objects):
        if name is not None and name not in features:
            raise ValueError(f"{dataset_id} has no column {name!r}; it has {list(features)}.")
    able = [name for name, feature in features.items() if _parts(feature) is not None]
    objects = objects or _only(able, "column of objects (bbox and category)", features, dataset_id, "label_column")
    parts = _parts(features[objects])
    if parts is None:
        raise ValueError(
            f"Column {objects!r} of {dataset_id} holds {features[objects]}; objects hold lists of boxes "
            f"({', '.join(BOX_NAMES)}) and of categories ({', '.join(CATEGORY_NAMES)})."
        )
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    known = [name for name in images if name.lower() in IMAGE_NAMES]
    image = image or _only(known or images, "image column", features, dataset_id, "image_column")
    if not isinstance(features[image], Image):
        raise ValueError(f"Column {image!r} of {dataset_id} holds {features[image]}, not images.")
    return ObjectColumns(image, objects, *parts)


def _fields(feature: Any) -> Mapping[str, Any]:
    """Of objects as a dict of lists, or as a list of dicts."""
    feature = getattr(feature, "feature", feature)
    return feature if isinstance(feature, Mapping) else {}


def _parts(feature: Any) -> tuple[str, str] | None:
    fields = _fields(feature)
    found = [next((name for name in names if name in fields), None) for names in (BOX_NAMES, CATEGORY_NAMES)]
    return None if None in found else tuple(found)


def _only(names: list[str], what: str, features: Features, dataset_id: str, option: str) -> str:
    if len(names) == 1:
        return names[0]
    found = f"no {what}" if not names else f"several candidates for the {what}, {names},"
    raise ValueError(f"{dataset_id} has {found} among {list(features)}. Name the one to use: {option}.")
