"""Imports go one way: a room may import from the rows above its own, a file from no file that needs it."""

import ast
import graphlib
import importlib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "hf_robust_ft"

# Rooms of one row do not import each other.
ROOMS = [
    ("attacks", "schedules", "metrics", "provenance"),
    ("evaluation", "data", "models"),
    ("reporting",),
    ("hub",),
    ("training",),
    ("runs",),
    ("experiments",),
    ("cli", "benchmarks"),
    ("__main__",),
]
RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names}
DATA_ONLY = {"recipes"}


def modules():
    return [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def module_name(path: Path) -> str:
    return ".".join(["hf_robust_ft", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


@cache
def imported_modules(path: Path) -> frozenset[str]:
    """Full names, also of what is imported inside functions."""
    known, found = {module_name(each) for each in modules()}, set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            own = module_name(path).split(".")[: -node.level] if node.level else []  # of `from .curve import ...`
            source = ".".join([*own, *filter(None, [node.module])])
            if source.split(".")[0] == "hf_robust_ft":
                names = {f"{source}.{alias.name}" for alias in node.names}
                found |= {name if name in known else source for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("hf_robust_ft.")}
    return frozenset(found - {"hf_robust_ft"})


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_no_file_lies_outside_a_room():
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {name for names in ROOMS for name in names} - {"__main__"} | DATA_ONLY


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_one_way(path):
    own = room(path)
    others = {name for name in imported_modules(path) if name.split(".")[1] != own}
    upward = {name for name in others if RANK[name.split(".")[1]] >= RANK[own]}
    assert not upward, f"{own} may not import {upward}"


def test_files_import_without_circles():
    """A package stands for what it hands on."""
    graph = {module_name(path): imported_modules(path) - {module_name(path)} for path in modules()}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_the_metric_imports_nothing_of_ours():
    """It is published by itself."""
    own = {path for path in modules() if room(path) == "metrics"}
    assert own and {name.split(".")[1] for path in own for name in imported_modules(path)} <= {"metrics"}


def test_what_is_imported_is_there():
    """Also inside functions, where nothing else would tell before the command is used."""
    missing = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_robust_ft"):
                found = importlib.import_module(node.module)
                submodules = {each.stem for folder in getattr(found, "__path__", []) for each in Path(folder).iterdir()}
                names = [alias.name for alias in node.names if not hasattr(found, alias.name)]
                missing += [f"{path.name}: {node.module}.{name}" for name in names if name not in submodules]
    assert not missing


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if room(path) in ("attacks", "schedules", "metrics")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_attacks_know_nothing_of_transformers(path):
    source = ast.parse(path.read_text(encoding="utf-8"))
    roots = {
        (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0]
        for node in ast.walk(source)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    forbidden = {"transformers", "accelerate", "timm"} | (set() if room(path) == "metrics" else {"datasets"})
    assert not roots & forbidden
