"""What the cards of all tasks are made of: the Hub's metadata, and templates, compiled once as that takes longest."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Template

from hf_robust_ft.provenance.facts import RunFacts
from hf_robust_ft.provenance.plain_text import one_line
from hf_robust_ft.reporting.licences import licence_metadata


def card_from(template: Path, data: ModelCardData, **values: Any) -> ModelCard:
    """As `ModelCard.from_template`, which compiles at every call."""
    text = _compiled(template).render(card_data=data.to_yaml(), **{**data.to_dict(), **values})
    return ModelCard(text)


def hub_metadata(
    facts: RunFacts, title: str, task: str, tags: Sequence[str], results: list[EvalResult] | None = None
) -> ModelCardData:
    """What stands at the head of a card and the Hub reads.

    Args:
        title: the model's name where the facts tell none.
        task: the Hub's pipeline tag.
        results: for the `model-index`.
    """
    return ModelCardData(
        model_name=one_line(facts.get("model_name") or title[0].lower() + title[1:]),
        library_name="transformers",
        pipeline_tag=task,
        **licence_metadata(facts),
        base_model=facts.get("base_model"),
        datasets=[facts["dataset"]] if facts.get("dataset_on_hub") else None,
        tags=list(tags),
        language=facts.get("language"),
        eval_results=results,
    )


def measured_on(facts: RunFacts, dataset: str) -> dict[str, Any]:
    """The fields of an `EvalResult` that say on which data.

    Args:
        dataset: its name for readers.
    """
    return {
        "dataset_type": facts.get("dataset") or "unknown",
        "dataset_name": dataset,
        "dataset_config": facts.get("dataset_config"),
        "dataset_split": facts.get("split"),
        "dataset_revision": facts.get("dataset_commit") or facts.get("dataset_revision"),
    }


def more_tags(facts: RunFacts) -> list[str]:
    """The user's own, given as one or several."""
    own = facts.get("tags") or []
    return [own] if isinstance(own, str) else list(own)


@cache
def _compiled(template: Path) -> Template:
    return Template(template.read_text(encoding="utf-8"))
