"""What tests of training on masks and of training on boxes have in common."""

import torch
from transformers import Trainer

from hf_robust_ft import AdversarialTrainer, PixelSpace
from hf_robust_ft.training.adversary import Adversary

SPACE = PixelSpace()
FOLLOWING = {  # schedules that ask for more than a run of a few steps has
    "auto": {"eval_strategy": "epoch", "robust_eval": "no", "schedule_args": {"patience": 1, "tolerance": 1.0}}
}


def builder(make_args, data, make_model, data_collator=None, **usual):
    """Makes trainers of one epoch on `data`.

    Args:
        make_args: conftest's.
        usual: arguments that differ from those here.
    """
    short = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "logging_steps": 1}
    attack = {"attack_steps": 2, "eps": "8/255", "eval_epsilons": ["0", "8/255"], "eval_attack_steps": 2}

    def make(model=None, trainer_cls=AdversarialTrainer, train_dataset=None, eval_dataset=None, **changes):
        return trainer_cls(
            model=make_model() if model is None else model,
            args=make_args(**(short | attack | usual | changes)),
            train_dataset=data if train_dataset is None else train_dataset,
            eval_dataset=data if eval_dataset is None else eval_dataset,
            data_collator=data_collator,
            **({"pixel_space": SPACE} if issubclass(trainer_cls, AdversarialTrainer) else {}),
        )

    return make


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def check_attacks(trainer, monkeypatch, count):
    """Train: each of `count` batches is attacked inside its ball, and what was found is what the model trains on.

    The model is left by the attack as it was, and so is the global random state.
    """
    found, seen = [], []
    attack, step = Adversary.attack, Trainer.compute_loss

    def watched(self, model, inputs, *args, **kwargs):
        modes = [module.training for module in model.modules()]
        random = torch.get_rng_state()
        result = attack(self, model, inputs, *args, **kwargs)
        assert modes == [module.training for module in model.modules()]
        assert torch.equal(random, torch.get_rng_state())
        if self.is_ready:
            assert all(parameter.grad is None for parameter in model.parameters())
            assert (result.adversarial - inputs["pixel_values"]).abs().max() <= kwargs["eps"]
            found.append(result.adversarial)
        return result

    def compute_loss(self, model, inputs, *args, **kwargs):
        seen.append(inputs["pixel_values"])
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Adversary, "attack", watched)
    monkeypatch.setattr(Trainer, "compute_loss", compute_loss)
    trainer.train()
    assert len(found) == len(seen) == count
    assert all(torch.allclose(adversarial, pixels, atol=1e-6) for adversarial, pixels in zip(found, seen, strict=True))
    assert set(logged(trainer, "eps")) == {8 / 255}
