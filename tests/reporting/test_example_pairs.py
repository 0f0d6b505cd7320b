import numpy as np
import pytest
import torch
from colour_classifier import ColourClassifier

from hf_robust_ft import APGD, PixelClassifier, PixelSpace, ThreatModel
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.reporting import save_examples
from hf_robust_ft.reporting.example_pairs import ExamplePairs

NAMES = ["red", "green", "blue", "yellow"]


@pytest.fixture
def pairs():
    clean = np.random.default_rng(0).random((2, 3, 4, 4), dtype=np.float32)
    names = np.array(["cat", "dög"])
    return ExamplePairs(clean, clean / 2, names, names, names[::-1], "Linf 4/255")


def test_what_is_saved_is_read_back(pairs, tmp_path):
    read = ExamplePairs.load(pairs.save(tmp_path))
    assert np.array_equal(read.clean, pairs.clean) and np.array_equal(read.adversarial, pairs.adversarial)
    assert read.adversarial_predictions.tolist() == ["dög", "cat"] and read.threat_model == "Linf 4/255"


def test_differences_below_a_step_of_8_bits_are_kept(dataset, processor, tmp_path):
    space = PixelSpace.from_processor(processor)
    batch = stack_examples(list(dataset)[:3])
    save_examples(
        PixelClassifier(ColourClassifier(), space),
        space.to_pixels(batch["pixel_values"]).clamp(0, 1),
        batch["labels"],
        tmp_path,
        threat_model=ThreatModel("L2", 0.01),
        attack=APGD(steps=3, random_start=False),
        class_names=NAMES,
        batch_size=2,
    )
    found = ExamplePairs.load(tmp_path / "examples.npz")
    assert found.labels.tolist() == [NAMES[label] for label in batch["labels"]]
    difference = torch.from_numpy(found.adversarial - found.clean)
    norms = difference.flatten(1).norm(dim=1)
    assert ((norms > 0.005) & (norms <= 0.01 + 1e-6)).all() and difference.abs().max() < 1 / 255


def test_other_files_are_refused(pairs, tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "array.npy", pairs.clean)
    np.savez(tmp_path / "other.npz", clean=pairs.clean)
    np.savez(tmp_path / "pickle.npz", **vars(pairs) | {"labels": np.array([{}, {}], dtype=object)})
    np.savez(tmp_path / "short.npz", **vars(pairs) | {"labels": np.array(["cat"])})
    np.savez(tmp_path / "shape.npz", **vars(pairs) | {"adversarial": pairs.clean[:1]})
    damaged = "is damaged, or is no archive of plain arrays. Write it again with `hf-robust-ft evaluate"
    for name, message in {
        "text.npz": damaged,
        "empty.npz": damaged,
        "array.npy": damaged,
        "pickle.npz": damaged,
        "other.npz": "holds no adversarial, labels, clean_predictions, adversarial_predictions, threat_model.",
        "short.npz": "2 images, but \\[1, 2, 2\\] labels",
        "shape.npz": "images must be",
    }.items():
        with pytest.raises(ValueError, match=f"{name}:? {message}") as refused:
            ExamplePairs.load(tmp_path / name)
        assert "pickle=" not in str(refused.value)


def test_of_a_damaged_file_nothing_else_is_raised_than_our_error(pairs, tmp_path):
    path = pairs.save(tmp_path)
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 7):
        for damaged in (whole[:position], whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]):
            path.write_bytes(damaged)
            try:
                ExamplePairs.load(path)
            except ValueError as error:
                refused += str(error).startswith(str(path))
    assert refused > len(whole) / 7  # every shortened file, and most others
