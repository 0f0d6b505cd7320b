"""The API reference is made by one command, without a warning, and has every public name in it."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import hf_robust_ft

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The text of every page, by its module."""
    pytest.importorskip("pdoc", reason="needs the extra docs")
    spec = importlib.util.spec_from_file_location("api_reference", ROOT / ".github" / "api_reference.py")
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    folder = tmp_path_factory.mktemp("api")
    command.write_reference(folder)
    return {room: (folder / f"{room.replace('.', '/')}.html").read_text(encoding="utf-8") for room in command.ROOMS}


def test_every_public_name_has_its_place(pages):
    for room, page in pages.items():
        names = importlib.import_module(room).__all__
        missing = [name for name in names if not re.search(rf'id="{name}"', page)]
        assert names and not missing, room


@pytest.mark.parametrize("name", [name for name in hf_robust_ft.__all__ if name != "SCHEDULES"])
def test_every_public_name_is_described(name):
    text = inspect.getdoc(getattr(hf_robust_ft, name))
    assert text and len(text) > 40 and (text[0].isupper() or text[0] == "`")


@pytest.mark.parametrize("name", ["apgd", "evaluate_robustness", "load_image_classifier", "load_image_dataset"])
def test_a_function_tells_its_arguments_what_it_returns_and_what_it_refuses(name):
    text = inspect.getdoc(getattr(hf_robust_ft, name))
    for part in ("Args:", "Returns:", "Raises:"):
        assert part in text, part
    documented = set(re.findall(r"(?m)^    (?:\*\*)?(\w+(?:, \w+)*):", text.split("Args:")[1].split("Returns:")[0]))
    names = {each for group in documented for each in group.split(", ")}
    parameters = inspect.signature(getattr(hf_robust_ft, name)).parameters
    assert names <= set(parameters), names - set(parameters)
