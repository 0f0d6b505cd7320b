import pytest
import yaml
from finished_run import report
from huggingface_hub import ModelCard

from hf_robust_ft.reporting import render_model_card
from hf_robust_ft.reporting.card_sections import BEGIN, END, TRAINERS_OWN, merge_cards, own_text, split_card

FACTS = {"model_name": "Ours", "dataset": "someone/colours", "base_model": "timm/base"}


@pytest.fixture
def rendered():
    return render_model_card(report(FACTS))


@pytest.fixture
def updated():
    return render_model_card(report(FACTS | {"command": "hf-robust-ft train --seed 1"}))


def test_a_rendered_card_is_all_ours(rendered):
    assert own_text(rendered) == "" and rendered.count(BEGIN) == rendered.count(END) == 1


@pytest.mark.parametrize(
    "existing", [None, "", "\n", f"---\ntags: [x]\n---\n{TRAINERS_OWN} access to -->\n# Trainer's"]
)
def test_where_nobody_wrote_anything_the_card_is_ours(rendered, existing):
    assert merge_cards(existing, rendered) == rendered


def test_an_earlier_card_of_ours_is_replaced_and_merging_repeats(rendered, updated):
    merged = merge_cards(rendered, updated)
    assert merge_cards(merged, updated) == merged and split_card(merged) == split_card(updated)


def test_text_before_and_after_stays_in_its_place(rendered, updated):
    front, body = rendered.split("---\n\n", 1)
    existing = f"{front}---\n\nBefore.\n\n{body}\nAfter \\1 {{{{ x }}}}.\n"
    merged = merge_cards(existing, updated)
    before, rest = merged.split(BEGIN)
    middle, after = rest.split(END)
    assert before.endswith("---\n\nBefore.\n\n") and after == "\n\nAfter \\1 {{ x }}.\n"
    assert "train --seed 1" in middle and own_text(merged) == own_text(existing)


def test_text_of_others_without_marks_comes_first(rendered):
    merged = merge_cards("# Theirs\n\nText with --- in it.\n\n---\n\nMore.", rendered)
    assert split_card(merged)[1].strip().startswith("# Theirs\n\nText with --- in it.\n\n---\n\nMore.\n\n" + BEGIN)
    assert ModelCard(merged).data.library_name == "transformers"


def test_metadata_of_others_stay_and_ours_are_updated(rendered):
    theirs = {"license": "mit", "language": "en", "tags": "lone", "base_model": "old/base", "widget": [{"src": "x"}]}
    merged, _ = split_card(merge_cards(f"---\n{yaml.safe_dump(theirs)}---\n# Theirs", rendered))
    assert (merged["license"], merged["language"], merged["widget"]) == ("mit", "en", [{"src": "x"}])
    assert merged["base_model"] == "timm/base" and merged["tags"][0] == "lone" and "hf_robust_ft" in merged["tags"]


def test_what_is_asked_for_replaces_theirs():
    ours = render_model_card(report(FACTS | {"license": "apache-2.0"}))
    existing = "---\nlicense: mit\n---\n# Theirs"
    assert split_card(merge_cards(existing, ours))[0]["license"] == "mit"
    assert split_card(merge_cards(existing, ours, replace=["license"]))[0]["license"] == "apache-2.0"


@pytest.mark.parametrize(
    ("theirs", "given", "merged"),
    [
        ({"license": "mit"}, None, ("mit", None)),  # their word, and not our name for another
        ({"license": "other", "license_name": "theirs"}, None, ("other", "theirs")),
        ({"license": "other", "license_name": "theirs"}, "mit", ("mit", None)),
        ({"license": "mit", "license_name": "theirs"}, "other", ("other", "theirs")),
        ({}, None, ("other", "dinov3-license")),
    ],
)
def test_a_licence_and_its_name_go_together(theirs, given, merged):
    ours = render_model_card(report(FACTS | {"base_model_license": "dinov3-license", "license": given}))
    replace = ["license"] if given else []
    found, _ = split_card(merge_cards(f"---\n{yaml.safe_dump(theirs)}---\n# Theirs", ours, replace=replace))
    assert (found.get("license"), found.get("license_name")) == merged


@pytest.mark.parametrize("copies", [f"{BEGIN}\n", f"{END}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n" * 2])
def test_marks_that_do_not_pair_up_are_refused(rendered, copies):
    with pytest.raises(ValueError, match="do not pair up"):
        merge_cards(f"# Theirs\n{copies}", rendered)


@pytest.mark.parametrize("front", ["a: [", "- a", "3"])
def test_metadata_that_cannot_be_read_are_refused(rendered, front):
    with pytest.raises(ValueError, match="the YAML at its head"):
        merge_cards(f"---\n{front}\n---\n# Theirs", rendered)
