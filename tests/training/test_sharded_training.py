"""FSDP2, FSDP1 and DeepSpeed ZeRO-1/2: two gloo processes with sharded weights train what one does with its own.

FSDP2 runs by default; `pytest -m slow tests/training/test_sharded_training.py` runs the others, DeepSpeed where it is
installed.
"""

import importlib.util

import conftest
import pytest
import test_distributed
import torch
from test_distributed import assert_close

from hf_robust_ft import RobustnessReport

AUTO = dict.fromkeys(("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"), "auto")


def zero(stage):
    return {"deepspeed": {"zero_optimization": {"stage": stage}, "gradient_clipping": "auto"} | AUTO}


MODES = {
    "fsdp2": {"fsdp": True, "fsdp_config": {"version": 2}},
    # Broadcasting the first process's weights needs a GPU; here each has them.
    "fsdp1": {"fsdp": True, "fsdp_config": {"version": 1, "sync_module_states": False}},
    "zero1": zero(1),
    "zero2": zero(2),
}
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
SLOW = [pytest.mark.slow]
SELECTED = [
    "fsdp2",
    pytest.param("fsdp1", marks=SLOW),
    pytest.param("zero1", marks=[*SLOW, needs_deepspeed]),
    pytest.param("zero2", marks=[*SLOW, needs_deepspeed]),
]
CASES = ("plain", "accumulated", "per_sample", "mart")

SCRIPT = """
import json, os
import cpu_fsdp
import test_distributed as cases
import test_sharded_training as sharded

mode = {mode!r}
rank, settings = int(os.environ["RANK"]), sharded.MODES[mode]
if mode.startswith("fsdp"):
    cpu_fsdp.allow_fsdp_on_cpu()
else:
    import deepspeed.comm.torch
    # Shared memory in place of gloo, which takes minutes to compile.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None

results = {{}}
for name in sharded.CASES:
    found, trainer = cases.train(name, folder / name, 2, **settings)
    results[name] = found
    if name == "plain":
        trainer.evaluate()
        trainer.save_model()
        trainer.save_evidence()

# Optimizer and schedule have something to remember.
last = dict(optim="adamw_torch", learning_rate=1e-3, save_strategy="steps", save_steps=7, **settings)
found, trainer = cases.train("per_sample", folder / "resumed", 2, **last)
results["uninterrupted"] = found
found, trainer = cases.train(
    "per_sample", folder / "resumed", 2, resume=str(folder / "resumed/out/checkpoint-7"), **last
)
results["resumed"] = found
results["sharded"] = [type(trainer.model_wrapped).__name__, trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled]
if mode == "fsdp2":
    trainer = make_trainer(make_model("resnet"), num_train_epochs=1, eps_schedule="constant", **settings)
    results["resnet"] = trainer.train().training_loss
    try:
        make_trainer(make_model("vit"), **settings).evaluate()
    except ValueError as error:
        results["evaluation before training"] = str(error)
torch.save(results, folder / f"rank{{rank}}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module", params=SELECTED)
def both(request, tmp_path_factory):
    """How the weights were sharded, the folder of what two processes wrote, and what each saw."""
    folder = tmp_path_factory.mktemp(request.param)
    done = conftest.run_script(SCRIPT.format(mode=request.param), folder, 2)
    assert done.returncode == 0, done.stderr[-6000:]
    return request.param, folder, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_the_weights_are_sharded(both):
    mode, _, (first, _) = both
    wrapper, has_fsdp, has_deepspeed = first["sharded"]
    expected = {"fsdp2": "FSDPViTForImageClassification", "fsdp1": "FullyShardedDataParallel"}
    assert wrapper == expected.get(mode, "DeepSpeedEngine")
    assert (has_fsdp, has_deepspeed) == (mode.startswith("fsdp"), mode.startswith("zero"))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(both, tmp_path, name):
    mode, _, (first, second) = both
    single, _ = test_distributed.train(name, tmp_path, 1)
    assert_close(first[name]["weights"], single["weights"], atol=1e-5)
    assert first[name]["eps"] == second[name]["eps"] == single["eps"] and max(single["eps"]) > 0
    assert first[name]["memory"] == second[name]["memory"] == single["memory"]
    if mode == "fsdp2":
        for found in (first, second):
            assert_close(found[name]["gradients"], single["gradients"], atol=1e-6)


def test_a_resumed_run_is_the_uninterrupted_one(both):
    mode, _, ranks = both
    for found in ranks:
        whole, resumed = found["uninterrupted"], found["resumed"]
        # The first step is taken from the weights and schedule that were saved.
        assert resumed["eps"][0] == whole["eps"][7] and len(resumed["eps"]) == len(whole["eps"]) - 7
        if mode == "fsdp1":
            continue  # accelerate restores its optimizer's state wrongly, for a plain Trainer too; see FSDP1_FORGETS
        conftest.assert_same_weights(resumed["weights"], whole["weights"])
        assert resumed["memory"] == whole["memory"] and resumed["eps"] == whole["eps"][7:]


def test_the_saved_model_is_a_plain_one_measured_exactly(both, tmp_path):
    _, folder, (first, _) = both
    output = folder / "plain" / "out"
    _, trainer = test_distributed.train("plain", tmp_path, 1, num_train_epochs=1)
    saved = type(trainer.model).from_pretrained(output)
    conftest.assert_same_weights(saved, first["plain"]["weights"])
    trainer.model.load_state_dict(saved.state_dict())
    trainer.evaluate()
    sharded = RobustnessReport.from_json(output / "robustness_report.json")
    assert sharded.accuracies == trainer.robustness_report.accuracies and sharded.num_samples == 48


def test_fsdp2_shards_models_without_embeddings_and_says_what_it_cannot(both):
    mode, _, (first, _) = both
    if mode == "fsdp2":
        assert 0 < first["resnet"] < 2
        assert "evaluate after train()" in first["evaluation before training"]
