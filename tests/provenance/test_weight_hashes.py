import hashlib

from hf_robust_ft.provenance.weight_hashes import hash_weight_files


def test_files_are_hashed_as_the_hub_does(tmp_path):
    for name in ("model.safetensors", "model-00001-of-00002.safetensors", "adapter_model.safetensors", "model.bin"):
        (tmp_path / name).write_bytes(name.encode())
    assert hash_weight_files(tmp_path) == {
        name: hashlib.sha256(name.encode()).hexdigest()
        for name in ("model-00001-of-00002.safetensors", "model.safetensors")
    }
    assert hash_weight_files(tmp_path / "nowhere") == {}
