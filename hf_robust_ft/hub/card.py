"""The card of a publication: whether the Hub can read it, its licence, and the text that others put around it."""

import logging
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, ModelCard

from hf_robust_ft.hub.contents import free_place
from hf_robust_ft.hub.repository import CLIENT_ERRORS, explained
from hf_robust_ft.hub.retry import retry
from hf_robust_ft.reporting.artifacts import CARD_NAME
from hf_robust_ft.reporting.card_sections import merge_cards, own_text, split_card, with_metadata_of
from hf_robust_ft.reporting.report_files import Report

logger = logging.getLogger(__name__)

LOCAL_TEXT = "README.local.md"


def check_card(folder: Path) -> None:
    """Raise unless the card's metadata are what the Hub's client reads, with every result complete.

    Raises:
        ValueError: they are not.
    """
    try:
        data = ModelCard((folder / CARD_NAME).read_text(encoding="utf-8")).data
    except ValueError as error:
        raise ValueError(f"{folder / CARD_NAME} has metadata that the Hub cannot read: {error}") from None
    results = data.eval_results or []
    incomplete = [
        str(result.metric_type)
        for result in results
        if not (result.metric_type and result.dataset_type and result.dataset_name) or result.metric_value is None
    ]
    if not results or incomplete:
        raise ValueError(f"{folder / CARD_NAME} has no complete results in its metadata: {', '.join(incomplete)}.")


def with_base_licence(api: HfApi, measured: Report) -> Report:
    """The pretrained weights' licence as their own card states it; a warning where nobody states any."""
    facts = measured.metadata
    if facts.get("license") or facts.get("base_model_license"):
        return measured
    base, stated = facts.get("base_model"), None
    if base:
        try:
            card = api.model_info(base).card_data or {}
            stated = card.get("license")
            if stated == "other":
                stated = card.get("license_name") or stated
        except CLIENT_ERRORS:
            stated = None
    if isinstance(stated, str) and stated != "unknown":
        return measured.with_metadata(base_model_license=stated)
    logger.warning(
        "No licence of the pretrained weights%s is known, so the card states none; if you know it, give --license "
        "(in Python license=), e.g. apache-2.0.",
        f" ({base})" if base else "",
    )
    return measured


def keep_foreign_text(api: HfApi, repo_id: str, folder: Path, revision: str, replace: Sequence[str]) -> None:
    """Put our section into the README that the repository has, and write the result to `folder`.

    Args:
        replace: metadata that are taken from our card even where somebody set them.

    Raises:
        ValueError: that README cannot be added to.
        PublishError: it cannot be read.
    """
    path = explained(
        lambda: retry(lambda: api.hf_hub_download(repo_id, CARD_NAME, revision=revision), f"Reading {CARD_NAME}"),
        f"Cannot read the {CARD_NAME} of {repo_id}",
    )
    theirs = Path(path).read_text(encoding="utf-8")
    ours = (folder / CARD_NAME).read_text(encoding="utf-8")
    try:
        foreign, own = own_text(theirs), own_text(ours)
        base = with_metadata_of(ours, theirs) if own and not foreign else theirs
        merged = merge_cards(base, ours, replace)
    except ValueError as error:
        raise ValueError(
            f"The {CARD_NAME} in {repo_id} is kept, but our section cannot be added to it: {error}"
        ) from None
    stated, here = (split_card(text)[0].get("license") for text in (theirs, ours))
    if stated and here and stated != here and "license" not in replace:
        logger.warning(
            "%s of %s states the licence %s, which is kept, though it is %s here; --license replaces it.",
            CARD_NAME,
            repo_id,
            stated,
            here,
        )
    if foreign:
        logger.warning("%s of %s has text that is not ours; it is kept around our section.", CARD_NAME, repo_id)
        if own not in ("", foreign):
            aside = free_place(folder / LOCAL_TEXT)
            aside.write_text(ours, encoding="utf-8")
            logger.warning("%s had other text; it is kept in %s, and not published.", folder / CARD_NAME, aside)
    (folder / CARD_NAME).write_text(merged, encoding="utf-8")
