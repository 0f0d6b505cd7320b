"""How eps is scheduled in a cell of a grid, by the paper's name, a schedule's or a recipe's: options of `train`."""

import os
import re
from pathlib import Path
from typing import Any

from hf_robust_ft.provenance.affects import launching
from hf_robust_ft.provenance.choices import alike, did_you_mean
from hf_robust_ft.runs.recipes import RUN_ARGUMENTS, read_recipe, shipped_recipes
from hf_robust_ft.schedules import SCHEDULES

PAPER_EPOCHS = 50  # the scale of "hinge:T1,T2", as in the paper's Table 7
STANDARD = "standard"
# Never an attack; eps stays the budget that is measured. With batch_norm=trainer bitwise the plain Trainer's training.
NAMED = {STANDARD: {"eps_schedule": "none"}, "fix": {"eps_schedule": "constant"}, "sched": {"eps_schedule": "hinge"}}
SYNONYMS = {"sched": "hinge", "constant": "fix", "none": STANDARD}  # in tables
DEFAULT_SETTINGS = (STANDARD, "fix", "linear_warmup", "uniform", "auto", "hinge")
# No setting's to change: what tells cells apart, and how they are run.
OF_THE_GRID = (
    "model", "dataset", "norm", "eps", "seed", "output_dir", *(each.name for each in launching(*RUN_ARGUMENTS)),
)  # fmt: skip


def setting_name(setting: str) -> str:
    """What cells and tables call it: a recipe file by its name without folders and ending, options by their NAME."""
    if setting.endswith((".yaml", ".yml")):
        return Path(setting).stem
    return setting.partition("=")[0] if _is_inline(setting) else setting


def table_name(name: str) -> str:
    """What tables call a setting, by one name for each.

    >>> table_name("sched"), table_name("hinge:12.0,37")
    ('hinge', 'hinge:12,37')
    """
    epochs = schedule_epochs(name)
    return f"hinge:{epochs[0]:g},{epochs[1]:g}" if epochs else SYNONYMS.get(name, name)


def setting_options(setting: str) -> dict[str, Any]:
    """The options of `train` that a setting stands for.

    Args:
        setting: "standard" (never an attack), "fix", "hinge" or "sched", another key of `SCHEDULES`, "hinge:T1,T2" with
            T1 and T2 in epochs of 50 as in the paper's Table 7, "auto:patience=2" and the like for a schedule with
            arguments, a recipe (shipped, or a YAML file), or options themselves: "NAME=OPTION:VALUE;OPTION:VALUE",
            where config:RECIPE stands for a recipe's; later ones override.

    Raises:
        ValueError: none of these, or options that the grid sets.

    >>> setting_options("hinge:12,37")
    {'eps_schedule': 'hinge', 'schedule_start': 0.24, 'schedule_end': 0.74}
    >>> setting_options("short=attack_steps:3;schedule_args:bend=0.3 power=2")
    {'attack_steps': '3', 'schedule_args': ['bend=0.3', 'power=2']}
    >>> setting_options("mart_fix=config:mart;eps_schedule:constant")["objective"]
    'mart'
    """
    if setting in NAMED:
        return dict(NAMED[setting])
    name, _, arguments = setting.partition(":")
    if name == "hinge" and arguments:
        return _hinge_options(setting)
    if name in SCHEDULES and arguments:
        # A comma may be part of a value: points=0.24:0,0.74:1.
        return {"eps_schedule": name, "schedule_args": re.split(r",(?=\w+=)", arguments)}
    if setting in SCHEDULES:
        return {"eps_schedule": setting}
    if _is_inline(setting) or setting in shipped_recipes() or os.path.isfile(setting):
        options = _inline(setting) if _is_inline(setting) else read_recipe(setting)
        wrong = [name for name in options if name in OF_THE_GRID]
        if wrong:
            raise ValueError(
                f"The setting {setting!r} sets {', '.join(wrong)}, which the grid does: leave it out there."
            )
        return options
    known = [*NAMED, *SCHEDULES, "hinge:T1,T2", "SCHEDULE:KEY=VALUE,...", "NAME=OPTION:VALUE;...", *shipped_recipes()]
    hint = did_you_mean(alike(setting, known))
    raise ValueError(f"Unknown setting {setting!r}.{hint} Valid: {', '.join(known)}, or a recipe file (.yaml).")


def schedule_epochs(setting: str) -> tuple[float, float] | None:
    """T1 and T2, in epochs of 50, of a setting "hinge:T1,T2"; None for any other.

    >>> schedule_epochs("hinge:12,37"), schedule_epochs("hinge")
    ((12.0, 37.0), None)
    """
    found = re.fullmatch(r"hinge:(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)", setting)
    return (float(found[1]), float(found[2])) if found else None


def _is_inline(setting: str) -> bool:
    """Whether it is NAME=OPTION:VALUE; in "auto:patience=2" the colon comes first."""
    name, mark, options = setting.partition("=")
    return bool(mark) and ":" in options and re.fullmatch(r"\w+", name) is not None


def _inline(setting: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    given: set[str] = set()
    for part in setting.partition("=")[2].split(";"):
        name, mark, value = part.strip().partition(":")
        if not mark or not name or not value:
            raise ValueError(f"{part!r} in the setting {setting!r} is not OPTION:VALUE, e.g. attack_steps:3.")
        if name in given and name != "config":
            raise ValueError(f"The setting {setting!r} says {name} twice: leave one out.")
        given.add(name)
        options |= read_recipe(value) if name == "config" else {name: value.split() if "=" in value else value}
    return options


def _hinge_options(setting: str) -> dict[str, Any]:
    epochs = schedule_epochs(setting)
    if epochs is None:
        raise ValueError(f"{setting!r} is not hinge:T1,T2 with two epochs of {PAPER_EPOCHS}, e.g. hinge:12,37.")
    start, end = epochs
    if not start <= end <= PAPER_EPOCHS:
        raise ValueError(f"{setting!r}: T1 and T2 are epochs of {PAPER_EPOCHS} with 0 <= T1 <= T2 <= {PAPER_EPOCHS}.")
    return {"eps_schedule": "hinge", "schedule_start": start / PAPER_EPOCHS, "schedule_end": end / PAPER_EPOCHS}
