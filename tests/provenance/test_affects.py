"""What an argument affects is said on its field, of all that are ours, and a word that is none is refused."""

import dataclasses
import importlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from transformers import HfArgumentParser, TrainingArguments

import hf_robust_ft
from hf_robust_ft import AdversarialTrainingArguments
from hf_robust_ft.provenance.affects import (
    AFFECTS,
    LAUNCH,
    TRAINERS_OWN,
    DeclaredArguments,
    arguments,
    stated_settings,
)
from hf_robust_ft.reporting.commands import DEFAULT_SPLITTING
from hf_robust_ft.runs.arguments import DataArguments, ModelArguments

PACKAGE = Path(hf_robust_ft.__file__).parent
TRAINERS = {entry.name: entry for entry in dataclasses.fields(TrainingArguments)}


def argument_types():
    """The package's dataclasses whose fields are options: some field of theirs has a help."""
    names = [path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py") if "metadata={" in path.read_text()]
    modules = [importlib.import_module(".".join(name.with_suffix("").parts)) for name in names]
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__
    }
    return sorted(
        (kind for kind in found if any("help" in entry.metadata for entry in own_fields(kind))),
        key=lambda kind: kind.__name__,
    )


def own_fields(kind):
    return [
        entry
        for entry in dataclasses.fields(kind)
        if not (issubclass(kind, TrainingArguments) and entry is TRAINERS.get(entry.name))
    ]


TYPES = argument_types()


def test_what_commands_are_told_is_among_them():
    names = {kind.__name__ for kind in TYPES}
    assert names >= {
        "AdversarialTrainingArguments", "CalibratedRuns", "DataArguments", "DiagnosedRuns", "EvaluationArguments",
        "GridArguments", "ModelArguments", "PlanArguments", "RecipeArguments", "SearchArguments", "SweepArguments",
    }  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_every_argument_of_ours_says_what_it_affects_and_of_what_it_is(kind):
    assert issubclass(kind, DeclaredArguments)
    names = {entry.name for entry in dataclasses.fields(kind)}
    for entry in own_fields(kind):
        affects = entry.metadata["affects"]
        words = affects if isinstance(affects, tuple) else (affects,)
        assert words and set(words) <= set(AFFECTS), entry.name
        assert LAUNCH not in words or len(words) == 1, entry.name
        assert entry.metadata["help"] and entry.metadata.get("of", entry.name) in names, entry.name


def test_the_table_of_trainers_own_names_fields_that_it_has_and_none_that_is_ours():
    assert set(TRAINERS_OWN) <= set(TRAINERS)
    assert not set(TRAINERS_OWN) & {entry.name for entry in own_fields(AdversarialTrainingArguments)}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"affects": "wieghts"}, r"Mine\.mine affects 'wieghts'.*Valid: weights, measurement, launch"),
        ({"affects": ("weights", "figures")}, r"Mine\.mine affects 'figures'"),
        ({"affects": None}, r"Mine\.mine affects None"),
        ({"affects": "weights", "stated": "often"}, r"Mine\.mine is stated 'often'. Valid: always, never"),
    ],
)
@pytest.mark.parametrize("base", [DeclaredArguments, AdversarialTrainingArguments])
def test_an_unknown_word_is_refused_where_the_class_is_defined(base, said, message):
    with pytest.raises(ValueError, match=message):

        @dataclass
        class Mine(base):
            mine: int = field(default=0, metadata=said)


def test_an_argument_that_says_nothing_is_taken_to_touch_the_weights():
    @dataclass
    class Mine(AdversarialTrainingArguments):
        mine: int = 0
        helped: int = field(default=0, metadata={"help": "A script's own."})

    found = {each.name: each.affects for each in arguments(Mine)}
    assert found["mine"] == found["helped"] == ("weights",)


def test_transformers_own_parser_takes_the_dataclasses():
    parser = HfArgumentParser((ModelArguments, DataArguments, AdversarialTrainingArguments))
    argv = ["--model", "r50", "--dataset", "digits", "--eps", "2/255", "--use_cpu"]
    model, data, training = parser.parse_args_into_dataclasses(argv)
    assert (model.model, data.dataset, training.eps) == ("r50", "digits", "2/255")
    assert set(dict(dataclasses.fields(DataArguments)[0].metadata)) == {"help"}


def test_stated_is_what_must_be_what_is_changed_and_what_belongs_to_it(make_args):
    plain = make_args().training_settings()
    assert {"norm", "eps", "attack_steps", "freeze", "learning_rate", "world_size"} <= plain.keys()
    assert not {"schedule_overshoot", "ema_warmup", "lora_alpha", "memory_format", "max_grad_norm"} & plain.keys()
    more = make_args(ema_decay=0.9, max_grad_norm=0.5, memory_format="auto", lr_scheduler_kwargs={"power": 2.0})
    assert more.training_settings() == plain | {
        "ema_decay": 0.9, "ema_warmup": True, "ema_use": "save", "max_grad_norm": 0.5,
        "lr_scheduler_kwargs": {"power": 2.0},
    }  # fmt: skip
    guarded = make_args(attack_steps_schedule="hinge", attack_guard=0.5).training_settings()
    assert guarded == plain | {
        "attack_steps_schedule": "hinge", "attack_steps_min": 1, "attack_guard": 0.5, "attack_guard_every": 50,
    }  # fmt: skip
    assert "eval_attack_steps_limit" not in stated_settings(make_args(), "measurement")
    limited = make_args(eval_attack_steps="auto", eval_attack_steps_limit=99)
    assert stated_settings(limited, "measurement")["eval_attack_steps_limit"] == 99


def test_the_default_splitting_of_commands_is_that_of_the_arguments():
    defaults = {each.name: each.default for each in arguments(DataArguments)}
    assert {name: defaults[name] for name in DEFAULT_SPLITTING} == DEFAULT_SPLITTING
