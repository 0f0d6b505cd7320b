"""The model a run would train, without its weights: architecture and input size are all a plan needs."""

import os
from typing import Any, NamedTuple

import open_clip
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)

from hf_robust_ft.models import BACKBONES
from hf_robust_ft.models.clip_twins import open_clip_twin
from hf_robust_ft.models.efficientnet_lite import EMBEDDED_MODELS
from hf_robust_ft.models.image_size import input_size, resize_input
from hf_robust_ft.models.open_clip_checkpoints import PREFIX
from hf_robust_ft.models.segmentation import embedded_architecture
from hf_robust_ft.models.timm_classifier import build_timm_classifier
from hf_robust_ft.models.trust import refusals_explained
from hf_robust_ft.provenance.choices import nearest_names
from hf_robust_ft.runs.model_names import check_model_name


class BareModel(NamedTuple):
    """A classifier or segmenter on `device="meta"`.

    Args:
        model: without weights.
        input_size: height and width in pixels.
        model_id: the checkpoint that a run would load.
        origin: what the architecture was taken from, in words.
    """

    model: PreTrainedModel
    input_size: tuple[int, int]
    model_id: str
    origin: str


def bare_model(
    model_id: str,
    num_labels: int,
    *,
    image_size: int | None = None,
    architecture: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> BareModel:
    """The classifier that `load_image_classifier` would load, from its name or its stored configuration alone.

    Call it with the network switched off (`offline`): a Hub checkpoint's configuration is looked for in the cache.

    Args:
        model_id, image_size, architecture: as in `load_image_classifier`.
        num_labels: outputs of the head.
        revision: of a Hub checkpoint.
        trust_remote_code: run the code that a checkpoint brings.

    Raises:
        ValueError: an architecture that is not known without the network, or none that fits the image size.
    """
    check_model_name(model_id)
    model_id = os.path.expanduser(model_id)
    if os.path.isfile(model_id):
        if architecture is None:
            raise ValueError(f"{model_id} holds tensors only. Say what they are of, e.g. --architecture timm/resnet18.")
        found = bare_model(architecture, num_labels, image_size=image_size)
        return found._replace(model_id=os.path.basename(model_id))
    checkpoint = model_id
    if model_id in BACKBONES:
        checkpoint, image_size = BACKBONES[model_id].hub_id, image_size or BACKBONES[model_id].image_size
    labels = {"num_labels": num_labels}
    with torch.device("meta"):
        named = _by_name(checkpoint, image_size)
        if named is not None:
            name, size, more = named
            model, processor = build_timm_classifier(name, labels, image_size=size, model_args=more)
            origin = f"the architecture {name} of timm, by name; no weights read"
        else:
            options = {"revision": revision} if revision else {}
            options["trust_remote_code"] = trust_remote_code
            with refusals_explained(checkpoint):
                model, processor = _by_config(checkpoint, labels, image_size, options)
            origin = "the checkpoint's configuration; no weights read"
    size = input_size(processor)
    if size is None:
        raise ValueError(f"The image processor of {model_id} does not fix a size: give --image_size.")
    return BareModel(model.to("meta"), size, checkpoint, origin)


def bare_segmenter(
    model_id: str,
    num_labels: int,
    *,
    image_size: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> BareModel:
    """The segmentation model that `load_segmentation_model` would load, as `bare_model`."""
    model_id = os.path.expanduser(model_id)
    labels = {"num_labels": num_labels}
    with torch.device("meta"):
        if model_id in EMBEDDED_MODELS:
            spec = EMBEDDED_MODELS[model_id]
            side, model = image_size or spec.image_size, embedded_architecture(spec, labels)
            origin = f"the architecture {spec.architecture} of timm under UperNet, by name; no weights read"
            return BareModel(model.to("meta"), (side, side), model_id, origin)
        check_model_name(model_id)
        options = ({"revision": revision} if revision else {}) | {"trust_remote_code": trust_remote_code}
        with refusals_explained(model_id):
            config, processor = _stored(model_id, labels, options)
        model = AutoModelForSemanticSegmentation.from_config(
            config, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
    size = (image_size, image_size) if image_size else input_size(processor)
    if size is None:
        raise ValueError(f"The image processor of {model_id} does not fix a size: give --image_size.")
    return BareModel(model.to("meta"), size, model_id, "the checkpoint's configuration; no weights read")


def _by_name(checkpoint: str, image_size: int | None) -> tuple[str, int | None, dict[str, Any]] | None:
    """timm's name of the architecture, the image size and further arguments; None if the name does not tell."""
    if checkpoint in EMBEDDED_MODELS:
        spec = EMBEDDED_MODELS[checkpoint]
        return spec.architecture, image_size or spec.image_size, {}
    if os.path.isdir(checkpoint):
        return None
    if checkpoint.startswith("timm/"):
        return checkpoint.removeprefix("timm/"), image_size, {}
    name = _open_clip_name(checkpoint)
    if name is None:
        return None
    twin = open_clip_twin(open_clip.get_model_config(name))
    if twin is None:
        raise ValueError(f"{checkpoint} ({name}) has no twin in timm, and its FLOPs cannot be counted without weights.")
    size = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    return twin.architecture, image_size or size, twin.model_args


def _open_clip_name(checkpoint: str) -> str | None:
    """open_clip's name of a model that is `open_clip:NAME[/TAG]` or one of the Hub repositories that it lists."""
    if checkpoint.startswith(PREFIX):
        name = checkpoint.removeprefix(PREFIX).partition("/")[0]
        if name not in open_clip.list_models():
            raise ValueError(
                f"open_clip knows no model {name!r}. Nearest: {nearest_names(name, open_clip.list_models())}."
            )
        return name
    for name, tag in open_clip.list_pretrained():
        if open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "").strip("/") == checkpoint:
            return name
    return None


def _stored(checkpoint: str, labels: dict[str, Any], options: dict[str, Any]) -> tuple[Any, Any]:
    """Config and image processor of a checkpoint on this machine."""
    try:
        config = AutoConfig.from_pretrained(checkpoint, **labels, **options)
        return config, AutoImageProcessor.from_pretrained(checkpoint, **options)
    except (OSError, ValueError) as error:
        if os.path.isdir(checkpoint) or "trust_remote_code=True" in str(error):
            raise
        raise ValueError(
            f"{checkpoint} is not cached, and a dry run does not use the network. Fetch its configuration once: "
            f"hf download {checkpoint} --include '*config.json' ({str(error).splitlines()[0]})"
        ) from error


def _by_config(checkpoint: str, labels: dict[str, Any], image_size: int | None, options: dict[str, Any]):
    config, processor = _stored(checkpoint, labels, options)
    model = AutoModelForImageClassification.from_config(
        config, dtype=torch.float32, trust_remote_code=options["trust_remote_code"]
    )
    if image_size is not None:
        model, processor = resize_input(model, processor, image_size, checkpoint, options)
    return model, processor
