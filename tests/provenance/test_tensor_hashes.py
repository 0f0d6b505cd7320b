import pytest
import torch
from conftest import weights
from torch import nn

from hf_robust_ft.provenance.tensor_hashes import hash_model, hash_tensors


def hash_of(*tensors) -> str:
    return hash_tensors((str(index), tensor) for index, tensor in enumerate(tensors))


def test_a_hash_sees_value_shape_dtype_and_order():
    pixels, labels = torch.rand(4, 3, 5, 5), torch.arange(4)
    changed = pixels.clone()
    changed[3, 2, 4, 4] = torch.nextafter(changed[3, 2, 4, 4], torch.tensor(2.0))
    different = [
        (pixels, labels),
        (labels, pixels),
        (pixels,),
        (changed, labels),
        (pixels.flatten(1), labels),
        (pixels, labels.int()),
        (pixels, labels.view(torch.float64)),
        (pixels[:2], pixels[2:], labels),
        (pixels.bfloat16(), labels),
        (torch.zeros(0),),
        (torch.zeros(0, 3),),
        (torch.tensor(0.0),),
    ]
    sums = [hash_of(*tensors) for tensors in different]
    assert len(set(sums)) == len(different) and all(len(value) == 64 for value in sums)


def test_a_hash_ignores_strides_and_gradients():
    pixels = torch.rand(4, 3, 5, 6)
    expected = hash_of(pixels)
    for same in (
        pixels.clone(),
        pixels.contiguous(memory_format=torch.channels_last),
        pixels.mT.contiguous().mT,
        torch.stack([pixels, pixels], -1)[..., 0],
        pixels.clone().requires_grad_(),
        -torch._neg_view(pixels),
    ):
        assert hash_of(same) == expected
    assert hash_of(torch.ones(1, 2).expand(3, 2)) == hash_of(torch.ones(3, 2))
    assert hash_of(torch._neg_view(pixels)) == hash_of(-pixels) != expected
    complex_pixels = torch.complex(pixels, pixels)
    assert hash_of(complex_pixels.conj()) == hash_of(complex_pixels.conj().resolve_conj())


def test_tensors_without_data_have_no_checksum():
    with pytest.raises(ValueError, match=r"'1' is tensor\(\.\.\., device='meta'"):
        hash_of(torch.ones(1), torch.ones(2, device="meta"))
    with torch.device("meta"), pytest.raises(ValueError, match="'bias' is"):
        hash_model(nn.Linear(2, 3))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_the_hash_of_a_model_sees_every_entry(make_model, kind):
    model = make_model(kind)
    expected = hash_model(model)
    assert hash_model(make_model(kind)) == expected != hash_model(make_model(kind, seed=1))
    for name, tensor in model.state_dict().items():  # shares memory with the model, buffers included
        flat = tensor.view(-1)
        old = flat[-1].clone()
        flat[-1] = old + 1
        assert hash_model(model) != expected, name
        flat[-1] = old
    assert hash_model(model) == expected


def test_the_hash_of_a_model_ignores_memory_format_and_mode_but_not_dtype(make_model):
    model = make_model("resnet")
    before, expected = weights(model), hash_model(model)
    model.to(memory_format=torch.channels_last).train()
    assert any(not tensor.is_contiguous() for tensor in model.state_dict().values())
    assert hash_model(model) == expected
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    rounded = model.bfloat16()
    assert hash_model(rounded) not in (expected, hash_model(make_model("resnet").half()))
    assert hash_model(rounded) == hash_model(make_model("resnet").bfloat16())
    assert hash_model(rounded) != hash_model(rounded.float())  # equal values


def test_the_hash_of_a_model_of_tied_empty_and_unusual_modules():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.load_state_dict(first.state_dict())
    tied, copied = nn.Sequential(first, first), nn.Sequential(first, second)
    assert hash_model(tied) == hash_model(copied) != hash_model(nn.Sequential(first))
    by_name = [hash_model(nn.ModuleDict({name: first})) for name in "ab"]
    assert by_name[0] != by_name[1]
    assert hash_model(nn.Identity()) == hash_model(nn.Sequential(nn.ReLU())) != hash_model(first)

    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"scale": 2}

    with pytest.raises(ValueError, match=r"'_extra_state' is \{'scale': 2\}"):
        hash_model(Extra(2, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_checksums_are_those_of_the_cpu_on_a_gpu(make_model):
    model, pixels = make_model("resnet"), torch.rand(2, 3, 4, 4)
    on_cpu = hash_model(model), hash_of(pixels)
    assert (hash_model(model.cuda()), hash_of(pixels.cuda())) == on_cpu
