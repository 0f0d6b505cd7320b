from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_robust_ft import PixelSpace
from hf_robust_ft.attacks.batch_checks import check_batch
from hf_robust_ft.data import SeededAugmentation, UndecodableImageError, align_labels, with_pixel_values
from hf_robust_ft.data.augmentation import transform_of
from hf_robust_ft.data.images import RGBImage
from hf_robust_ft.evaluation.batches import stack_examples


def test_evaluation_is_exactly_the_processor(images, processor):
    example = with_pixel_values(images, processor)[3]
    expected = processor(images[3]["image"], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(torch.as_tensor(example["pixel_values"]), torch.as_tensor(expected))
    assert example["labels"] == images[3]["label"]


def test_augmentation_varies_and_stays_in_the_pixel_range(images, processor):
    augmented = with_pixel_values(images, processor, "paper")
    first, second = (stack_examples([augmented[index] for index in range(8)]) for _ in range(2))
    assert not torch.equal(first["pixel_values"], second["pixel_values"])
    check_batch(first, PixelSpace.from_processor(processor), num_labels=4)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_image_mode_becomes_rgb(mode, processor):
    picture = PILImage.fromarray(np.full((20, 20, 3), 128, np.uint8)).convert(mode)
    features = Features({"image": Image(), "label": Value("int64")})
    dataset = Dataset.from_dict({"image": [picture], "label": [0]}, features=features)
    assert with_pixel_values(dataset, processor)[0]["pixel_values"].shape == (3, 16, 16)


def test_spawned_workers_can_receive_it(images, processor):
    loader = DataLoader(
        with_pixel_values(images, processor, "paper"),
        batch_size=24,
        num_workers=1,
        multiprocessing_context="spawn",
        collate_fn=stack_examples,
    )
    assert [len(batch["labels"]) for batch in loader] == [24, 24]


def augmented_epoch(images, processor, workers, epoch, seed=0, context=None, order=range(48)):
    """What a loader with `workers` brings, by number of the image, in an epoch that the callback was told of."""
    dataset = with_pixel_values(images, processor, "paper")
    loader = DataLoader(
        dataset,
        batch_size=6,
        sampler=list(order),
        num_workers=workers,
        multiprocessing_context=context,
        collate_fn=stack_examples,
    )
    args, state = SimpleNamespace(seed=seed, data_seed=None), SimpleNamespace(epoch=epoch)
    SeededAugmentation().on_epoch_begin(args, state, None, train_dataloader=loader)
    brought = torch.cat([batch["pixel_values"] for batch in loader])
    return brought[torch.argsort(torch.tensor(list(order)))]


def test_augmentation_depends_on_seed_epoch_and_image_alone(images, processor):
    first = augmented_epoch(images, processor, workers=0, epoch=2.0)
    torch.manual_seed(123)
    backwards = augmented_epoch(images, processor, workers=0, epoch=2.5, order=range(47, -1, -1))
    assert torch.equal(first, backwards), "resumed in the middle of the epoch, in another order"
    assert torch.equal(first, augmented_epoch(images, processor, workers=2, epoch=2.0))
    assert torch.equal(first, augmented_epoch(images, processor, workers=1, epoch=2.0, context="spawn"))
    for other in ({"epoch": 3.0}, {"epoch": 2.0, "seed": 1}):
        different = (first != augmented_epoch(images, processor, workers=0, **other)).flatten(1).any(1)
        assert different.float().mean() > 0.9


def test_workers_do_not_repeat_each_other(images, processor):
    same = images.select([0] * 12)
    plain = [with_pixel_values(same, processor, "paper")] * 2
    for dataset in plain:  # not seeded: torch's own state, which differs by worker
        torch.manual_seed(0)
        batches = list(DataLoader(dataset, batch_size=3, num_workers=2, collate_fn=stack_examples))
        assert not torch.equal(batches[0]["pixel_values"], batches[1]["pixel_values"])
    seeded = augmented_epoch(images, processor, workers=2, epoch=0)
    assert len({tuple(image.flatten().tolist()) for image in seeded}) == 48


def test_persistent_workers_hear_of_the_next_epoch(images, processor):
    loader = DataLoader(
        with_pixel_values(images, processor, "paper"),
        batch_size=24,
        num_workers=1,
        persistent_workers=True,
        collate_fn=stack_examples,
    )
    seen = []
    for epoch in (0.0, 1.0):
        args, state = SimpleNamespace(seed=0, data_seed=7), SimpleNamespace(epoch=epoch)
        SeededAugmentation().on_epoch_begin(args, state, None, train_dataloader=loader)
        seen.append(torch.cat([batch["pixel_values"] for batch in loader]))
    assert not torch.equal(*seen)
    for epoch, brought in enumerate(seen):
        assert torch.equal(brought, augmented_epoch(images, processor, workers=0, epoch=epoch, seed=7))


def test_seeded_augmentation_leaves_the_random_state_alone(images, processor):
    dataset = with_pixel_values(images, processor, "paper")
    transform_of(dataset).state.set(0, 0)
    before = torch.get_rng_state()
    dataset[:8]
    assert torch.equal(before, torch.get_rng_state())


def test_training_sees_a_new_augmentation_each_epoch_and_runs_repeat(images, processor, make_trainer):
    def run(workers):
        seen = []

        class Watching(SeededAugmentation):
            def on_epoch_begin(self, *args, train_dataloader=None, **kwargs):
                super().on_epoch_begin(*args, train_dataloader=train_dataloader, **kwargs)
                seen.append(torch.stack([train_dataloader.dataset[index]["pixel_values"] for index in range(8)]))

        train = with_pixel_values(images.select(range(8)), processor, "paper")
        callbacks = [Watching()]
        trainer = make_trainer(train_dataset=train, callbacks=callbacks, dataloader_num_workers=workers)
        trainer.train()
        return seen, trainer.model.state_dict()

    (seen, weights), (again, others) = run(0), run(2)
    assert all(torch.equal(*pair) for pair in zip(seen, again, strict=True)) and not torch.equal(seen[0], seen[1])
    assert all(torch.equal(weights[name], others[name]) for name in weights), "whatever the number of workers"


def test_an_undecodable_image_is_named_with_dataset_index_and_file(images, processor):
    cells = images.cast_column("image", Image(decode=False))["image"][:]
    cells[5] = {"bytes": cells[5]["bytes"][:40], "path": "pets/5.png"}
    broken = Dataset.from_dict({"image": cells, "label": images["label"][:]}, features=images.features)
    lazy = with_pixel_values(broken.cast_column("image", RGBImage(id="pets (train)")), processor)
    assert lazy[4]["pixel_values"].shape == (3, 16, 16)
    with pytest.raises(
        UndecodableImageError, match=r"Image 5 of pets \(train\) .* pets/5\.png: .*skip_bad_images=True"
    ):
        lazy[5]
    with pytest.raises(UndecodableImageError, match=r"Image 1 of the dataset"):
        with_pixel_values(broken.select([7, 5]), processor)[:]


def test_images_of_one_pixel_reach_the_models_size(processor):
    features = Features({"image": Image(), "label": Value("int64")})
    pictures = [PILImage.new("RGB", size, (255, 0, 0)) for size in ((1, 1), (1, 300), (300, 1))]
    dataset = Dataset.from_dict({"image": pictures, "label": [0] * 3}, features=features)
    assert all(row["pixel_values"].shape == (3, 16, 16) for row in with_pixel_values(dataset, processor, "paper"))


def test_unknown_augmentation_lists_the_valid_ones(images, processor):
    with pytest.raises(ValueError, match="Valid: none, paper"):
        with_pixel_values(images, processor, "mixup")


def test_class_names_that_differ_in_case_are_different_classes(images, make_model):
    names = ["A", "a", "B", "b"]
    config = make_model().config
    config.id2label = dict(enumerate(["b", "B", "a", "A"]))
    aligned = align_labels(images.cast_column("label", ClassLabel(names=names)), config)
    assert aligned["label"][:4] == [3, 2, 1, 0]


def test_labels_are_aligned_by_name(images, make_model):
    config = make_model().config
    config.id2label = dict(enumerate(["yellow", "blue", "green", "red"]))
    aligned = align_labels(images, config)
    assert aligned["label"][:4] == [3, 2, 1, 0]
    config.id2label = dict(enumerate(["a", "b", "c", "d"]))
    assert align_labels(images, config)["label"][:4] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="tells 7 classes apart, the dataset has 4"):
        align_labels(images, make_model(num_labels=7).config)
