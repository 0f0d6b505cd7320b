"""A bare file of tensors as an image classifier, once it is said of which architecture."""

import os
import pickle
from typing import Any

import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from hf_robust_ft.models.heads import announce_new_head, head_parameter_names, replaces_head
from hf_robust_ft.models.timm_classifier import build_timm_classifier, checkpoint_filter, timm_architecture
from hf_robust_ft.models.trust import no_code, refusals_explained

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def read_tensors(path: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pt file by name, out of the usual wrappings (`state_dict`, `module.`, EMA).

    Raises:
        ValueError: a damaged file, or one that holds more than tensors and would have to be trusted to be read.
    """
    try:
        state = load_state_dict(path, weights_only=True)
    except (SafetensorError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as plain tensors ({reason}). "
            "If it is complete, save its state_dict as .safetensors."
        ) from error
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if odd or not state:
        raise ValueError(f"{path} holds no plain state_dict: {', '.join(map(str, odd[:5])) or 'it is empty'}.")
    return state


def load_weight_file(
    path: str, architecture: str | None, labels: dict[str, Any], image_size: int | None, head: str
) -> tuple[PreTrainedModel, Any]:
    """A classifier of a stated architecture with the tensors of a file, and its processor.

    Args:
        path: .safetensors, or .pt, .pth, .bin read with `weights_only=True`.
        architecture: `timm/NAME`, or a folder or Hub id with a transformers config.json and processor.
        labels: `num_labels`, `id2label`, `label2id`, as in a transformers config; the file's own classes if empty.
        image_size: input side in pixels of a timm architecture.
        head: as in `load_image_classifier`.

    Raises:
        ValueError: no architecture, or any tensor missing, left over or of another shape, the head to be replaced
            excepted.
    """
    if architecture is None:
        raise ValueError(f"{path} holds tensors only. Say what they are of, e.g. architecture='timm/resnet18'.")
    saved = read_tensors(path)
    model, processor = _blank(architecture, labels, image_size)
    state = _renamed(saved, model)
    ends = head_parameter_names(model)
    rows = {state[name].shape[0] for name in ends if name in state}
    if not rows and (not labels or head == "keep"):
        raise ValueError(f"{path} holds no classification head for {architecture}: give label_names or num_labels.")
    if len(rows) == 1 and not labels and rows != {model.config.num_labels}:
        model, processor = _blank(architecture, {"num_labels": min(rows)}, image_size)
        state = _renamed(saved, model)
    known = [f"LABEL_{index}" for index in range(max(rows, default=0))]
    name = os.path.basename(path)
    ignored = ends if not rows or replaces_head(head, known, labels, name) else set()
    if ignored:
        announce_new_head(name, len(known) or None, labels)
    own = model.state_dict()
    problems = [
        *(f"{name} is missing" for name in own if name not in state and name not in ignored),
        *(f"{name} is not part of the model" for name in state if name not in own),
        *(
            f"{name} has shape {tuple(tensor.shape)}, the model {tuple(own[name].shape)}"
            for name, tensor in state.items()
            if name in own and name not in ignored and tensor.shape != own[name].shape
        ),
    ]
    problems = [problem for problem in problems if not problem.endswith("num_batches_tracked is missing")]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{path} does not fit {architecture}: {'; '.join(problems[:5])}{more}.")
    model.load_state_dict({**own, **{name: tensor for name, tensor in state.items() if name not in ignored}})
    return model.eval(), processor


def _blank(architecture: str, labels: dict[str, Any], image_size: int | None) -> tuple[PreTrainedModel, Any]:
    if architecture.startswith("timm/") or ("/" not in architecture and not os.path.isdir(architecture)):
        return build_timm_classifier(architecture, labels or {"num_labels": 1000}, image_size=image_size)
    if image_size is not None:
        raise ValueError(f"image_size is for timm architectures; {architecture} keeps its own image processor's size.")
    with refusals_explained(architecture):
        config = AutoConfig.from_pretrained(architecture, **labels, **no_code({}))
        model = AutoModelForImageClassification.from_config(config, dtype=torch.float32, **no_code({}))
        return model, AutoImageProcessor.from_pretrained(architecture, **no_code({}))


def _renamed(saved: dict[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """The file's tensors under the model's names; timm translates what other code bases call them."""
    inner = getattr(model, "timm_model", None)
    if inner is None:
        return _converted(saved, model)
    bare = {name.removeprefix("timm_model."): tensor for name, tensor in saved.items()}
    translate = checkpoint_filter(timm_architecture(model.config.architecture))
    if translate is not None and not set(bare) <= set(inner.state_dict()):
        bare = translate(bare, inner)
    return {f"timm_model.{name}": tensor for name, tensor in bare.items()}


def _converted(saved: dict[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """The file's tensors as `from_pretrained` reads them: it stores some models under other names than it builds them.

    Those of another shape than the model's hold no data.
    """
    loaded, info = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=dict(saved),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
    )
    state = {name: tensor for name, tensor in loaded.state_dict().items() if name not in info["missing_keys"]}
    state |= {name: torch.empty(shape, device="meta") for name, shape, _ in info["mismatched_keys"]}
    return state | {name: saved[name] for name in info["unexpected_keys"] if name in saved}
