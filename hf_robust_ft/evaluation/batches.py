"""From a dataset or DataLoader to numbered batches, the same ones whichever process evaluates them."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, SequentialSampler


class PairCollator:
    """A data collator of examples by name that takes torchvision's pairs as well: images (C, H, W) and class indices.

    Examples whose labels are dicts of boxes are stacked by `stack_boxes`.

    Raises:
        ValueError: examples that are neither.
    """

    def __init__(self, collate: Callable[[list], Any]):
        self.collate = collate

    def __call__(self, examples: list) -> Any:
        if isinstance(examples[0], (tuple, list)):
            if any(len(pair) != 2 or not isinstance(pair[0], Tensor) for pair in examples):
                _check_examples(examples)
            examples = [{"pixel_values": image, "labels": label} for image, label in examples]
        elif isinstance(examples[0], Mapping) and isinstance(examples[0].get("labels"), Mapping):
            return stack_boxes(examples)
        return self.collate(examples)


def stack_examples(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """A data collator: examples with `pixel_values` (C, H, W) and `labels` (int) to one batch.

    Raises:
        ValueError: an example lacks one of them, or they do not make one batch.
    """
    _check_examples(examples)
    images = [torch.as_tensor(example["pixel_values"]) for example in examples]
    _check_one_shape("images", images, "resize or crop them")
    try:
        labels = torch.tensor([example["labels"] for example in examples])
    except (TypeError, ValueError, RuntimeError) as error:
        got = [example["labels"] for example in examples[:3]]
        raise ValueError(f"labels must be class indices, got {got}, ... ({error}).") from None
    return {"pixel_values": torch.stack(images), "labels": labels}


def stack_masks(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """A data collator: examples with `pixel_values` (C, H, W) and masks `labels` (H', W') to one batch.

    Raises:
        ValueError: an example lacks one of them, or they do not make one batch.
    """
    _check_examples(examples)
    parts = {key: [torch.as_tensor(example[key]) for example in examples] for key in ("pixel_values", "labels")}
    for key, values in parts.items():
        _check_one_shape(key, values, "resize or crop image and mask together, or take batch_size=1")
    return {key: torch.stack(values) for key, values in parts.items()}


def stack_boxes(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A data collator: examples with `pixel_values` (C, H, W) and `labels`, a dict of boxes, to one batch.

    What else an example holds, as a `pixel_mask` (H, W), is stacked too; `labels` become a list.

    Raises:
        ValueError: an example lacks one of them, or the images have several shapes.
    """
    _check_examples(examples)
    batch: dict[str, Any] = {"labels": [example["labels"] for example in examples]}
    for key in (name for name in examples[0] if name != "labels"):
        values = [torch.as_tensor(example[key]) for example in examples]
        _check_one_shape(
            key,
            values,
            "let the image processor resize to one size (size={'height': ..., 'width': ...}) or pad (do_pad=True, with "
            "its pixel_mask), or take batch_size=1",
        )
        batch[key] = torch.stack(values)
    return batch


def _check_one_shape(what: str, values: Sequence[Tensor], cure: str) -> None:
    if len(shapes := {tuple(value.shape) for value in values}) > 1:
        raise ValueError(f"The {what} of a batch must have one shape, got {sorted(shapes)}: {cure}.")


def _check_examples(examples: Sequence[Any]) -> None:
    """Raise unless there are examples, and the first is a mapping of `pixel_values` and `labels`."""
    if not examples:
        raise ValueError("A batch needs an example, and there is none: the list of images to take was empty.")
    first = examples[0]
    if isinstance(first, Mapping):
        missing = sorted({"pixel_values", "labels"} - set(first))
        held = f"lack {missing}; they hold {sorted(first)}"
    else:
        missing = True
        held = f"are {type(first)}"
        if isinstance(first, (tuple, list)):
            held += f" of ({', '.join(type(part).__name__ for part in first)})"
    if missing:
        raise ValueError(
            f"Examples {held}. Give the dataset a transform that makes a dict of pixel_values (the image processor's "
            "output) and labels (class indices). Trainer's default collator also takes pairs of the two, as "
            "torchvision's datasets give them after ToTensor() and Normalize(mean, std)."
        )


def first_images(inputs: Mapping[str, Any], count: int) -> dict[str, Any]:
    """A batch of its first `count` images only."""
    size = len(inputs["labels"])
    return {key: value[:count] if _is_of_images(value, size) else value for key, value in inputs.items()}


def _is_of_images(value: Any, size: int) -> bool:
    """Whether an entry of a batch of `size` images holds something of each."""
    return value.shape[:1] == (size,) if isinstance(value, Tensor) else isinstance(value, list) and len(value) == size


def check_reads_all(loader: DataLoader) -> None:
    """Raise a ValueError if the loader leaves out the images of a last, smaller batch."""
    batches, processes = loader.batch_sampler, 1
    while not hasattr(batches, "sampler") and hasattr(batches, "batch_sampler"):  # accelerate's, one process's share
        processes, batches = processes * batches.num_processes, batches.batch_sampler
    if not getattr(batches, "drop_last", False):
        return
    sampler = getattr(batches, "sampler", None)
    if not isinstance(sampler, Sized) or len(sampler) % (batches.batch_size * processes):
        raise ValueError(
            "The loader has drop_last=True, so the images of a last, smaller batch would not be measured: give it "
            "drop_last=False."
        )


class NumberedBatches:
    """The batches of a dataset or loader, dealt out to processes in turn: batch i goes to process i mod W.

    So a batch holds the same images on one process or eight, and results agree to the sample.

    Args:
        dataset_or_loader: a map-style dataset of `{"pixel_values", "labels"}`, or a DataLoader of such batches, which
            every process reads as a whole.
        batch_size: images at a time, when given a dataset.
        repeatable: whether every pass must bring the same batches (several processes, or a run to be resumed).
        collate: makes a batch of a dataset's examples; `stack_masks` where labels are masks.

    Attributes:
        looks_up: whether single images can be had again, by `examples`; not of a stream or a loader that shuffles.

    Raises:
        ValueError: neither of the two, an empty dataset, or a loader that drops images, shuffles where it must not, or
            shards.
    """

    def __init__(
        self,
        dataset_or_loader: Any,
        batch_size: int,
        repeatable: bool = False,
        collate: Callable[[list], dict[str, Tensor]] = stack_examples,
    ):
        self.loader, self.dataset, self.batch_size, self.looks_up = None, None, batch_size, True
        self.collate = collate
        if isinstance(dataset_or_loader, DataLoader):
            self.loader = dataset_or_loader
            self.batch_size = self.loader.batch_size
            # Given a batch_sampler, a loader has a SequentialSampler of its own, which it does not use.
            sampler = getattr(self.loader.batch_sampler, "sampler", self.loader.sampler)
            in_order = isinstance(sampler, SequentialSampler) or not isinstance(self.loader.batch_sampler, BatchSampler)
            # accelerate's, as in Trainer's own loaders
            deals = getattr(self.loader.batch_sampler, "num_processes", 1) > 1
            if isinstance(sampler, DistributedSampler) or deals:
                raise ValueError(
                    "The loader deals out images to processes itself: pass its dataset, or a plain DataLoader without "
                    "DistributedSampler."
                )
            check_reads_all(self.loader)
            if repeatable and isinstance(self.loader.dataset, IterableDataset):
                raise ValueError(
                    "The loader reads an IterableDataset, which may bring other images at another pass: a run on "
                    "several processes, one to be resumed, or one with AutoAttack, attack_steps='auto' or "
                    "protocol='reliable' needs a map-style dataset."
                )
            if repeatable and not in_order:
                raise ValueError(
                    f"The loader draws its images by a {type(sampler).__name__}, so another pass brings other batches: "
                    "a run on several processes, one to be resumed, or one with AutoAttack, attack_steps='auto' or "
                    "protocol='reliable' needs shuffle=False."
                )
            in_order = isinstance(sampler, SequentialSampler) or (repeatable and in_order)
            is_map_style = self.loader.batch_sampler is not None and not isinstance(
                self.loader.dataset, IterableDataset
            )
            self.looks_up = in_order and is_map_style
            return
        if isinstance(dataset_or_loader, Mapping):
            raise ValueError(
                f"dataset_or_loader is a {type(dataset_or_loader).__name__} of {list(dataset_or_loader)}: give one of "
                "its datasets, e.g. dataset['test']."
            )
        if not hasattr(dataset_or_loader, "__getitem__") or not hasattr(dataset_or_loader, "__len__"):
            raise ValueError(
                "dataset_or_loader must be a map-style dataset or a torch DataLoader, got "
                f"{type(dataset_or_loader).__name__}."
            )
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
        if len(dataset_or_loader) == 0:
            raise ValueError("The dataset is empty: there is nothing to evaluate.")
        self.dataset = dataset_or_loader

    @property
    def num_images(self) -> int | None:
        """How many images there are, if the source knows."""
        try:
            return len(self.dataset if self.loader is None else self.loader.dataset)
        except TypeError:
            return None

    def examples(self, positions: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """(position, batch of this image alone) for positions in the order of `of_process`, if it `looks_up`."""
        if self.loader is None:
            yield from ((position, self.collate([self.dataset[position]])) for position in positions)
            return
        indices = list(itertools.chain.from_iterable(self.loader.batch_sampler))
        for position in positions:
            yield position, self.loader.collate_fn([self.loader.dataset[indices[position]]])

    def images_of_process(self, rank: int = 0, world_size: int = 1) -> int | None:
        """How many of them `of_process` brings, if the source knows."""
        if self.num_images is None or world_size == 1:
            return self.num_images
        if self.batch_size is None:
            return None
        own = range(self.num_images)[rank * self.batch_size :: world_size * self.batch_size]
        return sum(min(self.batch_size, self.num_images - first) for first in own)

    def of_process(self, rank: int = 0, world_size: int = 1) -> Iterator[tuple[int, int, Any]]:
        """(number, index of its first image, batch) for the batches of one process."""
        if self.loader is None:
            starts = range(0, len(self.dataset), self.batch_size)
            own = [range(first, min(first + self.batch_size, len(self.dataset))) for first in starts[rank::world_size]]
            # A loader without a generator of its own draws a seed from the global random state at each pass.
            loader = DataLoader(self.dataset, batch_sampler=own, collate_fn=self.collate, generator=torch.Generator())
            for count, batch in enumerate(loader):
                number = rank + count * world_size
                yield number, number * self.batch_size, batch
            return
        first = 0
        for number, batch in enumerate(self.loader):
            if number % world_size == rank:
                yield number, first, batch
            # A batch without images is refused by whoever gets it.
            first += len(batch["labels"]) if isinstance(batch, Mapping) and "labels" in batch else 0
