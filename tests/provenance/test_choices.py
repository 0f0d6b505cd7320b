import re
from pathlib import Path

import pytest
import timm

import hf_robust_ft
from hf_robust_ft.provenance.choices import check_choice, nearest_names


@pytest.mark.parametrize("value", ["fast", "", None, 3, ["paper"], {"paper": 1}], ids=repr)
def test_what_is_no_name_is_refused_with_those_there_are(value):
    """Also what a dictionary cannot look up: YAML gives lists and mappings."""
    with pytest.raises(ValueError) as error:
        check_choice("protocol", value, {"paper": 1, "exact": 2})
    assert str(error.value) == f"Unknown protocol {value!r}. Valid: paper, exact."


@pytest.mark.parametrize("value", ["Paper", "papre"])
def test_a_name_that_is_almost_one_is_asked_for(value):
    with pytest.raises(ValueError, match=rf"^Unknown protocol '{value}'. Did you mean paper\? Valid: paper, exact.$"):
        check_choice("protocol", value, {"paper": 1, "exact": 2})


def test_a_name_like_no_other_offers_all_of_a_few_and_three_of_many():
    assert nearest_names("qqqqq", ["b", "a"]) == "a, b"
    assert nearest_names("qqqqq", timm.list_models()).count(",") == 2


def test_the_rooms_above_say_it_by_these():
    """Base rooms do not import each other: `attacks`, `metrics` and `schedules` have sentences of their own."""
    root = Path(hf_robust_ft.__file__).parent
    again = re.compile(r"""Unknown [^"\n]*\. Valid[^"\n]*', '\.join|" Did you mean \{' or '""")
    told = [path.relative_to(root) for path in root.rglob("*.py") if again.search(path.read_text(encoding="utf-8"))]
    assert {path.parts[0] for path in told} == {"attacks", "metrics", "schedules"}
