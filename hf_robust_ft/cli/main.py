"""The command line: `hf-robust-ft train | evaluate | diagnose | reproduce | publish | ...`."""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import hf_robust_ft
from hf_robust_ft.cli.help import short_help
from hf_robust_ft.cli.quiet import quiet_libraries
from hf_robust_ft.cli.sharing import leaderboard, publish, publish_metric, report, verify
from hf_robust_ft.provenance.choices import alike, did_you_mean
from hf_robust_ft.provenance.redacted_command import command_to_go_on, redacted_command
from hf_robust_ft.runs.command_parser import CommandParser

PROGRAM = "hf-robust-ft"
USAGE = """\
usage: hf-robust-ft <command> [options]

Make a pretrained vision model robust, and measure how robust it is.

commands:
  quickstart   train and measure the embedded example (real weights, real data, no network; minutes on 2 cores)
  train        fine-tune a Hub model or local checkpoint robustly, measure it, write checkpoint and model card;
               with --dry_run only tell what that would cost
  search       find learning rates and weight decay for a model and a dataset, as the paper does
  diagnose     tell from runs over several eps how late and how badly a model adapts, and whether it needs a schedule
  calibrate    find the schedule's T1 and T2 for a model and a dataset from short runs, and write them as a recipe
  reproduce    run a grid of backbones, datasets, budgets, schedules and seeds, and set its tables beside the paper's
  evaluate     measure clean accuracy, adversarial accuracy and expected robustness of a checkpoint
  verify       check a report by its stored adversarial examples, without attacking
  report       make one interactive HTML page of several runs that needs no network
  leaderboard  rank robust models by what their repositories or folders say, each setting by itself
  publish      put a checkpoint with its report, pictures and card on the Hub, and compare what arrived
  publish-metric
               put the robustness metric on the Hub as a Space, for evaluate.load

hf-robust-ft <command> --help tells the options that most people need, --help-all every one; --version the version.
"""

# Errors of what was given to a command; any other is a fault of ours or of a library.
EXPECTED = (ValueError, TypeError, ImportError, OSError, FloatingPointError)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; bad input ends in one line on stderr and exit code 2, Ctrl-C in one and 130."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    if argv[0] in ("--version", "-V"):
        print(f"{PROGRAM} {hf_robust_ft.__version__}")
        return
    command, *rest = argv
    if command not in COMMANDS:
        hint = did_you_mean(alike(command, COMMANDS))
        sys.exit(f"hf-robust-ft: unknown command {command!r}.{hint} Commands: {', '.join(COMMANDS)}.")
    if rest in (["-h"], ["--help"]) and (told := short_help(command)):
        print(told, end="")
        sys.exit(0)  # as argparse does
    try:
        with quiet_libraries():
            COMMANDS[command](rest)
    except KeyboardInterrupt as stop:
        if isinstance(stop, SystemExit):  # training has saved, and told how to go on
            raise
        if os.environ.get("RANK", "0") == "0":
            again = command_to_go_on(argv, checkpoint="auto")
            print(f"\nhf-robust-ft {command}: stopped by Ctrl-C. Go on: {again}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if os.environ.get("HF_ROBUST_FT_TRACEBACK"):
            raise
        message = str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
        print(f"hf-robust-ft {command}: error: {' '.join(message.split())}", file=sys.stderr)
        if not _says_all(error):
            print("(HF_ROBUST_FT_TRACEBACK=1 shows where it was raised.)", file=sys.stderr)
        sys.exit(2)


def _says_all(error: Exception) -> bool:
    """Whether a message is enough without a traceback: somebody worded it for whom it may concern, or the system did.

    What no `raise` raised is an operation that failed, which nobody foresaw.
    """
    where = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, OSError) or (isinstance(error, EXPECTED) and where.line.startswith("raise"))


def train(argv: Sequence[str]) -> None:
    """Fine-tune a pretrained image classifier, segmenter or detector robustly, by default as arXiv 2509.23325 does."""
    from hf_robust_ft.experiments.planning import PlanArguments, plan_run
    from hf_robust_ft.runs.continuing import refuse_to_overwrite
    from hf_robust_ft.runs.fine_tune import DataArguments, ModelArguments, fine_tune
    from hf_robust_ft.runs.options import BASE_RECIPE, filled_in, parse_options
    from hf_robust_ft.training.arguments import AdversarialTrainingArguments

    types = (ModelArguments, DataArguments, AdversarialTrainingArguments, PlanArguments)
    titles = ("model", "data", "threat model, schedule and attacks", "dry run")
    options = parse_options("train", argv, types, titles, train.__doc__, BASE_RECIPE)
    model_args, data_args, args, plan_args = options.parsed
    told = filled_in(options, model_args.model, data_args.dataset)
    if told and args.process_index == 0:
        print(told, flush=True)
    if plan_args.dry_run:
        plan = plan_run(model_args, data_args, args, plan_args)
        if args.process_index == 0:
            print(plan)
            if plan_args.plan_json:
                plan.to_json(plan_args.plan_json)
        return
    refuse_to_overwrite(args)
    metadata = {"command": redacted_command([PROGRAM, "train"], argv), "recipes": options.recipes}
    trainer = fine_tune(model_args, data_args, args, metadata)
    if trainer.is_world_process_zero():
        measured = trainer.robustness_report
        print(measured if measured is not None else f"Not attacked (robust_eval={args.robust_eval}, eps={args.eps}).")
        print(f"Checkpoint{'' if measured is None else ', report, pictures and card'}: {args.output_dir}")
        _tell_verdict(measured)


def _tell_verdict(report: Any) -> None:
    """The last lines of a command that measured a model: whether it is robust, and whether that can be relied on."""
    from hf_robust_ft.evaluation.reliability import is_reliable
    from hf_robust_ft.reporting.artifacts import DRAWERS

    if report is None:
        return
    drawers = DRAWERS[type(report)]
    found = drawers.verdict(report)
    if found and (not found.is_robust or is_reliable(report)):
        print(found.sentence)
    print(drawers.reliability(report))


def search(argv: Sequence[str]) -> None:
    """Find a classifier's learning rate and weight decay by clean accuracy at a fixed eps; write a recipe for train."""
    from hf_robust_ft.experiments.search import SearchArguments
    from hf_robust_ft.experiments.search import search as run
    from hf_robust_ft.runs.fine_tune import DataArguments, ModelArguments
    from hf_robust_ft.runs.options import BASE_RECIPE, filled_in, parse_options
    from hf_robust_ft.training.arguments import AdversarialTrainingArguments

    types = (ModelArguments, DataArguments, AdversarialTrainingArguments, SearchArguments)
    titles = ("model", "data", "threat model, schedule and attacks", "search")
    options = parse_options("search", argv, types, titles, search.__doc__, BASE_RECIPE)
    model_args, data_args, _, search_args = options.parsed
    print(filled_in(options, model_args.model, data_args.dataset), flush=True)
    result = run(*options.parsed)
    recipes = [*options.configs, search_args.recipe]
    print(f"\n{result.to_recipe()}\nReuse: hf-robust-ft train --config {' --config '.join(recipes)} ...")


def diagnose(argv: Sequence[str]) -> None:
    """Tell how late and badly a classifier adapts at a fixed eps by standard and fix runs, new or finished (--runs)."""
    from hf_robust_ft.experiments.diagnose import DiagnosedRuns, diagnose_runs
    from hf_robust_ft.experiments.diagnose import diagnose as run
    from hf_robust_ft.runs.options import parse_options

    if _reads_runs(argv):
        (reading,) = parse_options("diagnose", argv, (DiagnosedRuns,), ("runs",), diagnose.__doc__).parsed
        diagnose_runs(reading)
        return
    run(*_sweep_options("diagnose", argv, diagnose.__doc__))


def calibrate(argv: Sequence[str]) -> None:
    """Find a classifier's T1 and T2 from short standard and fix runs or finished ones (--runs); write a recipe."""
    from hf_robust_ft.experiments.diagnose import CalibratedRuns, RecipeArguments, calibrate_runs
    from hf_robust_ft.experiments.diagnose import calibrate as run
    from hf_robust_ft.runs.options import parse_options

    if _reads_runs(argv):
        (reading,) = parse_options("calibrate", argv, (CalibratedRuns,), ("runs",), calibrate.__doc__).parsed
        calibrate_runs(reading)
        return
    run(*_sweep_options("calibrate", argv, calibrate.__doc__, RecipeArguments))


def _reads_runs(argv: Sequence[str]) -> bool:
    return any(word == "--runs" or word.startswith("--runs=") for word in argv)


def _sweep_options(command: str, argv: Sequence[str], description: str, *more: type) -> tuple:
    from hf_robust_ft.experiments.diagnose import SweepArguments, refuse_flags, set_by_sweep
    from hf_robust_ft.runs.fine_tune import DataArguments, ModelArguments
    from hf_robust_ft.runs.options import BASE_RECIPE, filled_in, parse_options
    from hf_robust_ft.training.arguments import AdversarialTrainingArguments

    refuse_flags(command, argv)
    types = (ModelArguments, DataArguments, AdversarialTrainingArguments, SweepArguments, *more)
    titles = ("model", "data", "threat model and attacks", "runs", *("recipe" for _ in more))
    options = parse_options(command, argv, types, titles, description, BASE_RECIPE, hidden=set_by_sweep())
    model_args, data_args, args, *_ = options.parsed
    data_args.refuse_other_tasks(command, model_args.model, data_args.dataset)
    if args.process_index == 0:
        used = {key: value for key, value in options.from_recipes.items() if key not in set_by_sweep()}
        print(filled_in(options._replace(from_recipes=used), model_args.model, data_args.dataset), flush=True)
    return options.parsed


def reproduce(argv: Sequence[str]) -> None:
    """Run a grid of backbones x datasets x eps x schedules x seeds, each cell once, and compare it with the paper."""
    from hf_robust_ft.experiments.grid.reproducing import parse_grid
    from hf_robust_ft.experiments.grid.reproducing import reproduce as run

    missing = run(*parse_grid(argv, reproduce.__doc__))
    if isinstance(missing, dict) and missing:
        names = "\n".join(f"  {name}: {reason}" for name, reason in missing.items())
        sys.exit(f"hf-robust-ft reproduce: cells without a result: {len(missing)}. Give the command again for\n{names}")


def evaluate(argv: Sequence[str]) -> None:
    """Measure clean, adversarial and expected accuracy of a checkpoint; of masks also mean IoU, of boxes mAP."""
    from hf_robust_ft.provenance.affects import arguments
    from hf_robust_ft.runs.evaluate import measure
    from hf_robust_ft.runs.evaluation_arguments import EvaluationArguments
    from hf_robust_ft.runs.fine_tune import DataArguments
    from hf_robust_ft.runs.options import parse_options

    types, titles = (EvaluationArguments, DataArguments), ("evaluation", "data")
    # Streams are for training; only who trained on one has a reason to name what it held out.
    hidden = ["streaming", *(each.name for each in arguments(DataArguments) if each.of == "streaming")]
    options, data_args = parse_options("evaluate", argv, types, titles, evaluate.__doc__, hidden=hidden).parsed
    state, report = measure(options, data_args, redacted_command([PROGRAM, "evaluate"], argv))
    if not state.is_main_process:
        return
    print(report)
    if getattr(report, "per_class", None):
        print(f"\n{report.class_table()}")
    if getattr(report, "checks", None):
        print(f"\nCan these numbers be trusted?\n{report.check_lines()}")
    if options.output_dir:
        print(f"\nReport, curve and card: {options.output_dir}")
    _tell_verdict(report)


def quickstart(argv: Sequence[str]) -> None:
    """Train ImageNet EfficientNet-Lite0 robustly on handwritten digits, measure it, write checkpoint and card."""
    parser = CommandParser(
        "hf-robust-ft quickstart",
        description=quickstart.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output_dir", default="quickstart", help="Folder for the checkpoint and its evidence.")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="Also train at a fixed eps (fix) and without attacks (standard), and compare the three.",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="One run of each kind per seed.")
    parser.add_argument(
        "--autoattack", type=int, default=0, help="Measure each run by standard AutoAttack, too, on so many images."
    )
    options = parser.parse_args(argv)
    from hf_robust_ft.experiments.quickstart import quickstart as run

    reports = run(options.output_dir, compare=options.compare, seeds=options.seeds, autoattack=options.autoattack)
    _tell_verdict(reports["hinge"][options.seeds[0]])


COMMANDS = {
    "train": train,
    "search": search,
    "diagnose": diagnose,
    "calibrate": calibrate,
    "reproduce": reproduce,
    "evaluate": evaluate,
    "verify": verify,
    "report": report,
    "leaderboard": leaderboard,
    "publish": publish,
    "publish-metric": publish_metric,
    "quickstart": quickstart,
}
