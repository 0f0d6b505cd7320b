"""A README that holds our section and somebody's own text: ours is replaced between two marks, theirs is kept."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

BEGIN = "<!-- hf_robust_ft: begin. Written from robustness_report.json; text outside of these two marks is yours. -->"
END = "<!-- hf_robust_ft: end -->"
TRAINERS_OWN = "<!-- This model card has been generated automatically according to the information the Trainer had"
# The Hub's form, as peft saves it with adapters: nobody wrote in one that still has this title and all its gaps.
FORM_TITLE, FORM_GAP, FORM_GAPS = "# Model Card for Model ID\n", "[More Information Needed]", 30

_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.S | re.M)
_SECTION = re.compile(r"<!-- hf_robust_ft: begin.*?-->.*?<!-- hf_robust_ft: end -->", re.S)
_MARK = re.compile(r"<!-- hf_robust_ft: (?:begin|end)")
_THREAT_TAG = re.compile(r"(?:Linf|L2|L1)-[\d.]+(?:-over-\d+)?")
# Said of a repository once, as is its language: its owner's word counts. All else in a rendered card is ours to update.
_LICENCE = ("license", "license_name", "license_link")


def merge_cards(existing: str | None, rendered: str, replace: Sequence[str] = ()) -> str:
    """A rendered card in place of an earlier one, around which somebody may have written.

    Args:
        existing: the README so far; None or empty where there is none. `Trainer`'s automatic card counts as none,
            and so does the Hub's form where nobody filled it.
        rendered: what `render_model_card` gives, or a card that holds it.
        replace: metadata that are taken from `rendered` even where somebody set them.

    Returns:
        The text outside the marks as it was, the section between them as rendered (at the end where there were no
        marks), and metadata that keeps what is theirs.

    Raises:
        ValueError: metadata that cannot be read, or marks that do not pair up.
    """
    if existing is None or not existing.strip() or _is_nobodys(existing):
        return rendered
    theirs, body = split_card(existing)
    ours, own_body = split_card(rendered)
    body, section = body.strip(), _SECTION.search(own_body)[0]
    theirs = {name: value for name, value in theirs.items() if name not in replace}
    marked = _SECTION.findall(body)
    if len(marked) > 1 or len(_MARK.findall(body)) != 2 * len(marked):
        raise ValueError(
            f"its marks do not pair up: expected one '{BEGIN[:26]}' followed by one '{END}'. Delete the broken marks, "
            "and the section is added again at the end."
        )
    merged = _SECTION.sub(lambda _: section, body) if marked else f"{body}\n\n{section}"
    front = yaml.safe_dump(_merge_metadata(theirs, ours), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{merged.strip()}\n"


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """Metadata and body of a README.

    Raises:
        ValueError: the metadata are no YAML mapping.
    """
    front = _FRONT.match(text)
    if front is None:
        return {}, text
    try:
        metadata = yaml.safe_load(front[1]) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"the YAML at its head cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"the YAML at its head must map names to values, got {type(metadata).__name__}.")
    return metadata, text[front.end() :]


def with_metadata_of(text: str, other: str) -> str:
    """One README's body under the other's metadata."""
    front = yaml.safe_dump(split_card(other)[0], sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{split_card(text)[1].strip()}\n"


def own_text(text: str) -> str:
    """What of a README's body lies outside our section."""
    return "" if _is_nobodys(text) else _SECTION.sub("", split_card(text)[1]).strip()


def _is_nobodys(text: str) -> bool:
    return TRAINERS_OWN in text or (FORM_TITLE in text and text.count(FORM_GAP) >= FORM_GAPS)


def _merge_metadata(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    licence = _licence(theirs, ours)
    together = {**theirs, **ours, **licence}
    merged = {name: value for name, value in together.items() if name not in _LICENCE or name in licence}
    if theirs.get("language"):
        merged["language"] = theirs["language"]
    kept = [tag for tag in _as_list(theirs.get("tags")) if not _THREAT_TAG.fullmatch(str(tag))]
    merged["tags"] = list(dict.fromkeys([*kept, *_as_list(ours.get("tags"))]))
    foreign = _foreign_results(theirs.get("model-index"))
    if foreign and ours.get("model-index"):
        (entry,) = ours["model-index"]
        new = [result for result in entry["results"] if result not in foreign]
        merged["model-index"] = [{**entry, "results": [*foreign, *new]}]
    return merged


def _licence(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Theirs with what names it or, where they state none, ours; an "other" without a name has theirs."""
    mine, own = ({name: each[name] for name in _LICENCE if each.get(name)} for each in (ours, theirs))
    if "license" in own:
        return own
    return own | mine if mine.get("license") in (None, "other") else mine


def _foreign_results(index: Any) -> list[dict[str, Any]]:
    """The results of a model-index that are not ours: ours tell the protocol they were measured by."""
    if index is None:
        return []
    try:
        found = []
        for result in (result for entry in index for result in entry["results"]):
            metrics = [metric for metric in result["metrics"] if "protocol" not in (metric.get("args") or {})]
            if metrics:
                found.append({**result, "metrics": metrics})
        return found
    except (AttributeError, KeyError, TypeError):
        raise ValueError("its model-index is not as the Hub wants it: a list of {name, results: [...]}.") from None


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]
