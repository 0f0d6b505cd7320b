"""What lies in a run's folder, read for the page: report, course of training, adversarial examples."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_robust_ft.provenance.validation_curves import ACCURACY_KEYS, find_state
from hf_robust_ft.reporting.artifacts import EXAMPLE_FILES, REPORT_NAME
from hf_robust_ft.reporting.example_pairs import FILE_NAME, ExamplePairs
from hf_robust_ft.reporting.measures import ACCURACY, MEASURES, Measure
from hf_robust_ft.reporting.model_card import EXAMPLES
from hf_robust_ft.reporting.report_files import Report, read_report_file, refuse_detection_report


@dataclass(frozen=True)
class Timeline:
    """The course of a training as (epoch, value): scores are shares, eps in pixel units of [0, 1]."""

    clean: list[tuple[float, float]] = field(default_factory=list)
    adversarial: list[tuple[float, float]] = field(default_factory=list)
    eps: list[tuple[float, float]] = field(default_factory=list)

    @classmethod
    def of(cls, log_history: Sequence[dict], measure: Measure = ACCURACY) -> "Timeline":
        """What `Trainer` logged; of several evaluations of one epoch the last counts."""
        keys = ACCURACY_KEYS if measure is ACCURACY else (f"eval_{measure.clean}",)
        clean = next((key for key in keys if any(key in entry for entry in log_history)), None)
        budget = [(entry["epoch"], entry["eps"]) for entry in log_history if {"loss", "eps", "epoch"} <= set(entry)]
        if budget:
            budget.insert(0, (0.0, budget[0][1]))  # a log tells the eps of the steps before it
        return cls(_series(log_history, clean), _series(log_history, f"eval_{measure.adversarial}"), budget)

    def __bool__(self) -> bool:
        return bool(self.clean or self.adversarial or self.eps)


@dataclass(frozen=True)
class Run:
    """One run of the page.

    Attributes:
        name: short, and no other run's.
        report: what was measured.
        timeline: empty where no `trainer_state.json` is there.
        examples: None where there are none as numbers.
        strips: pictures of examples, where `evaluate` wrote nothing else: an older one, or one of masks.
    """

    name: str
    report: Report
    timeline: Timeline = field(default_factory=Timeline)
    examples: ExamplePairs | None = None
    strips: tuple[Path, ...] = ()


def read_runs(paths: Sequence[str | Path], names: Sequence[str] | None = None) -> list[Run]:
    """The runs in folders with a `robustness_report.json`, or report files themselves.

    Args:
        paths: folders, also of such folders, or files.
        names: what the page calls them; by default the folders' names, with their parents' where these are equal.

    Raises:
        ValueError: no path, one named twice, no report or a broken one, names of another number or not different.
    """
    places = [run for path in paths for run in runs_in(Path(path).expanduser())]
    if not places:
        raise ValueError("Name at least one folder with a robustness_report.json, or a report file.")
    reports = [_find_report(place) for place in places]
    if len({file.resolve() for file in reports}) < len(reports):
        raise ValueError(f"A report is named twice among {', '.join(map(str, places))}: name each once.")
    called = list(names) if names else short_names(reports)
    if len(called) != len(places) or len(set(called)) < len(called):
        raise ValueError(f"{len(places)} runs need as many different names, got {called!r}.")
    return [_read(file, name, place.is_dir()) for place, file, name in zip(places, reports, called, strict=True)]


def short_names(reports: Sequence[Path]) -> list[str]:
    """As few trailing parts of each path as tell them all apart; the usual file name says nothing.

    >>> short_names([Path("/runs/a/robustness_report.json"), Path("/runs/b/robustness_report.json"), Path("c.json")])
    ['a', 'b', 'c']
    >>> short_names([Path("/runs/a/eval/robustness_report.json"), Path("/runs/b/eval/robustness_report.json")])
    ['a/eval', 'b/eval']
    """
    if not reports:
        return []
    paths = [file.absolute() for file in reports]
    parts = [path.parent.parts if path.name == REPORT_NAME else (*path.parent.parts, path.stem) for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def runs_in(folder: Path) -> list[Path]:
    """The folder itself or, where it holds no report and its own folders do, these: `runs` stands for `runs/*`."""
    if (folder / REPORT_NAME).is_file() or not folder.is_dir():
        return [folder]
    return sorted(file.parent for file in folder.glob(f"*/{REPORT_NAME}")) or [folder]


def _find_report(place: Path) -> Path:
    file = place / REPORT_NAME if place.is_dir() else place
    if file.is_file():
        return file
    if not place.is_dir():
        raise ValueError(f"There is no file or folder {place}.")
    raise ValueError(
        f"{place} holds no {REPORT_NAME}, nor do folders in it. Measure it: hf-robust-ft evaluate --model {place} "
        f"--dataset DATASET --output_dir {place}-evaluation, then name {place}-evaluation."
    )


def _read(file: Path, name: str, with_folder: bool) -> Run:
    refuse_detection_report(file, "the page shows runs of classification and segmentation alone")
    report = read_report_file(file)
    if not with_folder:
        return Run(name, report)
    numbers = file.parent / EXAMPLES / FILE_NAME
    pairs = ExamplePairs.load(numbers) if numbers.is_file() else None
    strips = () if pairs else tuple(sorted(file.parent.glob(EXAMPLE_FILES)))
    return Run(name, report, _read_timeline(file.parent, MEASURES[type(report)][0]), pairs, strips)


def _read_timeline(folder: Path, measure: Measure) -> Timeline:
    try:
        state = find_state(folder)
    except ValueError:  # measured elsewhere than trained
        return Timeline()
    try:
        history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{state} is no trainer_state.json of transformers.Trainer: {error!r}.") from None
    return Timeline.of(history, measure)


def _series(log_history: Sequence[dict], key: str | None) -> list[tuple[float, float]]:
    return sorted({entry["epoch"]: entry[key] for entry in log_history if key in entry and "epoch" in entry}.items())
