"""Where a normalisation is stated, if not by argument: in the data's transform, beside the checkpoint, in the model."""

import dis
import functools
import inspect
import logging
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from transformers import AutoImageProcessor

from hf_robust_ft.attacks.pixels import PixelSpace

logger = logging.getLogger(__name__)

MISSING = (
    "AdversarialTrainer needs to know how pixel_values were normalised. Pass the checkpoint's image processor, "
    "processing_class=AutoImageProcessor.from_pretrained(...), or the map itself, "
    "pixel_space=PixelSpace(mean=(...), std=(...))."
)
_DEPTH = 6  # of transforms in transforms, and of functions that call functions
_LIBRARIES = {"torch", "torchvision", "transformers", "timm", "datasets", "open_clip", "PIL", "numpy", "hf_robust_ft"}
_SAME = 1e-3  # between values of one map in several roundings


def find_pixel_space(
    pixel_space: PixelSpace | None,
    processing_class: Any,
    model: nn.Module | None,
    data: Iterable[Any] = (),
    collator: Callable | None = None,
) -> PixelSpace:
    """The normalisation of `pixel_values`: the one given, the processor's, what the data say, or what the model says.

    What was not given as an argument is logged with its source, and with what the model says where the data say
    otherwise: they may well be normalised by statistics of their own. The first batch is checked against it as against
    any.

    Args:
        model: asked for open_clip's `preprocess_cfg`, timm's `pretrained_cfg`, and its `config`'s checkpoint for an
            image processor, locally or in the cache; nothing is downloaded.
        data: datasets, whose transforms are searched for a `Normalize` or an image processor.
        collator: searched likewise.

    Raises:
        ValueError: what is given is no map, no source states one, or two of the data, or of the model, state different
            ones.
    """
    if pixel_space is not None:
        if not isinstance(pixel_space, PixelSpace):
            raise ValueError(
                f"pixel_space must be a PixelSpace, got {type(pixel_space).__name__}: give PixelSpace(mean, std), or "
                "the image processor as processing_class."
            )
        return pixel_space
    if processing_class is not None:
        return PixelSpace.from_processor(processing_class)
    by_data = [entry for dataset in data for entry in stated_by_data(dataset)]
    by_data += _stated_in([("the data collator", collator)])
    by_data = [(where, _broadcast(space, model)) for where, space in by_data]
    by_model = [] if model is None else stated_by_model(model)
    found = by_data or by_model
    if not found:
        raise ValueError(MISSING)
    where, space = found[0]
    others = _differing(space, found)
    if others:
        raise ValueError(
            f"How pixel_values were normalised is stated in different ways: {where}: {space}; {others}. Say which "
            "holds for the data: pixel_space=PixelSpace(mean=(...), std=(...)), or processing_class=..."
        )
    differs = _differing(space, by_model)
    note = f" It is not what the model was made for ({differs})." if differs else ""
    logger.warning("The normalisation of pixel_values, %s, is taken from %s.%s", space, where, note)
    return space


def _differing(space: PixelSpace, found: list[tuple[str, PixelSpace]]) -> str:
    """The statements that do not agree with `space`, each once; empty without any."""
    return "; ".join(dict.fromkeys(f"{where}: {its}" for where, its in found if not _agree(space, its)))


def _broadcast(space: PixelSpace, model: nn.Module | None) -> PixelSpace:
    """One value for all channels that the model takes, as of torchvision's `Normalize((0.5,), (0.5,))`."""
    convolutions = (part for part in model.modules() if isinstance(part, nn.Conv2d)) if model is not None else iter(())
    first = next(convolutions, None)
    if len(space.mean) > 1 or first is None:
        return space
    return PixelSpace(space.mean * first.in_channels, space.std * first.in_channels)


def _agree(first: PixelSpace, second: PixelSpace) -> bool:
    if first.channels != second.channels or len(first.mean) != len(second.mean):
        return False
    pairs = zip(first.mean + first.std, second.mean + second.std, strict=True)
    return all(abs(ours - theirs) <= _SAME for ours, theirs in pairs)


def stated_by_data(dataset: Any) -> list[tuple[str, PixelSpace]]:
    """What the transforms of a dataset say, each with its name; of `datasets`, torchvision, or a class of the script.

    Where no `transform` says anything, a dataset's other callables and its `__getitem__` are asked.
    """
    return _stated_in(_transforms_of(dataset)) or _stated_in(_callables_of(dataset))


def _stated_in(transforms: Iterable[tuple[str, Any]]) -> list[tuple[str, PixelSpace]]:
    found: dict[int, tuple[str, PixelSpace]] = {}
    for name, transform in transforms:
        for part in _parts(transform):
            space = _space_of(part)
            if space is not None:
                found.setdefault(id(part), (f"{type(part).__name__} in {name}", space))
    return list(found.values())


def _transforms_of(dataset: Any) -> Iterator[tuple[str, Any]]:
    for part in _layers(dataset):
        formatting = getattr(part, "format", None)
        if isinstance(formatting, Mapping) and formatting.get("type") == "custom":
            yield "the dataset's transform", (formatting.get("format_kwargs") or {}).get("transform")
        for name in ("transform", "transforms"):
            yield f"the dataset's .{name}", getattr(part, name, None)


def _callables_of(dataset: Any) -> Iterator[tuple[str, Any]]:
    for part in _layers(dataset):
        for name, value in getattr(part, "__dict__", {}).items():
            if callable(value):
                yield f"the dataset's .{name}", value
        for name in ("__getitem__", "__iter__"):
            method = getattr(type(part), name, None)
            if inspect.isfunction(method):
                yield f"the dataset's {name}", method


def _layers(dataset: Any, depth: int = _DEPTH) -> Iterator[Any]:
    """A dataset, and those that it wraps (Subset) or joins (ConcatDataset)."""
    if dataset is None or depth == 0:
        return
    yield dataset
    for inner in [*(getattr(dataset, "datasets", None) or []), getattr(dataset, "dataset", None)]:
        yield from _layers(inner, depth - 1)


def _parts(transform: Any, depth: int = _DEPTH, seen: set[int] | None = None) -> Iterator[Any]:
    """A transform and what it is made of: steps of a Compose, attributes, what a function refers to."""
    seen = set() if seen is None else seen
    if depth == 0 or transform is None or id(transform) in seen or isinstance(transform, (str, int, float, type)):
        return
    seen.add(id(transform))
    yield transform
    if _space_of(transform) is not None:
        return
    for part in _inside(transform):
        yield from _parts(part, depth - 1, seen)


def _inside(transform: Any) -> Iterable[Any]:
    if isinstance(transform, functools.partial):
        return [transform.func, *transform.args, *transform.keywords.values()]
    if inspect.ismethod(transform):
        return [transform.__self__, transform.__func__]
    if inspect.isfunction(transform):
        return _referred_to(transform)
    if isinstance(transform, (list, tuple)):
        return transform
    if isinstance(transform, nn.Module) and any(True for _ in transform.parameters()):
        return []  # a model that a script's function refers to is no transform
    if isinstance(transform, nn.Module):
        return [*transform.children(), *vars(transform).values()]
    if not callable(transform) or not hasattr(transform, "__dict__"):
        return []
    own_call = type(transform).__call__
    return [*vars(transform).values(), *([own_call] if inspect.isfunction(own_call) else [])]


def _referred_to(function: Callable) -> Iterable[Any]:
    """The variables of its script that a function uses; nothing of a library's."""
    if (function.__module__ or "").split(".")[0] in _LIBRARIES:
        return []
    held = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    used = [function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__]
    return [*held, *used, *(function.__defaults__ or ())]


def _names(code: types.CodeType) -> Iterator[str]:
    """The globals that a function's code looks up, comprehensions and lambdas in it included."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from _names(constant)


def _space_of(part: Any) -> PixelSpace | None:
    """What a Normalize of any library, or an image processor, says; None for anything else."""
    if type(part).__name__ == "Normalize" and hasattr(part, "mean") and hasattr(part, "std"):
        white = getattr(part, "max_pixel_value", None)  # albumentations: from bytes, by statistics of [0, 1]
        if white not in (None, 255, 255.0, 1, 1.0):
            return None
        return PixelSpace(_values(part.mean), _values(part.std))
    if not callable(part):
        return None
    if hasattr(part, "image_processor") or hasattr(part, "image_mean") or hasattr(part, "data_config"):
        return PixelSpace.from_processor(part)
    return None


def _values(statistic: Any) -> tuple[float, ...]:
    values = statistic.tolist() if hasattr(statistic, "tolist") else statistic
    return (float(values),) * 3 if isinstance(values, (int, float)) else tuple(float(value) for value in values)


def stated_by_model(model: nn.Module) -> list[tuple[str, PixelSpace]]:
    """What a model says of its input: its checkpoint's processor, or each outermost part that says anything."""
    found = []
    checkpoints = set()
    waiting: list[tuple[str, nn.Module]] = [("the model", model)]
    for name, module in waiting:  # grows
        config = getattr(module, "config", None)
        checkpoint = getattr(config, "_name_or_path", None) or getattr(config, "name_or_path", None)
        if isinstance(checkpoint, str) and checkpoint and checkpoint not in checkpoints:
            checkpoints.add(checkpoint)
            if (space := _of_checkpoint(checkpoint)) is not None:
                found.append((f"the image processor of {checkpoint}", space))
                continue
        inner = module.named_children()
        visual = getattr(module, "visual", None)  # an open_clip model: only its image tower says it
        inner = [("visual", visual)] if isinstance(visual, nn.Module) else inner
        stated = next(_input_configs(module, config), None)
        if stated is not None:
            attribute, cfg = stated
            found.append((f"{name}.{attribute}", PixelSpace(tuple(cfg["mean"]), tuple(cfg["std"]))))
            continue
        waiting.extend((f"{name}.{child}", part) for child, part in inner)
    return found


def _input_configs(module: nn.Module, config: Any) -> Iterator[tuple[str, Mapping]]:
    """open_clip's, before that of the timm model inside; a TimmWrapper's; timm's."""
    for owner, attribute in (
        (module, "preprocess_cfg"),
        (config, "pretrained_cfg"),
        (module, "pretrained_cfg"),
        (module, "default_cfg"),
    ):
        cfg = getattr(owner, attribute, None)
        cfg = cfg.to_dict() if hasattr(cfg, "to_dict") else cfg
        if isinstance(cfg, Mapping) and cfg.get("mean") and cfg.get("std"):
            yield f"config.{attribute}" if owner is config else attribute, cfg


def _of_checkpoint(name: str) -> PixelSpace | None:
    """The map of a checkpoint's image processor in a folder or the cache; None where there is none."""
    try:
        processor = AutoImageProcessor.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        return PixelSpace.from_processor(processor)
    except (OSError, ValueError, ImportError, KeyError):  # no folder, not cached, no processor, or one that is no map
        return None
