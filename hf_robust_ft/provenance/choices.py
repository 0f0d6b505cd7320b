"""What is said of values that do not fit: names that are none of those there are, and settings that exclude each other.

Every room above this one says it by these.
"""

import difflib
from collections.abc import Iterable
from typing import Any

_MANY = 20  # names that no error message lists in full


def check_choice(what: str, value: Any, valid: Iterable[str], several: str = "") -> None:
    """Pass one of the `valid` names.

    Args:
        what: it is a name of: an argument, a protocol.
        value: as given.
        valid: all names there are.
        several: what these are called together.

    Raises:
        ValueError: another name, or none at all; with the valid ones.

    >>> check_choice("protocol", "fast", ["paper", "exact"], "protocols")
    Traceback (most recent call last):
    ValueError: Unknown protocol 'fast'. Valid protocols: paper, exact.
    """
    valid = list(valid)
    if value not in valid:
        near = alike(value, valid) if isinstance(value, str) else []
        names = f"{f'Valid {several}'.strip()}: {', '.join(valid)}."
        raise ValueError(f"Unknown {what} {value!r}.{did_you_mean(near)} {names}")


def did_you_mean(near: Iterable[str]) -> str:
    """The names that are `near` as a question to put behind a sentence; nothing where there is none.

    >>> did_you_mean(["hinge", "cosine"]), did_you_mean([])
    (' Did you mean hinge or cosine?', '')
    """
    names = " or ".join(near)
    return names and f" Did you mean {names}?"


def nearest_names(name: str, known: Iterable[str]) -> str:
    """Those of the `known` names most like `name`, whatever the case, for an error message.

    Where none is alike, all of a few, or the three least unlike of many.

    >>> nearest_names("clipvit", ["vit", "swin", "clip_vit"])
    'clip_vit, vit'
    >>> nearest_names("vit-b-32", ["RN50", "ViT-B-32"])
    'ViT-B-32'
    """
    known = sorted(known)
    close = alike(name, known, 3, 0.55)
    if not close and len(known) > _MANY:
        close = alike(name, known, 3, 0.0)
    return ", ".join(close or known)


def alike(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """`difflib.get_close_matches` whatever the case; names that differ in it alone come together.

    >>> alike("Hing", ["hinge", "cosine"])
    ['hinge']
    """
    lowered: dict[str, list[str]] = {}
    for entry in known:
        lowered.setdefault(entry.lower(), []).append(entry)
    close = difflib.get_close_matches(name.lower(), lowered, count, cutoff)
    return [entry for match in close for entry in lowered[match]]


def is_number(value: object) -> bool:
    """Whether it can be compared with one: not the text that a configuration may hold.

    >>> is_number(0.5), is_number("0.5"), is_number(True)
    (True, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def refuse_unread(names: Iterable[str], needed: str, cure: str) -> None:
    """Raise where settings were given that nothing reads without another one.

    Raises:
        ValueError: naming all of them.

    >>> refuse_unread(["lora_alpha"], "lora_rank", "e.g. 8")
    Traceback (most recent call last):
    ValueError: lora_alpha does nothing without lora_rank: set it (e.g. 8).
    """
    names = list(names)
    if names:
        does = "does" if len(names) == 1 else "do"
        raise ValueError(f"{', '.join(names)} {does} nothing without {needed}: set it ({cure}).")


def refuse_together(asked: str, settings: object, excluded: Iterable[tuple[str, bool, str]]) -> None:
    """Raise for the first of some settings that cannot go with what is asked for.

    Args:
        asked: a setting, as a sentence is to name it.
        settings: has the others as attributes.
        excluded: name, whether it has a value that does not go, and why that does not.

    Raises:
        ValueError: naming both.
    """
    for name, is_excluded, because in excluded:
        if is_excluded:
            raise ValueError(
                f"{asked} and {name}={getattr(settings, name)!r} exclude each other: {because}. Leave {name} out."
            )
