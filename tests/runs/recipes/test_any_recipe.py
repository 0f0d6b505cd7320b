"""Whatever a recipe's file holds: a parsed recipe, or one line that says what is wrong."""

import dataclasses
import os

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from hf_robust_ft import AdversarialTrainingArguments
from hf_robust_ft.provenance.affects import TRAINERS_OWN
from hf_robust_ft.runs.arguments import DataArguments, ModelArguments
from hf_robust_ft.runs.recipes import build_parser, read_recipe

TYPES = (ModelArguments, DataArguments, AdversarialTrainingArguments)
BOUNDED = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

INHERITED = {entry.name for entry in dataclasses.fields(TrainingArguments)}
KEYS = sorted(
    entry.name
    for each in TYPES
    for entry in dataclasses.fields(each)
    if entry.init and (entry.name not in INHERITED or entry.name in TRAINERS_OWN)
)

words = st.sampled_from(
    ["", "no", "off", "none", "null", "4/255", "1/0", "nan", "inf", "-1", "1e400", "0x10", "a=b", "points=0:0,1:1", "~"]
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), words, st.dates())
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=4,
)


def parsed_or_told(path, required):
    """The dataclasses, or None after a ValueError in one line; nothing else may come out."""
    try:
        recipe = read_recipe(path)
        parser = build_parser(TYPES, {**required, **recipe})
        return parser.parse_args_into_dataclasses([], look_for_args_file=False)
    except ValueError as error:
        assert str(error).strip(), "an error without words"
        return None


@pytest.fixture
def required(tmp_path):
    return {"model": "someone/x", "dataset": "y", "output_dir": str(tmp_path / "run"), "use_cpu": True}


@settings(BOUNDED, max_examples=100)
@given(
    content=st.binary(max_size=40) | st.text(alphabet="ab:-[]{}&*!|>'\"#%@,? \n\t\0é0123.", max_size=40).map(str.encode)
)
def test_arbitrary_files(tmp_path, required, content):
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    parsed_or_told(path, required)
    assert not os.path.exists(required["output_dir"])


@settings(BOUNDED, max_examples=80)
@given(recipe=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), values, min_size=1, max_size=3))
def test_arbitrary_values_of_real_options(tmp_path, required, recipe):
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    parsed_or_told(path, required)
    assert not os.path.exists(required["output_dir"])
