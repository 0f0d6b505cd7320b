"""What a training step may cost: no wait for the device, no graph compiled twice, no memory saved in vain."""

import json

import pytest
import torch
import torch._dynamo
from conftest import assert_same_weights, weights
from torch._dynamo.utils import counters
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_robust_ft import AdversarialTrainer
from hf_robust_ft.attacks import attack_mode, use_memory_format
from hf_robust_ft.evaluation.batches import stack_examples

# ---- No host sync ------------------------------------------------------------------

SYNCS = {"_local_scalar_dense.default", "nonzero.default", "is_nonzero.default", "item.default", "equal.default"}
HOST_COPIES = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__"}


class CountSyncs(TorchDispatchMode):
    """Notes every operation whose result the host must wait for, on a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__ if hasattr(func, "__name__") else str(func)
        if name in SYNCS or any(name == each.split(".")[0] for each in SYNCS):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class CountHostCopies(TorchFunctionMode):
    """Notes copies that no operation makes (`tolist`)."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in HOST_COPIES:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def step_of(trainer, dataset, device="cpu"):
    """`compute_loss` and backward of one batch at full eps, ready to be called."""
    trainer.scheduler_callback.current_eps = trainer.args.threat_model.eps
    trainer.adversary.is_ready = True
    model = trainer.model.to(device).train()
    batch = {key: value.to(device) for key, value in stack_examples([dataset[i] for i in range(8)]).items()}
    return lambda: trainer.compute_loss(model, batch).backward()


FIXED = {"hinge": {}, "sampled": {"eps_schedule": "uniform"}, "fast": {"attack_steps_schedule": "hinge"}}


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("schedule", FIXED)
def test_a_step_reads_no_value_on_the_host(make_trainer, make_model, dataset, kind, schedule):
    step = step_of(make_trainer(make_model(kind), attack_random_start=True, **FIXED[schedule]), dataset)
    step()  # what is cached on first use
    with CountSyncs() as syncs, CountHostCopies() as copies:
        step()
    assert syncs.found == [] and copies.found == []


@pytest.mark.parametrize("read", [lambda t: t.item(), lambda t: bool(t > 0), lambda t: t.tolist(), float])
def test_a_read_would_be_noticed(read):
    with CountSyncs() as syncs, CountHostCopies() as copies:
        read(torch.ones(()))
    assert syncs.found or copies.found


def test_a_step_runs_where_there_are_no_values(make_trainer, make_model, dataset):
    trainer = make_trainer(make_model("resnet"))
    step_of(trainer, dataset, device="meta")()
    assert all(weight.grad is not None and weight.grad.is_meta for weight in trainer.model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_never_waits_for_the_gpu(make_trainer, make_model, dataset):
    trainer = make_trainer(make_model("resnet"), attack_random_start=True)
    step = step_of(trainer, dataset, device="cuda")
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(weight.grad.isfinite().all() for weight in trainer.model.parameters())


# ---- torch.compile -----------------------------------------------------------------


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled_args(**changes):
    return {"torch_compile": True, "torch_compile_backend": "aot_eager", "dataloader_drop_last": True, **changes}


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_eps_steps_and_modes_compile_nothing_again(make_trainer, make_model, fresh_dynamo, kind):
    graphs = []

    class Counting(AdversarialTrainer):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            graphs.append((self.state.global_step, counters["stats"]["unique_graphs"]))
            return loss

    trainer = make_trainer(
        make_model(kind),
        trainer_cls=Counting,
        attack_steps=3,
        attack_steps_schedule="linear_warmup",
        schedule_granularity="step",
        eval_strategy="epoch",
        **compiled_args(torch_compile_backend="eager"),  # whether a graph holds is asked before it gets to a backend
    )
    trainer.train()
    warm = [count for step, count in graphs if trainer.scheduler_callback.eps_at(step, 24) > 0]
    # Training, an attack step, and the attack's last forward; eps, steps and modes changed 18 times since.
    assert set(warm) == {3} and graphs[0][1] == 1


@pytest.mark.slow
def test_a_smaller_last_batch_adds_one_graph_of_each_kind(make_trainer, make_model, dataset, fresh_dynamo):
    trainer = make_trainer(
        make_model("vit"),
        train_dataset=dataset.select(range(45)),
        eps_schedule="constant",
        **compiled_args(dataloader_drop_last=False),
    )
    trainer.train()
    assert counters["stats"]["unique_graphs"] == 6


def test_compiled_training_is_the_same_training(make_trainer, make_model, fresh_dynamo):
    def run(**changes):
        trainer = make_trainer(make_model("resnet"), optim="sgd", learning_rate=0.05, num_train_epochs=2,
                               eps_schedule="constant", **changes)  # fmt: skip
        trainer.train()
        return weights(trainer.model)

    eager, compiled = run(), run(**compiled_args())
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        assert torch.allclose(value.float(), compiled[name].float(), atol=1e-4), name


# ---- Activation checkpointing --------------------------------------------------------


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts the values that autograd keeps for a backward pass."""

    def __init__(self):
        self.values = 0
        super().__init__(self.count, lambda tensor: tensor)

    def count(self, tensor):
        self.values += tensor.numel()
        return tensor


def test_checkpointed_layers_are_checkpointed_under_attack_and_change_nothing(make_trainer, make_model, dataset):
    plain, checkpointed = (make_trainer(make_model("vit", dropout=0.3), activation_checkpointing=on) for on in (0, 1))
    batch = stack_examples([dataset[index] for index in range(8)])
    target, attack = plain.args.threat_model, plain.args.train_attack
    saved, found = [], []
    for trainer in (plain, checkpointed):
        if trainer is checkpointed:
            trainer.model.activation_checkpointing_enable({"use_reentrant": False})
        trainer.model.train()
        kept = SavedTensors()
        with kept:
            found.append(
                trainer.adversary.attack(trainer.model, batch, target, eps=target.eps, attack=attack).adversarial
            )
        saved.append(kept.values)
        assert all(module.training for module in trainer.model.modules())
    assert torch.equal(*found)  # also: no dropout in the attack
    assert saved[1] < 0.5 * saved[0]


def test_only_layers_that_checkpoint_stay_in_training_mode(make_model):
    model = make_model("vit", dropout=0.3)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    with attack_mode(model):
        training = {type(module).__name__ for module in model.modules() if module.training}
        assert training == {"ViTLayer"} and not any(p.requires_grad for p in model.parameters())
    model.eval()
    with attack_mode(model):
        assert not any(module.training for module in model.modules())


def test_training_with_checkpointed_activations_and_accumulation_is_the_same_training(make_trainer, make_model):
    settings = {"eps_schedule": "constant", "num_train_epochs": 2, "optim": "sgd", "learning_rate": 0.1}
    trainers = [
        make_trainer(make_model("vit"), **settings, **changes)
        for changes in ({}, {"activation_checkpointing": True},
                        {"activation_checkpointing": True, "per_device_train_batch_size": 2,
                         "gradient_accumulation_steps": 4})
    ]  # fmt: skip
    for trainer in trainers:
        trainer.train()
    for other in trainers[1:]:
        for name, value in weights(trainers[0].model).items():
            assert torch.allclose(value, other.model.state_dict()[name], atol=2e-5), name


# ---- Memory format -------------------------------------------------------------------


def test_memory_format_reaches_training_and_attack_but_not_the_checkpoint(make_trainer, make_model, tmp_path):
    files = {}
    for name in ("contiguous", "channels_last", "auto", "keep"):
        trainer = make_trainer(make_model("resnet"), memory_format=name, output_dir=str(tmp_path / name))
        trainer.save_model()
        files[name] = (tmp_path / name / "model.safetensors").read_bytes()
        layout = use_memory_format(trainer.model, "keep")
        assert layout == ("channels_last" if name in ("channels_last", "auto") else "contiguous")
    assert len(set(files.values())) == 1
    assert use_memory_format(make_trainer(make_model("vit"), memory_format="auto").model, "keep") == "contiguous"


def test_a_model_made_for_a_search_gets_the_memory_format_too(make_trainer, make_model, make_args, dataset, processor):
    trainer = AdversarialTrainer(
        model_init=lambda: make_model("resnet"),
        args=make_args(memory_format="auto", num_train_epochs=1),
        train_dataset=dataset,
        processing_class=processor,
        data_collator=stack_examples,
    )
    trainer.train()
    assert use_memory_format(trainer.model, "keep") == "channels_last"


def test_training_resumes_bitwise_in_channels_last(make_trainer, make_model, tmp_path):
    def build():
        return make_trainer(make_model("resnet"), memory_format="auto", save_strategy="epoch", eps_schedule="constant")

    whole, resumed = build(), build()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-12"))
    assert_same_weights(resumed.model, whole.model)
    assert json.loads((tmp_path / "out" / "checkpoint-12" / "trainer_state.json").read_text())["global_step"] == 12


def test_memory_formats_that_cannot_be_are_refused(make_args, monkeypatch):
    with pytest.raises(ValueError, match=r"Unknown memory_format 'nhwc'. Valid: keep, auto, contiguous, channels_last"):
        make_args(memory_format="nhwc")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert make_args(memory_format="auto").memory_format_in_use == "keep"
    with pytest.raises(ValueError, match="FSDP shards contiguous weights only"):
        make_args(memory_format="channels_last")
