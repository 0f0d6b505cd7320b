"""The command line: `hf-robust-ft train | evaluate | quickstart`."""

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

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


@dataclass
class EvaluationArguments:
    """How `hf-robust-ft evaluate` measures."""

    model: str = field(metadata={"help": "AutoModelForImageClassification id or local checkpoint folder."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    split: str = field(default="test", metadata={"help": "Split to evaluate on: test, validation or train."})
    norm: str = field(default="Linf", metadata={"help": "Norm of the perturbation: Linf."})
    eps: str = field(default="4/255", metadata={"help": "Largest budget, in pixel units of [0, 1]: 4/255 or 0.0157."})
    epsilons: list[str] | None = field(
        default=None, metadata={"help": "Budgets, increasing from 0 to eps (default: every 1/255, the paper's grid)."}
    )
    attack_steps: int = field(default=10, metadata={"help": "APGD steps."})
    attack_loss: str = field(default="ce", metadata={"help": "Loss that the attack climbs: ce."})
    protocol: str = field(default="paper", metadata={"help": "How the curve is measured: paper."})
    batch_size: int = field(default=64, metadata={"help": "Images at a time."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, cuda:1, ... (default: cuda if there is)."})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Write robustness_report.json, the curve and a card here (default: print only)."},
    )

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")


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
    from hf_robust_ft.evaluation import evaluation_attack, resolve_epsilons
    from hf_robust_ft.threat_models import ThreatModel

    threat_model = ThreatModel(options.norm, options.eps)
    epsilons = resolve_epsilons(options.epsilons, threat_model)
    attack = evaluation_attack(options.attack_steps, options.attack_loss)
    splits = data_args.load(require_train=False)
    if options.split not in splits:
        raise ValueError(f"Unknown split {options.split!r}. Valid: {', '.join(splits)}.")

    import torch

    from hf_robust_ft.data import align_labels, with_pixel_values
    from hf_robust_ft.evaluation import evaluate_robustness
    from hf_robust_ft.finetuning import at_most, describe_model
    from hf_robust_ft.models import load_image_classifier, use_fast_memory_format
    from hf_robust_ft.pixels import PixelSpace
    from hf_robust_ft.reporting import library_versions, write_evidence

    revision = {"revision": options.model_revision} if options.model_revision else {}
    model, processor = load_image_classifier(options.model, **revision)
    dataset = at_most(
        align_labels(splits[options.split], model.config),
        data_args.max_eval_samples,
        data_args.split_seed,
        "max_eval_samples",
    )
    data = data_args.describe()
    _warn_of_another_split(options.model, data)
    memory_format = use_fast_memory_format(model)
    report = evaluate_robustness(
        model,
        with_pixel_values(dataset, processor),
        threat_model=threat_model,
        pixel_space=PixelSpace.from_processor(processor),
        epsilons=epsilons,
        attack=attack,
        protocol=options.protocol,
        batch_size=options.batch_size,
        device=options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
    ).with_metadata(
        **describe_model(options.model, model),
        **data,
        split=options.split,
        memory_format=memory_format,
        versions=library_versions(),
        command=_shown_command("evaluate", argv),
    )
    print(report)
    if options.output_dir:
        write_evidence(report, options.output_dir)
        print(f"Report, curve and card: {options.output_dir}")


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


def _warn_of_another_split(model: str, data: dict) -> None:
    """A checkpoint trained on other splits of the same data may have seen the images it is measured on."""
    from hf_robust_ft.evaluation import RobustnessReport

    path = os.path.join(model, "robustness_report.json")
    if not os.path.isfile(path):
        return
    trained = RobustnessReport.from_json(path).metadata
    if trained.get("dataset") != data["dataset"]:
        return
    differing = [
        f"{name} {trained['splitting'].get(name)} -> {data['splitting'][name]}"
        for name in ("validation_size", "test_size", "split_seed")
        if trained.get("splitting") and trained["splitting"].get(name) != data["splitting"][name]
    ]
    if differing:
        print(
            f"warning: the checkpoint was trained on other splits of {data['dataset']} ({', '.join(differing)}): where "
            "splits are made from train, it may have seen the images it is measured on.",
            file=sys.stderr,
        )
