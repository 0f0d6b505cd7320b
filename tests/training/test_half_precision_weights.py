"""Weights stored in half precision: loaded and trained in float32, evaluated as they are, and said so."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_robust_ft import AdversarialTrainer, PixelSpace, ThreatModel, evaluate_robustness, load_image_classifier
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.reporting import write_evidence

KINDS = {
    "fp16": lambda model: model.half(),
    "bf16": lambda model: model.bfloat16(),
    "only a bias": lambda model: _with_half_bias(model),
    "only frozen": lambda model: _with_half_frozen(model),
}


def _with_half_bias(model):
    _, parameter = next((n, p) for n, p in model.named_parameters() if n.endswith("bias"))
    parameter.data = parameter.data.half()
    return model


def _with_half_frozen(model):
    parameter = next(model.parameters())
    parameter.data = parameter.data.bfloat16()
    parameter.requires_grad_(False)
    return model


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("kind", ["vit", "resnet", "timm", "peft"])
def test_training_of_half_precision_weights_is_refused_before_a_step(make_trainer, make_model, kind, how):
    model = make_model("vit" if kind == "peft" else kind)
    if kind == "peft":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]))
    trainer = make_trainer(KINDS[how](model), bf16=(kind, how) == ("vit", "bf16"))
    with pytest.raises(ValueError, match=r"half precision \(\d+ of \d+ in b?float16\)") as refused:
        trainer.train()
    assert "dtype=torch.float32" in str(refused.value) and "model.float()" in str(refused.value)
    assert trainer.state.global_step == 0
    trainer.model.float()
    trainer.args.max_steps = 1
    assert trainer.train().global_step == 1


def test_what_model_init_gives_is_looked_at_when_training_begins(make_args, make_model, dataset, processor):
    stored = [torch.float32, torch.float16]
    trainer = AdversarialTrainer(
        args=make_args(max_steps=1),
        model_init=lambda: make_model().to(stored[0]),
        train_dataset=dataset,
        processing_class=processor,
        data_collator=stack_examples,
    )
    trainer.model = None  # as a hyper-parameter search leaves it
    assert trainer.train().global_step == 1
    stored.reverse()
    with pytest.raises(ValueError, match="half precision"):
        trainer.train()


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_evaluated_as_they_are_and_said_so(
    make_trainer, make_model, dataset, processor, kind, dtype, caplog, tmp_path
):
    short = {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    model = make_model(kind).to(dtype)
    trainer = make_trainer(model)
    trainer.evaluate()
    assert trainer.predict(dataset).predictions.shape == (48, 4)
    report = trainer.robustness_report
    assert report.metadata["evaluated_in"] == short and next(model.parameters()).dtype == dtype
    assert f"Measured in {short}" in caplog.text and f"measured in {short}: attacks find fewer" in str(report)
    caplog.clear()
    alone = evaluate_robustness(
        model, dataset, threat_model=ThreatModel("Linf", "8/255"), pixel_space=PixelSpace.from_processor(processor)
    )
    assert alone.metadata["evaluated_in"] == short and f"Measured in {short}" in caplog.text
    write_evidence(alone, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert (
        f"measured in {short}, in which attacks find fewer errors than in fp32 (half_precision)" in card
        and f"APGD-CE-10 in {short}" in card
    )
    again = make_model(kind)
    again.load_state_dict(model.state_dict())
    whole = evaluate_robustness(
        again, dataset, threat_model=ThreatModel("Linf", "8/255"), pixel_space=PixelSpace.from_processor(processor)
    )
    assert "evaluated_in" not in whole.metadata and "measured in" not in str(whole)
    assert abs(whole.clean_accuracy - alone.clean_accuracy) < 0.2


def test_autocast_around_an_evaluation_is_said(make_model, dataset, processor):
    with torch.autocast("cpu", torch.bfloat16):
        report = evaluate_robustness(
            make_model(),
            dataset,
            threat_model=ThreatModel("Linf", "1/255"),
            pixel_space=PixelSpace.from_processor(processor),
            checks=False,
        )
    assert report.metadata["evaluated_in"] == "bf16"


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm"])
def test_checkpoints_stored_in_half_precision_are_loaded_and_saved_in_float32(make_model, processor, tmp_path, kind):
    """The command line loads by this, too."""
    make_model(kind).half().save_pretrained(tmp_path / "half")
    processor.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    model, _ = load_image_classifier(str(tmp_path / "half"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["dtype"] == "float32"
    asked, _ = load_image_classifier(str(tmp_path / "half"), dtype=torch.float16)
    assert asked.dtype == torch.float16


def test_a_full_evaluation_in_half_precision_takes_a_convolutional_net(make_trainer, make_model):
    trainer = make_trainer(make_model("resnet"), bf16_full_eval=True)
    trainer.evaluate()
    assert trainer.robustness_report.metadata["evaluated_in"] == "bf16"
