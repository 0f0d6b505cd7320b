"""`transformers.Trainer` whose runs survive faults of machine, disk and numbers; nothing adversarial here."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import rotate_checkpoints

from hf_robust_ft.provenance.redacted_command import resuming_command
from hf_robust_ft.training.base import checkpoints
from hf_robust_ft.training.base.divergence import DivergenceWatch, Step, told_ids, write_batch
from hf_robust_ft.training.base.storage_errors import explain_storage_error
from hf_robust_ft.training.base.termination import Interrupted, Terminated, TerminationCallback
from hf_robust_ft.training.base.worker_faults import explain_worker_death, shield_workers

logger = logging.getLogger(__name__)


class DurableTrainer(Trainer):
    """`Trainer` that can be stopped at any moment and go on from its last checkpoint.

    - A checkpoint gets its name when it is complete, and only then older ones are deleted (`checkpoints`);
      `resume_from_checkpoint=True` takes the newest complete one.
    - SIGTERM saves a checkpoint and ends the process with exit code 143, Ctrl-C with 130 (`termination`).
    - A NaN or infinite loss or gradient stops training, and the batch is written to `output_dir`
      (`divergence`). Overflows that a GradScaler handles do not count.
    - A data-loading process that dies, and a disk that is full, are errors that say how to go on.

    Raises:
        Terminated: SIGTERM came, or Ctrl-C (`Interrupted`, also a KeyboardInterrupt).
        FloatingPointError: a loss or gradient is NaN or infinite.
        ChildProcessError: a data-loading process died.
        OSError: a checkpoint or the model cannot be written.
        ValueError: there is no complete checkpoint to resume from, the processes found different ones, or
            `enable_jit_checkpoint` is set.
    """

    def __init__(self, *args: Any, callbacks: list | None = None, **kwargs: Any):
        self._termination = TerminationCallback()
        self._is_saving = False
        self._saved_at = -1  # step of the last checkpoint
        super().__init__(*args, callbacks=[self._termination, *(callbacks or [])], **kwargs)
        if self.args.enable_jit_checkpoint:
            raise ValueError(f"{type(self).__name__} saves on SIGTERM by itself: leave enable_jit_checkpoint out.")
        # It hides what DivergenceWatch stops at, and reads every loss for that, which waits for the device.
        self.args.logging_nan_inf_filter = False
        self._watch = self._new_watch()

    def describe_position(self) -> str:
        """Where training stands, for messages."""
        return f"step {self.state.global_step}"

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        if self.is_local_process_zero():
            checkpoints.clear_leftovers(self.args.output_dir)
        self._of_all(None)  # before another process looks
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        self._watch, self._saved_at = self._new_watch(), -1
        with explain_worker_death(self._last_checkpoint), self._termination.listening(self.args.ddp_timeout_delta):
            return super().train(checkpoint, *args, **kwargs)

    # ---- Resuming ----------------------------------------------------------------

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> str | None:
        output_dir = self.args.output_dir
        if wanted is True:
            found = checkpoints.newest_complete(output_dir, tells=self.is_world_process_zero())
            if found is None:
                raise ValueError(f"There is no checkpoint to resume from in {output_dir}, or none that is complete.")
        else:
            found = wanted or None
            fault = None if found is None else checkpoints.fault_of(found)
            if fault is not None:
                other = checkpoints.newest_complete(output_dir, tells=False)
                instead = f"The newest complete one is {other}." if other else f"{output_dir} holds no complete one."
                raise ValueError(f"{found} is no complete checkpoint: {fault}. {instead}")
        names = self._of_all(None if found is None else Path(found).name)
        if len(set(names)) > 1:
            raise ValueError(
                f"The processes would resume from different checkpoints: {names}. Each node must see the same ones: "
                "let output_dir be on a shared disk, or copy the checkpoint to all nodes and name it."
            )
        return found

    def _last_checkpoint(self) -> str:
        last = checkpoints.newest_complete(self.args.output_dir, tells=False)
        if last is None:
            return "There is no checkpoint to go on from yet."
        return f"The last checkpoint is {last}. Go on from it: {resuming_command()}"

    def _of_all(self, own: Any) -> list[Any]:
        """Everyone's `own`, by process."""
        return gather_object([own]) if self.args.world_size > 1 else [own]

    # ---- Saving ------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, checkpoints.STAGING) if self._is_saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._stop_if_diverged(self._watch.settle())
        run_dir, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        staged, final = run_dir / checkpoints.STAGING / name, run_dir / name
        with self._all_or_none(staged):
            self._write_staged(model, trial, staged, final)
        with self._all_or_none(staged):
            if self.is_local_process_zero():
                checkpoints.flush_to_disk(staged)
                checkpoints.move_into_place(staged, final)
        self._saved_at = self.state.global_step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            rotate_checkpoints(
                str(run_dir), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
            )

    def _write_staged(self, model: nn.Module, trial: Any, staged: Path, final: Path) -> None:
        """Let Trainer write a checkpoint to `staged`, without what it does once one is there."""
        if self.args.world_size == 1:
            shutil.rmtree(staged, ignore_errors=True)
        best, pushes, limit = self.state.best_global_step, self.args.push_to_hub, self.args.save_total_limit
        only_model = self.args.save_only_model
        # With a best step, Trainer lets the processes wait for each other where one may have failed to write.
        self.state.best_global_step, self.args.push_to_hub, self.args.save_total_limit = None, False, None
        self.args.save_only_model = only_model and not self._termination.ends_now  # what is stopped is to go on
        self._is_saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_saving = False
            self.args.save_only_model = only_model
            self.state.best_global_step, self.args.push_to_hub, self.args.save_total_limit = best, pushes, limit
        if best:
            best_checkpoint = final.with_name(f"checkpoint-{best}")
            if best_checkpoint == final or best_checkpoint.is_dir():
                self.state.best_model_checkpoint = str(best_checkpoint)
            if self.args.should_save:
                self.state.save_to_json(str(staged / checkpoints.STATE))

    @contextmanager
    def _all_or_none(self, staged: Path) -> Iterator[None]:
        """A part of saving that fails on all processes if on one, and leaves no half of a checkpoint then."""
        failure = None
        try:
            yield
        except Exception as error:
            failure = error
        failures = self._of_all(None if failure is None else f"{type(failure).__name__}: {failure}")
        if not any(failures):
            return
        if self.is_local_process_zero():
            shutil.rmtree(staged, ignore_errors=True)
            checkpoints.remove_if_empty(staged.parent)
        if failure is None:
            rank = next(rank for rank, other in enumerate(failures) if other)
            raise OSError(f"Process {rank} could not save {staged.name}: {failures[rank]}")
        reason = explain_storage_error(failure, staged)
        if reason is None:
            raise failure
        raise OSError(
            f"{staged.name} could not be written to {staged.parent.parent}, and no part of it is left: {reason} Make "
            f"room. {self._last_checkpoint()}"
        ) from failure

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        try:
            super().save_model(output_dir, _internal_call)
        except Exception as error:
            folder = Path(output_dir or self.args.output_dir)
            reason = explain_storage_error(error, folder)
            if self._is_saving or reason is None:
                raise
            for path in folder.glob("*.safetensors") if self.args.should_save else ():
                if checkpoints.is_cut_off(path):
                    path.unlink()
            raise OSError(
                f"The model could not be written to {folder}: {reason} Make room. {self._last_checkpoint()}"
            ) from error

    # ---- SIGTERM and Ctrl-C -----------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._termination.ends_now and self._saved_at == self.state.global_step:
            self._terminate()

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any):
        self._stop_if_diverged(self._watch.settle())
        if self._termination.came_to_any():  # too late for a step to see
            self._termination.ends_now = True
            if self._saved_at != self.state.global_step:
                self._save_checkpoint(self.model_wrapped, trial)
            self._terminate()
        return super()._finalize_training(trial, *args, **kwargs)

    def _terminate(self) -> None:
        kind = Interrupted if self._termination.signal == Interrupted.number else Terminated
        message = (
            f"{kind.signal_name}: stopped after step {self.state.global_step} of {self.state.max_steps}, which is "
            f"saved. Go on: {resuming_command()}"
        )
        if self.is_world_process_zero():
            logger.warning(message)
        raise kind(message)

    # ---- Data loading ------------------------------------------------------------

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        return shield_workers(super()._get_dataloader(*args, **kwargs))

    # ---- Losses and gradients that are not finite ----------------------------------

    def _new_watch(self) -> DivergenceWatch:
        scales = self.accelerator.scaler is not None or (self.is_deepspeed_enabled and self.args.fp16)
        return DivergenceWatch(is_scaled=scales)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.is_in_train:
            self._watch.add_batch(inputs, loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None):
        norm = super()._get_grad_norm(model, grad_norm)
        self._stop_if_diverged(self._watch.end_step(self.state.global_step, self.describe_position(), norm))
        return norm

    def _stop_if_diverged(self, step: Step | None) -> None:
        """Keep what shows the fault of a step that went wrong, and raise on all processes.

        Raises:
            FloatingPointError: `step` is not None.
        """
        if step is None:
            return
        bad = step.bad_batches()
        # Averaged gradients are NaN on all processes or on none; a loss that left them finite is of this one alone.
        is_everywhere = not torch.isfinite(step.values[-1])
        all_bad = self._of_all(bad) if is_everywhere else [bad]
        told = f"gradient's norm is {step.gradient_norm}" if not bad else f"loss is {step.values[bad[0]].item()}"
        if not bad and any(all_bad):
            rank = next(rank for rank, other in enumerate(all_bad) if other)
            raise FloatingPointError(f"The loss of process {rank} is NaN or infinite after {step.position}.")
        is_first = next((rank for rank, other in enumerate(all_bad) if other), 0) == self.args.process_index
        moment = "before the weights change" if step.event is None else "a step later, as GPUs are not waited for"
        kept = self._keep_step(step, bad, with_model=is_first or not is_everywhere)
        raise FloatingPointError(
            f"The {told} after {step.position}; stopped {moment}. {kept} {self._last_checkpoint()} Lower the learning "
            "rate, or train in bf16 or fp32."
        )

    def _keep_step(self, step: Step, bad: list[int], with_model: bool) -> str:
        """Write the bad batches of a step, all where none is known to be; a sentence that tells where they are."""
        folder = Path(self.args.output_dir) / f"diverged-step{step.number + 1}"
        try:
            kept = [self._keep_batch(folder, step, index) for index in bad or range(len(step.batches))]
            with_model = with_model and step.event is None and self._holds_numbers()
            if with_model:
                self.model.save_pretrained(folder)
        except (OSError, SafetensorError) as error:
            return f"Its batch could not be written to {folder} ({error})."
        told = f"Its batch is in {'; '.join(kept)}, for safetensors.torch.load_file"
        return told + (f"; the weights it met are in {folder}, for from_pretrained." if with_model else ".")

    def _holds_numbers(self) -> bool:
        """Whether the model is one that this process can save, and none of its weights is NaN or infinite."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or not isinstance(self.model, PreTrainedModel):
            return False
        return all(torch.isfinite(weight).all() for weight in self.model.parameters())

    def _keep_batch(self, folder: Path, step: Step, index: int) -> str:
        """Write one batch; its file and which images it holds."""
        loader, accumulated = self.callback_handler.train_dataloader, self.args.gradient_accumulation_steps
        try:
            epoch, place = divmod(step.number, max(-(-len(loader) // accumulated), 1))
        except TypeError:  # a stream
            epoch, place = 0, step.number
        ids = told_ids(step.batches[index], loader, epoch, place * accumulated + index)
        path = folder / f"batch{index}-rank{self.args.process_index}.safetensors"
        facts = {
            "position": step.position,
            "loss": step.values[index].item(),
            "gradient_norm": step.gradient_norm,
            "images": ids,
        }
        write_batch(path, step.batches[index], facts)
        return f"{path} ({ids})"
