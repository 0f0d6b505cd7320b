"""The names of a network's classes, in the order of its logits."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def class_names(config: Any, num_classes: int | None = None) -> list[str]:
    """The name of each class, by the index of its logit.

    They are read from `id2label`, whose keys may be strings (as transformers' example scripts give them) and in any
    order; where that has only placeholders, from `label2id`, or from the `label_names` of timm's JSON files. A map
    that names a class beyond the logits is another network's, and is left aside. A class without a name is called
    LABEL_3, as in transformers; where no class has one, as in a module without a config, 3.

    Args:
        config: a transformers config, or the content of its JSON file; None for a module without one.
        num_classes: K, the width of the logits; by default as many as are named.

    >>> class_names({"id2label": {"1": "dog", "0": "cat"}})
    ['cat', 'dog']
    >>> class_names({"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"cat": "0", "dog": "1"}}, 2)
    ['cat', 'dog']
    >>> class_names({"id2label": {0: "cat", 2: "dog"}}, 3)
    ['cat', 'LABEL_1', 'dog']
    >>> class_names({"id2label": dict(enumerate("abcd"))}, 2)
    ['0', '1']
    """
    maps = [_by_index(pairs) for pairs in _name_maps(config)]
    if num_classes is not None:
        maps = [names for names in maps if all(0 <= index < num_classes for index in names)]
    maps = [names for names in maps if names]
    named = next((names for names in maps if not all(map(_is_placeholder, names.values()))), maps[0] if maps else {})
    count = max(named, default=-1) + 1 if num_classes is None else num_classes
    return [named.get(index, f"LABEL_{index}" if named else str(index)) for index in range(count)]


def name_of(names: Sequence[str] | Mapping[Any, str] | None, label: int) -> str:
    """A class's name, or its index where there is none: nothing measured may fail for a name."""
    for key in (label, str(label)):
        try:
            return str(names[key])
        except (LookupError, TypeError):
            continue
    return str(label)


def _name_maps(config: Any) -> Iterable[Iterable[tuple[Any, Any]]]:
    """What a config may say of its classes, as pairs of index and name, the best source first."""
    read = config.get if isinstance(config, Mapping) else lambda entry: getattr(config, entry, None)
    names, indices = read("id2label"), read("label2id")
    yield names.items() if isinstance(names, Mapping) else enumerate(names or [])
    yield [(index, name) for name, index in indices.items()] if isinstance(indices, Mapping) else []
    yield enumerate(read("label_names") or [])


def _by_index(pairs: Iterable[tuple[Any, Any]]) -> dict[int, str]:
    try:
        return {int(index): str(name) for index, name in pairs}
    except (TypeError, ValueError):  # keys that are no indices
        return {}


def _is_placeholder(name: str) -> bool:
    return re.fullmatch(r"LABEL_\d+", name) is not None
