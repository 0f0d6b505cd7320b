"""Before any work: K comes from the logits, and what gives attacks no gradient is refused, by API and Trainer alike."""

import warnings
from functools import partial

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import ViTConfig

from hf_robust_ft import AdversarialTrainer, PixelSpace, ThreatModel, evaluate_robustness
from hf_robust_ft.attacks.pixels import PixelClassifier
from hf_robust_ft.attacks.rehearsal import NO_GRADIENT, count_classes


class Net(nn.Module):
    """A plain module whose config, if it has one, is of another network."""

    def __init__(self, classes=4, config=None):
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, classes)
        if config is not None:
            self.config = config

    def pooled(self, pixel_values):
        return self.features(pixel_values).mean((2, 3))

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.pooled(pixel_values))
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


class UnderNoGrad(Net):
    @torch.no_grad()
    def pooled(self, pixel_values):
        return super().pooled(pixel_values)


class UnderInferenceMode(Net):
    def pooled(self, pixel_values):
        with torch.inference_mode():
            return super().pooled(pixel_values)


class ThroughNumpy(Net):
    def pooled(self, pixel_values):
        return torch.from_numpy(super().pooled(pixel_values).numpy(force=True))


class NumpyThatTorchRefuses(Net):
    def pooled(self, pixel_values):
        return torch.from_numpy(super().pooled(pixel_values).numpy())


class Int8(Net):
    """Weights and features of the backbone in 8 bits."""

    def pooled(self, pixel_values):
        found = torch.quantize_per_tensor(super().pooled(pixel_values).detach(), 0.01, 0, torch.qint8)
        return found.dequantize()


def made_in_inference_mode():
    with torch.inference_mode():
        return Net()


def dynamically_quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)


OURS = partial(AdversarialTrainer, pixel_space=PixelSpace())
WITHOUT = [UnderNoGrad, UnderInferenceMode, ThroughNumpy, NumpyThatTorchRefuses, Int8]
START = NO_GRADIENT[:60]


def measure(model, data, **changes):
    options = {"threat_model": ThreatModel("Linf", "8/255"), "progress": False} | changes
    return evaluate_robustness(model, data, **options)


@pytest.fixture
def rows():
    return [{"pixel_values": torch.rand(3, 16, 16), "labels": index % 4} for index in range(16)]


@pytest.mark.parametrize("make", [*WITHOUT, made_in_inference_mode, dynamically_quantised])
def test_evaluation_of_what_has_no_gradient_is_refused(make, rows):
    with pytest.raises(ValueError, match=START):
        measure(make(), rows)


@pytest.mark.parametrize("make", WITHOUT)
def test_the_trainer_refuses_it_in_the_same_words_before_a_step(make, rows, make_trainer):
    options = {"train_dataset": rows, "eval_dataset": rows, "trainer_cls": OURS}
    trainer = make_trainer(make(), **options)
    with pytest.raises(ValueError, match=START):
        trainer.train()
    assert trainer.state.global_step == 0
    with pytest.raises(ValueError, match=START):
        trainer.evaluate()
    unattacked = make_trainer(make(), robust_eval="no", **options)
    assert "eval_clean_accuracy" in unattacked.evaluate()


def test_inference_mode_around_an_evaluation_is_refused_at_any_time(make_trainer, make_model, rows):
    trainer = make_trainer(make_model())
    trainer.evaluate()
    with torch.inference_mode(), pytest.raises(ValueError, match=START):
        trainer.evaluate()


def test_a_fault_of_the_model_itself_is_told_as_it_is(rows):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        measure(nn.Sequential(nn.Flatten(), nn.Linear(5, 4)), rows)


@pytest.mark.parametrize("attacked", [True, False])
def test_parameters_and_random_state_are_left_alone(attacked):
    model, before = PixelClassifier(Net()), torch.get_rng_state()
    assert count_classes(model, torch.rand(2, 3, 16, 16, generator=torch.Generator()), attacked) == 4
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


CONFIGS = [None, ViTConfig(num_labels=1), ViTConfig(num_labels=2), ViTConfig(num_labels=1000)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config and config.num_labels))
@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_the_number_of_classes_is_that_of_the_logits(config, rows, kind, make_trainer):
    data = Dataset.from_list(rows).with_format("torch") if kind == "columns" else rows
    options = {"train_dataset": data, "eval_dataset": data, "num_train_epochs": 1, "trainer_cls": OURS}
    trainer = make_trainer(Net(config=config), **options)
    trainer.train()
    trainer.evaluate()
    assert trainer.adversary.num_labels(trainer.model) == 4
    assert measure(Net(config=config), rows).num_samples == 16
    beyond = [{**row, "labels": row["labels"] + 1} for row in rows]
    beyond = Dataset.from_list(beyond).with_format("torch") if kind == "columns" else beyond
    trainer = make_trainer(Net(config=config), **options | {"train_dataset": beyond, "eval_dataset": beyond})
    for run in (trainer.train, trainer.evaluate):
        with pytest.raises(ValueError, match=r"class indices in 0\.\.3|class indices in 0\.\.4-1"):
            run()
    with pytest.raises(ValueError, match=r"class indices in 0\.\.4-1"):
        measure(Net(config=config), list(beyond))


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_any_number_of_channels_is_trained_measured_and_drawn(channels, make_trainer, tmp_path):
    class Many(Net):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(channels, 8, 4, 4)

    rows = [{"pixel_values": torch.rand(channels, 16, 16), "labels": index % 4} for index in range(8)]
    space = PixelSpace((0.0,) * channels, (1.0,) * channels)
    trainer = make_trainer(
        Many(), num_train_epochs=1, eps_schedule="constant", train_dataset=rows, eval_dataset=rows,
        trainer_cls=partial(AdversarialTrainer, pixel_space=space), output_dir=str(tmp_path),
    )  # fmt: skip
    trainer.train()
    trainer.evaluate()
    assert measure(Many(), rows, pixel_space=space).num_samples == 8
    with pytest.raises(ValueError, match=r"must have shape \(N, 3, H, W\).*pixel_space=PixelSpace\(mean"):
        measure(Many(), rows)


def test_batches_of_different_sizes_are_trained_and_measured(make_trainer, make_model):
    rows = [{"pixel_values": torch.rand(3, 16, 16 + 4 * (index // 8)), "labels": index % 4} for index in range(24)]
    trainer = make_trainer(
        make_model("resnet"), num_train_epochs=1, eps_schedule="constant", train_dataset=rows, eval_dataset=rows,
        train_sampling_strategy="sequential", trainer_cls=OURS, per_device_eval_batch_size=8,
    )  # fmt: skip
    trainer.train()
    found = trainer.evaluate()
    loader = torch.utils.data.DataLoader(rows, batch_size=8)
    report = measure(trainer.model, loader, epsilons=["0", "8/255"], attack=trainer.args.eval_attack)
    assert report.num_samples == trainer.robustness_report.num_samples == 24
    assert found["eval_adversarial_accuracy"] == report.adversarial_accuracy
    assert {check["name"] for check in report.checks} == {check["name"] for check in trainer.robustness_report.checks}


class NeedsLabels(Net):
    def forward(self, pixel_values, labels):
        return super().forward(pixel_values, labels)


class AlwaysALoss(Net):
    def forward(self, pixel_values, labels=None):
        logits = self.head(self.pooled(pixel_values))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("kind", [NeedsLabels, AlwaysALoss])
def test_a_model_that_cannot_do_without_labels_is_told_how_it_can(kind):
    with pytest.raises(ValueError, match=r"without labels, which failed .* Let its forward take labels=None"):
        count_classes(PixelClassifier(kind()), torch.rand(2, 3, 8, 8), attacked=True)


def test_other_faults_of_a_forward_are_told_as_they_are():
    class Broken(Net):
        def pooled(self, pixel_values):
            return self.no_such_layer(pixel_values)

    with pytest.raises(AttributeError, match="no_such_layer"):
        count_classes(PixelClassifier(Broken()), torch.rand(2, 3, 8, 8), attacked=True)
