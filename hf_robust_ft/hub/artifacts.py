"""Whether there is a report to publish, and whether it is of these weights; if not, the command that makes one."""

import shlex
import shutil
from pathlib import Path
from typing import Any

from hf_robust_ft.evaluation.stored_examples import STORED_EXAMPLES, ExampleFolder, StoredExamples
from hf_robust_ft.hub.contents import free_place
from hf_robust_ft.models.detection import detects
from hf_robust_ft.provenance.record import RECIPE_NAME
from hf_robust_ft.provenance.weight_hashes import hash_weight_files
from hf_robust_ft.provenance.yaml_values import load_yaml
from hf_robust_ft.reporting.artifacts import DRAWERS, EXAMPLE_FILES, REPORT_NAME
from hf_robust_ft.reporting.example_pairs import FILE_NAME as EXAMPLE_PAIRS
from hf_robust_ft.reporting.model_card import EXAMPLES
from hf_robust_ft.reporting.report_files import DETECTION, Report, read_report_file, refuse_detection_report

REPLACED_REPORT = "robustness_report.replaced.json"


def read_report(folder: Path, evaluation: Path | None, repo_id: str) -> Report:
    """The report to publish: the evaluation's if there is one, with what the checkpoint's own tells of training.

    Raises:
        ValueError: there is none, or it cannot be read; with the command that makes one.
    """
    place = folder if evaluation is None else evaluation
    path = place / REPORT_NAME
    if detects(str(folder)):
        raise ValueError(
            f"{folder} is a model of {DETECTION}, which is experimental; models of it are not published from here yet."
        )
    if not path.is_file():
        raise ValueError(f"There is no {REPORT_NAME} in {place}, so nothing is known of its robustness. "
                         f"{how_to_measure(folder, repo_id)}")  # fmt: skip
    refuse_detection_report(path, f"{folder} is no model of it")
    report = read_report_file(path)
    if report.num_samples < 1 or len(report.epsilons) < 2:
        raise ValueError(f"{path} measured no attack. {how_to_measure(folder, repo_id)}")
    try:
        DRAWERS[type(report)].check(report)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged or was changed by hand. {error} {how_to_measure(folder, repo_id)}"
        ) from None
    if evaluation is None or not (folder / REPORT_NAME).is_file():
        return report
    own = read_report_file(folder / REPORT_NAME).metadata
    if own.weights_sha256 != hash_weight_files(folder):
        return report
    facts = own.of_model()
    if "base_model" in facts or "base_model_text" in facts:  # an evaluation takes the checkpoint itself for its base
        report = report.with_metadata(base_model=None, base_model_text=None)
    measured = report.metadata.transforms or {}
    if own.transforms and own.transforms.get("eval") == measured.get("eval"):
        facts["transforms"] = own.transforms  # which tells of training images, too
    return report.with_metadata(**facts)


def check_belongs(report: Report, folder: Path, repo_id: str, evaluation: Path | None) -> None:
    """Raise unless the report was measured on the weights in `folder`.

    Raises:
        ValueError: it was not, or does not say.
    """
    named = (evaluation or folder) / REPORT_NAME
    measured, found = report.metadata.weights_sha256, hash_weight_files(folder)
    if not measured:
        raise ValueError(
            f"{named} does not say which weights it was measured on (weights_sha256). "
            f"{how_to_measure(folder, repo_id, report)}"
        )
    if measured != found:
        names = sorted(name for name in measured.keys() | found.keys() if measured.get(name) != found.get(name))
        raise ValueError(
            f"{named} belongs to other weights: of {names[0]} it names sha256 {_short(measured.get(names[0]))}, and "
            f"the file in {folder} has {_short(found.get(names[0]))}. {how_to_measure(folder, repo_id, report)}"
        )


def take_report(evaluation: Path, folder: Path) -> None:
    """Bring an evaluation's pictures of attacked images to the checkpoint, whose own report gets another name."""
    own = folder / REPORT_NAME
    if own.is_file() and own.read_bytes() != (evaluation / REPORT_NAME).read_bytes():
        shutil.copyfile(own, free_place(folder / REPLACED_REPORT))
    shown = _attacked_images(evaluation)
    for old in _attacked_images(folder) if shown else ():
        old.rename(free_place(old.with_name(f"replaced_{old.name.removeprefix('example_')}")))
    for source in shown:
        target = folder / source.relative_to(evaluation)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)


def check_stored_examples(report: Report, place: Path) -> None:
    """Raise unless the folder of a report holds the whole of its stored examples.

    Raises:
        ValueError: there are none, one is missing or damaged, or they are of other images.
    """
    stored = StoredExamples(place / STORED_EXAMPLES)
    if stored.image_digest != report.image_digest:
        raise ValueError(
            f"The examples in {stored.folder} are of the images {stored.image_digest}, the report beside them of "
            f"{report.image_digest or 'others'}: evaluate again with --store_examples."
        )
    if not ExampleFolder(stored.folder).holds(list(stored.shards.items())):
        raise ValueError(
            f"A file in {stored.folder} is missing or damaged, which hf-robust-ft verify names: evaluate again."
        )


def take_stored_examples(evaluation: Path, folder: Path) -> None:
    """Copy an evaluation's stored examples to the checkpoint, in place of those that are there."""
    target = folder / STORED_EXAMPLES
    if evaluation.resolve() == folder.resolve():
        return
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in StoredExamples(evaluation / STORED_EXAMPLES).files:
        shutil.copyfile(evaluation / STORED_EXAMPLES / name, target / name)


def _attacked_images(folder: Path) -> list[Path]:
    """Strips, which are published, and the same images as numbers, which the page of runs reads and stay here."""
    return [*sorted(folder.glob(EXAMPLE_FILES)), *folder.glob(f"{EXAMPLES}/{EXAMPLE_PAIRS}")]


def how_to_measure(folder: Path, repo_id: str, like: Report | None = None) -> str:
    """The two commands that measure a checkpoint, as its run was set up as far as that is known, and publish it."""
    output = f"{folder}-evaluation"
    if like is not None:
        measure = DRAWERS[type(like)].command(like, str(folder), output_dir=output)
    else:
        options = {"model": folder, **_options_of_run(folder), "output_dir": output}
        words = (str(word) for name, value in options.items() for word in (f"--{name}", value))
        measure = shlex.join(["hf-robust-ft", "evaluate", *words])
    publish = shlex.join(["hf-robust-ft", "publish", str(folder), repo_id, "--report", output])
    return f"Measure it and publish both: {measure} && {publish}"


def _options_of_run(folder: Path) -> dict[str, Any]:
    """Dataset and threat model of the recipe beside a checkpoint."""
    try:
        recipe = load_yaml((folder / RECIPE_NAME).read_bytes())
    except (OSError, ValueError):
        recipe = {}
    recipe = recipe if isinstance(recipe, dict) else {}
    return {"dataset": recipe.get("dataset", "DATASET"), "norm": recipe.get("norm", "Linf"),
            "eps": recipe.get("eps", "4/255")}  # fmt: skip


def _short(checksum: str | None) -> str:
    return f"{checksum[:12]}..." if checksum else "none"
