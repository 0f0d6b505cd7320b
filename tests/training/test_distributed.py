"""Two gloo processes under torchrun train what one does, and write what one does."""

import copy
import json
from pathlib import Path
from unittest import mock

import conftest
import pytest
import torch
from hub_server import HubServer
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.training import robust_evaluation


def class_weighted(outputs, labels, num_items_in_batch=None):
    weight = torch.tensor([0.5, 1.0, 2.0, 1.0])
    summed = torch.nn.functional.cross_entropy(outputs.logits, labels, weight=weight, reduction="sum")
    return summed / num_items_in_batch


# Each at a global batch of 8. Deterministic: the attack starts at the image.
CASES = {
    "plain": {"eps_schedule": "constant"},
    "hinge": {"schedule_granularity": "step"},
    "accumulated": {"eps_schedule": "constant", "gradient_accumulation_steps": 2},
    "auto": {"eps_schedule": "auto", "schedule_args": {"patience": 1, "tolerance": 1.0}, "eval_strategy": "epoch"},
    "loss_driven": {"eps_schedule": "loss_driven", "schedule_args": {"share": 0.99, "pace": 3.0, "fall": 1.0}},
    "per_sample": {"eps_schedule": "per_sample", "schedule_args": {"levels": 3}},
    "unequal": {"eps_schedule": "per_sample", "schedule_args": {"levels": 3}},
}
# Under batch_norm="frozen", the default: a step depends on no other image of the batch.
MODELS = {"batch_norm": "timm", "accumulated_batch_norm": "timm"}
CASES |= {"batch_norm": CASES["plain"], "accumulated_batch_norm": CASES["accumulated"]}
# Two passes a step, of which DDP's wrapper sees the first.
CASES |= {
    "trades": CASES["plain"] | {"objective": "trades", "label_smoothing_factor": 0.1},
    "mart": CASES["accumulated"] | {"objective": "mart"},
    "mart_of_a_users_loss": CASES["accumulated"] | {"objective": "mart", "compute_loss_func": class_weighted},
}
MODELS |= {"trades": "timm"}
for longer in ("auto", "loss_driven"):
    CASES[longer] |= {"num_train_epochs": 4, "schedule_granularity": "step", "learning_rate": 0.1}
EVALUATED = ("plain", "unequal")
UNEQUAL = 45  # images: five in the last batch of a single process; one of two processes has one of its own


class Observer(TrainerCallback):
    """Notes eps at every step, and the gradients of the first."""

    def __init__(self):
        self.eps, self.gradients, self.trainer = [], {}, None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.eps.append(self.trainer.current_eps)
        if not self.gradients:
            named = self.trainer.model.named_parameters()
            self.gradients = {name: whole(weight.grad).clone() for name, weight in named if weight.grad is not None}


def whole(tensor):
    """The tensor that FSDP2 has sharded; all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def all_weights(trainer):
    """The model's weights, under FSDP on the first process alone."""
    if not trainer.is_fsdp_enabled:
        return conftest.weights(trainer.model)
    return trainer.accelerator.get_state_dict(trainer.model)


def train(name, folder, world_size, resume=None, **options):
    """Train a case with this many processes; what this one saw of it, and its trainer."""
    call = lambda fixture, *args: fixture._get_wrapped_function()(*args)  # noqa: E731
    images, processor = call(conftest.images), call(conftest.processor)
    data = with_pixel_values(images, processor, sample_ids=True)
    data = data.select(range(UNEQUAL)) if name == "unequal" else data
    make_args, make_model = call(conftest.make_args, Path(folder)), call(conftest.make_model)
    make_trainer = call(conftest.make_trainer, make_model, make_args, data, processor)
    observer = Observer()
    changes = {"num_train_epochs": 2, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0} | CASES[name]
    per_device = 8 // world_size // changes.get("gradient_accumulation_steps", 1)
    observer.trainer = trainer = make_trainer(
        make_model(MODELS.get(name, "vit")),
        train_dataset=data,
        callbacks=[observer],
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=5,
        **(changes | options),
    )
    trainer.train(resume_from_checkpoint=resume)
    trained = {
        "weights": all_weights(trainer),
        "gradients": observer.gradients,
        "eps": observer.eps,
        "memory": copy.deepcopy(trainer.scheduler_callback.memory),
    }
    return trained, trainer


def evaluate(trainer):
    """What this process says of the model, and how many images it sent through it for that."""
    seen = []
    hook = trainer.model.register_forward_hook(lambda module, inputs, output: seen.append(len(output.logits)))
    with mock.patch.object(robust_evaluation, "CHECKED_IMAGES", 64):  # all: few would be as many on each process
        trainer.evaluate()
    hook.remove()
    report = trainer.robustness_report
    return {"accuracies": report.accuracies, "samples": report.num_samples, "forwarded": sum(seen)}


SCRIPT = """
import os
import test_distributed as cases

rank = int(os.environ["RANK"])
if rank == 1:  # which has nothing to ask the Hub
    import huggingface_hub

    def forbidden():
        raise AssertionError("the second process called the Hub")

    huggingface_hub.set_client_factory(forbidden)
for name in cases.CASES:
    found, trainer = cases.train(name, folder / str(rank) / name, 2)
    if name in cases.EVALUATED:
        found |= cases.evaluate(trainer)
    torch.save(found, folder / f"{name}-{rank}.pt")

# Folders of their own tell who writes what.
found, trainer = cases.train(
    "plain", folder / str(rank) / "saved", 2, num_train_epochs=1, save_strategy="epoch", push_to_hub=True,
    hub_model_id="tester/two", hub_strategy="every_save",
)
trainer.evaluate()
trainer.save_model()
trainer.save_state()
trainer.save_evidence()
trainer.push_to_hub()
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder that two processes left, and the Hub they pushed to."""
    folder = tmp_path_factory.mktemp("two")
    with HubServer() as hub:
        client = hub.environment(folder, hub.token)
        names = ("HF_ENDPOINT", "HF_HOME", "HF_TOKEN", "HF_HUB_DISABLE_XET")
        done = conftest.run_script(SCRIPT, folder, 2, HF_HUB_OFFLINE="0", **{name: client[name] for name in names})
        assert done.returncode == 0, done.stderr[-6000:]
        yield folder, hub


@pytest.fixture(scope="module")
def ranks(both):
    """What each process saw of each case."""
    folder, _ = both
    return {name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)] for name in CASES}


def assert_close(first, second, atol):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.allclose(first[name], second[name], atol=atol)]
    assert not different


@pytest.mark.parametrize("name", [name for name in CASES if name != "unequal"])
def test_two_processes_equal_one(ranks, tmp_path, name):
    single, _ = train(name, tmp_path, 1)
    assert max(single["eps"]) > 0 and single["gradients"]
    for found in ranks[name]:
        assert_close(found["gradients"], single["gradients"], atol=1e-6)
        assert_close(found["weights"], single["weights"], atol=1e-5)
        assert found["eps"] == pytest.approx(single["eps"], abs=0 if name != "loss_driven" else 1e-6)
    if name == "per_sample":  # the outcome for each image, wherever it was attacked
        assert ranks[name][0]["memory"] == single["memory"]


@pytest.mark.parametrize("name", CASES)
def test_both_processes_hold_the_same(ranks, name):
    first, second = ranks[name]
    conftest.assert_same_weights(first["weights"], second["weights"])
    for key in {"eps", "memory", "accuracies", "samples"} & set(first):
        assert first[key] == second[key], key


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluation_is_shared_and_exact(ranks, tmp_path, name):
    """Neither 48 nor 45 images divide by 2 x 5: what the sampler repeats is dropped again."""
    _, trainer = train(name, tmp_path, 1, num_train_epochs=1)
    trainer.model.load_state_dict(ranks[name][0]["weights"])
    single = evaluate(trainer)
    assert 0 < single["accuracies"][-1] < 1
    for found in ranks[name]:
        assert found["samples"] == single["samples"] == (UNEQUAL if name == "unequal" else 48)
        assert found["accuracies"] == single["accuracies"]
        assert found["forwarded"] < 0.7 * single["forwarded"]


def test_unequal_last_batches_are_trained_on_to_the_end(ranks):
    first, second = ranks["unequal"]
    assert len(first["eps"]) == 2 * 6 and len(first["memory"]["levels"]) == UNEQUAL
    assert max(first["eps"]) > 0 and first["eps"] == second["eps"]


def test_only_the_first_process_writes(both):
    folder, _ = both
    first, second = (
        {
            path.relative_to(folder / rank / "saved").as_posix()
            for path in (folder / rank / "saved").rglob("*.*")
            if path.is_file()
        }
        for rank in "01"
    )
    assert {"out/model.safetensors", "out/trainer_state.json", "out/robustness_report.json", "out/README.md"} <= first
    assert "out/checkpoint-6/model.safetensors" in first
    # Resuming needs the random state of every process, so each writes its own; the first moves the folder into place,
    # but here not the second's, which is another one.
    assert second == {"out/.saving/checkpoint-6/rng_state_1.pth"}
    assert not list((folder / "1" / "plain").rglob("*.*"))


def test_the_first_process_pushes_for_all(both):
    """The second would have failed at its first request."""
    _, hub = both
    assert len(hub.requests("POST", "/api/repos/create")) == 1
    files = hub.find("tester/two").files()
    assert {"model.safetensors", "README.md"} <= files.keys()
    assert json.loads(files["robustness_report.json"])["num_samples"] == 48
