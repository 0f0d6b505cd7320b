"""From a report, a folder or a repository to its verification; what `hf-robust-ft verify` does."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.data.source_hashes import source_digest
from hf_robust_ft.evaluation.protocols import RECOMMENDED
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.evaluation.stored_examples import INDEX_NAME, STORED_EXAMPLES
from hf_robust_ft.hub.verification import Verified, verify_report
from hf_robust_ft.provenance.source_names import nothing_here
from hf_robust_ft.provenance.weight_hashes import hash_weight_files
from hf_robust_ft.reporting.artifacts import REPORT_NAME
from hf_robust_ft.reporting.commands import evaluate_command
from hf_robust_ft.reporting.report_files import Report, read_report_file, refuse_detection_report
from hf_robust_ft.runs.arguments import DataArguments
from hf_robust_ft.runs.evaluate import load_model_and_images
from hf_robust_ft.runs.evaluation_arguments import EvaluationArguments
from hf_robust_ft.runs.verify_segmentation import verify_segmentation

NOT_NEEDED = ("checkpoint-*/*", "last-checkpoint/*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")  # of a repository


@dataclass
class Overrides:
    """What is taken in place of what the report names; None leaves it.

    Attributes:
        examples: the folder of the stored examples, or the one that `evaluate --output_dir` wrote.
        revision: branch, tag or commit of the repository.
        others: as in `EvaluationArguments` and `DataArguments`.
    """

    examples: str | None = None
    revision: str | None = None
    model: str | None = None
    model_revision: str | None = None
    architecture: str | None = None
    image_size: int | None = None
    trust_remote_code: bool = False
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    split: str | None = None
    max_eval_samples: int | None = None
    split_seed: int | None = None
    skip_bad_images: bool = False
    batch_size: int | None = None
    device: str | None = None


def verify(target: str, given: Overrides) -> tuple[Report, list[Verified]]:
    """Run the report's model on its images and its stored examples, and compare: the report, and what was found.

    A report of masks has no stored examples: its attacks run again (`verify_segmentation`).

    Args:
        target: a `robustness_report.json`, a folder that holds one, or a repository's id.

    Raises:
        ValueError: no such report, no stored examples, no hashes in it, or no model or data to be found by what it
            names; the message says what to give.
    """
    path = _report_path(target, given.revision)
    refuse_detection_report(path, "verify checks reports of classification and segmentation alone")
    report = read_report_file(path)
    model = given.model or _model_of(report, path)
    if isinstance(report, SegmentationReport):
        if given.examples is not None:
            raise ValueError(f"--examples {given.examples}: a report of masks has none, its attacks run again.")
        found, images = verify_segmentation(report, *_arguments(report, model, given))
        return report, [*_compare_files(report, model, images), *found]
    examples = _examples_of(report, path, given.examples, model)
    options, data = _arguments(report, model, given)
    classifier, processor, images, _ = load_model_and_images(options, data)
    found = verify_report(
        classifier,
        with_pixel_values(images, processor),
        report,
        examples,
        pixel_space=PixelSpace.from_processor(processor),
        batch_size=options.batch_size,
        device=options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )
    return report, [*_compare_files(report, model, images), *found]


def _report_path(target: str, revision: str | None) -> Path:
    path = Path(target).expanduser()
    if path.is_dir():
        path = path / REPORT_NAME
        if not path.is_file():
            raise ValueError(f"There is no {REPORT_NAME} in {target}.")
    if path.is_file():
        if revision is not None:
            raise ValueError(f"{target} lies on this machine and has no revision {revision!r}: leave --revision out.")
        return path
    try:
        validate_repo_id(target)
    except HFValidationError:
        raise ValueError(nothing_here(target)) from None
    try:
        folder = Path(snapshot_download(target, revision=revision, ignore_patterns=list(NOT_NEEDED)))
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{nothing_here(target)} Nor is a repository {target} of the Hub cached, and the Hub does not answer, or "
            "the client is offline (HF_HUB_OFFLINE)."
        ) from None
    if not (folder / REPORT_NAME).is_file():
        raise ValueError(f"The repository {target} holds no {REPORT_NAME}.")
    return folder / REPORT_NAME


def _model_of(report: Report, path: Path) -> str:
    """The checkpoint beside the report, or the model on the Hub that was evaluated."""
    if (path.parent / "config.json").is_file():
        return str(path.parent)
    facts = report.metadata
    # What a training's report calls the base model is what it started from.
    if facts.get("base_model") and not facts.get("training"):
        return facts["base_model"]
    named = facts.get("base_model_text") or facts.get("model_name") or "of another machine"
    raise ValueError(f"{path} was measured on a model ({named}) that is not beside it: give --model FOLDER.")


def _examples_of(report: RobustnessReport, path: Path, given: str | None, model: str) -> Path:
    folder = Path(given).expanduser() if given else path.parent / STORED_EXAMPLES
    if given and (folder / STORED_EXAMPLES / INDEX_NAME).is_file():
        folder = folder / STORED_EXAMPLES
    if (folder / INDEX_NAME).is_file():
        return folder
    name = model if given is None and not os.path.isabs(model) else "MODEL"
    steps = dict.fromkeys(("attack_steps", "attack_steps_limit"))  # the protocol's own
    command = evaluate_command(
        report, name, protocol=RECOMMENDED, **steps, output_dir="evaluation", store_examples=True
    )
    where = f"{folder} has no stored examples ({INDEX_NAME})" if given else "This report has no stored examples"
    protocol = "" if report.protocol == RECOMMENDED else f" (by protocol {RECOMMENDED}, not {report.protocol})"
    raise ValueError(
        f"{where}: evaluate with {command}{protocol}, and verify what that writes; or give --examples FOLDER."
    )


def _arguments(report: Report, model: str, given: Overrides) -> tuple[EvaluationArguments, DataArguments]:
    facts = report.metadata
    told = {
        "split": facts.get("split"),
        "dataset": facts.get("dataset_alias") or facts.get("dataset_path") or facts.get("dataset"),
        "dataset_config": facts.get("dataset_config"),
        "dataset_revision": None if facts.get("dataset_alias") else facts.get("dataset_commit"),
        "skip_bad_images": bool(facts.get("skipped_images")),
        **(facts.get("splitting") or {}),
        **(facts.get("masks") or {}),
    }
    if given.dataset is not None:  # another one's configuration and commit are its own
        told |= {"dataset_config": None, "dataset_revision": None}
    told |= {entry.name: value for entry in fields(given) if (value := getattr(given, entry.name)) not in (None, False)}
    told["model"] = model
    if told["dataset"] is None:
        raise ValueError("The report does not name its data: give --dataset.")
    return tuple(
        kind(**{entry.name: told[entry.name] for entry in fields(kind) if told.get(entry.name) is not None})
        for kind in (EvaluationArguments, DataArguments)
    )


def _compare_files(report: Report, model: str, images: Any) -> list[Verified]:
    """Whether weights and image files are those that were measured, where the report tells."""
    found = []
    measured = report.metadata.weights_sha256
    if measured and os.path.isdir(model):
        own = hash_weight_files(model)
        apart = sorted(name for name in measured.keys() | own.keys() if measured.get(name) != own.get(name))
        told = f"{', '.join(apart)} in {model} differ from what was measured" if apart else "those that were measured"
        found.append(Verified("weights", not apart, told))
    if told := report.metadata.source_digest:
        own = source_digest(images)
        sentence = "those that were measured" if own == told else f"the set {own}, and {told} was measured"
        found.append(Verified("image files", own == told, sentence))
    return found
