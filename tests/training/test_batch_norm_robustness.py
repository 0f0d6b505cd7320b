"""A BatchNorm network trained adversarially withstands many attack steps, and training tells where it will not."""

import pytest
import torch

from hf_robust_ft import (
    AdversarialTrainer,
    AdversarialTrainingArguments,
    PixelClassifier,
    PixelSpace,
    ThreatModel,
    load_image_classifier,
)
from hf_robust_ft.attacks import APGD, attack_mode
from hf_robust_ft.evaluation.batches import stack_examples

pytest.importorskip("sklearn")
CLASSES, TRAINED, TESTED = 3, 192, 40
THREAT = ThreatModel("Linf", "4/255")


def digits():
    """The first digits of 0, 1 and 2 as pixels (N, 3, 32, 32), and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    kept = (found.target < CLASSES).nonzero()[0][: TRAINED + TESTED]
    pixels = torch.tensor(found.images[kept] / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
    pixels = torch.nn.functional.interpolate(pixels, size=32, mode="bilinear").clamp(0, 1)
    return pixels, torch.tensor(found.target[kept])


def trained_and_attacked(policy, tmp_path):
    """Clean accuracy and that under APGD-50 at eps_g of EfficientNet-Lite0, 72 small steps after ImageNet."""
    names = [str(label) for label in range(CLASSES)]
    model, processor = load_image_classifier("efficientnet_lite0", label_names=names, image_size=32, seed=0)
    space, (pixels, labels) = PixelSpace.from_processor(processor), digits()
    examples = [
        {"pixel_values": values, "labels": int(label)}
        for values, label in zip(space.from_pixels(pixels[:TRAINED]), labels[:TRAINED], strict=True)
    ]
    args = AdversarialTrainingArguments(
        str(tmp_path), eps=str(THREAT.eps), schedule_start=0.25, schedule_end=0.5, schedule_granularity="step",
        attack_steps=2, batch_norm=policy, num_train_epochs=6, per_device_train_batch_size=16, learning_rate=1e-3,
        lr_scheduler_type="cosine", warmup_steps=8, memory_format="channels_last", robust_eval="no", logging_steps=12,
        save_strategy="no", remove_unused_columns=False, report_to="none", disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = AdversarialTrainer(model, args, stack_examples, examples, pixel_space=space)
    trainer.train()
    classifier, pixels, labels = PixelClassifier(model, space), pixels[TRAINED:], labels[TRAINED:]
    with attack_mode(model):
        clean = (classifier(pixels).argmax(1) == labels).float().mean().item()
        attack = APGD(steps=50, random_start=False, select="fooled")
        return clean, 1 - attack(classifier, pixels, labels, THREAT).fooled.float().mean().item()


def test_batch_norm_networks_are_robust_by_default_and_brittle_on_batch_statistics(tmp_path, caplog):
    """0.63 (0.65 with another seed) against 0.0, both at least 0.98 clean, in 27 s."""
    default = AdversarialTrainingArguments(str(tmp_path)).batch_norm
    clean, robust = trained_and_attacked(default, tmp_path)
    assert clean > 0.9 and robust > 0.4
    assert "did not see what its attacks found" not in caplog.text
    clean, robust = trained_and_attacked("trainer", tmp_path)
    assert clean > 0.9 and robust < 0.1
    (told,) = [text for text in caplog.messages if "did not see what its attacks found" in text]
    assert "set batch_norm='frozen'" in told
