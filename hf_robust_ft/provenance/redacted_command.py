"""The command of this process as others may read it: without tokens, and without the folders of this machine."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

# Tokens of the Hub, and of common trackers and clouds.
SECRETS = re.compile(r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{32,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,})")
SECRET_NAMES = ("TOKEN", "SECRET", "PASSWORD", "API_KEY", "ACCESS_KEY")


def redacted_command(program: Sequence[str], argv: Sequence[str], *, folders: bool = False) -> str:
    """A command as typed, without the values of secret flags, and with folders of this machine reduced to their names.

    Args:
        folders: leave folders as they are, for who gave the command.

    >>> redacted_command(["hf-robust-ft", "train"], ["--hub_token", "hf_mine", "--eps=4/255", "/home/me/photos"])
    'hf-robust-ft train --hub_token --eps 4/255 photos'
    """
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("-") else [word])]
    shown, secret = [], False
    for word in words:
        if word.startswith("-"):
            secret = _names_secret(word)
            shown.append(word)
        elif not secret and not SECRETS.search(word) and not ("=" in word and _names_secret(word.split("=")[0])):
            shown.append(word if folders else _without_folders(word))
    return shlex.join([*program, *shown])


def script_command() -> str | None:
    """The Python script or module that runs, with its arguments; None in a notebook, a prompt, or another program."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        module = spec.name.removesuffix(".__main__")
        return None if module.startswith("ipykernel") else redacted_command(["python", "-m", module], sys.argv[1:])
    name = Path(sys.argv[0]).name
    is_script = name.endswith(".py") and "ipykernel" not in name
    return redacted_command(["python", name], sys.argv[1:]) if is_script else None


def resuming_command() -> str:
    """How to go on with the run of this process from its last checkpoint; nothing to paste from for a script."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    is_ours = Path(sys.argv[0]).name == "hf-robust-ft" or (spec is not None and spec.name == "hf_robust_ft.__main__")
    if not is_ours:
        return "trainer.train(resume_from_checkpoint=True)"
    return command_to_go_on(sys.argv[1:])


def command_to_go_on(argv: Sequence[str], checkpoint: str = "last") -> str:
    """A command line of ours to give after one that was stopped: `train` has to be told to resume, others do so.

    Args:
        argv: what was given after the program's name.
        checkpoint: "last", or "auto" where there may be none yet.
    """
    program = ["hf-robust-ft"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        program = ["torchrun", "--nproc_per_node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", "hf_robust_ft"]
    flag = "--resume_from_checkpoint"
    known = ([flag, checkpoint], [flag, "auto"])
    goes_on = argv[:1] != ["train"] or any(list(argv[at : at + 2]) in known for at in range(len(argv)))
    return redacted_command(program, argv if goes_on else [*argv, flag, checkpoint], folders=True)


def _names_secret(word: str) -> bool:
    return any(name in word.upper().replace("-", "_") for name in SECRET_NAMES)


def _without_folders(word: str) -> str:
    """The last part of a path of this machine, also behind `name=`."""
    name, equals, path = word.rpartition("=")
    local = os.path.isabs(path) or path.startswith("~")
    return f"{name}{equals}{os.path.basename(os.path.normpath(path))}" if local else word
