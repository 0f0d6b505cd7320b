"""What a run was made with, so that others can make it again: recipe, seeds, code, libraries, hardware."""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import hf_robust_ft
from hf_robust_ft.provenance.affects import arguments
from hf_robust_ft.provenance.yaml_values import dump_yaml, load_yaml

RECIPE_NAME = "recipe.yaml"
RECORD_NAME = "provenance.json"

# What a report's metadata holds of a run beside its settings; `provenance.json` repeats it.
RECORDED_FACTS = (
    "command", "recipes", "seeds", "dataset", "dataset_config", "dataset_revision", "dataset_commit", "splitting",
    "base_model", "base_model_commit", "base_model_text", "git", "hardware", "versions", "resumed_with_changes",
)  # fmt: skip


def library_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    # Ours of the code that runs: a source checkout has no metadata, or those of another one.
    versions = {"python": platform.python_version(), "hf_robust_ft": hf_robust_ft.__version__}
    for package in (
        "torch",
        "torchvision",
        "transformers",
        "accelerate",
        "datasets",
        "timm",
        "numpy",
        "Pillow",
    ):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def git_state(folder: str | Path = ".") -> dict[str, Any] | None:
    """Commit of the repository that the user works in, and whether tracked files differ from it; None without one."""
    try:
        found = [
            subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": found[0].strip(), "uncommitted_changes": bool(found[1].strip())}


def hardware() -> dict[str, Any]:
    """Architecture, usable cores, torch's threads, and accelerators by name; nothing that names this machine."""
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    return {"architecture": platform.machine(), "cpu_cores": cores, "threads": threads, "accelerators": names}


def environment_facts() -> dict[str, Any]:
    """`versions`, `hardware` and, where the user works in a git repository, `git`: as first asked for."""
    return dict(_environment())


@cache
def _environment() -> dict[str, Any]:
    # Code that is edited while a run goes on is not the code it runs.
    facts = {"versions": library_versions(), "hardware": hardware(), "git": git_state()}
    return {name: value for name, value in facts.items() if value is not None}


def resolved_recipe(*options: Any, unset: bool = False, place: Callable[[str], str] | None = None) -> dict[str, Any]:
    """The settings of a run, whatever they came from, as a recipe for `hf-robust-ft train --config`.

    Args:
        options: dataclasses of arguments, of which those that affect the launch alone stay out. What their
            `local_paths`, if they have any, names are files and folders of this machine.
        unset: give also what is None by default and was left so.
        place: how such a path is written (default: `portable_place`).
    """
    recipe = {}
    for each in options:
        paths = getattr(each, "local_paths", {})
        for argument in arguments(type(each)):
            if argument.is_launch:
                continue
            value = getattr(each, argument.name)
            if argument.name in paths:
                recipe[argument.name] = (place or portable_place)(paths[argument.name])
            elif unset or value is not None or argument.default is not None:
                recipe[argument.name] = _plain(value)
    return recipe


def own_place(path: str) -> str:
    """A file or folder as this machine finds it from any working directory."""
    return os.path.abspath(path)


def portable_place(path: str) -> str:
    """A file or folder without what names this machine: a path below the working directory, of others the last part.

    It starts with a dot, so that nobody takes it for a name of the Hub or of this package.

    >>> portable_place("data/cifar"), portable_place("../cifar"), portable_place("/home/me/cifar/")
    ('./data/cifar', './cifar', './cifar')
    """
    path = os.path.normpath(path)
    if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:
        path = os.path.basename(os.path.abspath(path))
    return path if path == os.curdir else os.path.join(os.curdir, path)


def portable_recipe(text: str) -> str:
    """A `recipe.yaml` for other machines: absolute paths in it by `portable_place`, every other line as it is."""
    lines = []
    for line in text.splitlines(keepends=True):
        name, _, value = line.partition(": ")
        if name.isidentifier() and os.path.isabs(path := _text(value)):
            line = dump_yaml({name: portable_place(path)})
        lines.append(line)
    return "".join(lines)


def _text(value: str) -> str:
    """A YAML value that is text on one line; "" for any other."""
    try:
        found = load_yaml(value)
    except ValueError:  # it goes on in the next line
        return ""
    return found if isinstance(found, str) else ""


def _plain(value: Any) -> Any:
    """As YAML writes it; an absolute path by its last part."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str) and os.path.isabs(value):
        return os.path.basename(os.path.normpath(value))
    return value


def differences(before: Mapping[str, Any], wanted: Mapping[str, Any], usual: Mapping[str, Any] | None = None) -> str:
    """Where two configurations of JSON values differ, for a message; "" where they do not.

    Args:
        usual: what is meant where one of them says nothing (default: None).

    >>> differences({"eps": "4/255", "seed": 0}, {"eps": "8/255", "seed": 0})
    "eps '4/255' there, '8/255' now"
    """
    both = {name: [each.get(name, (usual or {}).get(name)) for each in (before, wanted)] for name in (*before, *wanted)}
    return "; ".join(f"{name} {there!r} there, {now!r} now" for name, (there, now) in both.items() if there != now)


def write_run_record(folder: str | Path, recipe: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> None:
    """Write `recipe.yaml` and `provenance.json`.

    Args:
        recipe: as `resolved_recipe` gives it; None writes no recipe.
        facts: a report's metadata, of which `RECORDED_FACTS` are written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if recipe is not None:
        head = "# What this run was trained with; hf-robust-ft train --config recipe.yaml repeats it.\n"
        (folder / RECIPE_NAME).write_text(head + dump_yaml(recipe), encoding="utf-8")
    record = {name: facts[name] for name in RECORDED_FACTS if facts.get(name) is not None}
    (folder / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
