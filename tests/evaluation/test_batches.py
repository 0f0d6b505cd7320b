import itertools
from functools import partial

import pytest
import torch
from conftest import assert_same_weights, weights
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, SequentialSampler
from transformers import BatchFeature, default_data_collator

from hf_robust_ft import AdversarialTrainer, PixelSpace
from hf_robust_ft.evaluation.batches import NumberedBatches, stack_boxes, stack_examples, stack_masks


class Numbers(torch.utils.data.Dataset):
    """11 images, whose every pixel is their label."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return {"pixel_values": torch.full((3, 2, 2), float(index)), "labels": index}


def loader(**options):
    return DataLoader(Numbers(), **({"batch_size": 4, "collate_fn": stack_examples} | options))


def contents(batches, rank=0, world_size=1):
    return [(number, first, batch["labels"].tolist()) for number, first, batch in batches.of_process(rank, world_size)]


@pytest.mark.parametrize("source", [Numbers, loader], ids=["dataset", "loader"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_processes_share_the_batches_of_one(source, world_size):
    whole = [(0, 0, [0, 1, 2, 3]), (1, 4, [4, 5, 6, 7]), (2, 8, [8, 9, 10])]
    batches = NumberedBatches(source(), 4, repeatable=True)
    shares = [contents(batches, rank, world_size) for rank in range(world_size)]
    assert sorted(itertools.chain(*shares)) == whole == contents(batches)
    assert all(number % world_size == rank for rank, share in enumerate(shares) for number, _, _ in share)
    assert batches.num_images == 11 and batches.batch_size == 4


def test_a_process_reads_only_its_own_images_of_a_dataset():
    read = []

    class Spy(Numbers):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    list(NumberedBatches(Spy(), 2).of_process(1, 3))
    assert read == [2, 3, 8, 9]


def test_a_pass_over_a_dataset_leaves_global_randomness_alone():
    state = torch.get_rng_state()
    list(NumberedBatches(Numbers(), 4).of_process())
    assert torch.equal(torch.get_rng_state(), state)


def test_first_images_are_counted_in_any_mapping():
    feature = loader(collate_fn=lambda examples: BatchFeature(stack_examples(examples)))
    assert [first for _, first, _ in NumberedBatches(feature, 4).of_process()] == [0, 4, 8]


def test_batches_of_different_sizes_are_numbered_by_order():
    batches = NumberedBatches(loader(batch_size=1, batch_sampler=[[0], [1, 2, 3], [4, 5]]), 64, repeatable=True)
    assert contents(batches) == [(0, 0, [0]), (1, 1, [1, 2, 3]), (2, 4, [4, 5])]


SHUFFLED = {
    "shuffle": {"shuffle": True},
    "sampler": {"sampler": RandomSampler(Numbers())},
    "batch_sampler": {"batch_size": 1, "batch_sampler": BatchSampler(RandomSampler(Numbers()), 4, drop_last=False)},
}


@pytest.mark.parametrize("options", SHUFFLED.values(), ids=SHUFFLED)
def test_shuffling_is_refused_where_every_pass_must_agree(options):
    with pytest.raises(ValueError, match=r"by a RandomSampler.*needs shuffle=False"):
        NumberedBatches(loader(**options), 4, repeatable=True)
    once = contents(NumberedBatches(loader(**options), 4))
    assert sorted(label for _, _, labels in once for label in labels) == list(range(11))


def test_a_sharded_loader_is_refused():
    sampler = DistributedSampler(Numbers(), num_replicas=2, rank=0)
    with pytest.raises(ValueError, match="without DistributedSampler"):
        NumberedBatches(loader(sampler=sampler), 4)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(Numbers())


def test_a_stream_is_refused_where_every_pass_must_agree():
    stream = DataLoader(Stream(), batch_size=4, collate_fn=stack_examples)
    with pytest.raises(ValueError, match="reads an IterableDataset"):
        NumberedBatches(stream, 4, repeatable=True)
    NumberedBatches(stream, 4)


def test_a_loader_that_drops_images_is_refused():
    batches_of_4 = BatchSampler(SequentialSampler(Numbers()), 4, drop_last=True)
    for options in ({"drop_last": True}, {"batch_size": 1, "batch_sampler": batches_of_4}):
        with pytest.raises(ValueError, match="drop_last=True, so the images of a last, smaller batch"):
            NumberedBatches(loader(**options), 4)
    with pytest.raises(ValueError, match="drop_last=True"):
        NumberedBatches(DataLoader(Stream(), batch_size=4, collate_fn=stack_examples, drop_last=True), 4)
    assert len(contents(NumberedBatches(loader(batch_size=11, drop_last=True), 4))) == 1


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, None])
def test_a_batch_size_that_is_no_number_of_images_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be a whole number of at least 1, got {batch_size!r}"):
        NumberedBatches(Numbers(), batch_size)


def test_what_is_no_dataset_is_refused():
    with pytest.raises(ValueError, match="map-style dataset or a torch DataLoader, got list_iterator"):
        NumberedBatches(iter([]), 4)
    with pytest.raises(ValueError, match="dataset is empty"):
        NumberedBatches([], 4)


def test_examples_without_labels_are_refused_by_name():
    with pytest.raises(ValueError, match=r"Examples lack \['labels'\]; they hold \['image', 'pixel_values'\]"):
        stack_examples([{"pixel_values": torch.zeros(3, 2, 2), "image": 0}])


@pytest.mark.parametrize("collate", [stack_examples, stack_masks, stack_boxes])
def test_a_batch_of_nothing_is_refused(collate):
    with pytest.raises(ValueError, match="A batch needs an example, and there is none"):
        collate([])


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([(torch.zeros(3, 2, 2), 0)], "Examples are <class 'tuple'>"),
        ([{"pixel_values": torch.zeros(3, 2, 2)}], r"Examples lack \['labels'\]"),
        (
            [{"pixel_values": torch.zeros(3, 2, size), "labels": 0} for size in (2, 3)],
            r"one shape, got \[\(3, 2, 2\), \(3, 2, 3\)\]",
        ),
        ([{"pixel_values": torch.zeros(3, 2, 2), "labels": "red"}], r"class indices, got \['red'\]"),
        ([{"pixel_values": torch.zeros(3, 2, 2), "labels": None}], r"class indices, got \[None\]"),
    ],
)
def test_examples_that_make_no_batch_are_refused(examples, message):
    with pytest.raises(ValueError, match=message):
        stack_examples(examples)


def test_a_dict_of_splits_is_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"is a dict of \['train', 'test'\]: give one of its datasets"):
        NumberedBatches({"train": [], "test": []}, 4)


@pytest.mark.parametrize("count", [1, 8, 11, 12, 13])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_process_knows_how_many_images_it_gets(count, world_size):
    examples = [{"pixel_values": torch.zeros(3, 2, 2), "labels": 0}] * count
    loader = DataLoader(examples, batch_size=4, collate_fn=stack_examples)
    for batches in (NumberedBatches(examples, 4), NumberedBatches(loader, 4)):
        for rank in range(world_size):
            brought = sum(len(batch["labels"]) for _, _, batch in batches.of_process(rank, world_size))
            assert batches.images_of_process(rank, world_size) == brought


class Pairs(torch.utils.data.Dataset):
    """As torchvision's datasets: `(image, label)`."""

    def __init__(self, picture=None):
        self.images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        self.picture = picture

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.picture or self.images[index], index % 4


@pytest.mark.parametrize("collate", [None, default_data_collator])
def test_pairs_train_as_examples_by_name_do(make_model, make_trainer, collate):
    named = [{"pixel_values": image, "labels": label} for image, label in (Pairs()[index] for index in range(16))]
    trained = []
    for data in (Pairs(), named):
        trainer = make_trainer(
            make_model(), train_dataset=data, eval_dataset=data, data_collator=collate, num_train_epochs=1,
            eps_schedule="constant", processing_class=None,
            trainer_cls=partial(AdversarialTrainer, pixel_space=PixelSpace()),
        )  # fmt: skip
        trainer.train()
        trained.append((weights(trainer.model), trainer.evaluate()["eval_adversarial_accuracy"]))
    assert_same_weights(trained[0][0], trained[1][0])
    assert trained[0][1] == trained[1][1]


@pytest.mark.parametrize("collate", [None, stack_examples])
def test_pairs_without_tensors_are_refused_with_the_cure(make_model, make_trainer, collate):
    data = Pairs(Image.new("RGB", (16, 16)))
    trainer = make_trainer(
        make_model(), train_dataset=data, eval_dataset=data, data_collator=collate, processing_class=None,
        trainer_cls=partial(AdversarialTrainer, pixel_space=PixelSpace()),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"of \(Image, int\)\. .*ToTensor\(\) and Normalize"):
        trainer.train()
