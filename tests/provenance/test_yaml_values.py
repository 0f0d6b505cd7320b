import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_robust_ft.provenance.yaml_values import dump_yaml, load_yaml

TRAPS = ("no", "on", "1e5", "1E-2", "0o17", "017", "08", "1:30", "~", "2020-01-01", "1_0", "=", "<<", "4/255")
NUMBERLIKE = st.from_regex(r"[-+]?[0-9o.eE_:]{1,6}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=8) | NUMBERLIKE
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(TEXT, SCALARS, max_size=2)


@settings(max_examples=100, deadline=None)
@given(values=st.dictionaries(TEXT, VALUES, max_size=3))
@example(dict.fromkeys(TRAPS, "1e5"))
def test_what_is_written_is_read_as_it_was_by_this_and_by_older_readers(values):
    assert repr(load_yaml(dump_yaml(values))) == repr(yaml.safe_load(dump_yaml(values))) == repr(values)


def test_numbers_are_those_of_yaml_1_2():
    assert load_yaml("[1e-4, 5.E-1, 3, .inf, 4/255, 1:30]") == [1e-4, 0.5, 3, float("inf"), "4/255", "1:30"]
    assert repr(load_yaml("[010, 0o10]")) == "[10, 8]"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "a: 1\nb:\n  c: 1\n  c: 2\n",
            r'^line 4, column 3: found duplicate key "c" with value "2" \(original value: "1"',
        ),
        ("a: &x 1\nb: [*x]\n", r"^line 2, column 5: \*x: write values out$"),
        ("a: 1\n---\nb: 1\n", "expected a single document in the stream, but found another document$"),
        ("? {a: 1}\n: 2\n", "^line 1, column 3: found unhashable key$"),
        ("a: 2020-13-45", "^month must be in 1..12$"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text, told):
    with pytest.raises(ValueError, match=told) as error:
        load_yaml(text)
    assert "\n" not in str(error.value)
