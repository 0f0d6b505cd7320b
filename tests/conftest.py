"""Tiny random-initialised models and synthetic images; no test needs a network or an accelerator."""

import functools
import gc
import os
import signal
import subprocess
from pathlib import Path

# Read when the libraries are imported, so set first: nothing here may reach out or phone home.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
# Two processes on two cores, as in CI; and networks that tests train come out alike, for other threads round otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from blank_pictures import rendered_pictures  # noqa: F401 - a fixture
from datasets import ClassLabel, Dataset, Features, Image
from forked import LIBRARIES, LIBRARIES_AND_OURS, ranks
from hypothesis import HealthCheck, settings
from PIL import Image as PILImage
from short_search import all_images_checked, whole_search  # noqa: F401 - fixtures
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    set_seed,
)

from hf_robust_ft import AdversarialTrainer, AdversarialTrainingArguments
from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.evaluation.batches import stack_examples

NUM_CLASSES = 4

# How long a first example takes says how busy the machine is.
settings.register_profile("untimed", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def few_threads():
    # Tiny tensors: more threads only cost.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_handler_left():
    before = signal.getsignal(signal.SIGTERM)
    yield
    left = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)  # else a later test that sends it ends the whole run
    assert left is before, f"the test left {left} as handler of SIGTERM"


@pytest.fixture
def processor():
    """Normalises with statistics that are neither 0/1, ImageNet's nor equal over channels."""
    return ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.25, 0.2])


@pytest.fixture
def make_model():
    """Tiny classifiers: "vit" (LayerNorm, renamed weights on save), "resnet" (BatchNorm, ignores num_items), "timm"."""

    def make(kind: str = "vit", seed: int = 0, num_labels: int = NUM_CLASSES, dropout: float = 0.0):
        set_seed(seed)
        if kind == "vit":
            config = ViTConfig(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                image_size=16,
                patch_size=8,
                num_labels=num_labels,
                hidden_dropout_prob=dropout,
            )
            return ViTForImageClassification(config)
        if kind == "timm":
            pretrained_cfg = {"input_size": [3, 16, 16], "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2]}
            return TimmWrapperForImageClassification(
                TimmWrapperConfig(architecture="test_resnet", num_labels=num_labels, pretrained_cfg=pretrained_cfg)
            )
        config = ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=num_labels
        )
        return ResNetForImageClassification(config)

    return make


@functools.cache
def coloured() -> Dataset:
    rng = np.random.default_rng(0)
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [180, 180, 60]])
    labels = [index % NUM_CLASSES for index in range(48)]
    pictures = [
        PILImage.fromarray(np.clip(colours[label] + rng.normal(0, 40, (16, 16, 3)), 0, 255).astype(np.uint8))
        for label in labels
    ]
    features = Features({"image": Image(), "label": ClassLabel(names=["red", "green", "blue", "yellow"])})
    return Dataset.from_dict({"image": pictures, "label": labels}, features=features)


@pytest.fixture
def images():
    """48 noisy 16 x 16 images whose colour tells their class."""
    return coloured().with_format(None)  # a copy


@pytest.fixture
def imagefolder(images, tmp_path):
    """The test images as train/<class>/<image> and test/<class>/<image>."""
    names = images.features["label"].names
    for index, example in enumerate(images):
        folder = tmp_path / "colours" / ("test" if index >= 32 else "train") / names[example["label"]]
        folder.mkdir(parents=True, exist_ok=True)
        example["image"].save(folder / f"{index}.png")
    return str(tmp_path / "colours")


@pytest.fixture
def checkpoint(make_model, processor, tmp_path):
    folder = tmp_path / "pretrained"
    make_model("resnet", num_labels=9).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def dataset(images, processor):
    return with_pixel_values(images, processor)


@pytest.fixture
def make_args(tmp_path):
    def make(cls=AdversarialTrainingArguments, **changes):
        settings = {
            "output_dir": str(tmp_path / "out"),
            "num_train_epochs": 4,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 24,  # two of the 48 images: each attack costs by the batch
            "learning_rate": 1e-3,
            "remove_unused_columns": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "epoch",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        if cls is AdversarialTrainingArguments:
            settings |= {"eps": "8/255", "attack_steps": 2, "eval_attack_steps": 2, "eval_epsilons": ["0", "8/255"]}
        return cls(**(settings | changes))

    return make


@pytest.fixture
def make_trainer(make_model, make_args, dataset, processor):
    def make(model=None, trainer_cls=AdversarialTrainer, train_dataset=dataset, **changes):
        options = {
            "train_dataset": train_dataset,
            "eval_dataset": dataset,
            "processing_class": processor,
            "data_collator": stack_examples,
            "callbacks": None,
            "compute_metrics": None,
            "compute_loss_func": None,
        }
        options |= {key: changes.pop(key) for key in list(changes) if key in options}
        args = changes.pop("args", None) or make_args(**changes)
        return trainer_cls(model=model if model is not None else make_model(), args=args, **options)

    return make


def weights(model) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(first, second) -> None:
    first, second = (entry if isinstance(entry, dict) else weights(entry) for entry in (first, second))
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert first.keys() == second.keys() and not different, f"tensors differ: {different}"


TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent


def pytest_collection_finish():
    """Each training collects garbage: what was imported is none, and looking through it takes half a second."""
    gc.collect()
    gc.freeze()


LONGEST = ("test_runners.py", "test_whole_road.py", "test_notebooks.py")


def pytest_collection_modifyitems(items):
    """The longest files first: in the end one process would be alone with one."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


SCRIPT_START = """
import pathlib, sys
sys.path[:0] = {tests!r}
import torch
torch.set_num_threads(1)
import conftest

call = lambda fixture, *args: fixture._get_wrapped_function()(*args)
folder = pathlib.Path({folder!r})
processor, make_model = call(conftest.processor), call(conftest.make_model)
dataset = call(conftest.dataset, call(conftest.images), processor)
make_args = call(conftest.make_args, folder)
make_trainer = call(conftest.make_trainer, make_model, make_args, dataset, processor)
"""


def run_script(
    body: str, folder: Path, processes: int = 1, launcher: bool = False, **environment: str
) -> subprocess.CompletedProcess:
    """Run Python with this file's fixtures as variables, in one process or several.

    Args:
        launcher: let torchrun start and watch them; else they are forked, which saves the seconds of importing.
    """
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(SCRIPT_START.format(tests=[str(TESTS), *map(str, TESTS.glob("**/"))], folder=str(folder)) + body)
    inherited = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    each = [inherited | rank for rank in ranks(processes)]
    if not launcher:
        # What is asked of the environment may be read when the client of the Hub is imported.
        return (LIBRARIES if environment else LIBRARIES_AND_OURS).run(script, each, Path.cwd(), timeout=300)
    port = ["--master_port", each[0]["MASTER_PORT"]]
    torchrun = ["torch.distributed.run", "--nproc_per_node", str(processes), *port, str(script.absolute())]
    return LIBRARIES.run_module(torchrun, inherited, folder)
