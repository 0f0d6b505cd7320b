"""Whether what was downloaded is what the Hub holds (its client compares sizes, not contents), and a disk too small."""

import errno
import logging
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, constants, is_offline_mode
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import httpx

logger = logging.getLogger(__name__)


def verify_download(
    repo_id: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | bool | None = None,
) -> int:
    """Compare a repository's cached files with the checksums that the Hub lists (sha256 of large files).

    A file with the right size and wrong bytes passes the client's own check, and may then change weights, pixels or
    labels without an error. Costs one request and one reading of the files. Offline, or when the Hub does not answer,
    nothing can be compared; the log says so.

    Args:
        repo_id: "owner/name".
        repo_type: "model" or "dataset".
        revision: branch, tag or commit that was downloaded; main by default.
        cache_dir: where it was downloaded to; the client's cache by default.
        token: as in `from_pretrained`.

    Returns:
        How many files were compared; 0 where none is cached.

    Raises:
        ValueError: files differ from the Hub's; they are named.
    """
    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    if not (cache / repo_folder_name(repo_id=repo_id, repo_type=repo_type)).is_dir():
        return 0
    if is_offline_mode():
        logger.info("%s: offline, so its cached files are not compared with the Hub's checksums.", repo_id)
        return 0
    try:
        checked = HfApi().verify_repo_checksums(
            repo_id, repo_type=repo_type, revision=revision, cache_dir=cache, token=token
        )
    except httpx.HTTPError as error:
        logger.warning("%s: its files could not be compared with the Hub's checksums: %s", repo_id, error)
        return 0
    if checked.mismatches:
        files = ", ".join(f"{wrong['path']} ({wrong['algorithm']} {wrong['actual']})" for wrong in checked.mismatches)
        again = "download_mode='force_redownload'" if repo_type == "dataset" else "force_download=True"
        raise ValueError(
            f"{repo_id} was damaged on the way: {files} in {checked.verified_path} is not what the Hub holds. "
            f"Load it again with {again}."
        )
    return checked.checked_count


def disk_full(error: BaseException) -> BaseException | None:
    """What says that the disk is full, among an exception and its causes."""
    for cause in error_chain(error):
        if getattr(cause, "errno", None) == errno.ENOSPC or "Not enough disk space" in str(cause):
            return cause
    return None


def error_chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what led to it, the first cause last."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
