"""One call that publishes a finished run: checked here, uploaded, compared there."""

import fnmatch
import logging
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi

from hf_robust_ft.evaluation.stored_examples import STORED_EXAMPLES
from hf_robust_ft.hub.artifacts import (
    check_belongs,
    check_stored_examples,
    read_report,
    take_report,
    take_stored_examples,
)
from hf_robust_ft.hub.card import check_card, keep_foreign_text, with_base_licence
from hf_robust_ft.hub.contents import INDEX, PICKLES, PROCESSORS, check_loads, files_to_send, published_files
from hf_robust_ft.hub.errors import PublishError, cause_to_show, described
from hf_robust_ft.hub.leaks import check_for_leaks
from hf_robust_ft.hub.repository import (
    CLIENT_ERRORS,
    branch_head,
    check_online,
    check_repo_id,
    create_repository,
    remote_files,
)
from hf_robust_ft.hub.retry import retry
from hf_robust_ft.hub.uploading import upload
from hf_robust_ft.provenance.record import RECORD_NAME, write_run_record
from hf_robust_ft.provenance.weight_hashes import WEIGHT_FILES
from hf_robust_ft.reporting.artifacts import CARD_NAME, EXAMPLE_FILES, REPORT_NAME, write_card, write_evidence
from hf_robust_ft.reporting.licences import check_licence
from hf_robust_ft.reporting.report_files import Report

logger = logging.getLogger(__name__)

# What an earlier publication, or Trainer's pushes on the way, left at the root and would stand beside the new files.
# Adapters beside a whole model would be added to it once more where transformers loads it.
SUPERSEDED = (WEIGHT_FILES, INDEX, *PROCESSORS, EXAMPLE_FILES, f"{STORED_EXAMPLES}/*", "adapter_*")
LEFT_BY_TRAINING = ("last-checkpoint/*", "checkpoint-*/*")


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    report: str | Path | None = None,
    license: str | None = None,
    commit_message: str = "Publish with its robustness report",
    remove_training_files: bool = False,
    trust_remote_code: bool = False,
    examples: bool = False,
) -> CommitInfo:
    """Publish a checkpoint with its robustness report, pictures, card and what it was made with.

    Everything is checked and written to `folder` first. Then files go up in one commit, and what the Hub holds is
    compared with them by checksum. Only the checkpoint in safetensors, its processor and the evidence go up: no
    pickles, optimizer states or checkpoints of training.

    Args:
        folder: a checkpoint's, as `hf-robust-ft train` or `trainer.save_model()` leaves it.
        repo_id: OWNER/NAME, or a name of one's own; created if it is not there.
        private: whether it is private when created.
        revision: a branch to commit to (default: main), made from main if it is not there.
        create_pr: open a pull request instead of committing to main.
        token: as in huggingface_hub; by default the one that is logged in, or HF_TOKEN.
        report: the folder of an evaluation (`hf-robust-ft evaluate --output_dir`) to publish in place of the
            checkpoint's own report.
        license: of the published model, as the Hub lists it ("apache-2.0"); by default that of the pretrained weights
            where it is known.
        trust_remote_code: run the code that a checkpoint brings, to check that it loads.
        remove_training_files: take out what Trainer pushed on the way (`last-checkpoint`, ...).
        examples: publish the adversarial examples that the evaluation stored (`evaluate --store_examples`), too, so
            that anyone can run `hf-robust-ft verify REPO`. Without it those of an earlier publication are taken out.

    Returns:
        The verified commit; `pr_url` is that of a pull request.

    Raises:
        ValueError: a folder that cannot be published; nothing was uploaded, and the message says what to do.
        PublishError: the Hub refused, was out of reach, or holds something else than was sent. `folder` is complete,
            and the message ends with the command that goes on.
    """
    folder = Path(folder).expanduser()
    evaluation = Path(report).expanduser() if report is not None else None
    check_repo_id(repo_id)
    if license is not None:
        check_licence(license)
    if revision is not None and not revision.strip():
        raise ValueError(f"revision={revision!r} names no branch: give one, or leave it out for main.")
    if revision is not None and create_pr:
        raise ValueError(f"Give a revision ({revision!r}) or open a pull request against main, not both.")
    measured = _prepare(folder, repo_id, evaluation, license, token, trust_remote_code, examples)
    check_online()
    flags = {"--revision": revision, "--report": str(evaluation) if evaluation else None, "--license": license}
    resume = _resume_command(folder, repo_id, flags, private, create_pr, trust_remote_code, examples)
    try:
        repo_id = create_repository(repo_id, token=token, private=private)
        api = HfApi(token=token)
        if revision is not None:
            _ensure_branch(api, repo_id, revision)
        held = remote_files(api, repo_id, branch_head(api, repo_id, revision or "main")) or {}
        measured = with_base_licence(api, measured.with_metadata(repo_id=repo_id))
        measured.to_json(folder / REPORT_NAME)
        replace = ("license",) if license is not None else ()
        write_card(measured, folder, replace)
        if CARD_NAME in held:
            keep_foreign_text(api, repo_id, folder, revision or "main", replace)
        files = _checked_files(folder, token, examples)
        stale = _stale(held, files, SUPERSEDED + (LEFT_BY_TRAINING if remove_training_files else ()))
        where = {"revision": revision or "main", "create_pr": create_pr}
        with files_to_send(folder, files) as sent:
            info = upload(api, repo_id, sent, delete=stale, message=commit_message, **where)
    except PublishError as error:
        raise type(error)(f"{error} Nothing in {folder} is lost. Go on with: {resume}") from error.__cause__
    except CLIENT_ERRORS as error:
        raise PublishError(
            f"Publishing {folder} to {repo_id} failed: {described(error, token)} Nothing in {folder} is lost. Go on "
            f"with: {resume}"
        ) from cause_to_show(error, token)
    left = sorted(name for name in held if name not in (*files, *stale) and name.endswith(PICKLES))
    if left:
        logger.warning("%s also holds pickles that were there before, and were left: %s.", repo_id, ", ".join(left))
    return info


def _prepare(
    folder: Path,
    repo_id: str,
    evaluation: Path | None,
    license: str | None,
    token: str | bool | None,
    trust_remote_code: bool,
    examples: bool,
) -> Report:
    """Check all that can be checked here, and write report, pictures and card."""
    files = published_files(folder)
    measured = read_report(folder, evaluation, repo_id)
    check_belongs(measured, folder, repo_id, evaluation)
    check_loads(folder, files, trust_remote_code)
    if examples:
        check_stored_examples(measured, evaluation or folder)
    facts = {"repo_id": repo_id, "model_name": measured.metadata.model_name or repo_id.split("/")[-1]}
    measured = measured.with_metadata(**facts, **({"license": license} if license is not None else {}))
    if evaluation is not None:
        take_report(evaluation, folder)
        if examples:
            take_stored_examples(evaluation, folder)
    if not (folder / RECORD_NAME).is_file():
        write_run_record(folder, None, measured.metadata)
    write_evidence(measured, folder)
    _checked_files(folder, token, examples)
    return measured


def _checked_files(folder: Path, token: str | bool | None, examples: bool) -> list[str]:
    """What goes up, once the card is readable and no file tells what it must not."""
    files = published_files(folder, examples)
    check_card(folder)
    check_for_leaks(folder, files, token)
    return files


def _stale(held: Iterable[str], files: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """What the repository holds and would stand beside the new files."""
    return [name for name in held if name not in files and any(fnmatch.fnmatch(name, each) for each in patterns)]


def _ensure_branch(api: HfApi, repo_id: str, revision: str) -> None:
    if branch_head(api, repo_id, revision) is None:
        logger.warning("%s has no branch %s; it is made from main.", repo_id, revision)
        retry(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), f"Making branch {revision}")


def _resume_command(
    folder: Path,
    repo_id: str,
    flags: dict,
    private: bool | None,
    create_pr: bool,
    trust_remote_code: bool,
    examples: bool,
) -> str:
    words = ["hf-robust-ft", "publish", os.fspath(folder), repo_id]
    words += [word for name, value in flags.items() if value is not None for word in (name, value)]
    words += ["--private"] * bool(private) + ["--pr"] * create_pr
    words += ["--trust_remote_code"] * trust_remote_code
    words += ["--examples"] * examples
    return shlex.join(words)
