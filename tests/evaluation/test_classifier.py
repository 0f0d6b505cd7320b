"""Wrapped, compiled and sharded models: evaluated as the model inside, or refused."""

import pytest
import torch
from colour_classifier import ColourClassifier
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from hf_robust_ft import PixelClassifier, PixelSpace, ThreatModel, evaluate_robustness


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def compiled():
    """`torch.compile` with a backend that compiles nothing."""
    torch._dynamo.reset()
    yield lambda model: torch.compile(model, backend="eager")
    torch._dynamo.reset()


@pytest.fixture
def space(processor):
    return PixelSpace.from_processor(processor)


@pytest.fixture
def measure(dataset, space):
    def run(model, data=dataset, pixel_space=space, **changes):
        options = {"threat_model": ThreatModel("Linf", "8/255"), "epsilons": [0, "4/255", "8/255"], "progress": False}
        return evaluate_robustness(model, data, pixel_space=pixel_space, **(options | changes))

    return run


def refuse_to_forward(module, *_):
    raise AssertionError(f"{type(module).__name__} would wait for the other processes")


WRAPPERS = {
    "DDP": lambda compiled, ddp: ddp(ColourClassifier()),
    "DDP of compiled": lambda compiled, ddp: ddp(compiled(ColourClassifier())),
    "compiled DDP": lambda compiled, ddp: compiled(ddp(ColourClassifier())),
    "DDP in DDP": lambda compiled, ddp: ddp(ddp(ColourClassifier())),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_ddps_forward_is_never_called(process_group, compiled, measure, name):
    def ddp(model):
        wrapped = DistributedDataParallel(model)
        wrapped.register_forward_pre_hook(refuse_to_forward)
        return wrapped

    model = WRAPPERS[name](compiled, ddp).train()
    assert measure(model) == measure(ColourClassifier())
    assert all(module.training for module in model.modules())


def test_a_pixel_classifier_around_ddp_keeps_its_normalisation(process_group, dataset, space, measure):
    pixels = [{**example, "pixel_values": space.to_pixels(example["pixel_values"]).clamp(0, 1)} for example in dataset]
    wrapped = DistributedDataParallel(ColourClassifier())
    wrapped.register_forward_pre_hook(refuse_to_forward)
    report = measure(PixelClassifier(wrapped, space), pixels, None)
    assert report.smallest_epsilons == measure(ColourClassifier()).smallest_epsilons


@pytest.mark.parametrize("protocol", ["paper", "exact"])
def test_a_compiled_model_gives_the_same_report_and_comes_back_as_it_was(compiled, measure, protocol):
    bare = measure(ColourClassifier(), protocol=protocol)
    model = compiled(ColourClassifier()).train()
    report = measure(model, protocol=protocol)
    assert report == bare
    assert model.training and model._orig_mod.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    in_place = ColourClassifier()
    in_place.compile(backend="eager")
    assert measure(in_place, protocol=protocol) == bare


def test_a_compiled_transformers_model_can_be_resumed(compiled, make_model, measure, tmp_path):
    first = measure(compiled(make_model("resnet")), results_dir=tmp_path, checks=False)
    model = compiled(make_model("resnet"))
    calls = []
    model._orig_mod.register_forward_hook(lambda *_: calls.append(1))
    assert measure(model, results_dir=tmp_path, checks=False) == first and len(calls) <= 1


def test_a_compiled_pixel_classifier_is_refused(compiled, space, measure):
    with pytest.raises(ValueError, match=r"PixelClassifier\(torch.compile\(model\), pixel_space\)"):
        measure(compiled(PixelClassifier(ColourClassifier(), space)), pixel_space=None)


class Hidden(torch.nn.Module):
    """A user's module around another."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, pixel_values):
        return self.inner(pixel_values)


SHARDED = {
    "FSDP1": lambda model, mesh: FullyShardedDataParallel(model, device_mesh=mesh, device_id=torch.device("cpu")),
    "FSDP1 inside": lambda model, mesh: Hidden(SHARDED["FSDP1"](model, mesh)),
    "FSDP2": lambda model, mesh: fully_shard(model, mesh=mesh),
    "FSDP2 of a layer": lambda model, mesh: fully_shard(model.classifier, mesh=mesh) and model,
}


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_models_are_refused_with_the_cure(process_group, make_model, measure, name):
    model = SHARDED[name](make_model("resnet"), init_device_mesh("cpu", (1,)))
    for layer in model.modules():
        layer.register_forward_pre_hook(refuse_to_forward)
    with pytest.raises(ValueError, match=r"spread over processes \(.*FSDP.*trainer.save_model\(folder\)"):
        measure(model)
    with pytest.raises(ValueError, match="spread over processes"):
        measure(PixelClassifier(model), pixel_space=None)


def test_ddp_inside_of_a_users_module_is_refused(process_group, measure):
    with pytest.raises(ValueError, match="DDP inside of the model"):
        measure(Hidden(DistributedDataParallel(ColourClassifier())))


def test_zero_3_is_refused(measure):
    model = ColourClassifier()
    model.kernel.ds_id = 0  # what DeepSpeed gives the parameters it partitions
    with pytest.raises(ValueError, match="DeepSpeed ZeRO-3"):
        measure(model)


@pytest.mark.parametrize("model", [lambda pixels: pixels, "resnet", None], ids=["function", "name", "none"])
def test_what_is_no_module_is_refused(measure, model):
    with pytest.raises(ValueError, match=r"model must be a torch\.nn\.Module"):
        measure(model)


class Altered(ColourClassifier):
    """The colour classifier with something done to its input and its logits."""

    def __init__(self, before=lambda pixels: pixels, after=lambda logits, pixels: logits):
        super().__init__()
        self.before, self.after = before, after

    def forward(self, pixel_values):
        return self.after(super().forward(self.before(pixel_values)), pixel_values)


def test_a_processor_is_no_pixel_space(measure, processor):
    with pytest.raises(ValueError, match=r"got \w+: give PixelSpace\.from_processor\(processor\)"):
        measure(ColourClassifier(), pixel_space=processor)


def test_a_single_class_is_refused(measure, dataset):
    model = Altered(after=lambda logits, pixels: logits[:, :1])
    with pytest.raises(ValueError, match="The model has 1 class: there is nothing to confuse it with"):
        measure(model, [{**example, "labels": 0} for example in dataset])
    assert model.forwards == 1


def test_a_model_without_gradient_is_refused_unless_nothing_is_attacked(measure):
    model = Altered(before=torch.Tensor.detach)
    with pytest.raises(ValueError, match=r"no gradient with respect to its input.*detach\(\)"):
        measure(model)
    assert model.forwards == 1
    clean = measure(model, threat_model=ThreatModel("Linf", 0), epsilons=[0])
    assert clean.clean_accuracy == measure(ColourClassifier()).clean_accuracy
    with torch.inference_mode(), pytest.raises(ValueError, match=r"outside of torch\.inference_mode"):
        measure(ColourClassifier())
    with torch.no_grad():
        assert measure(ColourClassifier()) == measure(ColourClassifier())


@pytest.mark.parametrize("protocol", ["paper", "exact"])
@pytest.mark.parametrize("forwards", [1, 4], ids=["clean", "under attack"])
def test_nan_is_no_prediction_of_the_first_class(measure, protocol, forwards):
    model = Altered(after=lambda logits, _: logits * (torch.nan if model.forwards > forwards else 1))
    with pytest.raises(ValueError, match="logits are NaN for an image of batch 0"):
        measure(model, protocol=protocol, checks=False)
    assert model.forwards > forwards and not model._forward_hooks
    ruled_out = Altered(after=lambda logits, pixels: torch.cat([logits, torch.full_like(logits[:, :1], -torch.inf)], 1))
    assert measure(ruled_out, protocol=protocol).accuracies == measure(ColourClassifier(), protocol=protocol).accuracies
