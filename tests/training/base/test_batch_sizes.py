"""The report says which batch sizes ran, whatever the arguments were."""

import pytest
import torch
from conftest import run_script
from torch.utils.data import DataLoader

from hf_robust_ft import AdversarialTrainer
from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.schedules.sample_ids import IdentifyingCollator


def reported(trainer):
    training = trainer.facts()["training"]
    return training["per_device_train_batch_size"], training["total_train_batch_size"]


class OutOfMemoryAbove4(AdversarialTrainer):
    def training_step(self, model, inputs, *args):
        if len(inputs["labels"]) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return super().training_step(model, inputs, *args)


def test_the_size_that_fitted(make_trainer, make_model):
    trainer = make_trainer(
        make_model(), OutOfMemoryAbove4, auto_find_batch_size=True, num_train_epochs=1, gradient_accumulation_steps=2
    )
    assert reported(trainer) == (8, 16)
    trainer.train()
    assert reported(trainer) == (4, 8)


def test_of_several_devices_in_one_process_the_size_on_each(make_trainer, make_model):
    trainer = make_trainer(make_model(), num_train_epochs=1)
    trainer.train()
    trainer.args._n_gpu, trainer._train_batch_size = 2, 8
    assert reported(trainer) == (4, 8)


class OwnLoader(AdversarialTrainer):
    identifies = False

    def get_train_dataloader(self):
        collate = IdentifyingCollator(self.data_collator) if self.identifies else self.data_collator
        return DataLoader(self.train_dataset, batch_size=6, collate_fn=collate)


def test_of_a_loader_of_the_users_own(make_trainer, make_model):
    trainer = make_trainer(make_model(), OwnLoader, num_train_epochs=1)
    trainer.train()
    assert reported(trainer) == (6, 6)


def test_a_loader_of_the_users_own_has_to_hand_on_ids(make_trainer, make_model, images, processor, monkeypatch):
    identified = with_pixel_values(images, processor, sample_ids=True)
    settings = {"train_dataset": identified, "eps_schedule": "per_sample", "num_train_epochs": 1, "robust_eval": "no"}
    with pytest.raises(
        ValueError, match=r"'sample_id' of every image.*super\(\)\.get_train_dataloader\(\).*Identifying"
    ):
        make_trainer(make_model(), OwnLoader, **settings).train()
    monkeypatch.setattr(OwnLoader, "identifies", True)
    trainer = make_trainer(make_model(), OwnLoader, **settings)
    trainer.train()
    assert len(trainer.scheduler_callback.memory["levels"]) == 48


SPLIT = """
for split, expected in ((False, (8, 16)), (True, (4, 8))):
    config = dict(split_batches=True, dispatch_batches=False) if split else None
    trainer = make_trainer(make_model(), num_train_epochs=1, accelerator_config=config)
    trainer.train()
    training = trainer.facts()["training"]
    found = training["per_device_train_batch_size"], training["total_train_batch_size"]
    assert found == expected, (found, expected)
"""


def test_of_several_processes(tmp_path):
    result = run_script(SPLIT, tmp_path / "two", processes=2)
    assert result.returncode == 0, result.stderr[-2000:]
