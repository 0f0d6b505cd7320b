"""`TuningTrainer` that publishes a checkpoint with the evidence of its robustness; nothing adversarial here."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers.trainer_utils import HubStrategy

from hf_robust_ft.hub import create_repository, publish
from hf_robust_ft.models import describe_source
from hf_robust_ft.provenance.record import RECIPE_NAME, resolved_recipe, write_run_record
from hf_robust_ft.provenance.tensor_hashes import hash_model
from hf_robust_ft.provenance.weight_hashes import hash_weight_files
from hf_robust_ft.reporting import write_evidence
from hf_robust_ft.reporting.licences import check_licence
from hf_robust_ft.reporting.report_files import Report
from hf_robust_ft.training.base.background_pushes import BackgroundPushing

logger = logging.getLogger(__name__)


class PublishingTrainer(BackgroundPushing):
    """`TuningTrainer` whose `push_to_hub` uploads what `hf_robust_ft.hub.publish` allows, and verifies it.

    - `save_model` only saves: with `args.push_to_hub`, Trainer would push there what was not measured yet.
    - Pushes in the background (`hub_strategy`) are waited for when training ends, and their failures raised then.
    - Of a `PeftModel` the merged classifier is published, by `push_to_hub`; its adapters are not pushed on the way.
    - A report goes with the weights it was measured on, or not at all.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.robustness_report: Report | None = None
        self._write_examples: Callable[[str], Any] = lambda folder: None  # pictures of attacked images
        self._measured: str | None = None  # which weights `robustness_report` is of
        self._saved: str | None = None  # which weights lie in `output_dir`
        super().__init__(*args, **kwargs)

    # ---- Evidence ----------------------------------------------------------------

    def _keep_report(self, report: Report, write_examples: Callable[[str], Any]) -> None:
        self.robustness_report, self._measured = report, self._weights_now()
        self._write_examples = write_examples

    def _weights_now(self) -> str | None:
        """What tells these weights from others; None where they are not the ones that `save_model` writes."""
        if self.weight_averaging is not None and self.args.ema_use == "eval":
            return None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # no process has them all
            return f"step {self.state.global_step}"
        with self._averages(wanted_for=("save",)):
            return hash_model(self.model)

    def save_evidence(self) -> None:
        """Write report, pictures and card beside the checkpoint in `output_dir`, and what the run was made with.

        The report gets the checksums of the checkpoint's weights, if it was measured on them.
        """
        if not self.is_world_process_zero() or self.robustness_report is None:
            return
        folder = self.args.output_dir
        hashes = hash_weight_files(folder) if self._measured and self._measured == self._saved else None
        self.robustness_report = self.robustness_report.with_metadata(weights_sha256=hashes)
        with self._averages(wanted_for=("eval", "save")):
            examples = partial(self._write_examples, folder)
            write_evidence(self.robustness_report, folder, self.state.log_history, examples=examples)
        recipe = None if (Path(folder) / RECIPE_NAME).is_file() else resolved_recipe(self.args)
        write_run_record(folder, recipe, self.robustness_report.metadata)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the robustness report, its pictures and a card with them, once a robust evaluation has run.

        Before, the card is Trainer's own. Of Trainer's arguments, `tasks` and `dataset_args` have no place in ours;
        of several datasets the first is named.

        Raises:
            ValueError: a licence that the Hub does not list.
        """
        if self.robustness_report is None:
            return super().create_model_card(
                language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args
            )
        if license is not None:
            check_licence(license)
        facts = {
            "language": language,
            "license": license,
            "tags": tags,
            "model_name": model_name,
            **(describe_source(finetuned_from, by_short_name=False) if finetuned_from else {}),
            "dataset": _first(dataset_tags),
            "dataset_name": _first(dataset),
            "dataset_on_hub": bool(dataset_tags),
        }
        facts = {name: value for name, value in facts.items() if value}
        if facts.get("dataset", known := self.robustness_report.metadata.dataset) != known:
            facts |= {"dataset_commit": None, "dataset_config": None}  # of the one that was loaded
        self.robustness_report = self.robustness_report.with_metadata(**facts)
        self.save_evidence()

    # ---- Publishing --------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        pushes = self.args.push_to_hub
        if pushes and not _internal_call:
            logger.info("Saving does not push: push_to_hub() publishes the checkpoint with its evaluation.")
            self.args.push_to_hub = False
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            self.args.push_to_hub = pushes
        if output_dir is None or (not _internal_call and Path(output_dir) == Path(self.args.output_dir)):
            self._saved = self._weights_now()

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, or find it; what is wrong with name, token or rights shows before training.

        Raises:
            PublishError: the Hub refuses, or cannot be reached.
        """
        if not self.is_world_process_zero():
            return
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            logger.warning(
                "hub_strategy=%s also pushes optimizer and random state (pickles), to resume from; push_to_hub() takes "
                "them out of the branch, not out of its history. every_save pushes the model alone.",
                self.args.hub_strategy.value,
            )
        elif self.args.hub_strategy == HubStrategy.EVERY_SAVE and hasattr(self.model, "peft_config"):
            logger.warning("Adapters are not pushed on the way: push_to_hub() publishes the merged classifier.")
        self.hub_model_id = create_repository(
            self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
            token=token if token is not None else self.args.hub_token,
            private=private if private is not None else self.args.hub_private_repo,
        )
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> "CommitInfo | Future[CommitInfo] | None":
        """Save, write report and card, publish them with `hf_robust_ft.hub.publish`, and verify what arrived.

        What was never measured is measured first (`evaluate()`), so that scripts written for Trainer run to their last
        line; like Trainer's, the call is every process's.

        Args:
            blocking: False publishes in the background; the future's `result()` raises what went wrong.
            kwargs: passed to `create_model_card`.

        Returns:
            The verified commit, or its future; None on other processes than the first.

        Raises:
            ValueError: no robust evaluation and nothing to make one with, or one of other weights than these.
            PublishError: what could not be pushed. All of it is in `output_dir`, and the message ends with the command
                that goes on.
        """
        token = token if token is not None else self.args.hub_token
        private = private if private is not None else self.args.hub_private_repo
        if self.robustness_report is None and self.eval_dataset is not None and self.args.robust_eval != "no":
            if self.hub_model_id is None:  # what is wrong with name, token or rights shows before the evaluation
                self.init_hf_repo(token=token, private=private)
            logger.warning("push_to_hub: nothing was measured yet, so trainer.evaluate() runs first.")
            self.evaluate()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._check_report()
        self._finish_current_push()
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        if self.robustness_report.metadata.model_name is None and "model_name" not in kwargs:
            kwargs["model_name"] = self.hub_model_id.split("/")[-1]
        self.create_model_card(**kwargs)
        options = {
            "private": private,
            "revision": revision or self.args.hub_revision,
            "token": token,
            "commit_message": commit_message or "End of training",
            "remove_training_files": True,
            # Code that this process runs already: the model's own, loaded with trust_remote_code.
            "trust_remote_code": type(self.model).__module__.startswith("transformers_modules"),
        }
        if blocking:
            return publish(self.args.output_dir, self.hub_model_id, **options)
        future = HfApi(token=token).run_as_future(publish, self.args.output_dir, self.hub_model_id, **options)
        future.add_done_callback(_log_failure)
        return future

    def _check_report(self) -> None:
        """Raise unless there is a robustness report, and of the weights at hand."""
        if self.robustness_report is None:
            raise ValueError(
                "There is no robustness report to publish: call trainer.evaluate(dataset) before push_to_hub() (with "
                f"robust_eval='end' or 'epoch' and eps above 0; now robust_eval={self.args.robust_eval!r}, "
                f"eps={self.args.eps}, eval_dataset {'given' if self.eval_dataset is not None else 'not given'})."
            )
        if self._measured is None:
            raise ValueError(
                f"robustness_report is of the averaged weights, and the published ones are the last step's (ema_use="
                f"{self.args.ema_use!r}): train with ema_use='save', or evaluate the saved checkpoint and publish both "
                "with hf_robust_ft.hub.publish(folder, repo_id, report=...)."
            )
        if self._measured != self._weights_now():
            raise ValueError(
                "robustness_report was measured on other weights than the model holds now: call trainer.evaluate() "
                "again before push_to_hub()."
            )


def _log_failure(future: Future) -> None:
    error = None if future.cancelled() else future.exception()
    if error is not None:
        logger.error("Publishing in the background failed: %s", error)


def _first(value: str | list[str] | None) -> str | None:
    return value[0] if isinstance(value, list) and value else value or None
