import json

import pytest

from hf_robust_ft import AdversarialTrainer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_learning_rate": 0}, "head_learning_rate must be positive, got 0"),
        ({"head_learning_rate": float("nan")}, "head_learning_rate must be positive"),
        ({"layer_decay": 0.0}, r"layer_decay must be in \(0, 1\], got 0.0"),
        ({"layer_decay": 1.1}, "layer_decay must be in"),
        ({"no_decay": "bias"}, "Unknown no_decay 'bias'. Valid: trainer, norms_biases"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \(0, 1\)"),
        ({"ema_decay": 0.9, "ema_use": "publish"}, "Valid: no, eval, save"),
        ({"ema_use": "eval"}, "do nothing without ema_decay"),
        ({"ema_warmup": False}, "do nothing without ema_decay"),
        ({"freeze": 0}, "freeze=0 must be at least 1 stage"),
        ({"freeze": "-1"}, "freeze=-1 must be at least 1 stage"),
        ({"freeze": "a.*,,b"}, "empty pattern"),
        ({"freeze": ""}, "empty pattern"),
        ({"freeze": "backbone", "layer_decay": 0.7}, "trains the head alone: leave layer_decay unset"),
        ({"freeze": "backbone", "head_learning_rate": 0.1}, "leave head_learning_rate unset"),
        ({"lora_rank": 0}, "lora_rank must be at least 1"),
        ({"lora_rank": 4, "lora_alpha": -1.0}, "lora_alpha must be positive"),
        ({"lora_rank": 4, "lora_dropout": 1.0}, r"lora_dropout must be in \[0, 1\)"),
        ({"lora_alpha": 8.0, "lora_targets": ["qkv"]}, "lora_alpha, lora_targets do nothing without lora_rank"),
        ({"lora_rank": 4, "freeze": "2"}, "lora_rank and freeze='2' exclude each other"),
        ({"lora_rank": 4, "layer_decay": 0.7}, "lora_rank and layer_decay=0.7 exclude each other"),
        ({"lora_rank": 4, "push_to_hub": True}, "not the merged ones.*hub_strategy='end'"),
        ({"ema_decay": 0.9, "push_to_hub": True}, "not the averaged ones"),
    ],
)
def test_bad_settings_are_refused_at_construction(make_args, changes, message):
    with pytest.raises(ValueError, match=message):
        make_args(**changes)


def test_settings_in_use_are_recorded(make_args):
    plain = json.loads(json.dumps(make_args().training_settings()))
    assert (plain["no_decay"], plain["freeze"]) == ("trainer", "none")
    assert (plain["adam_beta1"], plain["adam_beta2"]) == (0.9, 0.999)
    assert not {name for name in plain if name.startswith(("ema", "lora", "head", "layer"))}
    settings = make_args(ema_decay=0.99, layer_decay=0.8, head_learning_rate=0.1, freeze=2).training_settings()
    expected = {"ema_decay": 0.99, "ema_use": "save", "layer_decay": 0.8, "head_learning_rate": 0.1, "freeze": "2"}
    assert expected.items() <= json.loads(json.dumps(settings)).items()


@pytest.mark.parametrize(
    "changes", [{"freeze": "backbone"}, {"ema_decay": 0.9}, {"layer_decay": 0.5}, {"lora_rank": 1}]
)
def test_sharded_weights_are_refused(make_trainer, changes):
    class Sharded(AdversarialTrainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.is_fsdp_enabled = True

    make_trainer(trainer_cls=Sharded)  # as before, without these settings
    with pytest.raises(ValueError, match=f"{next(iter(changes))}.* not verified with sharded weights"):
        make_trainer(trainer_cls=Sharded, **changes)
