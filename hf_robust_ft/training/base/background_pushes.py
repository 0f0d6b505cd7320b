"""`TuningTrainer` that pushes checkpoints in the background (`hub_strategy`), and says in the end what failed."""

import os
import shutil
import tempfile
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy

from hf_robust_ft.hub import BackgroundPushError
from hf_robust_ft.hub.contents import CONFIG, checkpoint_files
from hf_robust_ft.hub.errors import described
from hf_robust_ft.hub.uploading import upload
from hf_robust_ft.training.tuning import TuningTrainer

LAST = "last-checkpoint"  # Trainer's own name
SNAPSHOT = ".pushing-"


class BackgroundPushing(TuningTrainer):
    """`TuningTrainer` whose pushes on the way are waited for when training ends, and their failures raised then."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._background_pushes: list[Future] = []
        self._api: HfApi | None = None  # of these pushes, which it makes one after the other
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any):
        """Trains, and at the end raises what failed in the background.

        Raises:
            BackgroundPushError: training is complete and saved in `output_dir`, but pushes on the way failed.
        """
        for left in Path(self.args.output_dir).glob(f"{SNAPSHOT}*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        output = super().train(*args, **kwargs)
        failures = [error for push in self._background_pushes if (error := push.exception()) is not None]
        count, self._background_pushes = len(self._background_pushes), []
        if failures:
            self.save_model(_internal_call=True)
            told = "; ".join(dict.fromkeys(described(error, self.args.hub_token) for error in failures))
            raise BackgroundPushError(
                f"Training is complete and the model is in {self.args.output_dir}, but {len(failures)} of {count} "
                f"pushes to {self.hub_model_id} on the way failed: {told} Call evaluate() and push_to_hub(), which "
                "uploads all that is missing."
            )
        return output

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and not all(push.done() for push in self._background_pushes):
            return
        if strategy == HubStrategy.EVERY_SAVE and not (Path(checkpoint_folder) / CONFIG).is_file():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # Links, for the next save may delete this checkpoint before it is uploaded.
        snapshot = Path(tempfile.mkdtemp(prefix=SNAPSHOT, dir=self.args.output_dir))
        shutil.copytree(checkpoint_folder, snapshot, copy_function=_link, dirs_exist_ok=True)
        place = {HubStrategy.CHECKPOINT: LAST, HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name}.get(strategy)
        message = f"Training in progress, step {self.state.global_step}"
        if self._api is None:
            self._api = HfApi(token=self.args.hub_token)
        self._background_pushes.append(self._api.run_as_future(self._push_snapshot, snapshot, place, message))

    def _push_snapshot(self, snapshot: Path, place: str | None, message: str) -> None:
        """The model alone and, for `place`, also what resuming needs; Trainer's pickled arguments it does not."""
        try:
            whole = (snapshot / CONFIG).is_file()  # not the adapters of a `PeftModel` alone
            files = {name: snapshot / name for name in checkpoint_files(snapshot)} if whole else {}
            if place is not None:
                state = [path for path in snapshot.rglob("*") if path.is_file() and path.name != TRAINING_ARGS_NAME]
                files |= {f"{place}/{path.relative_to(snapshot).as_posix()}": path for path in state}
            upload(self._api, self.hub_model_id, files, revision=self.args.hub_revision or "main", message=message)
        finally:
            shutil.rmtree(snapshot, ignore_errors=True)

    def _finish_current_push(self) -> None:
        wait(self._background_pushes)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
