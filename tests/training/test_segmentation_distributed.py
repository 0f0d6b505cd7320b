"""Two gloo processes under torchrun train and measure a segmenter as one does."""

from pathlib import Path

import conftest
import pytest
import torch
from tiny_segmenters import scenes, segformer

from hf_robust_ft import AdversarialTrainer, PixelSpace

IMAGES = 10  # of the evaluation, which 2 x 3 do not divide: what the sampler repeats is dropped again


def trained(folder, world_size):
    """A trainer after training, at a global batch of 4."""
    make_args = conftest.make_args._get_wrapped_function()(Path(folder))
    args = make_args(
        eps="8/255", eval_epsilons=["0", "8/255"], attack_steps=2, eval_attack_steps=2, eps_schedule="constant",
        num_train_epochs=2, per_device_train_batch_size=4 // world_size, per_device_eval_batch_size=3, optim="sgd",
        learning_rate=0.05, max_grad_norm=0.0,
    )  # fmt: skip
    data = scenes(12), scenes(IMAGES, seed=1)
    trainer = AdversarialTrainer(
        segformer(), args, train_dataset=data[0], eval_dataset=data[1], pixel_space=PixelSpace()
    )
    trainer.train()
    return trainer


def measured(trainer):
    """What the evaluation of a trainer says."""
    trainer.evaluate()
    report = trainer.robustness_report
    curves = {name: getattr(report, name) for name in ("pixel_accuracies", "mean_ious")}
    return curves | {"images": sorted(report.image_hashes)}


SCRIPT = """
import os
import test_segmentation_distributed as case

rank = os.environ["RANK"]
trainer = case.trained(folder / rank, 2)
weights = case.conftest.weights(trainer.model)
torch.save({"weights": weights} | case.measured(trainer), folder / f"{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    done = conftest.run_script(SCRIPT, folder, 2)
    assert done.returncode == 0, done.stderr[-6000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_equal_one(ranks, tmp_path):
    single = trained(tmp_path, 1)
    weights = conftest.weights(single.model)
    for found in ranks:
        assert all(torch.allclose(found["weights"][name], weights[name], atol=1e-5) for name in weights)
    single.model.load_state_dict(ranks[0]["weights"])
    alone = measured(single)
    assert 0 < alone["pixel_accuracies"][-1] < alone["pixel_accuracies"][0] < 1 and len(alone["images"]) == IMAGES
    for found in ranks:
        assert found["images"] == alone["images"]
        for curve in ("pixel_accuracies", "mean_ious"):
            assert found[curve] == pytest.approx(alone[curve], abs=1e-9), curve
