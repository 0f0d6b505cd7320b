from collections import Counter
from dataclasses import replace

import pytest
import torch

from hf_robust_ft import APGD, AttackResult
from hf_robust_ft.attacks import Square
from hf_robust_ft.attacks.sifted_targets import SiftedTargets
from hf_robust_ft.attacks.until_fooled import FollowUp
from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.evaluation.protocols import attack_standing, closing_attacks
from hf_robust_ft.experiments.grid.pass_counter import PassCounter
from hf_robust_ft.experiments.planning.passes import (
    _grid_attack,
    attack_passes,
    evaluations,
    phases,
)
from hf_robust_ft.experiments.planning.training_length import training_length
from hf_robust_ft.training.objectives.teacher import teacher_of


@pytest.fixture
def visited():
    """Counts the images of 16 x 16 pixels that pass through a model, by kind of pass; smaller ones by their pixels."""

    def count(model, seen=None) -> Counter:
        seen = Counter() if seen is None else seen

        def note(module, args, kwargs):
            pixels = args[0] if args else kwargs["pixel_values"]
            kind = "training" if module.training else "input_gradient" if pixels.requires_grad else "forward"
            seen[kind] += len(pixels) * pixels.shape[-2] * pixels.shape[-1] / 16**2

        model.register_forward_pre_hook(note, with_kwargs=True)
        return seen

    return count


GUARDED = {
    "attack_steps": 3, "attack_steps_schedule": "linear_warmup", "attack_steps_min": 1, "eps_schedule": "constant",
    "attack_guard": 0.99, "attack_guard_every": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"eps_schedule": "constant", "num_train_epochs": 2},
        {"schedule_granularity": "step", "gradient_accumulation_steps": 4, "num_train_epochs": 3},
        {"per_device_train_batch_size": 32, "dataloader_drop_last": True, "max_steps": 3},
        {"attack_loss": "dlr_targeted", "num_train_epochs": 2, "schedule_end": 0.5, "schedule_start": 0.1},
        {"eps": "0", "eval_epsilons": None, "num_train_epochs": 1},
        {"eps_schedule": "uniform", "attack_steps": 4, "attack_steps_schedule": "cosine", "schedule_overshoot": 1.1},
        {"eps_schedule": "linear_warmup", "attack_steps": 4, "attack_steps_schedule": "eps"},
        {"objective": "trades", "attack_loss": "kl", "attack_random_start": True},
        {"objective": "trades", "objective_beta": 0.0, "eps_schedule": "constant", "num_train_epochs": 1},
        {"objective": "mart", "gradient_accumulation_steps": 2, "num_train_epochs": 3},
        {"twins_lambda": 0.4, "batch_norm": "trainer", "objective": "trades", "per_device_train_batch_size": 7},
        {"autolora": True, "autolora_rate": "off", "gradient_accumulation_steps": 2, "num_train_epochs": 3},
        {"objective": "pmg_aft"},
        {"objective": "pmg_aft", "objective_beta": 0.0, "gradient_accumulation_steps": 2},
        {"objective": "fare", "attack_loss": "features", "attack_random_start": True},
        {"objective": "pmg_aft", "awp_gamma": 0.01, "awp_warmup": 2.0},
        {"autolora": True, "autolora_rate": "off", "max_steps": 8, "eps_schedule": "constant"},
        {"attack_warm_start": True, "attack_steps": 1},
        {"attacked_share": 0.5, "per_device_train_batch_size": 7, "gradient_accumulation_steps": 2},
        {"low_resolution": 0.5, "low_resolution_until": 0.75, "schedule_granularity": "step"},
        {"low_resolution": 0.5, "attacked_share": 0.25, "eps_schedule": "constant"},
        {"low_resolution": 0.5, "objective": "pmg_aft"},
        GUARDED,
        GUARDED | {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 7, "objective": "trades"},
    ],
    ids=[
        "hinge",
        "fix",
        "step_accumulated",
        "max_steps_drop_last",
        "targeted",
        "eps_0",
        "attack_steps",
        "attack_steps_follow_eps",
        "trades_kl",
        "trades_0",
        "mart",
        "twins_trades",
        "autolora",
        "pmg_aft",
        "pmg_aft_without_clean",
        "fare",
        "pmg_aft_awp",
        "autolora_cut_off",
        "warm_start",
        "share",
        "low_resolution",
        "low_resolution_share",
        "low_resolution_pmg_aft",
        "guard",
        "guard_accumulated",
    ],
)
def test_the_plan_of_a_training_is_what_passes_through_the_model(make_trainer, make_model, make_args, visited, changes):
    args = make_args(per_device_eval_batch_size=16, eval_strategy="no", robust_eval="no", **changes)
    trainer = make_trainer(make_model("resnet" if args.twins_lambda else "vit"), args=args)
    seen, counter = visited(trainer.model), PassCounter(48)
    if args.has_teacher:
        visited(teacher_of(trainer.model).model, seen)
    counter.follow(trainer.scheduler_callback, trainer.overfitting_guard)
    trainer.add_callback(counter)
    trainer.train()
    length = training_length(args, 48)
    planned = list(phases(args, length, {"train": 48, "validation": 48, "test": 0}, num_classes=4))
    for kind in ("training", "input_gradient", "forward"):
        assert abs(seen[kind] - sum(getattr(phase, kind) for phase in planned)) < 1, kind  # smaller images leave parts
    counted = counter.passes
    if args.attack_loss != "dlr_targeted":  # one forward that nobody counts
        assert counted["training"] == seen["training"] and 0 <= seen["input_gradient"] - counted["attack"] <= 2 * 2
        taught = 8 if args.has_teacher else 0
        assert 0 <= seen["forward"] - counted["forward"] <= 2 * 2 + taught  # of the check of the first batch
    assert length.steps == trainer.state.max_steps and not any(phase.at_most for phase in planned)
    assert (length.attacked_images > 0) == (args.threat_model.eps > 0)


@pytest.mark.parametrize(
    ("changes", "attacked"),
    [
        # Both rise as early as they can after the first look: auto after 2 of 4 epochs, the loss after 1.
        ({"eps_schedule": "auto", "schedule_args": {"patience": 1}, "eval_strategy": "epoch"}, 48),
        ({"eps_schedule": "loss_driven", "schedule_granularity": "epoch"}, 3 * 48),
        ({"eps_schedule": "loss_driven", "schedule_granularity": "epoch", "attack_steps_schedule": "eps"}, 3 * 48),
        ({"eps_schedule": "per_sample", "attack_steps": 3}, 4 * 48),
        ({"eps_schedule": "per_sample", "objective": "mart"}, 4 * 48),
        ({"eps_schedule": "per_sample", "eps": "0", "eval_epsilons": None}, 0),
    ],
    ids=["auto", "loss_driven", "loss_driven_steps", "per_sample", "per_sample_mart", "eps_0"],
)
def test_the_plan_bounds_what_a_schedule_that_follows_training_attacks(
    make_trainer, make_args, images, processor, visited, changes, attacked
):
    args = make_args(robust_eval="no", **changes)
    trainer = make_trainer(args=args, train_dataset=with_pixel_values(images, processor, sample_ids=True))
    seen = visited(trainer.model)
    trainer.train()
    length = training_length(args, 48)
    planned = list(phases(args, length, {"validation": 48, "test": 0}, num_classes=4))
    assert length.attacked_images == attacked and seen["training"] >= length.images
    assert [phase.at_most for phase in planned if "attack in training" in phase.name] == [True]
    for kind in ("training", "input_gradient", "forward"):
        assert seen[kind] <= sum(getattr(phase, kind) for phase in planned), kind


def test_what_a_guard_that_falls_back_costs_is_counted(make_trainer, visited, monkeypatch):
    changes = GUARDED | {"attack_steps_schedule": "piecewise_linear", "attack_steps_args": {"points": "0:0,1:0"}}
    trainer = make_trainer(eval_strategy="no", robust_eval="no", num_train_epochs=2, **changes)
    seen, counter = visited(trainer.model), PassCounter(48)
    counter.follow(trainer.scheduler_callback, trainer.overfitting_guard)
    trainer.add_callback(counter)
    monkeypatch.setattr(trainer.overfitting_guard, "judge", fall_back_at(trainer.overfitting_guard, 4))
    trainer.train()
    # 12 steps of 8 images: five attacks of one step, seven of three, and two checks.
    assert counter.passes["attack"] == 8 * (5 * 1 + 7 * 3 + 2 * 3)
    assert counter.passes["forward"] == 8 * (12 + 2)
    assert 0 <= seen["input_gradient"] - counter.passes["attack"] <= 2 * 2  # of the check of the first batch
    assert 0 <= seen["forward"] - counter.passes["forward"] <= 2 * 2


def fall_back_at(guard, last):
    def judge(step, few, many):
        guard.checked_at, guard.fell_back_at = step, step if step == last else None
        return guard.fell_back

    return judge


EVALUATIONS = [
    ("end", 2, "paper"), ("epoch", 2, "paper"), ("end", "auto", "paper"), ("epoch", "auto", "paper"),
    ("end", None, "reliable"), ("epoch", None, "reliable"),
]  # fmt: skip


@pytest.mark.parametrize(("robust_eval", "steps", "protocol"), EVALUATIONS)
def test_the_plan_of_an_evaluation_bounds_what_passes(
    make_trainer, make_args, dataset, visited, robust_eval, steps, protocol
):
    options = {"eval_epsilons": None, "eval_attack_steps": steps}
    if steps != 2:
        options["eval_attack_steps_limit"] = 40
    options["eval_protocol"] = protocol
    args = make_args(num_train_epochs=2, eval_strategy="epoch", robust_eval=robust_eval, **options)
    few = dataset.select(range(16))
    trainer = make_trainer(args=args, train_dataset=few, eval_dataset=few)
    seen = visited(trainer.model)
    trainer.train()
    trainer.evaluate()  # as the test split
    planned = list(phases(args, training_length(args, 16), {"validation": 16, "test": 16}, num_classes=4))
    assert evaluations(args, training_length(args, 16)) == 2
    assert seen["training"] == sum(phase.training for phase in planned)
    for kind in ("input_gradient", "forward"):
        exact = sum(getattr(phase, kind) for phase in planned if not phase.at_most)
        assert exact < seen[kind] <= sum(getattr(phase, kind) for phase in planned), kind
    rounds = 0 if steps == 2 else 3 if protocol == "paper" else 6  # 20 and 40 steps, three others, smaller budgets
    attacks = 0 if robust_eval == "end" else 1 + rounds
    assert sum("validation" in phase.name for phase in planned) == 1 + attacks


@pytest.mark.parametrize("seed", range(20))
def test_no_image_costs_more_than_planned_whenever_it_falls(make_args, seed):
    """Attacks of the plan's costs that succeed at random, on one image at a time."""
    args = make_args(eval_epsilons=None, eval_attack_steps=None, eval_protocol="reliable", eval_attack_steps_limit=40)
    planned = list(_grid_attack("attack", args, 1, num_classes=4))[1:]
    generator, spent = torch.Generator().manual_seed(seed), Counter()

    class Lucky(Square):
        def __call__(self, logits_fn, pixels, labels, threat_model, *, eps, generator: torch.Generator):
            spent.update(dict(zip(("input_gradient", "forward"), self.costs, strict=True)))
            fooled = torch.rand(len(pixels), generator=generator) < 0.7
            return AttackResult(pixels, fooled, torch.zeros(len(pixels)), labels + 1)

    found = (torch.tensor([torch.inf], dtype=torch.float64), torch.zeros(1, dtype=torch.int64))
    closing = closing_attacks("reliable", "Linf", 4)
    for attack in [*(replace(args.eval_attack, steps=steps) for steps in (20, 40)), *closing]:
        lucky = Lucky()
        object.__setattr__(lucky, "costs", attack_passes(attack, 4))
        outcome = attack_standing(
            None, torch.zeros(1, 3, 2, 2), torch.zeros(1, dtype=torch.int64), smallest_eps=found[0],
            wrong_classes=found[1], threat_model=args.threat_model, epsilons=args.evaluation_grid, attack=lucky,
            generator=generator,
        )  # fmt: skip
        found = outcome.smallest_eps, outcome.wrong_classes
        spent["forward"] += 1  # is it found again?
    for kind in ("input_gradient", "forward"):
        assert spent[kind] <= sum(getattr(phase, kind) for phase in planned), kind


def test_an_epoch_without_eps_costs_no_attack(make_args):
    args = make_args(num_train_epochs=50, schedule_start=0.24, schedule_end=0.74)
    length = training_length(args, 3334)
    assert (length.steps_per_epoch, length.epochs) == (417, 50)
    assert length.attacked_steps == 37 * 417 and length.attacked_images == 37 * 3334  # epochs 13 to 49
    attack = next(phase for phase in phases(args, length, {"validation": 1, "test": 1}, 100) if "attack" in phase.name)
    assert (attack.input_gradient, attack.forward) == (2 * 37 * 3334, 37 * 3334)


@pytest.mark.parametrize(
    ("attack", "passes"),
    [
        (APGD(steps=7), (7, 1)),
        (APGD(steps=10, restarts=3), (30, 3)),
        (APGD(steps=10, loss="dlr_targeted"), (90, 10)),
        (APGD(steps=10, larger_eps=True, restarts=2), (20, 6)),
        (APGD(steps=10, loss="dlr_targeted", num_targets=500), (990, 100)),
        (FollowUp(steps=30, num_targets=3, kept=3), (120, 5)),
        (SiftedTargets(steps=30), (84, 2)),
    ],
    ids=str,
)
def test_passes_of_an_attack(attack, passes):
    assert attack_passes(attack, num_classes=100) == passes


def test_no_batch_at_all_is_refused(make_args):
    with pytest.raises(ValueError, match="5 images make no batch of 8"):
        training_length(make_args(dataloader_drop_last=True), 5)
