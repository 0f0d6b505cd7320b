"""Upload files in one commit, and compare what the Hub then holds with them, file by file."""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard
from huggingface_hub.constants import REPO_TYPES_URL_PREFIXES
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

from hf_robust_ft.hub.errors import PublishError, cause_to_show, reasons, status_of
from hf_robust_ft.hub.repository import branch_head
from hf_robust_ft.hub.retry import retry
from hf_robust_ft.provenance.downloads import error_chain
from hf_robust_ft.reporting.artifacts import CARD_NAME

logger = logging.getLogger(__name__)

REPEATED_UPLOADS = 2  # of a file that arrived damaged, which the client does not repeat


def upload(
    api: HfApi,
    repo_id: str,
    files: Mapping[str, Path],
    *,
    delete: Sequence[str] = (),
    revision: str = "main",
    create_pr: bool = False,
    message: str = "Upload",
    repo_type: str = "model",
) -> CommitInfo:
    """Commit files and deletions on a branch or as a pull request; of unchanged files nothing travels.

    Args:
        files: by path in the repository.
        delete: paths to take out, which are there.

    Returns:
        The commit, verified.

    Raises:
        PublishError: the Hub does not take the card's metadata, or holds something else than was sent.
    """
    if CARD_NAME in files:
        _check_card_is_taken(files[CARD_NAME], repo_type)
    where = {"repo_type": repo_type}
    additions = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    head = branch_head(api, repo_id, revision, **where)
    differences = partial(_differences, api, repo_id, repo_type, files, delete)
    _send_large_files(api, repo_id, additions, revision=revision, create_pr=create_pr, **where)
    known = _heads(api, repo_id, revision, create_pr, repo_type)

    def commit() -> CommitInfo:
        return api.create_commit(
            repo_id,
            [*additions, *map(CommitOperationDelete, delete)],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=head,  # so that trying again cannot commit twice
            **where,
        )

    def made() -> CommitInfo | None:
        """The commit of a try whose answer was lost."""
        for name, sha in _heads(api, repo_id, revision, create_pr, repo_type).items():
            if known.get(name) != sha and differences(sha) == []:
                address = _address(api, repo_id, repo_type)
                pull = f"{address}/discussions/{name.removeprefix('refs/pr/')}" if create_pr else None
                return CommitInfo(
                    commit_url=f"{address}/commit/{sha}",
                    commit_message=message,
                    commit_description="",
                    oid=sha,
                    pr_url=pull,
                )
        return None

    info = retry(commit, f"Committing to {repo_id}", made)
    if create_pr and info.pr_url is None:
        logger.warning("%s holds all of this already, so no pull request was opened.", repo_id)
    branch = info.pr_revision if info.pr_url else revision
    return _verified(info, differences, partial(branch_head, api, repo_id, branch, repo_type), repo_id)


def _check_card_is_taken(card: Path, repo_type: str) -> None:
    """Ask the Hub, which would refuse the commit only after all large files were sent."""
    try:
        retry(lambda: RepoCard.load(card).validate(repo_type), f"Validating {card.name}")
    except ValueError as error:  # the client's word for a refused card
        refused = error.__context__ or error
        raise PublishError(
            f"The Hub does not take the metadata at the head of {card}: {reasons(refused)}. Correct them there."
        ) from cause_to_show(refused)


def _send_large_files(api: HfApi, repo_id: str, additions: list[CommitOperationAdd], **where) -> None:
    """Into the file store, where a commit finds them; what is there already is not sent."""
    for tries_left in reversed(range(REPEATED_UPLOADS + 1)):
        try:
            return api.preupload_lfs_files(repo_id, additions, free_memory=False, **where)
        except RuntimeError as error:
            damaged = any(status_of(cause) == 400 for cause in error_chain(error))
            if not damaged or not tries_left:
                raise
            logger.warning("A file was damaged on its way to %s; sending it again.", repo_id)
    raise AssertionError("unreachable")


def _heads(api: HfApi, repo_id: str, revision: str, create_pr: bool, repo_type: str) -> dict[str, str]:
    """The branch's commit or, for a pull request, those of all pull requests."""
    if not create_pr:
        return {revision: branch_head(api, repo_id, revision, repo_type)}
    refs = api.list_repo_refs(repo_id, repo_type=repo_type, include_pull_requests=True)
    return {each.ref: each.target_commit for each in refs.pull_requests or []}


def _address(api: HfApi, repo_id: str, repo_type: str) -> str:
    return f"{api.endpoint}/{REPO_TYPES_URL_PREFIXES.get(repo_type, '')}{repo_id}"


def _verified(info: CommitInfo, differences: Callable, head: Callable, repo_id: str) -> CommitInfo:
    """The commit if it holds what was sent; one that the answer names wrongly is looked up at the branch's head."""
    wrong = differences(info.oid)
    if wrong is None:
        said, info.oid = info.oid, head()
        logger.warning("%s says it made commit %s, which it does not have; comparing %s.", repo_id, said, info.oid)
        info.commit_url = info.commit_url.replace(said, info.oid)
        wrong = differences(info.oid)
    if wrong != []:
        told = "; ".join(wrong or ["there is no such commit"])
        raise PublishError(f"{repo_id} at {info.oid} is not what was sent: {told}.")
    logger.info("%s at %s is what was sent.", repo_id, info.oid)
    return info


def _differences(
    api: HfApi, repo_id: str, repo_type: str, files: Mapping[str, Path], deleted: Sequence[str], sha: str
) -> list[str] | None:
    """How a commit differs from local files, in words; None where there is no such commit."""
    with tempfile.TemporaryDirectory() as folder:
        for link, path in ((Path(folder, name), path) for name, path in files.items()):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())
        try:
            found = api.verify_repo_checksums(repo_id, repo_type=repo_type, revision=sha, local_dir=folder)
        except (RevisionNotFoundError, EntryNotFoundError):
            return None
    return [
        *(f"{name} is missing" for name in found.extra_paths),
        *(f"{at['path']} has {at['algorithm']} {at['expected']}, here it is {at['actual']}" for at in found.mismatches),
        *(f"{name} is still there" for name in deleted if name in found.missing_paths),
    ]
