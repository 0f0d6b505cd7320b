import sys

import pytest
import torch
from conftest import assert_same_weights, weights
from transformers import (
    AutoModelForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TrainerCallback,
)

from hf_robust_ft import AdversarialTrainer
from hf_robust_ft.training.tuning.lora import add_lora

LORA = {"lora_rank": 2, "num_train_epochs": 2, "eps_schedule": "constant", "robust_eval": "no", "learning_rate": 2e-3}
TARGETS = {"vit": None, "resnet": ["convolution"], "timm": ["conv1", "conv2"]}


def images_of(trainer):
    return torch.stack([trainer.eval_dataset[index]["pixel_values"] for index in range(8)])


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("changes", [{}, {"bf16": True, "ema_decay": 0.5, "lora_dropout": 0.1}], ids=["plain", "mixed"])
def test_a_plain_merged_classifier_is_published(make_trainer, make_model, tmp_path, kind, changes):
    if kind == "timm" and "bf16" in changes:
        changes = changes | {"bf16": False}  # torch's bf16 gradients of this net are NaN on some CPUs, LoRA or not
    model = make_model(kind)
    before = weights(model)
    trainer = make_trainer(model, lora_targets=TARGETS[kind], **LORA, **changes)
    trainer.train()
    trained = weights(trainer.model)
    with trainer._averages(wanted_for=("save",)), torch.no_grad():
        expected = trainer.model.eval()(pixel_values=images_of(trainer)).logits
    trainer.save_model(tmp_path / "published")
    assert_same_weights(trainer.model, trained)  # training could go on

    assert not list((tmp_path / "published").glob("adapter*"))
    published = AutoModelForImageClassification.from_pretrained(tmp_path / "published")
    assert type(published) is type(make_model(kind))
    saved = weights(published)
    assert saved.keys() == before.keys()
    adapted = {name for name, tensor in saved.items() if not torch.equal(tensor, before[name])}
    heads = {name for name in saved if name.startswith(("classifier.", "timm_model.fc."))}
    # BatchNorm's statistics are frozen with the weights.
    assert heads < adapted and not any("running" in name or "norm" in name for name in adapted)
    with torch.no_grad():
        logits = published.eval()(pixel_values=images_of(trainer)).logits
    assert torch.allclose(logits, expected, atol=5e-2 if changes.get("bf16") else 1e-4)


@pytest.mark.parametrize("kind", TARGETS)
def test_resuming_equals_an_uninterrupted_run(make_trainer, make_model, tmp_path, kind):
    settings = {**LORA, "lora_targets": TARGETS[kind], "lora_dropout": 0.1, "head_learning_rate": 1e-3}
    settings |= {"ema_decay": 0.9, "save_strategy": "steps", "save_steps": 5}
    whole = make_trainer(make_model(kind), **settings)
    whole.train()
    resumed = make_trainer(make_model(kind), **settings, output_dir=str(tmp_path / "resumed"))
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-5")
    assert_same_weights(resumed.model, whole.model)
    assert_same_weights(resumed.weight_averaging.averages, whole.weight_averaging.averages)


def test_the_best_adapters_come_back_and_are_what_a_push_uploads(make_trainer, make_model):
    kept = {}

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, model=None, **kwargs):
            kept[state.global_step] = weights(model)

    trainer = make_trainer(
        make_model("vit"),
        callbacks=[Keep()],
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that the first epoch's is the best
        eval_strategy="epoch",
        save_strategy="epoch",
        **LORA,
    )
    trainer.train()
    assert trainer.state.best_global_step == 6 < max(kept)
    assert_same_weights(trainer.model, kept[6])
    trainer.save_model(_internal_call=True)  # as push_to_hub does
    published = AutoModelForImageClassification.from_pretrained(trainer.args.output_dir)
    assert torch.equal(
        published.classifier.weight, kept[6]["base_model.model.classifier.modules_to_save.default.weight"]
    )


def test_a_checkpoint_without_or_with_other_adapters_is_refused(make_trainer, make_model, tmp_path):
    other = make_trainer(make_model("vit"), lora_targets=["k_proj"], **LORA)
    other.save_model(tmp_path / "other", _internal_call=True)
    make_model("vit").save_pretrained(tmp_path / "plain")
    trainer = make_trainer(make_model("vit"), **LORA)
    with pytest.raises(RuntimeError, match="does not hold this model's adapters"):
        trainer._load_from_checkpoint(str(tmp_path / "other"))
    with pytest.raises(RuntimeError, match="trained without lora_rank"):
        trainer._load_from_checkpoint(str(tmp_path / "plain"))


def test_rates_and_robust_evaluation_of_an_adapted_model(make_trainer, make_model):
    trainer = make_trainer(make_model("vit"), **LORA | {"robust_eval": "end"}, head_learning_rate=0.5, weight_decay=0.1)
    trainer.train()
    rates = {id(p): group["initial_lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    trained = {name: rates[id(p)] for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(rates) == len(trained) == 2 * 2 * 2 + 2
    assert {rate for name, rate in trained.items() if "lora_" in name} == {2e-3}
    assert {rate for name, rate in trained.items() if "classifier" in name} == {0.5}
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_adversarial_accuracy"] <= metrics["eval_clean_accuracy"] <= 1
    settings = trainer.robustness_report.metadata["training"]
    assert settings["lora_rank"] == settings["lora_alpha"] == 2 and settings["head_learning_rate"] == 0.5


def test_every_trial_of_model_init_is_adapted_from_the_same_weights(make_model, make_args, make_trainer):
    given = make_trainer(make_model("vit"))
    trainer = AdversarialTrainer(
        model_init=lambda: make_model("vit"),
        args=make_args(**LORA | {"num_train_epochs": 1}),
        train_dataset=given.train_dataset,
        processing_class=given.processing_class,
        data_collator=given.data_collator,
    )
    runs = []
    for _ in range(2):
        trainer.train()
        runs.append(weights(trainer.model))
    assert_same_weights(*runs)
    assert any("lora_A" in name for name in runs[0])


def test_the_usual_layers_are_adapted(make_model):
    def adapted(model):
        names = [name for name, _ in add_lora(model, rank=1).named_modules() if name.endswith("lora_A.default")]
        return {name.removesuffix(".lora_A.default").rpartition(".")[2] for name in names}, len(names)

    def timm_model(architecture):
        return TimmWrapperForImageClassification(TimmWrapperConfig(architecture=architecture, num_labels=4))

    assert adapted(make_model("vit")) == ({"q_proj", "v_proj"}, 4)
    assert adapted(timm_model("test_vit")) == ({"qkv"}, 6)
    assert adapted(timm_model("test_convnext")) == ({"fc1", "fc2"}, 2 * 9)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("resnet", {}, r"no usual choice of layers .* ResNetForImageClassification.*convolution \(6 layers\)"),
        ("vit", {"targets": ["qkv"]}, r"lora_targets qkv match no layer of ViT.*q_proj \(2 layers\)"),
        ("vit", {"targets": ["classifier"]}, "lora_targets classifier match no layer"),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused(make_model, kind, options, message):
    with pytest.raises(ValueError, match=message):
        add_lora(make_model(kind), rank=1, **options)


def test_an_adapted_model_is_not_adapted_again(make_model):
    with pytest.raises(ValueError, match="PEFT adapters already"):
        add_lora(add_lora(make_model(), rank=1), rank=1)


def test_adapters_do_not_touch_the_global_random_state_and_follow_the_seed(make_model):
    state = torch.get_rng_state()
    first, second, other = (
        {
            name: tensor
            for name, tensor in weights(add_lora(make_model(), rank=1, seed=seed)).items()
            if "lora_A" in name
        }
        for seed in (0, 0, 1)
    )
    assert_same_weights(first, second)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    torch.set_rng_state(state)
    model = make_model()
    state = torch.get_rng_state()
    add_lora(model, rank=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_peft_the_extra_is_named(make_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_robust_ft\[lora\]'"):
        add_lora(make_model(), rank=1)
