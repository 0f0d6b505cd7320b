"""Which files of a run's folder go to the Hub, and whether they are a checkpoint that loads."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSemanticSegmentation
from transformers.utils import logging as transformers_logging

from hf_robust_ft.evaluation.stored_examples import STORED_EXAMPLES, StoredExamples
from hf_robust_ft.models.segmentation import segments
from hf_robust_ft.provenance.record import RECIPE_NAME, RECORD_NAME, portable_recipe
from hf_robust_ft.reporting.artifacts import CARD_NAME, CURVE_NAME, EXAMPLE_FILES, REPORT_NAME, TRAINING_NAME

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
EVIDENCE = (CARD_NAME, REPORT_NAME, CURVE_NAME, TRAINING_NAME, RECIPE_NAME, RECORD_NAME)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def published_files(folder: str | Path, stored_examples: bool = False) -> list[str]:
    """Everything that goes up, by path in the repository: the checkpoint's files, and what evidence there is.

    Args:
        stored_examples: also the adversarial examples of the evaluation, which `hf-robust-ft verify` takes.

    Raises:
        ValueError: `folder` is not a plain checkpoint with weights in safetensors and an image processor, or evidence
            in it is a link to a file elsewhere.
    """
    folder = Path(folder)
    evidence = [name for name in EVIDENCE if (folder / name).is_file()]
    examples = [path.relative_to(folder).as_posix() for path in sorted(folder.glob(EXAMPLE_FILES))]
    if stored_examples:
        stored = StoredExamples(folder / STORED_EXAMPLES).files
        examples += [f"{STORED_EXAMPLES}/{name}" for name in stored]
    for name in (*evidence, *examples):
        # Weights may be links into a cache; a picture that is one could be any file of this machine.
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{folder / name} is a link to a file outside of {folder}: put a copy there, or remove it."
            )
    return [*checkpoint_files(folder), *evidence, *examples]


def published_content(path: Path) -> bytes:
    """What goes up of a file: all as it is, but a recipe without the folders of this machine."""
    content = path.read_bytes()
    return portable_recipe(content.decode()).encode() if path.name == RECIPE_NAME else content


@contextmanager
def files_to_send(folder: Path, files: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Where what goes up lies, by path in the repository: in `folder`, or beside it where it differs."""
    sent = {name: folder / name for name in files}
    with tempfile.TemporaryDirectory() as changed:
        if RECIPE_NAME in sent and (content := published_content(sent[RECIPE_NAME])) != sent[RECIPE_NAME].read_bytes():
            sent[RECIPE_NAME] = Path(changed) / RECIPE_NAME
            sent[RECIPE_NAME].write_bytes(content)
        yield sent


def checkpoint_files(folder: Path) -> list[str]:
    """Weights, configuration, image processor (timm's is in the configuration), and code if the model brings its own.

    Raises:
        ValueError: one of them is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    if not (folder / CONFIG).is_file():
        adapters = (folder / "adapter_config.json").is_file()
        hint = " It holds adapters: save model.merge_and_unload() there, or train with lora_rank=." if adapters else ""
        raise ValueError(f"{folder} is no checkpoint: it has no {CONFIG}.{hint}")
    return [CONFIG, *_processor_files(folder), *_weight_files(folder), *_code_files(folder)]


def _processor_files(folder: Path) -> list[str]:
    """The image processor's own files; none where `AutoImageProcessor` makes it of the configuration, as timm's."""
    files = [name for name in PROCESSORS if (folder / name).is_file()]
    if files:
        return files
    try:
        with _quiet():
            AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        if "trust_remote_code=True" in str(error):  # code that `check_loads` decides on
            return []
        if _read_json(folder / CONFIG).get("model_type") == "timm_wrapper":
            cure = (
                f"timm's stands in {CONFIG}: set model.config.pretrained_cfg (input_size, mean, std, interpolation, "
                "crop_pct) and save the model again."
            )
        else:
            cure = "save it there with processor.save_pretrained(folder)."
        raise ValueError(
            f"{folder} has no image processor ({PROCESSORS[0]}), without which nobody can prepare images for it: {cure}"
        ) from error
    return []


def _weight_files(folder: Path) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / INDEX).is_file():
        shards = _plain_names(_read_json(folder / INDEX).get("weight_map", {}), folder / INDEX)
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing or not shards:
            raise ValueError(
                f"{folder / INDEX} names shards that are not there: {', '.join(missing) or 'none at all'}."
            )
        return [INDEX, *shards]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES and "model" in path.name)
    found = f" {', '.join(pickles)} is a pickle, which is not published." if pickles else ""
    raise ValueError(
        f"{folder} has no weights in safetensors ({WEIGHTS}).{found} Save them with model.save_pretrained(folder)."
    )


def _code_files(folder: Path) -> list[str]:
    """The Python files that the configuration loads the model with; most checkpoints have none."""
    named = _read_json(folder / CONFIG).get("auto_map", {}).values()
    modules = {str(name).split("--")[-1].rpartition(".")[0] for name in named if "--" not in str(name)}
    files = _plain_names({module: f"{module}.py" for module in modules}, folder / CONFIG)
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder / CONFIG} loads the model with {', '.join(missing)}, which is not in the folder.")
    return files


def _plain_names(named: Any, source: Path) -> list[str]:
    """The names in a mapping's values, sorted: each of a file that lies beside `source`, not on some path from it.

    Raises:
        ValueError: a path, or no mapping of names.
    """
    names = set(map(str, named.values())) if isinstance(named, dict) else {str(named)}
    paths = sorted(name for name in names if name != Path(name).name or "\\" in name or "\0" in name)
    if paths or not isinstance(named, dict):
        raise ValueError(f"{source} names {', '.join(map(repr, paths or names))}, which is no file beside it.")
    return sorted(names)


def free_place(path: Path) -> Path:
    """The path, or with the first number behind its name under which nothing lies yet."""
    numbered = (path.with_stem(f"{path.stem}.{number}") for number in count(2))
    return path if not path.exists() else next(each for each in numbered if not each.exists())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON file: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def check_loads(folder: str | Path, files: Sequence[str], trust_remote_code: bool = False) -> None:
    """Load model and processor from these files alone, as whoever downloads them will.

    Args:
        trust_remote_code: run the code that the checkpoint brings, if it does.

    Raises:
        ValueError: it brings code that is not to be run, they do not load, weights are missing, left over or of other
            shapes, or not finite.
    """
    folder = Path(folder).absolute()
    with tempfile.TemporaryDirectory() as alone:
        for name in files:
            if "/" not in name:
                os.symlink(folder / name, Path(alone) / name)
        options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        try:
            with _quiet():
                AutoImageProcessor.from_pretrained(alone, **options)
                loader = AutoModelForSemanticSegmentation if segments(alone) else AutoModelForImageClassification
                model, info = loader.from_pretrained(
                    alone, output_loading_info=True, dtype="auto", use_safetensors=True, **options
                )
        except Exception as error:
            if "trust_remote_code=True" in str(error):
                code = ", ".join(name for name in files if name.endswith(".py"))
                raise ValueError(
                    f"The checkpoint in {folder} brings code of its own ({code}), which is not run unasked to see "
                    "whether it loads. Read it first; if you trust it, give --trust_remote_code (in Python "
                    "trust_remote_code=True)."
                ) from error
            reason = " ".join(str(error).replace(alone, str(folder)).split())
            raise ValueError(f"The checkpoint in {folder} does not load: {reason}") from error
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if kind.endswith("_keys") and names}
    if wrong:
        told = "; ".join(f"{kind.replace('_', ' ')} {', '.join(names[:3])}" for kind, names in wrong.items())
        raise ValueError(f"The weights in {folder} are not those of its {CONFIG}: {told}.")
    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor.float()).all()]
    if broken:
        raise ValueError(f"{len(broken)} tensors in {folder} are NaN or infinite, first {broken[0]}.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' log and progress bars."""
    level = transformers_logging.get_verbosity()
    try:
        transformers_logging.set_verbosity_error()
        with redirect_stderr(StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(level)
