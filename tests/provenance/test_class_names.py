import numpy as np
import pytest

from hf_robust_ft.provenance.class_names import class_names, name_of

NAMES = ["ant", "bee", "cow", "dog"]
PLACEHOLDERS = [f"LABEL_{index}" for index in range(4)]
UNNAMED = ["0", "1", "2", "3"]
NAMED = dict(enumerate(NAMES))
INDICES = {name: index for index, name in enumerate(NAMES)}


class Config:
    def __init__(self, **content):
        self.__dict__.update(content)


@pytest.mark.parametrize("as_config", [dict, Config], ids=["json", "config"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"id2label": NAMED}, NAMES),
        ({"id2label": {str(index): name for index, name in NAMED.items()}}, NAMES),
        ({"id2label": {np.int64(index): name for index, name in NAMED.items()}}, NAMES),
        ({"id2label": dict(reversed(NAMED.items()))}, NAMES),
        ({"id2label": NAMES}, NAMES),
        ({"id2label": {0: "ant", "3": "dog"}}, ["ant", "LABEL_1", "LABEL_2", "dog"]),
        ({"id2label": {0: 7, 1: 8, 2: 9, 3: 10}}, ["7", "8", "9", "10"]),
        ({"id2label": dict(enumerate(PLACEHOLDERS)), "label2id": INDICES}, NAMES),
        ({"id2label": dict(enumerate(PLACEHOLDERS)), "label2id": dict.fromkeys(PLACEHOLDERS)}, PLACEHOLDERS),
        ({"label2id": {name: str(index) for name, index in INDICES.items()}}, NAMES),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, PLACEHOLDERS),  # transformers' default of two
        ({"id2label": dict(enumerate(["of", "another", "network", "with", "six", "classes"]))}, UNNAMED),
        ({"id2label": INDICES}, UNNAMED),  # the wrong way round
        ({"label_names": NAMES}, NAMES),  # timm's JSON
        ({"id2label": None, "label2id": None}, UNNAMED),
        ({}, UNNAMED),
    ],
)
def test_four_logits_get_four_names(content, expected, as_config):
    assert class_names(as_config(**content), 4) == expected


def test_without_logits_they_are_as_many_as_are_named_in_the_order_of_indices():
    many = {str(index): f"class {index}" for index in sorted(range(12), key=str)}  # as sorted JSON has them
    assert class_names({"id2label": many}) == [f"class {index}" for index in range(12)]
    assert class_names(None) == [] and class_names(None, 2) == ["0", "1"]


@pytest.mark.parametrize("names", [NAMES, NAMED, {"1": "bee"}])
def test_no_kind_of_names_fails(names):
    assert name_of(names, 1) == "bee" and name_of(names, 9) == "9" and name_of(None, 1) == "1"
