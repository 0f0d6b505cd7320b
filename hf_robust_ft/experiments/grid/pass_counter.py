"""What a training spent: passes through the model and seconds, counted over interruptions."""

import math
import time
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_robust_ft.attacks.losses import get_loss
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.guard import OverfittingGuard
from hf_robust_ft.training.scheduler import EpsilonSchedulerCallback


class PassCounter(TrainerCallback, ExportableState):
    """Counts images by kind of pass after each optimizer step; `trainer_state.json` keeps the counts.

    An attack of n steps is n passes with the gradient of the pixels and one forward, two if it compares with the clean
    image's answer; a teacher's passes are forwards. At a low resolution an image counts by its share of the pixels: at
    half the height and width a quarter, and a count need not be whole. Under a per-sample schedule a step counts as
    attacked once any image of the dataset has a budget. The step in which a guard falls back counts as before it.

    Args:
        train_images: images of an epoch.
        passes: images so far, `training`, `attack` and `forward`.
        seconds: training time so far.
    """

    def __init__(self, train_images: int, passes: dict[str, float] | None = None, seconds: float = 0.0):
        self.train_images, self.seconds = train_images, seconds
        self.passes = dict(passes or {"training": 0, "attack": 0, "forward": 0})
        self._since: float | None = None
        self._scheduler: EpsilonSchedulerCallback | None = None
        self._guard: OverfittingGuard | None = None

    def state(self) -> dict[str, Any]:
        return {
            "args": {"train_images": self.train_images, "passes": self.passes, "seconds": self.seconds},
            "attributes": {},
        }

    def follow(self, scheduler: EpsilonSchedulerCallback, guard: OverfittingGuard | None = None) -> None:
        """Whose eps and attack steps count, and who may raise these and attacks some images once more."""
        self._scheduler, self._guard = scheduler, guard

    def go_on_from(self, stateful_callbacks: dict[str, Any]) -> None:
        """Take over the counts that a checkpoint's `trainer_state.json` keeps."""
        saved = stateful_callbacks[type(self).__name__]
        saved = saved[0] if isinstance(saved, list) else saved
        self.passes, self.seconds = dict(saved["args"]["passes"]), saved["args"]["seconds"]

    def on_train_begin(self, args, state, control, **kwargs):
        self._since = time.monotonic()

    def on_step_end(self, args: AdversarialTrainingArguments, state, control, **kwargs):
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        visits = self._images(args, state.global_step - 1)
        share = args.pixel_share_at(self._scheduler.progress_at(state.global_step - 1, state.max_steps))
        images = share * visits
        self.passes["training"] += images * args.passes_beside
        if args.passes_beside and (state.global_step - 1) % self._scheduler.steps_per_epoch == 0:
            self.passes["forward"] += self.train_images
        is_attacked = self._scheduler.current_eps > 0
        self.passes["forward"] += images * args.teachers_passes(is_attacked)
        if not is_attacked:
            self.passes["training"] += images
            return
        self.passes["training"] += images * args.passes_under_attack
        if args.perturbs_at(state.global_step - 1, self._scheduler.steps_per_epoch):
            self.passes["training"] += images * args.passes_under_attack
            self.passes["forward"] += images * args.teachers_passes(attacked=True)
        self._add_attacks(args, state.global_step - 1, share, visits)

    def _add_attacks(self, args: AdversarialTrainingArguments, step: int, share: float, visits: int) -> None:
        guard, attacked = self._guard, share * args.attacked_of(visits)
        fell_back = guard is not None and guard.fell_back and guard.fell_back_at < step
        attack = args.train_attack_at(1.0 if fell_back else self._scheduler.current_attack_share)
        self.passes["attack"] += attacked * attack.steps
        self.passes["forward"] += attacked * (1 + get_loss(attack.loss).needs_reference)
        if guard is not None and guard.checked_at == step:
            checked = share * guard.images_of(args, visits)
            self.passes["attack"] += checked * args.train_attack.steps
            self.passes["forward"] += checked

    def _images(self, args: AdversarialTrainingArguments, step: int) -> int:
        """Images of an optimizer step; the last of an epoch may be smaller."""
        per_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        of_epoch = self.train_images
        if args.dataloader_drop_last:
            batch = args.train_batch_size * args.world_size
            of_epoch = of_epoch // batch * batch
        return min(per_step, of_epoch - step % math.ceil(of_epoch / per_step) * per_step)
