"""The attack on training batches, with what it needs around it; no Trainer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_robust_ft.attacks import APGD, AttackResult, attack_mode
from hf_robust_ft.attacks.batch_checks import check_batch, check_first_batch
from hf_robust_ft.attacks.losses import get_loss
from hf_robust_ft.attacks.pixels import PixelModel, PixelSpace
from hf_robust_ft.attacks.precision import GradientReport, check_input_precision
from hf_robust_ft.attacks.random_state import KeyedGenerator, random_state_kept
from hf_robust_ft.attacks.rehearsal import stated_classes
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.batches import first_images
from hf_robust_ft.schedules.sample_ids import SAMPLE_ID
from hf_robust_ft.training.objectives.teacher import with_features
from hf_robust_ft.training.tasks import CLASSIFICATION, Task
from hf_robust_ft.training.warm_start import AttackMemory


class Adversary:
    """Finds adversarial images for batches `{"pixel_values": (N, C, H, W), "labels": (N,) or (N, H, W), ...}`.

    Of a detector, labels are N dicts of boxes.

    >>> batch = {"pixel_values": torch.full((2, 3, 4, 4), 0.5), "labels": torch.tensor([0, 1])}
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    >>> adversary = Adversary(PixelSpace(mean=(0.0,) * 3, std=(1.0,) * 3))
    >>> result = adversary.attack(model, batch, ThreatModel("Linf", "8/255"), eps=4 / 255, attack=APGD(steps=2))
    >>> moved = adversary.exchange(batch, result)["pixel_values"] - batch["pixel_values"]
    >>> bool((moved.abs() <= 4 / 255 + 1e-6).all())
    True

    Every call takes the model itself, unwrapped: through DDP's wrapper a second forward would disturb the
    synchronisation of gradients. Model and threat model may change between calls, as in a hyper-parameter search.

    Args:
        pixel_space: the normalisation of `pixel_values`.
        label_names: entries of a batch, beside its images, that are not for the model.
        compiled: makes of the model what training attacks run through.
        is_sharded: by FSDP, whose parameters cannot be frozen while an attack runs.
        task: what a label is, and how a model of pixels answers for it.

    Attributes:
        is_ready: whether `check` has seen a batch. Before, nothing is compiled or measured.
        gradients: what was lost of the attack's gradients to precision.
    """

    def __init__(
        self,
        pixel_space: PixelSpace,
        label_names: Sequence[str] = ("labels",),
        compiled: Callable[[nn.Module], nn.Module] = lambda model: model,
        *,
        is_sharded: bool = False,
        task: Task = CLASSIFICATION,
    ):
        self.pixel_space, self.is_sharded, self.task = pixel_space, is_sharded, task
        self.is_ready = False
        self.gradients = GradientReport()
        self._own_names = ("pixel_values", SAMPLE_ID, *label_names)
        self._random_starts = KeyedGenerator()
        self._compile = compiled
        self._compiled: tuple[nn.Module, nn.Module] | None = None  # a model, and what attacks on it run through
        self._rehearsed: tuple[nn.Module | None, int | None, bool] = None, None, False

    # ---- Before the first attack -----------------------------------------------------

    def num_labels(self, model: nn.Module) -> int | None:
        """K: the width of the logits once there were any; before, what the config says, if a weight has that size."""
        known, count, _ = self._rehearsed
        return count if known is model else stated_classes(model)

    def rehearse(self, model: nn.Module, inputs: Mapping[str, Any], attacked: bool) -> None:
        """Learn K from two images and, where the model is to be attacked, that attacks find a gradient; once a model.

        Raises:
            ValueError: a batch an attack cannot work on, a single class, or no gradient.
        """
        known, _, has_gradient = self._rehearsed
        if known is model and (not attacked or (has_gradient and not torch.is_inference_mode_enabled())):
            return
        check_batch(inputs, self.pixel_space, labels=self.task.label_check)
        few = first_images(inputs, 2)
        pixels = self.pixel_space.clipped_pixels(few["pixel_values"])
        with random_state_kept(), self.mode(model):
            count = self.task.count_classes(self.classifier(model, few), pixels, attacked)
        self._rehearsed = model, count, attacked

    def check(self, model: nn.Module, inputs: Mapping[str, Any], threat_model: ThreatModel) -> None:
        """Check on the first batch what attacks need, not when the schedule first raises eps hours later.

        Raises:
            ValueError: what `check_first_batch`, `rehearse` and `check_input_precision` refuse.
        """
        right = self.task.label_check
        check_first_batch(inputs, self.pixel_space, self.num_labels(model), labels=right)
        self.rehearse(model, inputs, attacked=threat_model.eps > 0)
        check_batch(inputs, self.pixel_space, self.num_labels(model), labels=right)  # again, now that K is known
        self.task.check_first(model, inputs)
        check_input_precision(inputs["pixel_values"], self.pixel_space, threat_model)
        if threat_model.eps > 0:
            one_step = APGD(steps=1, random_start=False, loss=self.task.cross_entropy)
            self.attack(model, inputs, threat_model, eps=threat_model.eps, attack=one_step, first=2)
        self.is_ready = True

    # ---- The attack --------------------------------------------------------------------

    def mode(self, model: nn.Module):
        """`attack_mode`: evaluation mode, and nothing of the model's state touched."""
        return attack_mode(model, freeze=not self.is_sharded)

    def classifier(self, model: nn.Module, inputs: Mapping[str, Any]) -> PixelModel:
        """What is attacked: the model of pixels, given everything of the batch but its images and labels."""
        others = {key: value for key, value in inputs.items() if key not in self._own_names}
        return self.task.on_pixels(model, self.pixel_space, inputs.get("labels"), others)

    def attack(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        threat_model: ThreatModel,
        *,
        eps: float | Tensor,
        attack: APGD,
        key: tuple[int, ...] = (0,),
        first: int | None = None,
        memory: AttackMemory | None = None,
    ) -> AttackResult:
        """Attack the batch's images inside the balls of eps around them, with no data-dependent host sync.

        Args:
            threat_model: its norm counts.
            eps: in pixel units of [0, 1], of all images or of each, (N,).
            key: whole numbers that random starts depend on, and on nothing else that draws random numbers.
            first: attack only so many of the images.
            memory: start from what it has of the images, and let it keep what is found.
        """
        if first is not None and first < len(inputs["pixel_values"]):
            inputs, eps = first_images(inputs, first), eps[:first] if isinstance(eps, Tensor) else eps
        pixels = self.pixel_space.clipped_pixels(inputs["pixel_values"])
        with self.mode(model):
            classifier = self.classifier(self.in_use(model), inputs)
            logits_fn = self.gradients.metered(classifier) if self.is_ready else classifier
            if get_loss(attack.loss).of_features:
                batch = {"pixel_values": inputs["pixel_values"], **classifier.model_inputs}
                logits_fn = with_features(logits_fn, model, batch)
            result = attack(
                logits_fn,
                pixels,
                self.task.attack_labels(inputs["labels"]),
                threat_model,
                eps=eps,
                start=None if memory is None else memory.start(pixels, eps),
                generator=self._random_starts.at(pixels.device, *key) if attack.random_start else None,
            )
        if memory is not None:
            memory.keep(pixels, result.adversarial, eps)
        return result

    def exchange(self, inputs: Mapping[str, Any], result: AttackResult) -> dict[str, Any]:
        """The batch with the images found in place of its first ones, normalised again and in its dtype."""
        own = inputs["pixel_values"]
        adversarial = self.pixel_space.from_pixels(result.adversarial).to(own.dtype)
        others = own[len(adversarial) :]
        return {**inputs, "pixel_values": torch.cat([adversarial, others]) if len(others) else adversarial}

    def in_use(self, model: nn.Module) -> nn.Module:
        """What passes go through beside the wrapped model: it, compiled; but not for the images before `is_ready`."""
        if not self.is_ready:
            return model
        if self._compiled is None or self._compiled[0] is not model:
            self._compiled = model, self._compile(model)
        return self._compiled[1]
