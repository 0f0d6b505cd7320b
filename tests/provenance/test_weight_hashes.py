import hashlib

import pytest
import torch

from hf_robust_ft.provenance.weight_hashes import hash_model, hash_weight_files


def test_files_are_hashed_as_the_hub_does(tmp_path):
    for name in ("model.safetensors", "model-00001-of-00002.safetensors", "adapter_model.safetensors", "model.bin"):
        (tmp_path / name).write_bytes(name.encode())
    assert hash_weight_files(tmp_path) == {
        name: hashlib.sha256(name.encode()).hexdigest()
        for name in ("model-00001-of-00002.safetensors", "model.safetensors")
    }
    assert hash_weight_files(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_model_is_known_by_its_weights_wherever_they_lie(make_model, kind):
    model = make_model(kind)
    same, other = make_model(kind), make_model(kind, seed=1)
    assert hash_model(model) == hash_model(same) != hash_model(other)
    assert hash_model(same.to(memory_format=torch.channels_last)) == hash_model(model)
    assert hash_model(same.to(torch.bfloat16)) != hash_model(model)


def test_statistics_count_as_weights(make_model):
    model = make_model("resnet")
    before = hash_model(model)
    next(buffer for buffer in model.buffers() if buffer.is_floating_point()).add_(1)
    assert hash_model(model) != before
