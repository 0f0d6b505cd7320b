"""What a training costs in one number, and which settings are the best for theirs."""

from collections.abc import Mapping

# An input gradient of EfficientNet-Lite0 costs 2.0 forward passes, a training step's gradients of the weights 3.0
# (`planning.flops`); of a ViT, a Swin or a ConvNeXt as much, within 2 %.
FORWARDS = {"forward": 1, "attack": 2, "training": 3}


def in_forwards(passes: Mapping[str, float]) -> float:
    """All passes of a training as so many forward passes of an image; those of a cell's `passes`.

    >>> in_forwards({"training": 1, "attack": 7, "forward": 1})
    18
    """
    return sum(FORWARDS[kind] * count for kind, count in passes.items())


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Those of some points (cost, gain) that no other one beats for as little, by rising cost.

    >>> pareto_front({"dear": (3, 0.9), "worse": (2, 0.4), "cheap": (1, 0.5), "dearer": (4, 0.9)})
    ['cheap', 'dear']
    """
    front: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not front or points[name][1] > points[front[-1]][1]:
            front.append(name)
    return front
