"""Everything between `Trainer` and the attack, under one name; a reader of the attack need not open this folder."""

import os
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback

from hf_robust_ft.attacks import AttackResult, use_memory_format
from hf_robust_ft.attacks.threat_model import readable_eps
from hf_robust_ft.provenance.facts import RunFacts
from hf_robust_ft.provenance.record import environment_facts
from hf_robust_ft.provenance.redacted_command import script_command
from hf_robust_ft.schedules.sample_ids import check_identified
from hf_robust_ft.training.attack_reach import AttackReach
from hf_robust_ft.training.base.batch_sizes import batch_sizes
from hf_robust_ft.training.base.best_model import SelectingTrainer
from hf_robust_ft.training.base.resuming import TrainingRecord, check_resumed, training_settings, with_record
from hf_robust_ft.training.guard import OverfittingGuard
from hf_robust_ft.training.mixing import loss_in_use
from hf_robust_ft.training.objectives import Loss
from hf_robust_ft.training.objectives.awp import WeightPerturbation
from hf_robust_ft.training.objectives.parts import LossParts
from hf_robust_ft.training.objectives.structures import extended, structure_callbacks
from hf_robust_ft.training.objectives.teacher import teacher_of
from hf_robust_ft.training.probed_head import check_starts_from_probe
from hf_robust_ft.training.readable_logs import print_readable_eps
from hf_robust_ft.training.tasks import Task, task_of
from hf_robust_ft.training.warm_start import AttackMemory


class BaseTrainer(SelectingTrainer):
    """`Trainer` as a long, real run under a schedule of eps needs it, whatever is done with the images.

    Its bases, one upon the other: stopped and resumed (`durable`), mended (`upstream_fixes`), tuned
    (`tuning.trainer`), published (`publishing`), the best model chosen (`best_model`). This one speaks with the
    schedule, and tells what a report says of the training.
    """

    weight_perturbation: WeightPerturbation | None = None  # of the training step at hand

    def __init__(self, *args: Any, callbacks: list | None = None, **kwargs: Any):
        loss = loss_in_use(kwargs["args"], kwargs.pop("compute_loss_func", None))
        super().__init__(*args, callbacks=with_record(callbacks or []), compute_loss_func=loss, **kwargs)
        for callback in structure_callbacks(self):
            self.add_callback(callback)
        print_readable_eps(self.callback_handler, self.args.norm)
        if self.model_init is None:
            use_memory_format(self.model, self.args.memory_format_in_use)

    def _extended(self, model: nn.Module, args: Any) -> nn.Module:
        return extended(model, args)

    @property
    def task(self) -> Task:
        """What the model's class says a label is."""
        return task_of(self.model)

    def callback_of(self, kind: type[TrainerCallback]) -> Any:
        """The live callback of a kind, or None. Resuming may rebuild callbacks, so it is looked up each time."""
        return next((entry for entry in self.callback_handler.callbacks if isinstance(entry, kind)), None)

    @property
    def overfitting_guard(self) -> OverfittingGuard | None:
        """The live guard over few-step attacks; None without `attack_guard`."""
        return self.callback_of(OverfittingGuard)

    @property
    def attack_memory(self) -> AttackMemory | None:
        """What the last epoch's attacks found; None without `attack_warm_start`."""
        return self.callback_of(AttackMemory)

    @property
    def training_record(self) -> TrainingRecord:
        """What checkpoints say they were trained with."""
        return self.callback_of(TrainingRecord)

    def describe_position(self) -> str:
        return f"{super().describe_position()} (eps {readable_eps(self.current_eps, self.args.norm)})"

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As `PublishingTrainer.push_to_hub`; a ValueError where the task's models are not published yet."""
        self.task.check_publishing()
        return super().push_to_hub(*args, **kwargs)

    # ---- Training ----------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """As `Trainer.train`; a checkpoint of other settings is refused (`check_resumed`), and so is a run
        that is to start from a probed head and does not (`check_starts_from_probe`)."""
        if resume_from_checkpoint:
            record = self.training_record
            wanted = record.settings | training_settings(self.args, self.train_dataset)
            record.changes = check_resumed(resume_from_checkpoint, wanted, self.args)
        else:
            check_starts_from_probe(self.model, self.args.output_dir, self.args.probe_epochs)
            if self.model_init is None and (teacher := teacher_of(self.model)) is not None:
                teacher.start_from(self.model)  # which may have got a head since it was made
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model = super().call_model_init(trial)
        use_memory_format(model, self.args.memory_format_in_use)
        return model

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> Tensor:
        if self.args.perturbs_at(self.state.global_step, self.scheduler_callback.steps_per_epoch):
            self.weight_perturbation = WeightPerturbation(self.args.awp_gamma, self.accelerator)
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        finally:
            if self.weight_perturbation is not None:
                self.weight_perturbation.restore()
                self.weight_perturbation = None
        scheduler = self.scheduler_callback
        if scheduler.alpha.observes == "loss":
            scheduler.step_loss = scheduler.step_loss + loss
            if self.accelerator.sync_gradients:  # the last batch of an optimizer step
                mean = self.accelerator.gather(scheduler.step_loss).mean().item()
                scheduler.observe(mean, self.state.global_step + 1, self.state.max_steps)
        return loss

    def _save_rng_state(self, output_dir: str) -> None:
        """As `Trainer`'s, what each process needs to go on: what its attacks start from, too."""
        super()._save_rng_state(output_dir)
        if self.attack_memory is not None:
            self.attack_memory.save(output_dir, self.args.process_index, self.args.should_save)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.attack_memory is not None and checkpoint is not None:
            self.attack_memory.load(checkpoint, self.args.process_index, self.args.device)

    # ---- What the schedule says of a batch, and is told of it --------------------------

    def budget(self, inputs: dict[str, Any], ids: Tensor | None) -> float | Tensor | None:
        """The eps of this batch, in pixel units of [0, 1]: of all its images, or of each, (N,); None without an attack.

        Args:
            ids: (N,), the images' own, of a per-sample schedule.
        """
        scheduler = self.scheduler_callback
        if not scheduler.has_own_budgets:
            return scheduler.current_eps or None
        check_identified(ids, inputs)
        budgets = scheduler.eps_of([str(number) for number in ids.tolist()])
        if not any(budgets) and not self.is_fsdp_enabled:  # whose forward waits for every rank, which may have some
            return 0.0  # which costs one forward
        return torch.tensor(budgets, dtype=torch.float64, device=ids.device)

    @property
    def attack_share(self) -> float:
        """The share of the attack steps, in [0, 1], that this step's attack takes."""
        fell_back = self.overfitting_guard is not None and self.overfitting_guard.fell_back
        return 1.0 if fell_back else self.scheduler_callback.current_attack_share

    def tell_schedule(self, ids: Tensor | None, fooled: Tensor) -> None:
        """How the attack on the images of a batch ended decides their next eps, on all processes alike."""
        if self.scheduler_callback.has_own_budgets:
            own = [(str(number), ended) for number, ended in zip(ids.tolist(), fooled.tolist(), strict=True)]
            self.scheduler_callback.record(*zip(*gather_object(own), strict=True))

    # ---- What is noted of a training batch, and logged ----------------------------------

    def note_attack(self, ids: Tensor | None, result: AttackResult) -> None:
        """What the attack on a batch achieved, for its schedule, and for what the loss will show of it."""
        self.tell_schedule(None if ids is None else ids[: len(result.fooled)], result.fooled)
        self.callback_of(AttackReach).found(result)

    def note_loss(self, loss: Loss, labels: Tensor | None) -> None:
        """What the objective made of the batch."""
        self.callback_of(AttackReach).see(loss.outputs, labels, self.args.attack_loss, self.task)
        batches = getattr(self, "current_gradient_accumulation_steps", 1)  # none is known outside of train()
        is_scaled = self.compute_loss_func is not None  # by the user's function, as a rule
        self.callback_of(LossParts).add(loss.parts, 1.0 if is_scaled else 1 / batches)

    def noted(self) -> dict[str, float]:
        """For the log of a loss that is due."""
        return self.callback_of(AttackReach).once() | self.callback_of(LossParts).once()

    # ---- What a report says of the training ---------------------------------------------

    def described_training(self) -> dict[str, Any]:
        """The training's settings, and what came of those that watch it."""
        training = self.scheduler_callback.described(self.args.training_settings())
        if (guard := self.overfitting_guard) is not None:
            training["attack_guard"] = guard.described()
        watching = [each for each in (self.callback_of(AttackReach), self.attack_memory) if each is not None]
        training |= batch_sizes(self) | self.described_weights()
        return training | {name: value for each in watching for name, value in each.described().items()}

    def facts(self) -> RunFacts:
        """What a report says of how the model came about."""
        name = getattr(getattr(self.model, "config", None), "_name_or_path", "")
        data_seed = {} if self.args.data_seed is None else {"data_seed": self.args.data_seed}
        return RunFacts().merged(
            environment_facts(),
            training=self.described_training(),
            seeds={"seed": self.args.seed, **data_seed},
            resumed_with_changes=self.training_record.changes or None,
            command=script_command(),
            base_model=None if os.path.exists(name) else name or None,  # a Hub id, not a folder of this machine
        )
