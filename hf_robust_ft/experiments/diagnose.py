"""From names or finished runs to a diagnosis or a calibrated recipe; what `diagnose` and `calibrate` do."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_robust_ft.attacks.threat_model import format_eps, parse_eps
from hf_robust_ft.experiments.sweep import RUN_SETTINGS, SweepRun, train_sweep
from hf_robust_ft.provenance.affects import DeclaredArguments, arguments
from hf_robust_ft.provenance.validation_curves import PAPER_THRESHOLD, ValidationCurve, read_run
from hf_robust_ft.reporting.diagnosis import Diagnosis, ScheduleEpochs, schedule_epochs
from hf_robust_ft.reporting.diagnosis import diagnose as diagnose_curves
from hf_robust_ft.reporting.diagnosis_plots import plot_diagnosis
from hf_robust_ft.reporting.diagnosis_text import chance_warning, render_diagnosis, schedule_text
from hf_robust_ft.reporting.drawing import drawn
from hf_robust_ft.runs.arguments import DataArguments, ModelArguments
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.probe_arguments import NO_PROBE
from hf_robust_ft.training.schedule_arguments import CONSTANT_EPS

PAPER_EPSILONS = tuple(f"{k}/255" if k else "0" for k in range(10))
DIAGNOSIS = "diagnosis.json"
# What fields of several of the classes below say.
_THRESHOLD = {
    "help": "Validation accuracy above which a run has adapted, in (0, 1); the paper's 0.05 suits 100 classes.",
    "affects": "measurement",
}
_RUNS = {
    "help": "Finished runs to read instead of training: standard (eps 0) and fix (eps_schedule constant) ones. Folders "
    "with a trainer_state.json or checkpoints, such files, or curves that diagnose kept.",
    "affects": "measurement",
}
_RECIPE = {"help": "File for the recipe; it must not exist.", "affects": "launch"}


@dataclass
class SweepArguments(DeclaredArguments):
    """Which standard and fix runs are trained."""

    epsilons: list[str] | None = field(
        default=None,
        metadata={
            "help": "Budgets, one run each and seed; 0, standard fine-tuning, is added (default, under Linf: 1/255 ... "
            "9/255 as in the paper). They take the place of eps and its schedule.",
            "affects": "weights",
        },
    )
    seeds: list[int] | None = field(
        default=None, metadata={"help": "One run of each kind per seed (default: seed).", "affects": "weights"}
    )
    threshold: float = field(default=PAPER_THRESHOLD, metadata=_THRESHOLD)

    def __post_init__(self):
        _check_threshold(self.threshold)
        if self.epsilons is not None:
            values = [parse_eps(eps) for eps in self.epsilons]
            if max(values) == 0:
                raise ValueError(
                    f"epsilons need at least one budget above 0 to compare with standard fine-tuning, got "
                    f"{' '.join(map(str, self.epsilons))}."
                )
            if 0 not in values:
                self.epsilons = ["0", *self.epsilons]

    def runs(self, args: AdversarialTrainingArguments) -> list[SweepRun]:
        """The runs, standard first.

        Raises:
            ValueError: no `epsilons` under a norm whose budgets the paper does not tell.
        """
        if self.epsilons is None and args.norm != "Linf":
            raise ValueError(f"The default epsilons are the paper's, under Linf: give --epsilons for {args.norm}.")
        budgets = sorted(self.epsilons or PAPER_EPSILONS, key=parse_eps)
        return [SweepRun(str(eps), seed) for eps in budgets for seed in self.seeds or [args.seed]]


@dataclass
class DiagnosedRuns(DeclaredArguments):
    """Finished runs to diagnose."""

    runs: list[str] = field(metadata=_RUNS)
    threshold: float = field(default=PAPER_THRESHOLD, metadata=_THRESHOLD)
    output_dir: str = field(
        default="diagnosis", metadata={"help": "Folder for diagnosis.json and the pictures.", "affects": "launch"}
    )

    def __post_init__(self):
        _check_threshold(self.threshold)
        self.output_dir = os.path.expanduser(self.output_dir)


@dataclass
class CalibratedRuns(DeclaredArguments):
    """Finished runs to calibrate a schedule from."""

    runs: list[str] = field(metadata=_RUNS)
    threshold: float = field(default=PAPER_THRESHOLD, metadata=_THRESHOLD)
    recipe: str = field(default="calibrated.yaml", metadata=_RECIPE)

    def __post_init__(self):
        _check_threshold(self.threshold)
        self.recipe = os.path.expanduser(self.recipe)


@dataclass
class RecipeArguments(DeclaredArguments):
    """Where a calibrated schedule is written."""

    recipe: str = field(default="calibrated.yaml", metadata=_RECIPE)

    def __post_init__(self):
        self.recipe = os.path.expanduser(self.recipe)


def diagnose(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: AdversarialTrainingArguments,
    sweep: SweepArguments,
) -> Diagnosis:
    """Train the runs of a sweep that `args.output_dir` does not hold yet, and diagnose all of them there.

    Raises:
        ValueError: what `train_sweep` and `diagnosis.diagnose` refuse.
    """
    curves = train_sweep(model_args, data_args, args, sweep.runs(args), sweep.threshold)
    return write_diagnosis(curves, sweep.threshold, args.output_dir, writes=args.process_index == 0)


def diagnose_runs(options: DiagnosedRuns) -> Diagnosis:
    """Diagnose runs that are there already.

    Raises:
        ValueError: what `read_run` and `diagnosis.diagnose` refuse.
    """
    return write_diagnosis(read_runs(options.runs), options.threshold, options.output_dir)


def write_diagnosis(
    curves: Sequence[ValidationCurve], threshold: float, folder: str | Path, writes: bool = True
) -> Diagnosis:
    """Diagnose, and write and print it: `diagnosis.json`, `diagnosis.txt` and the pictures.

    Args:
        writes: False in all processes but one.
    """
    diagnosis = diagnose_curves(curves, threshold)
    if writes:
        folder, text = Path(folder), render_diagnosis(diagnosis)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DIAGNOSIS).write_text(json.dumps(diagnosis.to_dict(), indent=2) + "\n", encoding="utf-8")
        (folder / "diagnosis.txt").write_text(text + "\n", encoding="utf-8")
        drawn("A picture of the diagnosis", lambda: plot_diagnosis(diagnosis, curves, folder))
        print(f"\n{text}\n\nDiagnosis and pictures: {folder}", flush=True)
    return diagnosis


def calibrate(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: AdversarialTrainingArguments,
    sweep: SweepArguments,
    options: RecipeArguments,
) -> ScheduleEpochs:
    """Find T1 and T2 from short runs, and write them as a recipe for `train`.

    Standard runs are trained to their end, since T1 is a share of their final accuracy; fix runs stop as soon as they
    have adapted, since only their delay counts.

    Raises:
        ValueError: a recipe file that exists, or what `train_sweep` and `schedule_epochs` refuse.
    """
    _refuse_existing(options.recipe)
    curves = train_sweep(model_args, data_args, args, sweep.runs(args), sweep.threshold, stops_early=True)
    return write_recipe(curves, sweep.threshold, options.recipe, writes=args.process_index == 0)


def calibrate_runs(options: CalibratedRuns) -> ScheduleEpochs:
    """Find T1 and T2 from runs that are there already, and write them as a recipe.

    Raises:
        ValueError: a recipe file that exists, or what `read_run` and `schedule_epochs` refuse.
    """
    _refuse_existing(options.recipe)
    return write_recipe(read_runs(options.runs), options.threshold, options.recipe)


def write_recipe(
    curves: Sequence[ValidationCurve], threshold: float, recipe: str | Path, writes: bool = True
) -> ScheduleEpochs:
    """T1 and T2 as the options of a hinge, in a YAML file that `train --config` takes; also printed.

    The shares are those of the runs, whatever the length of the training that uses the recipe.

    Args:
        writes: False in all processes but one.
    """
    found = schedule_epochs(curves, threshold)
    if not writes:
        return found
    budgets = ", ".join(format_eps(eps) for eps in sorted({curve.eps for curve in curves}))
    start, end = found.shares
    warning = chance_warning(threshold, max(len(curve.facts.get("classes", ())) for curve in curves))
    lines = [
        f"# Found by calibrate in {len(curves)} runs of {found.num_epochs:g} epochs at eps {budgets}: standard "
        f"fine-tuning reaches 90 % of its final",
        f"# validation accuracy in epoch {found.reached:.3g} (T1 = {found.start}); accuracy exceeds {threshold:.1%} in "
        f"epoch {found.mean_delay:.3g} on average (T2 = {found.end}).",
        *([f"# {found.note[0].upper()}{found.note[1:]}."] if found.note else []),
        *([f"# Beware: {warning}"] if warning else []),
        "eps_schedule: hinge",
        f"schedule_start: {start!r}",
        f"schedule_end: {end!r}",
    ]
    path = Path(recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(
        f"\n{schedule_text(found)}\nReuse: hf-robust-ft train --config paper_default --config {recipe} ...", flush=True
    )
    return found


def read_runs(paths: Sequence[str]) -> list[ValidationCurve]:
    """The curves of finished runs.

    Raises:
        ValueError: a run given twice, or what `read_run` refuses.
    """
    resolved = [Path(path).expanduser().resolve() for path in paths]
    twice = sorted({path.name for path in resolved if resolved.count(path) > 1})
    if twice:
        raise ValueError(f"Given twice: {', '.join(twice)}. The same run would count as two.")
    return [read_run(path) for path in resolved]


def set_by_sweep(training: type = AdversarialTrainingArguments) -> dict[str, str]:
    """The flags that would do nothing, since a sweep sets them for each run or does without; and why.

    Those of the schedule, all that only measure, and what the runs' own settings are.

    Args:
        training: the dataclass of training arguments.
    """
    measures = [each.name for each in arguments(training) if each.is_ours and each.only_measures]
    reasons = {
        "trains every run at a constant eps, one of --epsilons": ["eps", "schedule", *CONSTANT_EPS],
        "measures clean validation accuracy after each epoch, and attacks nothing there": [
            *measures, "do_eval", "eval_strategy",
        ],
        "keeps the runs' curves, not their models": ["push_to_hub"],
        "trains all of the model from the first step": [*NO_PROBE],
        "never measures the test split, which it would draw from; --validation_size sets how many images of train are "
        "measured on": ["max_eval_samples"],
    }  # fmt: skip
    explained = {name: reason for reason, names in reasons.items() for name in names}
    saves = "saves after each epoch and goes on by itself where it was interrupted"
    return dict.fromkeys(RUN_SETTINGS, saves) | explained


def refuse_flags(command: str, argv: Sequence[str], training: type = AdversarialTrainingArguments) -> None:
    """Refuse flags that a sweep would ignore.

    Raises:
        ValueError: there is one.
    """
    given = [word.split("=", 1)[0] for word in argv if word.startswith("--")]
    reasons, ignored = set_by_sweep(training), {}
    for flag in given:
        if reason := reasons.get(flag[2:].replace("-", "_")):
            ignored.setdefault(reason, []).append(flag)
    if ignored:
        told = "; ".join(f"{', '.join(flags)}: {command} {reason}" for reason, flags in ignored.items())
        raise ValueError(f"{told}. Leave it out.")


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is a share in (0, 1), got {threshold}: the paper's 5 % is 0.05.")


def _refuse_existing(recipe: str) -> None:
    if os.path.exists(recipe):
        raise ValueError(f"{recipe} exists. Name another file with --recipe.")
