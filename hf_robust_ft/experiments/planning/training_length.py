"""How long a training is: its optimizer steps and images, and how many of them are attacked."""

import math
from collections import Counter
from dataclasses import dataclass

from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.guard import OverfittingGuard
from hf_robust_ft.training.scheduler import EpsilonSchedulerCallback


@dataclass(frozen=True)
class TrainingLength:
    """Optimizer steps and images of the training; attacked steps are those at eps > 0.

    `attack_steps` has the attacked images by the number of steps they are attacked with. With `at_most`, the schedule
    follows what training measures, and the attacked ones are those of the eps that rises as early as it can.

    `images` and `attacked_images` are visits. Everything else counts an image at a low resolution by its share of the
    pixels: `full_images`, `under_attack` (images of steps at eps > 0), `attack_steps`, `perturbed_images` (by AWP),
    `guarded_images` (attacked once more, with all steps, by the checks of `attack_guard` while it is silent).
    """

    steps_per_epoch: int
    steps: int
    attacked_steps: int
    images: int
    attacked_images: int
    attack_steps: dict[int, float]
    full_images: float
    under_attack: float
    at_most: bool = False
    perturbed_images: float = 0
    guarded_images: float = 0

    @property
    def epochs(self) -> int:
        """Epochs that are begun."""
        return math.ceil(self.steps / self.steps_per_epoch)


def training_length(args: AdversarialTrainingArguments, train_images: int) -> TrainingLength:
    """How long training is, as Trainer counts it, and in how much of it the schedule attacks.

    Raises:
        ValueError: no epochs, or fewer images than one batch, where incomplete batches are dropped.
    """
    batch = args.train_batch_size * args.world_size
    per_epoch = train_images // batch * batch if args.dataloader_drop_last else train_images
    if per_epoch == 0:
        raise ValueError(f"{train_images} images make no batch of {batch}, and dataloader_drop_last drops the rest.")
    per_step = batch * args.gradient_accumulation_steps
    steps_per_epoch = max(math.ceil(math.ceil(per_epoch / batch) / args.gradient_accumulation_steps), 1)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    if steps < 1:
        raise ValueError(f"num_train_epochs must be positive, got {args.num_train_epochs}.")
    scheduler = EpsilonSchedulerCallback.from_args(args)
    scheduler.steps_per_epoch = steps_per_epoch
    images = attacked_images = attacked_steps = full = under_attack = perturbed = guarded = 0
    guard = OverfittingGuard.from_args(args)
    attack_steps: Counter[int] = Counter()
    for step in range(steps):
        count = min(per_step, per_epoch - step % steps_per_epoch * per_step)
        images += count
        share = args.pixel_share_at(scheduler.progress_at(step, steps))
        full += share * count
        if scheduler.may_attack_at(step, steps):
            attacked_steps += 1
            under_attack += share * count
            perturbed += share * count * args.perturbs_at(step, steps_per_epoch)
            attacked = args.attacked_of(count)
            attacked_images += attacked
            guarded += share * guard.images_of(args, count) if guard and guard.is_due(step) else 0
            attack_steps[args.train_attack_at(scheduler.attack_share_at(step, steps)).steps] += share * attacked
        # An accuracy that never rises and a loss of 0 make eps rise at once.
        if scheduler.alpha.observes == "loss" or (scheduler.alpha.observes and (step + 1) % steps_per_epoch == 0):
            scheduler.observe(0.0, step + 1, steps)
    return TrainingLength(
        steps_per_epoch,
        steps,
        attacked_steps,
        images,
        attacked_images=attacked_images,
        attack_steps=dict(attack_steps),
        full_images=full,
        under_attack=under_attack,
        at_most=scheduler.alpha.has_memory,
        perturbed_images=perturbed,
        guarded_images=guarded,
    )
