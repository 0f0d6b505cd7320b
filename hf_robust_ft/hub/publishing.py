"""One call that publishes a finished run: checked here, uploaded, compared there."""

import fnmatch
import logging
import os
import shlex
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCard

from hf_robust_ft.hub.contents import INDEX, PICKLES, check_loads, published_files
from hf_robust_ft.hub.errors import PublishError, cause_to_show, described
from hf_robust_ft.hub.evidence import check_belongs, read_report, take_report
from hf_robust_ft.hub.leaks import check_for_leaks
from hf_robust_ft.hub.patience import patiently
from hf_robust_ft.hub.repository import (
    CLIENT_ERRORS,
    branch_head,
    check_online,
    check_repo_id,
    create_repository,
    explained,
    remote_files,
)
from hf_robust_ft.hub.uploading import upload
from hf_robust_ft.reporting.card_sections import merge_cards, own_text, with_metadata_of
from hf_robust_ft.reporting.evidence import CARD_NAME, EXAMPLE_FILES, REPORT_NAME, write_card, write_evidence
from hf_robust_ft.reports import RobustnessReport
from hf_robust_ft.run_record import RECORD_NAME, write_run_record
from hf_robust_ft.weight_hashes import WEIGHT_FILES

logger = logging.getLogger(__name__)

# What an earlier publication, or Trainer's pushes on the way, left at the root and would stand beside the new files.
SUPERSEDED = (WEIGHT_FILES, INDEX, EXAMPLE_FILES)
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
        license: of the published model; by default that of the pretrained weights where it is known.
        remove_training_files: take out what Trainer pushed on the way (`last-checkpoint`, ...).

    Returns:
        The verified commit; `pr_url` is that of a pull request.

    Raises:
        ValueError: a folder that cannot be published; nothing was uploaded, and the message says what to do.
        PublishError: the Hub refused, was out of reach, or holds something else than was sent. `folder` is complete,
            and the message ends with the command that goes on.
    """
    folder = Path(folder).expanduser()
    check_repo_id(repo_id)
    if revision is not None and create_pr:
        raise ValueError(f"Give a revision ({revision!r}) or open a pull request against main, not both.")
    files = published_files(folder)
    evaluation = Path(report).expanduser() if report is not None else None
    measured = read_report(folder, evaluation, repo_id)
    check_belongs(measured, folder, repo_id, evaluation)
    check_loads(folder, files)
    measured = _with_facts(measured, repo_id, license)
    if evaluation is not None:
        take_report(evaluation, folder)
    if not (folder / RECORD_NAME).is_file():
        write_run_record(folder, None, measured.metadata)
    write_evidence(measured, folder)
    check_card(folder)
    check_for_leaks(folder, published_files(folder), token)
    check_online()

    replace = ("license",) if license is not None else ()
    flags = {"--revision": revision, "--report": str(evaluation) if evaluation else None, "--license": license}
    resume = _resume_command(folder, repo_id, flags, private=private, create_pr=create_pr)
    try:
        repo_id = create_repository(repo_id, token=token, private=private)
        api = HfApi(token=token)
        if revision is not None:
            _ensure_branch(api, repo_id, revision)
        measured = _with_base_licence(api, measured.with_metadata(repo_id=repo_id))
        measured.to_json(folder / REPORT_NAME)
        write_card(measured, folder, replace)
        held = remote_files(api, repo_id, branch_head(api, repo_id, revision or "main")) or {}
        _keep_foreign_text(api, repo_id, folder, held, revision or "main", replace)
        check_card(folder)
        check_for_leaks(folder, published_files(folder), token)
        files = published_files(folder)
        patterns = SUPERSEDED + (LEFT_BY_TRAINING if remove_training_files else ())
        stale = [name for name in held if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
        info = upload(
            api,
            repo_id,
            {name: folder / name for name in files},
            delete=stale,
            revision=revision or "main",
            create_pr=create_pr,
            message=commit_message,
        )
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


def _with_facts(measured: RobustnessReport, repo_id: str, license: str | None) -> RobustnessReport:
    facts = {"repo_id": repo_id}
    if license is not None:
        facts["license"] = license
    if not measured.metadata.get("model_name"):
        facts["model_name"] = repo_id.split("/")[-1]
    return measured.with_metadata(**facts)


def _with_base_licence(api: HfApi, measured: RobustnessReport) -> RobustnessReport:
    """The pretrained weights' licence as their own card states it; a warning where nobody states any."""
    facts = measured.metadata
    if facts.get("license") or facts.get("base_model_license"):
        return measured
    base, stated = facts.get("base_model"), None
    if base:
        try:
            card = api.model_info(base).card_data
            stated = card.get("license") if card is not None else None
        except CLIENT_ERRORS:
            stated = None
    if isinstance(stated, str):
        return measured.with_metadata(base_model_license=stated)
    logger.warning(
        "The licence of the pretrained weights (%s) is not known, so the card states none; give --license (e.g. "
        "apache-2.0) if you know it.",
        base or facts.get("base_model_text") or "not named in the report",
    )
    return measured


def _keep_foreign_text(
    api: HfApi, repo_id: str, folder: Path, held: dict, revision: str, replace: tuple[str, ...]
) -> None:
    """Put our section into the README that the repository has, and write the result to `folder`."""
    if CARD_NAME not in held:
        return
    path = explained(
        lambda: patiently(lambda: api.hf_hub_download(repo_id, CARD_NAME, revision=revision), f"Reading {CARD_NAME}"),
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
    if foreign:
        logger.warning("%s of %s has text that is not ours; it is kept around our section.", CARD_NAME, repo_id)
        if own not in ("", foreign):
            aside = folder / "README.local.md"
            aside.write_text(ours, encoding="utf-8")
            logger.warning("%s had other text; it is kept in %s, and not published.", folder / CARD_NAME, aside)
    (folder / CARD_NAME).write_text(merged, encoding="utf-8")


def _ensure_branch(api: HfApi, repo_id: str, revision: str) -> None:
    if branch_head(api, repo_id, revision) is None:
        logger.warning("%s has no branch %s; it is made from main.", repo_id, revision)
        patiently(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), f"Making branch {revision}")


def _resume_command(folder: Path, repo_id: str, flags: dict, *, private: bool | None, create_pr: bool) -> str:
    words = ["hf-robust-ft", "publish", os.fspath(folder), repo_id]
    words += [word for name, value in flags.items() if value is not None for word in (name, value)]
    words += ["--private"] * bool(private) + ["--pr"] * create_pr
    return shlex.join(words)
