"""Evaluation and prediction read every image, whatever training drops."""

import pytest
import torch
from conftest import run_script

from hf_robust_ft import AdversarialTrainer, PixelSpace, ThreatModel, evaluate_robustness


class OwnLoader(AdversarialTrainer):
    def get_eval_dataloader(self, eval_dataset=None):
        return torch.utils.data.DataLoader(
            eval_dataset or self.eval_dataset, batch_size=5, drop_last=True, collate_fn=self.data_collator
        )


@pytest.mark.parametrize("batch_size", [32, 64])  # of 48 images: a part is left, or no batch is full
def test_what_training_drops_is_measured(make_trainer, make_model, dataset, processor, batch_size):
    trainer = make_trainer(make_model(), per_device_eval_batch_size=batch_size, dataloader_drop_last=True)
    metrics = trainer.evaluate()
    assert trainer.robustness_report.num_samples == 48 and metrics["eval_loss"] > 0
    assert trainer.predict(dataset).predictions.shape == (48, 4)
    assert trainer.evaluate({"a": dataset, "b": dataset})["eval_b_clean_accuracy"] == metrics["eval_clean_accuracy"]
    found = evaluate_robustness(
        trainer.model,
        trainer.get_eval_dataloader(),
        threat_model=ThreatModel("Linf", "8/255"),
        pixel_space=PixelSpace.from_processor(processor),
        epsilons=["0", "8/255"],
        attack=trainer.args.eval_attack,
        progress=False,
    )
    assert found.smallest_epsilons == trainer.robustness_report.smallest_epsilons
    assert trainer.args.dataloader_drop_last and len(trainer.get_train_dataloader()) == 6


def test_training_still_drops_its_last_batch(make_trainer, make_model):
    trainer = make_trainer(make_model(), per_device_train_batch_size=32, dataloader_drop_last=True, num_train_epochs=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_loader_of_ones_own_that_drops_images_is_refused(make_trainer, make_model):
    with pytest.raises(
        ValueError, match="drop_last=True, so the images of a last, smaller batch would not be measured"
    ):
        make_trainer(make_model(), trainer_cls=OwnLoader).evaluate()


TWO_PROCESSES = """
from hf_robust_ft import PixelSpace, ThreatModel, evaluate_robustness
some = dataset.select(range(45))
trainer = make_trainer(dataloader_drop_last=True, per_device_eval_batch_size={size}, eval_dataset=some)
trainer.evaluate()
told = [f"measured {{trainer.robustness_report.num_samples}}, predicted {{len(trainer.predict(some).predictions)}}"]
try:
    evaluate_robustness(trainer.model, trainer.get_eval_dataloader(), threat_model=ThreatModel("Linf", "8/255"))
except ValueError as error:
    told.append(str(error))
(folder / f"{{trainer.args.process_index}}.txt").write_text("; ".join(told))
"""


@pytest.mark.parametrize("size", [8, 32])
def test_two_processes_measure_all_of_them(tmp_path, size):
    found = run_script(TWO_PROCESSES.format(size=size), tmp_path, processes=2)
    assert found.returncode == 0, found.stderr
    for rank in range(2):
        told = (tmp_path / f"{rank}.txt").read_text()
        assert told.startswith("measured 45, predicted 45; The loader deals out images to processes itself: pass its")
