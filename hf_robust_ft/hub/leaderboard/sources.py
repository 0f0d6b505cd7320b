"""Where results are read: repositories on the Hub, by their tag or their ids, and local folders."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import validate_repo_id

from hf_robust_ft.hub.leaderboard.results import Result, from_eval_results
from hf_robust_ft.reporting.artifacts import CARD_NAME, REPORT_NAME
from hf_robust_ft.reporting.comparability import DEFAULT_GRID, UNKNOWN
from hf_robust_ft.reporting.model_card import TAG
from hf_robust_ft.reporting.page.runs import runs_in, short_names
from hf_robust_ft.reporting.report_files import read_report_file


@dataclass(frozen=True)
class Problem:
    """What could not be read, and why; of a source that could otherwise be read, what is wrong with it."""

    source: str
    reason: str


Found = tuple[list[Result], list[Problem]]


def read_tagged(api: HfApi, tag: str = TAG, limit: int | None = None) -> Found:
    """Results of the models with a tag that this client may see.

    Args:
        api: a client of the Hub.
        tag: which models.
        limit: how many of them at most; None for all.

    Raises:
        ValueError: a limit below 1.
        OSError: the Hub cannot be reached, or refuses to list. A single model that cannot be read is told with the
            reason instead.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}.")
    return _together([_read_model(api, info) for info in list(api.list_models(filter=tag, full=True, limit=limit))])


def read_sources(api: HfApi, sources: Sequence[str]) -> Found:
    """Results of the repositories or local folders named, or of the folders in these; unreadable ones are told."""
    sources = list(dict.fromkeys(each for source in sources for each in _places(source)))
    folders = [Path(source) for source in sources if Path(source).is_dir()]
    names = dict(zip(folders, short_names([folder.resolve() / REPORT_NAME for folder in folders]), strict=True))
    return _together([_read_source(api, source, names) for source in sources])


def _places(source: str) -> list[str]:
    folder = Path(source).expanduser()
    return list(map(str, runs_in(folder))) if folder.is_dir() else [source]


def _read_source(api: HfApi, source: str, names: dict[Path, str]) -> Found:
    folder = Path(source)
    if folder in names:
        return _read_files(names[folder], *(_existing(folder / name) for name in (REPORT_NAME, CARD_NAME)))
    try:
        validate_repo_id(source)
        info = api.model_info(source)
    except Exception as error:  # whatever is wrong with one source is told, and ends nothing
        return [], [Problem(source, _reason(error))]
    return _read_model(api, info)


def _read_model(api: HfApi, info: ModelInfo) -> Found:
    """A repository at its present commit; files that the Hub does not list are not asked for."""
    held = None if info.siblings is None else {sibling.rfilename for sibling in info.siblings}
    files = []
    for name in (REPORT_NAME, CARD_NAME):
        try:
            wanted = held is None or name in held
            files.append(Path(api.hf_hub_download(info.id, name, revision=info.sha)) if wanted else None)
        except RemoteEntryNotFoundError:
            files.append(None)
        except Exception as error:  # as above
            return [], [Problem(info.id, _reason(error))]
    return _read_files(info.id, *files, url=f"{api.endpoint}/{info.id}")


def _read_files(source: str, report: Path | None, card: Path | None, url: str | None = None) -> Found:
    """The report's result and the card's in other settings; where both tell of the same setting, they must agree."""
    measured, told, wrong = [], [], []
    try:
        measured = [Result.of_report(read_report_file(report), source, url)] if report else []
    except Exception as error:  # as above: a stranger's file may hold anything
        wrong.append(f"{REPORT_NAME}: {_reason(error, report)}")
    try:
        # A card is rendered from its report: where that one is refused, its figures are no better.
        told = from_eval_results(_eval_results(card), source, url) if card and not wrong else []
    except Exception as error:
        wrong.append(f"{CARD_NAME}: {_reason(error, card)}")
    known = {  # cards tell no grid, and those of older versions not which images
        replace(result.setting, grid=DEFAULT_GRID, image_set=images): result
        for result in measured
        for images in (result.setting.image_set, UNKNOWN)
    }
    for result in told:
        if result.setting in known and (apart := known[result.setting].disagreements(result)):
            wrong.append(f"report and card disagree: {'; '.join(apart)}")
    results = [*measured, *(result for result in told if result.setting not in known)]
    if not results and not wrong:
        wrong = [f"it holds neither a {REPORT_NAME} nor robustness results in its card's model-index"]
    return results, [Problem(source, reason) for reason in wrong]


def _eval_results(card: Path) -> list:
    logging.getLogger("huggingface_hub.repocard_data").setLevel(logging.ERROR)  # the reason is told in the table
    metadata = metadata_load(card) or {}
    return ModelCardData(**metadata).eval_results or [] if metadata.get("model-index") else []


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _reason(error: Exception, file: Path | None = None) -> str:
    """An error in one line, with the folders of this machine left out."""
    if isinstance(error, GatedRepoError):
        return "gated, and access was not granted to this token"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private"
    if isinstance(error, LocalEntryNotFoundError):  # the client's word for a Hub that did not answer as it should
        error = error.__cause__ or error
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.replace(str(file), file.name) if file else text
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def _together(found: Sequence[Found]) -> Found:
    return [result for results, _ in found for result in results], [each for _, problems in found for each in problems]
