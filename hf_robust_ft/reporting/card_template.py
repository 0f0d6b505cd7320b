"""Cards from templates that are compiled once: compiling takes longer than all the rest of a card."""

from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Template


def card_from(template: Path, data: ModelCardData, **values: Any) -> ModelCard:
    """As `ModelCard.from_template`, which compiles at every call."""
    text = _compiled(template).render(card_data=data.to_yaml(), **{**data.to_dict(), **values})
    return ModelCard(text)


@cache
def _compiled(template: Path) -> Template:
    return Template(template.read_text(encoding="utf-8"))
