import pytest
import torch

from hf_robust_ft.evaluation.checked_images import ClassReservoir, draw_by_class


def test_as_many_of_each_class_are_drawn_by_the_seed():
    labels = [0] * 500 + [1] * 20 + [2] * 3
    drawn = draw_by_class(labels, 23, seed=0)
    assert [labels[index] for index in drawn] == [0] * 10 + [1] * 10 + [2] * 3 and drawn == sorted(set(drawn))
    assert drawn == draw_by_class(labels, 23, seed=0) != draw_by_class(labels, 23, seed=1)
    assert draw_by_class(labels[500:], 64, seed=0) == list(range(23))


def images(labels, size=2):
    """Whose pixels are their positions."""
    return torch.arange(len(labels)).float().view(-1, 1, 1, 1).expand(-1, 3, size, size), torch.tensor(labels)


def streamed(labels, count, seed=0, batch_size=7):
    reservoir = ClassReservoir(count, seed)
    pixels, labels = images(labels)
    for first in range(0, len(labels), batch_size):
        rows = slice(first, first + batch_size)
        reservoir.add(pixels[rows], labels[rows], first)
    return reservoir.images()


@pytest.mark.parametrize("order", ["sorted", "in turn"])
def test_a_stream_leaves_as_many_of_each_class(order):
    labels = sorted(list(range(4)) * 50) if order == "sorted" else list(range(4)) * 50
    pixels, kept, positions = streamed(labels, 20)
    assert kept.bincount().tolist() == [5] * 4
    assert positions == sorted(set(positions)) and [labels[position] for position in positions] == kept.tolist()
    assert pixels[:, 0, 0, 0].tolist() == positions
    assert positions != streamed(labels, 20, seed=1)[2] and positions == streamed(labels, 20)[2]


def test_all_images_of_a_class_have_the_same_chance():
    kept = torch.zeros(40)
    for seed in range(400):
        kept[streamed([0] * 40, 10, seed)[2]] += 1
    assert kept.min() > 60 and kept.max() < 140  # 100 each; four standard deviations are 35


def test_images_of_another_size_and_short_streams():
    reservoir = ClassReservoir(5, 0)
    reservoir.add(*images([0, 1]), 0)
    reservoir.add(*images([2, 2], size=3), 2)
    reservoir.add(*images([1]), 4)
    assert reservoir.images()[2] == [0, 1, 4] and len(reservoir) == 3
