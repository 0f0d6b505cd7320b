"""A run's plan: what it would train on, how often images pass through the model, and how long that takes."""

import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_robust_ft.data import SPECS
from hf_robust_ft.experiments.planning.architecture import bare_model, bare_segmenter
from hf_robust_ft.experiments.planning.arguments import PlanArguments
from hf_robust_ft.experiments.planning.dataset import ASSUMED_CLASSES, planned_dataset, shown_name
from hf_robust_ft.experiments.planning.flops import PassFlops, count_flops
from hf_robust_ft.experiments.planning.gpus import get_gpu
from hf_robust_ft.experiments.planning.offline import offline
from hf_robust_ft.experiments.planning.passes import OF_IMAGES, Phase, phases
from hf_robust_ft.experiments.planning.probing import head_training_flops, probe_phases
from hf_robust_ft.experiments.planning.segmentation_passes import OF_MASKS
from hf_robust_ft.experiments.planning.training_length import TrainingLength, training_length
from hf_robust_ft.provenance.affects import MEASUREMENT, settings, stated_settings
from hf_robust_ft.runs.arguments import DataArguments, ModelArguments
from hf_robust_ft.runs.fine_tune import check_stream, check_warm_start
from hf_robust_ft.runs.task_arguments import SEGMENTATION
from hf_robust_ft.runs.tasks import TASKS
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.objectives.structures import extended
from hf_robust_ft.training.tuning.adapting import adapted

ASSUMPTIONS = (
    "FLOPs: torch's counter, a multiply-add is 2; normalisation, activations, the optimizer and image loading are not "
    "counted",
    "'at most': a true upper bound, as if each image stood to the last attack and every attack took all its steps; an "
    "image that is fooled is not attacked again",
)
EARLIEST = "the schedule follows what training measures: eps is taken to rise as early as it can"
IN_PIXELS = "passes at a low resolution are counted by their share of the pixels, and so are their FLOPs"


@dataclass(frozen=True)
class Plan:
    """What `--dry_run` tells.

    Args:
        model: `name`, `checkpoint`, `input_size`, `parameters`, `trained_parameters`, `origin` of the architecture.
        dataset: `name`, `classes`, `sizes` of the splits as used, `origin` of these.
        configuration: every setting of the run that matters.
        training: optimizer steps and images, and those at eps > 0.
        flops_per_image: of a pass of each kind.
        probe_flops_per_image: where the head alone is trained; None where it nowhere is so first.
        phases: the parts of the run.
        gpu: `name`, `precision`, `peak_tflops` and their `source`, `utilisation`.
        assumptions: what else the figures rest on.
    """

    model: dict[str, Any]
    dataset: dict[str, Any]
    configuration: dict[str, Any]
    training: TrainingLength
    flops_per_image: PassFlops
    phases: list[Phase]
    gpu: dict[str, Any]
    assumptions: list[str]
    probe_flops_per_image: PassFlops | None = None

    def flops(self, phase: Phase | None = None) -> int:
        """FLOPs of one part, or of the whole run."""
        if phase is None:
            return sum(self.flops(each) for each in self.phases)
        per_image = self.probe_flops_per_image if phase.head_alone else self.flops_per_image
        return sum(
            getattr(phase, kind) * getattr(per_image, kind) for kind in ("forward", "input_gradient", "training")
        )

    def hours(self, flops: int) -> float:
        """Estimated hours of one GPU."""
        return flops / (self.gpu["peak_tflops"] * 1e12 * self.gpu["utilisation"]) / 3600

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the fields, and for each phase and in all its `flops` and `gpu_hours`."""
        content = dataclasses.asdict(self)
        for entry, phase in zip(content["phases"], self.phases, strict=True):
            entry |= {"flops": self.flops(phase), "gpu_hours": self.hours(self.flops(phase))}
        return {**content, "flops": self.flops(), "gpu_hours": self.hours(self.flops())}

    def to_json(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        model, data, length, gpu = self.model, self.dataset, self.training, self.gpu
        sizes = ", ".join(f"{name} {count}" for name, count in data["sizes"].items())
        per_image = {kind: count / 1e9 for kind, count in dataclasses.asdict(self.flops_per_image).items()}
        lines = [
            "Plan: nothing is trained, the network is not used.",
            f"  model      {_renamed(model['name'], model['checkpoint'])}",
            f"             {' x '.join(map(str, model['input_size']))} pixels, {model['parameters'] / 1e6:.1f} M "
            f"parameters, {model['trained_parameters'] / 1e6:.1f} M of them trained (from {model['origin']})",
            f"  dataset    {_renamed(data['name'], data['source'])}",
            f"             {data['classes']} classes; images: {sizes} (from {data['origin']})",
            f"  training   {length.epochs} epochs of {length.steps_per_epoch} steps, {length.steps} steps in all; "
            f"eps > 0 in {'at most ' if length.at_most else ''}{length.attacked_steps} of them",
            "",
            "Configuration",
            *(f"  {name:<28} {value}" for name, value in self.configuration.items()),
            "",
            f"{'Passes, in images':<54}{'forward':>14} {'input gradient':>15} {'training step':>14} {'PFLOPs':>10} "
            f"{'GPU hours':>10}",
            *(self._row(phase) for phase in self.phases),
            f"  {'together':<98} {self.flops() / 1e15:>10.3g} {hours_text(self.hours(self.flops())):>10}",
            "",
            f"GFLOPs an image: forward {per_image['forward']:.2f}, input gradient {per_image['input_gradient']:.2f}, "
            f"training step {per_image['training']:.2f}.",
            f"GPU hours: {gpu['name']}, {gpu['precision']}, peak {gpu['peak_tflops']:g} TFLOPS ({gpu['source']}).",
            f"{gpu['utilisation']:.0%} of the peak are assumed to be reached (--utilisation): measure a few steps.",
            *(f"{sentence[0].upper()}{sentence[1:]}." for sentence in self.assumptions),
        ]
        return "\n".join(lines)

    def _row(self, phase: Phase) -> str:
        counts = f"{phase.forward:>14,} {phase.input_gradient:>15,} {phase.training:>14,}"
        name = phase.name + (", at most" if phase.at_most else "")
        flops = self.flops(phase)
        return f"  {name:<52} {counts} {flops / 1e15:>10.3g} {hours_text(self.hours(flops)):>10}"


def hours_text(hours: float) -> str:
    """GPU hours as a table has them.

    >>> hours_text(4.01e-06), hours_text(0.0), hours_text(12.345)
    ('<0.01', '0', '12.3')
    """
    return "<0.01" if 0 < hours < 0.01 else f"{hours:.3g}"


def plan_run(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: AdversarialTrainingArguments,
    plan_args: PlanArguments,
    attacked_test: bool | None = None,
) -> Plan:
    """Plan what `fine_tune` would do with the same arguments. The network is not used.

    Args:
        attacked_test: whether the test split is attacked in the end; by default as `robust_eval` says.

    Raises:
        ValueError: a dataset or model that is neither known, local nor cached, with what to give instead; or what
            `fine_tune` would refuse at its start.
    """
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "tf32" if args.tf32 else "fp32"
    gpu = get_gpu(plan_args.gpu)
    peak = gpu.peak(precision)
    if data_args.streaming:
        check_stream(args)
    check_warm_start(model_args, args)
    with offline():
        data_args.refuse_other_tasks("--dry_run", model_args.model, data_args.dataset, SEGMENTATION)
        task = TASKS[data_args.settle_task(model_args.model, data_args.dataset, model_args.model_revision)]
        task.check(model_args, data_args)
        args = copy.copy(args)
        task.settle(args)
        has_masks = task.name == SEGMENTATION
        dataset = planned_dataset(task, model_args, data_args, plan_args.samples)
        of_classifier = {} if has_masks else {"architecture": model_args.architecture}
        bare = (bare_segmenter if has_masks else bare_model)(
            model_args.model,
            dataset["classes"],
            image_size=model_args.image_size,
            revision=model_args.model_revision,
            trust_remote_code=model_args.trust_remote_code,
            **of_classifier,
        )
        of_head = head_training_flops(copy.deepcopy(bare.model), args, bare.input_size) if args.probe_epochs else None
        model = adapted(bare.model, args)
        extended(copy.deepcopy(model), args)  # for what a method refuses of the architecture
    length = training_length(args, dataset["sizes"]["train"])
    parameters = [(entry.numel(), entry.requires_grad) for entry in model.parameters()]
    return Plan(
        model={
            "name": shown_name(model_args.model),
            "checkpoint": shown_name(bare.model_id),
            "input_size": bare.input_size,
            "parameters": sum(count for count, _ in parameters),
            "trained_parameters": sum(count for count, trained in parameters if trained),
            "origin": bare.origin,
        },
        dataset=dataset,
        configuration=configuration(model_args, data_args, args),
        training=length,
        flops_per_image=count_flops(model, bare.input_size),
        phases=[
            *probe_phases(args, dataset["sizes"], dataset["classes"]),
            *phases(
                args,
                length,
                dataset["sizes"],
                dataset["classes"],
                OF_MASKS if has_masks else OF_IMAGES,
                attacked_test,
            ),
        ],
        probe_flops_per_image=of_head,
        gpu={
            "name": gpu.name,
            "precision": precision,
            "peak_tflops": peak,
            "source": gpu.source,
            "utilisation": plan_args.utilisation,
        },
        assumptions=[
            *ASSUMPTIONS,
            *([EARLIEST] if length.at_most else []),
            *([IN_PIXELS] if args.low_resolution < 1 else []),
            *_assumptions(data_args, args, precision, dataset),
        ],
    )


def configuration(
    model_args: ModelArguments, data_args: DataArguments, args: AdversarialTrainingArguments
) -> dict[str, Any]:
    """The settings of a run that its report records, and those that name its files."""
    own = settings(model_args, data_args)
    if data_args.dataset in SPECS:  # its splits follow from the spec
        own |= {"validation_size": None, "test_size": None}
    found = {
        **{name: value for name, value in own.items() if value is not None},
        **args.training_settings(),
        **stated_settings(args, MEASUREMENT),
        "output_dir": args.output_dir,
    }
    return {name: shown_name(value) if isinstance(value, str) else value for name, value in found.items()}


def _assumptions(
    data_args: DataArguments, args: AdversarialTrainingArguments, precision: str, dataset: dict[str, Any]
) -> list[str]:
    found = []
    if data_args.skip_bad_images:
        found.append("images that cannot be decoded are counted, though they would be skipped")
    if dataset["classes_assumed"]:
        found.append(f"a head of {ASSUMED_CLASSES} classes is assumed")
    if precision == "fp32":
        found.append("in fp32, PyTorch runs convolutions in TF32 where the device can: convolutional nets are faster")
    if args.gradient_checkpointing:
        found.append("what gradient checkpointing computes again is not counted")
    return found


def _renamed(name: str, target: str) -> str:
    return name if name == target else f"{name} = {target}"
