"""A training step under attack over its bare passes, in each precision, layout and kind of compilation.

Images a second and the share of the card's peak are of the same steps. FLOPs are counted on a model without weights
(`experiments.planning.flops`): n input gradients, one forward and one training pass an image.
"""

import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hf_robust_ft.attacks import use_fast_memory_format
from hf_robust_ft.benchmarks.gpu.cases import Case, Setup
from hf_robust_ft.benchmarks.gpu.models import build_model, image_size, training_subject
from hf_robust_ft.benchmarks.precision import precision
from hf_robust_ft.benchmarks.training_cost import FULL, BareSteps, StepClock, spread
from hf_robust_ft.experiments.planning.flops import count_flops
from hf_robust_ft.experiments.planning.gpus import GPUS, Gpu

WARM_UP = 3  # steps: the first of them compile and capture


@dataclass(frozen=True)
class Variant:
    """How a step is computed; `compiled` holds arguments of `torch.compile`, None where it is not."""

    name: str
    precision: str
    memory_format: str
    compiled: dict[str, str] | None = None


def variants(setup: Setup, fast: str) -> Iterator[Variant]:
    """In the layout that is fast for a model, and bf16 in the other one; the dearest to compile come last."""
    for name in reversed(setup.precisions):
        yield Variant(f"{name}, {fast}", name, fast)
    if fast != "contiguous":
        yield Variant("bf16, contiguous", "bf16", "contiguous")
    if setup.device == "cuda":
        yield Variant(f"bf16, {fast}, compiled", "bf16", fast, {})
        yield Variant(f"bf16, {fast}, compiled, CUDA graphs", "bf16", fast, {"mode": "reduce-overhead"})
    else:
        yield Variant(f"bf16, {fast}, traced", "bf16", fast, {"backend": "aot_eager"})


def cases(setup: Setup) -> Iterator[Case]:
    of_models = [variants(setup, use_fast_memory_format(build_model(model, small=True))) for model in setup.models]
    for together in itertools.zip_longest(*of_models):
        for model, variant in zip(setup.models, together, strict=True):
            if variant is not None:
                yield Case(model, variant.name, partial(measure, setup, model, variant))


def measure(setup: Setup, model: str, variant: Variant) -> dict[str, Any]:
    """One training of a few steps, then its bare passes in the same precision, layout and compilation."""
    subject, count = training_subject(setup, model), WARM_UP + setup.rounds
    compiled = {}
    if variant.compiled is not None:
        compiled = {"torch_compile": True, **{f"torch_compile_{key}": text for key, text in variant.compiled.items()}}
    clock = StepClock()
    with precision("tf32" if variant.precision == "tf32" else "fp32", torch.device(setup.device)):
        trainer = subject.adversarial_trainer(
            callbacks=[clock],
            max_steps=count,
            attack_steps=setup.steps,
            bf16=variant.precision == "bf16",
            memory_format=variant.memory_format,
            **FULL,
            **compiled,
        )
        trainer.train()
    own = clock.steps[WARM_UP - 1 :]  # the clock leaves out the first
    del trainer
    with precision(variant.precision, torch.device(setup.device)):
        bare = BareSteps(subject, WARM_UP, memory_format=variant.memory_format, gradients=setup.steps)
        if variant.compiled is not None:
            for each in (bare.trained, bare.attacked):
                each.model = torch.compile(each.model, **variant.compiled)
        bare()
        bare.count = setup.rounds + 1
        limit = bare()
    return {
        "step / bare passes": spread([seconds / limit for seconds in own]),
        **rates(setup, model, variant.precision, statistics.median(own)),
    }


def rates(setup: Setup, model: str, precision_name: str, seconds: float) -> dict[str, Any]:
    """What a step of so many seconds comes to."""
    size = (image_size(setup.small),) * 2
    flops = count_flops(build_model(model, setup.small, "meta"), size)
    of_step = setup.batch_size * (setup.steps * flops.input_gradient + flops.forward + flops.training)
    figures = {"images / s": setup.batch_size / seconds, "TFLOPS": of_step / seconds / 1e12}
    try:
        peak = card_of(setup.card).peak(precision_name)
    except ValueError as error:  # an unknown card, or one without this precision
        return {**figures, "share of the card's peak": str(error)}
    return {**figures, "share of the card's peak": figures["TFLOPS"] / peak}


def card_of(name: str) -> Gpu:
    """The card that CUDA names so.

    Raises:
        ValueError: none of those whose peak is known.

    >>> card_of("NVIDIA A100-SXM4-80GB").name, card_of("NVIDIA H100 PCIe").name
    ('NVIDIA A100', 'NVIDIA H100 PCIe')
    """
    words = name.lower().replace("geforce rtx ", "rtx").replace("-", " ").split()
    if "pcie" in words and "h100" in words:
        return GPUS["h100_pcie"]
    for word in words:
        if word in GPUS:
            return GPUS[word]
    raise ValueError(f"not known for {name}")
