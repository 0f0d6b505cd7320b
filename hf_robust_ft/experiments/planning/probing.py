"""What RoLI's first phase costs, which trains the head alone before a run."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn

from hf_robust_ft.experiments.planning.flops import PassFlops, count_flops
from hf_robust_ft.experiments.planning.passes import Phase, phases
from hf_robust_ft.experiments.planning.training_length import training_length
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.roli import first_phase
from hf_robust_ft.training.tuning.adapting import adapted


def probe_phases(args: AdversarialTrainingArguments, sizes: Mapping[str, int], num_classes: int) -> Iterator[Phase]:
    """The parts of the first phase, in order; none without `probe_epochs`.

    Args:
        sizes: images of `train` and `validation`.
    """
    if args.probe_epochs == 0:
        return
    own = first_phase(args)
    for phase in phases(own, training_length(own, sizes["train"]), {**sizes, "test": 0}, num_classes):
        if phase.images:
            yield replace(phase, name=f"probe: {phase.name}", head_alone=True)


def head_training_flops(model: nn.Module, args: AdversarialTrainingArguments, input_size: tuple[int, int]) -> PassFlops:
    """FLOPs of an image's passes where the head alone is trained.

    Args:
        model: as loaded; it is frozen afterwards.
    """
    return count_flops(adapted(model, first_phase(args)), input_size)
