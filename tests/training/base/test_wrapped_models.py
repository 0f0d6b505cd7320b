"""Models that come compiled or wrapped: trained, measured, saved and resumed as the model inside."""

import pytest
import torch
from conftest import assert_same_weights, weights
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DataParallel
from transformers import AutoModelForImageClassification, TrainerCallback

from hf_robust_ft.training.base.wrapped_models import without_wrappers

NAMED = "model.safetensors"


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, pixel_values, **kwargs):
        return self.inner(pixel_values, **kwargs)


class AnyArguments(Wrapper):
    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def counted():
    """`torch.compile` with a backend that compiles nothing, and how often it did."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    return (lambda model: torch.compile(model, backend=backend)), graphs


def compiled_part(compiled, model):
    model.vit = compiled(model.vit)
    return model


WRAPPED = {
    "compiled": lambda compiled, model: compiled(model),
    "compiled in place": lambda compiled, model: model.compile(backend="eager") or model,
    "compiled part": compiled_part,
    "compiled DataParallel": lambda compiled, model: compiled(DataParallel(model)),
    "wrapper": lambda compiled, model: Wrapper(model),
    "wrapper of anything": lambda compiled, model: AnyArguments(model),
    "wrapper of compiled": lambda compiled, model: Wrapper(compiled(model)),
}
RUN = {"eps_schedule": "constant", "max_steps": 2, "attack_steps": 1, "eval_attack_steps": 1}


@pytest.fixture
def rows(dataset):
    """Prepared images with a column that no model takes: Trainer drops what a model's signature does not name."""
    return Dataset.from_list([{**dataset[index], "sample": index} for index in range(16)]).with_format("torch")


@pytest.mark.parametrize("name", WRAPPED)
def test_it_trains_measures_and_resumes_as_the_model_inside(make_trainer, make_model, counted, rows, name, tmp_path):
    compiled, graphs = counted
    options = RUN | {"train_dataset": rows, "eval_dataset": rows, "remove_unused_columns": True}
    bare, trainer = (
        make_trainer(make_model(), **options),
        make_trainer(WRAPPED[name](compiled, make_model()), **options),
    )
    assert trainer.label_names == ["labels"]
    bare.train(), trainer.train()
    found, wanted = trainer.evaluate(), bare.evaluate()
    for key in ("eval_loss", "eval_clean_accuracy", "eval_adversarial_accuracy", "eval_expected_robustness"):
        assert found[key] == pytest.approx(wanted[key], abs=1e-5), key
    inner = [name.removeprefix("inner.") for name in trainer.model.state_dict()]
    assert inner == list(bare.model.state_dict())  # no _orig_mod. or module.
    assert "compiled" not in name or name == "compiled in place" or graphs
    trainer.save_model(tmp_path / "saved")
    assert not any("_orig_mod" in key or key.startswith("module.") for key in load_file(tmp_path / "saved" / NAMED))
    again = make_trainer(WRAPPED[name](compiled, make_model(seed=1)), **options)
    again._load_from_checkpoint(str(tmp_path / "saved"))
    assert_same_weights(again.model, trainer.model)


def test_the_best_of_a_compiled_models_checkpoints_is_loaded_whole(make_trainer, make_model, counted, tmp_path):
    options = RUN | {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 1.0}
    trainer = make_trainer(counted[0](make_model()), output_dir=str(tmp_path / "out"), **options)
    seen = {}

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen[state.global_step] = weights(trainer.model)

    trainer.add_callback(Keep())
    trainer.train()
    assert len(seen) == 2
    assert_same_weights(trainer.model, seen[trainer.state.best_global_step])


def test_a_compiled_models_checkpoint_is_loaded_by_everybody(make_trainer, make_model, counted, tmp_path):
    trainer = make_trainer(counted[0](make_model()), **RUN)
    trainer.evaluate()
    trainer.save_model(tmp_path / "saved")
    trainer._check_report()  # of the weights at hand
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same_weights(loaded, trainer.model)


def test_a_checkpoint_of_plain_trainer_with_compiled_parts_is_read_and_another_models_refused(
    make_trainer, make_model, tmp_path
):
    trainer = make_trainer(Wrapper(make_model()))
    wanted = weights(make_trainer(Wrapper(make_model(seed=1))).model)
    save_file({name.replace("inner.", "inner._orig_mod."): each for name, each in wanted.items()}, tmp_path / NAMED)
    trainer._load_from_checkpoint(str(tmp_path))
    assert_same_weights(trainer.model, wanted)
    save_file({name: each for name, each in wanted.items() if "classifier" not in name}, tmp_path / NAMED)
    with pytest.raises(RuntimeError, match=r"inner\.classifier\.weight"):
        trainer._load_from_checkpoint(str(tmp_path))


def test_options_of_the_compiler_stay_and_torch_compile_is_trainers_own(make_model, make_trainer, counted):
    compiled, graphs = counted
    model = without_wrappers(compiled(make_model()))
    model(torch.rand(2, 3, 16, 16))
    assert len(graphs) == 1
    trainer = make_trainer(compiled(make_model()), torch_compile=True, torch_compile_backend="eager")
    assert trainer.model._compiled_call_impl is None


def test_adapters_are_added_and_kept_through_a_compiled_model(make_trainer, make_model, counted):
    peft = counted[0](
        get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"]))
    )
    for model, changes in ((peft, {}), (counted[0](make_model()), {"lora_rank": 2})):
        trainer = make_trainer(model, **changes)
        assert isinstance(trainer.model, PeftModel) and trainer.label_names == ["labels"]
        assert not any("_orig_mod" in name for name in trainer.model.state_dict())


def test_ddps_own_options_are_said_not_to_hold(make_trainer, make_model, tmp_path, caplog):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = make_model()
        assert without_wrappers(nn.parallel.DistributedDataParallel(model)) is model
    finally:
        torch.distributed.destroy_process_group()
    assert "Trainer wraps the model in DDP by itself" in caplog.text
