"""How much of the loss that attacks find is seen by the training step, which may be another network."""

import json

import pytest
import torch
from conftest import run_script
from torch import nn

from hf_robust_ft import AdversarialTrainer
from hf_robust_ft.reporting.reach import LEAST
from hf_robust_ft.training.attack_reach import FEWEST_IMAGES, AttackReach

QUICK = {"eps_schedule": "constant", "learning_rate": 3e-3, "logging_strategy": "steps", "logging_steps": 3}
UNSEEN = "did not see what its attacks found"


def logged(trainer):
    return [entry["attack_loss_seen"] for entry in trainer.state.log_history if "attack_loss_seen" in entry]


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_step_in_the_mode_of_the_attack_sees_all_of_its_loss(make_trainer, make_model, kind, caplog):
    """Whatever training minimises: labels smoothed, a loss of the user's own, batches accumulated."""
    own = lambda outputs, labels, num_items_in_batch=None: 7 * nn.functional.cross_entropy(outputs.logits, labels)  # noqa: E731
    for changes in (
        {},
        {"label_smoothing_factor": 0.3},
        {"compute_loss_func": own},
        {"gradient_accumulation_steps": 2},
    ):
        trainer = make_trainer(make_model(kind), num_train_epochs=2, **(QUICK | changes))
        trainer.train()
        assert logged(trainer) == pytest.approx([1.0] * len(logged(trainer)), abs=1e-5) and logged(trainer), changes
    assert UNSEEN not in caplog.text


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_the_ratio_is_that_of_the_two_losses(make_trainer, make_model, loss, monkeypatch):
    """Told apart by a network that gives half its logits in training mode: seen and found are then computed here."""
    sums = [0.0, 0.0]

    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.config = make_model("vit"), make_model("vit").config

        def forward(self, pixel_values, labels=None):
            logits = self.body(pixel_values).logits * (0.1 if self.training else 30.0)
            loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
            return loss | {"logits": logits}

    see = AttackReach.see

    def spy(self, outputs, labels, attack_loss, task=None):
        if self._attacked is not None:
            logits = outputs["logits"].detach()
            sums[0] += float(self._attacked.loss.sum() if loss == "ce" else self._attacked.fooled.sum())
            wrong = (logits.argmax(1) != labels).sum()
            sums[1] += float(nn.functional.cross_entropy(logits, labels, reduction="sum") if loss == "ce" else wrong)
        see(self, outputs, labels, attack_loss, task)

    monkeypatch.setattr(AttackReach, "see", spy)
    trainer = make_trainer(Halved(), num_train_epochs=1, attack_loss=loss, **(QUICK | {"logging_steps": 6}))
    trainer.train()
    assert logged(trainer) == pytest.approx([sums[1] / sums[0]], rel=1e-4)
    assert trainer.described_training()["attack_loss_seen"]["overall"] == pytest.approx(sums[1] / sums[0], abs=1e-3)


class Deaf(AdversarialTrainer):
    """Trains on other images than the attack made, as batch statistics may have it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.adversary.exchange = lambda inputs, result: inputs


def test_what_is_not_seen_is_told_once_with_the_cure(make_trainer, make_model, caplog):
    many = {"num_train_epochs": 12, "eps": "32/255", "eval_epsilons": None, **QUICK}
    for changes, cure in (({"batch_norm": "trainer"}, "set batch_norm='frozen'"), ({}, "dropout, stochastic depth")):
        caplog.clear()
        trainer = make_trainer(make_model("resnet"), trainer_cls=Deaf, **(many | changes))
        trainer.train()
        (said,) = [record.getMessage() for record in caplog.records if UNSEEN in record.getMessage()]
        assert cure in said
        assert trainer.described_training()["attack_loss_seen"]["lowest"] < LEAST


def test_without_attacks_there_is_nothing_to_log(make_trainer, make_model):
    trainer = make_trainer(make_model(), eps="0", eval_epsilons=None, num_train_epochs=1)
    trainer.train()
    assert logged(trainer) == [] and "attack_loss_seen" not in trainer.described_training()


def test_a_few_images_and_a_tiny_loss_are_not_judged(make_args):
    class State:
        is_world_process_zero, stateful_callbacks, global_step = True, {}, 0

    for sums, lowest in (
        ([100.0, 10.0, FEWEST_IMAGES - 1.0], None),
        ([1.0, 0.1, 512.0], None),
        ([100.0, 10.0, 512.0], 0.1),
    ):
        reach = AttackReach()
        reach._sums = torch.tensor(sums)
        reach._settle(make_args(), State, None)
        assert reach.lowest == (None if lowest is None else pytest.approx(lowest))


def test_a_resumed_run_remembers_what_was_seen(make_trainer, make_model, tmp_path):
    settings = {"save_strategy": "epoch", "num_train_epochs": 2, **QUICK}
    whole = make_trainer(make_model("resnet"), batch_norm="trainer", **settings)
    whole.train()
    resumed = make_trainer(make_model("resnet", seed=1), batch_norm="trainer", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    assert resumed.described_training() == whole.described_training()


SCRIPT = """
import json, os

trainer = make_trainer(
    make_model("resnet"), per_device_train_batch_size=8 // int(os.environ.get("WORLD_SIZE", 1)), optim="sgd",
    eps_schedule="constant", learning_rate=0.05, max_grad_norm=0.0, num_train_epochs=2,
)
trainer.train()
if trainer.is_world_process_zero():
    found = {"log": [e["attack_loss_seen"] for e in trainer.state.log_history if "attack_loss_seen" in e],
             "mean": float(sum(w.double().abs().mean() for w in trainer.model.state_dict().values()))}
    (folder / "found.json").write_text(json.dumps(found))
"""


def test_two_processes_see_and_train_what_one_does_with_batch_norm(tmp_path):
    """Frozen statistics need no synchronisation: one BatchNorm network, however the batch is dealt out."""
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        ran = run_script(SCRIPT, folder, processes)
        assert ran.returncode == 0, ran.stderr[-3000:]
        found.append(json.loads((folder / "found.json").read_text()))
    one, two = found
    assert two["log"] == pytest.approx(one["log"], rel=1e-4) and len(one["log"]) == 2
    assert two["mean"] == pytest.approx(one["mean"], rel=1e-5)
