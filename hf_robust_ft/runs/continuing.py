"""What a run finds in its `output_dir`: a checkpoint or a probe to go on from, or results that it may not replace."""

import os
from pathlib import Path

from hf_robust_ft.reporting.artifacts import REPORT_NAME
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.base.checkpoints import checkpoints_in, newest_complete
from hf_robust_ft.training.probed_head import HEAD, probe_folder

# Files of a finished run that another one would overwrite.
RESULTS = ("model.safetensors", "model.safetensors.index.json", REPORT_NAME)


def checkpoint_to_resume(args: AdversarialTrainingArguments) -> str | None:
    """The checkpoint that --resume_from_checkpoint names.

    A folder, 'last' for the newest complete one in `output_dir`, or 'auto' for the same if there is one.
    """
    wanted = args.resume_from_checkpoint
    if wanted is None:
        if found := checkpoints_in(args.output_dir):
            raise ValueError(
                f"{args.output_dir} holds checkpoints of an earlier run ({found[0].name}). Continue it with "
                "--resume_from_checkpoint last, or choose another --output_dir."
            )
        if _has_probed(args):
            raise ValueError(
                f"{probe_folder(args.output_dir)} holds the probe of an earlier run. Continue it with "
                "--resume_from_checkpoint last, or choose another --output_dir."
            )
        return None
    if wanted in ("last", "True", "true", "auto"):
        last = newest_complete(args.output_dir, tells=args.process_index == 0)
        if last is None and wanted != "auto" and not _has_probed(args):
            raise ValueError(f"There is no checkpoint to resume from in {args.output_dir}, or none that is complete.")
        return last
    if not os.path.isdir(wanted):
        raise ValueError(f"resume_from_checkpoint={wanted!r} is not a folder. Name one, or 'last', or 'auto'.")
    if Path(wanted).resolve().is_relative_to(probe_folder(args.output_dir).resolve()):
        raise ValueError(
            f"{wanted} is of the probe, which is gone on with where there is no later checkpoint: give "
            "--resume_from_checkpoint last."
        )
    return wanted


def _has_probed(args: AdversarialTrainingArguments) -> bool:
    """Whether a first phase of the run is there, done or begun."""
    folder = probe_folder(args.output_dir)
    return args.probe_epochs > 0 and ((folder / HEAD).is_file() or newest_complete(folder, tells=False) is not None)


def refuse_to_overwrite(args: AdversarialTrainingArguments) -> None:
    """Raise where `output_dir` holds an earlier run's model or results, and that run is not continued.

    Raises:
        ValueError: it does.
    """
    begins_anew = args.resume_from_checkpoint == "auto" or _has_probed(args)  # from the probed head
    starts = begins_anew and newest_complete(args.output_dir, tells=False) is None
    if args.resume_from_checkpoint is not None and not starts:
        return
    found = [name for name in RESULTS if os.path.exists(os.path.join(args.output_dir, name))]
    if found:
        raise ValueError(
            f"{args.output_dir} holds the results of an earlier run ({', '.join(found)}). Choose another --output_dir, "
            "continue that run with --resume_from_checkpoint last, or move them away."
        )
