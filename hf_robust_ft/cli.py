"""The command line: `hf-robust-ft train | evaluate | quickstart`."""

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence

USAGE = """\
usage: hf-robust-ft <command> [options]

Make a pretrained vision model robust, and measure how robust it is.

commands:
  quickstart   train and measure the embedded example (real weights, real data, no network; minutes on 2 cores)
  train        fine-tune a Hub model or local checkpoint robustly, measure it, write checkpoint and model card
  evaluate     measure clean accuracy, adversarial accuracy and expected robustness of a checkpoint

hf-robust-ft <command> --help tells the options of a command.
"""

# Of Trainer's own arguments, those that `train --help` shows; `--help_all` shows every one.
COMMON_TRAINER_ARGUMENTS = (
    "output_dir", "num_train_epochs", "max_steps", "learning_rate", "weight_decay", "lr_scheduler_type",
    "warmup_steps", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "bf16", "seed", "dataloader_num_workers", "save_strategy", "resume_from_checkpoint", "push_to_hub",
    "hub_model_id", "report_to",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; bad input ends in one line on stderr and exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    command, *rest = argv
    if command not in COMMANDS:
        sys.exit(f"hf-robust-ft: unknown command {command!r}. Commands: {', '.join(COMMANDS)}.")
    try:
        COMMANDS[command](rest)
    except Exception as error:
        if os.environ.get("HF_ROBUST_FT_TRACEBACK"):
            raise
        expected = isinstance(error, (ValueError, TypeError, ImportError, OSError, FloatingPointError))
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        print(f"hf-robust-ft {command}: error: {message}", file=sys.stderr)
        print("(HF_ROBUST_FT_TRACEBACK=1 shows where it was raised.)", file=sys.stderr)
        sys.exit(2)


def train(argv: Sequence[str]) -> None:
    """Fine-tune a pretrained image classifier robustly."""
    parser, arguments = _parser("train", argv, train.__doc__)
    model_args, data_args, args = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    from hf_robust_ft.finetuning import fine_tune

    trainer = fine_tune(model_args, data_args, args, {"command": _shown_command("train", argv)})
    if trainer.is_world_process_zero():
        measured = trainer.robustness_report
        print(measured if measured is not None else f"Not attacked (robust_eval={args.robust_eval}, eps={args.eps}).")
        print(f"Checkpoint{'' if measured is None else ', report, pictures and card'}: {args.output_dir}")


def evaluate(argv: Sequence[str]) -> None:
    """Measure clean accuracy, adversarial accuracy and expected robustness of a checkpoint."""
    parser, arguments = _parser("evaluate", argv, evaluate.__doc__)
    options, data_args = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    from hf_robust_ft.measuring import measure

    state, report = measure(options, data_args, _shown_command("evaluate", argv))
    if not state.is_main_process:
        return
    print(report)
    if report.per_class:
        print(f"\n{report.class_table()}")
    if report.checks:
        print(f"\nCan these numbers be trusted?\n{report.check_lines()}")
    if options.output_dir:
        print(f"\nReport, curve and card: {options.output_dir}")


def quickstart(argv: Sequence[str]) -> None:
    """Train ImageNet EfficientNet-Lite0 robustly on handwritten digits, measure it, write checkpoint and card."""
    parser = argparse.ArgumentParser(
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
    options = parser.parse_args(argv)
    from hf_robust_ft.quickstart import quickstart as run

    run(options.output_dir, compare=options.compare, seeds=options.seeds)


COMMANDS = {"train": train, "evaluate": evaluate, "quickstart": quickstart}


def _parser(command: str, argv: Sequence[str], description: str):
    """The parser of a command with its recipe's values as defaults, and the arguments left for it."""
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--config")
    before.add_argument("--help_all", "--help-all", action="store_true")
    known, arguments = before.parse_known_args(argv)

    from hf_robust_ft.finetuning import DataArguments, ModelArguments
    from hf_robust_ft.measuring import EvaluationArguments
    from hf_robust_ft.recipes import build_parser, read_recipe
    from hf_robust_ft.training_args import AdversarialTrainingArguments

    types = {
        "train": (ModelArguments, DataArguments, AdversarialTrainingArguments),
        "evaluate": (EvaluationArguments, DataArguments),
    }[command]
    parser = build_parser(
        types,
        read_recipe(known.config) if known.config else {},
        prog=f"hf-robust-ft {command}",
        usage=f"hf-robust-ft {command} [--config RECIPE] [options]",
        description=f"{description} Values come from the recipe, a YAML file of the options below; flags override it.",
        epilog="Shipped recipes: quickstart, paper_default.",
    )
    # For --help alone: both were taken out of the arguments above, and belong to no dataclass.
    parser.add_argument(
        "--config", default=argparse.SUPPRESS, help="Recipe: a YAML file, or the name of a shipped one."
    )
    if command == "train":
        parser.add_argument(
            "--help_all",
            action="store_true",
            default=argparse.SUPPRESS,
            help="Show all of Trainer's arguments as well.",
        )
        _tidy_help(parser, types, everything=known.help_all)
    return parser, ["--help"] if known.help_all else arguments


def _tidy_help(parser, types: Sequence[type], everything: bool) -> None:
    """Show our arguments in groups and Trainer's common ones; hide the other hundred unless asked."""
    from transformers import TrainingArguments

    inherited = {entry.name for entry in dataclasses.fields(TrainingArguments)}
    titles = ("model", "data", "threat model, schedule and attacks")
    groups = {title: parser.add_argument_group(title) for title in (*titles, "training (transformers.Trainer)")}
    home = {
        entry.name: "training (transformers.Trainer)" if entry.name in inherited else title
        for each, title in zip(types, titles, strict=True)
        for entry in dataclasses.fields(each)
    }
    options = parser._action_groups[1]
    for action in list(options._group_actions):
        if action.dest not in home:
            continue
        options._group_actions.remove(action)
        groups[home[action.dest]]._group_actions.append(action)
        if not everything and action.dest in inherited and action.dest not in COMMON_TRAINER_ARGUMENTS:
            action.help = argparse.SUPPRESS


def _shown_command(command: str, argv: Sequence[str]) -> str:
    """The command as typed, without tokens, and with folders of this machine reduced to their names."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    shown, secret = [], False
    for word in words:
        if word.startswith("--"):
            secret = "token" in word
        if not secret:
            local = os.path.isabs(word) or word.startswith("~")
            shown.append(os.path.basename(os.path.normpath(word)) if local else word)
    return shlex.join(["hf-robust-ft", command, *shown])
