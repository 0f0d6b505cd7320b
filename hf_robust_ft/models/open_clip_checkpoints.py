"""open_clip models as image classifiers: TimmWrapper checkpoints where timm computes the same, else a class of ours."""

import logging
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import open_clip
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPImageProcessor, PreTrainedModel, TimmWrapperConfig, TimmWrapperForImageClassification
from transformers.utils import cached_file

from hf_robust_ft.models.clip_twins import TimmTwin, open_clip_translations, open_clip_twin, verified_twin
from hf_robust_ft.models.open_clip_classifier import OpenClipForImageClassification, OpenClipVisionConfig
from hf_robust_ft.models.timm_classifier import timm_processor
from hf_robust_ft.models.zero_shot import ZeroShot, fold_zero_shot, probe_images
from hf_robust_ft.provenance.choices import nearest_names
from hf_robust_ft.provenance.downloads import disk_full, verify_download

PREFIX = "open_clip:"
_CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
_CROPS = {"shortest": "center", "squash": "squash", "longest": "border"}
_HUB_OPTIONS = {"revision", "token", "cache_dir", "local_files_only", "force_download", "proxies", "subfolder"}

logger = logging.getLogger(__name__)


class OpenClipModel(NamedTuple):
    """A loaded open_clip model.

    Args:
        clip: both towers, in eval mode.
        config: open_clip's model configuration.
        tokenizer: makes the text tower's tokenizer, at need.
        source: the checkpoint's name, for messages.
    """

    clip: nn.Module
    config: dict[str, Any]
    tokenizer: Callable[[], Any]
    source: str


def is_open_clip(model_id: str, options: dict[str, Any]) -> bool:
    """Whether an id or folder holds an open_clip model and none for transformers.

    Raises:
        OSError: there is no such repository, or access to it is refused.
    """
    if model_id.startswith(PREFIX):
        return True
    options = {name: value for name, value in options.items() if name in _HUB_OPTIONS}
    if os.path.isdir(model_id):
        return not os.path.isfile(os.path.join(model_id, "config.json")) and os.path.isfile(
            os.path.join(model_id, _CONFIG)
        )
    problem = None
    try:
        # transformers answers a missing config.json with None, and any other missing file with an error.
        if cached_file(model_id, "config.json", **options) is not None:
            return False
    except OSError as error:  # offline, a config.json that was never there cannot be told from one not yet loaded
        if disk_full(error):
            raise
        problem = error if model_id in str(error) else OSError(f"{model_id}: {error}")
    try:
        cached_file(model_id, _CONFIG, **options)
    except OSError as error:
        raise problem or OSError(
            f"{model_id} has neither a config.json nor an {_CONFIG}, so it holds no image classifier known here."
        ) from error
    return True


def load_open_clip(model_id: str, options: dict[str, Any], weights: str | None = None) -> OpenClipModel:
    """Both towers of `open_clip:NAME[/TAG]`, of a Hub repository or of a local folder.

    Without a tag the weights are those trained on LAION-2B, else the first that open_clip lists; the log says which.

    Args:
        options: `revision`, `token`, `cache_dir`, ... of a Hub repository.
        weights: a local weight file, instead of a tag.

    Raises:
        ValueError: an unknown name or tag, or options that do not apply.
        OSError: files that the repository does not have.
    """
    unknown = set(options) - _HUB_OPTIONS
    if unknown:
        raise ValueError(f"{model_id} is loaded by open_clip, which takes no {sorted(unknown)}.")
    if model_id.startswith(PREFIX):
        name, tag = _name_and_tag(model_id, weights)
        if set(options) - {"cache_dir"}:
            raise ValueError(f"{model_id} is downloaded by open_clip, which takes no {sorted(options)}; name a Hub id.")
        stated = {} if weights else open_clip.get_pretrained_cfg(name, tag)
        config = open_clip.get_model_config(name)
        config["quick_gelu"] = bool(config.get("quick_gelu") or stated.get("quick_gelu"))
        more = {"force_quick_gelu": config["quick_gelu"], "require_pretrained": True, **options}
        try:
            clip = open_clip.create_model(name, pretrained=weights or tag, **more)
        except (RuntimeError, KeyError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
            if weights is None:
                raise
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{weights} does not fit {model_id}, both towers of it: {reason}") from error
        if stated.get("hf_hub"):
            repository = "/".join(stated["hf_hub"].split("/")[:2])
            verify_download(repository, cache_dir=options.get("cache_dir"))
        tokenizer = name
    else:
        folder = os.path.dirname(cached_file(model_id, _CONFIG, **options))
        if not os.path.isdir(model_id):
            _download_weights(model_id, options)
        elif not any(os.path.isfile(os.path.join(model_id, name)) for name in _WEIGHTS):
            raise OSError(_no_safetensors(model_id))
        config = open_clip.get_model_config(f"local-dir:{folder}")
        clip = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True)
        tokenizer = f"local-dir:{folder}" if os.path.isdir(model_id) else f"hf-hub:{model_id}"
    return OpenClipModel(clip.eval(), config, lambda: open_clip.get_tokenizer(tokenizer), model_id)


def _name_and_tag(model_id: str, weights: str | None) -> tuple[str, str | None]:
    name, _, tag = model_id.removeprefix(PREFIX).partition("/")
    if name not in open_clip.list_models():
        raise ValueError(
            f"open_clip {open_clip.__version__} knows no model {name!r}. Nearest: "
            f"{nearest_names(name, open_clip.list_models())}."
        )
    if weights is not None:
        return name, None
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tags:
        raise ValueError(f"open_clip lists no pretrained weights for {name}: give a weight file with architecture=.")
    if not tag:
        tag = next((entry for entry in tags if entry.startswith("laion2b_s")), tags[0])
        logger.warning("%s: taking the weights %s. Others: %s.", model_id, tag, ", ".join(tags))
    if tag not in tags:
        raise ValueError(f"open_clip has no weights {tag!r} for {name}. Nearest: {nearest_names(tag, tags)}.")
    return name, tag


def _download_weights(model_id: str, options: dict[str, Any]) -> None:
    for filename in _WEIGHTS:
        try:
            cached_file(model_id, filename, **options)
            return
        except OSError as error:
            absent = "does not appear to have a file" in str(error)  # all that transformers tells it by
            if not absent and not isinstance(error.__cause__, LocalEntryNotFoundError):
                raise
            missing = error
    raise OSError(f"{_no_safetensors(model_id)} ({missing})") from missing


def _no_safetensors(model_id: str) -> str:
    return (
        f"{model_id} has {_CONFIG} but none of {', '.join(_WEIGHTS)}. Pickled weights are not loaded by themselves; a "
        "file of them can be named as the model, with architecture open_clip:NAME."
    )


def open_clip_classifier(
    source: OpenClipModel, labels: dict[str, Any], prompts: Sequence[str] | None = None
) -> tuple[PreTrainedModel, Any]:
    """The image tower with a new head, or with the zero-shot head of `prompts`.

    Args:
        labels: `num_labels`, `id2label`, `label2id`, as in a transformers config.
        prompts: templates with one `{}` each; the head is folded from them.
    """
    clip, visual = source.clip, source.clip.visual
    pretrained_cfg = _pretrained_cfg(visual.preprocess_cfg, source.source)
    zero_shot = None
    if prompts is not None:
        names = list(labels["id2label"].values())
        text = open_clip.build_zero_shot_classifier(clip, source.tokenizer(), names, list(prompts)).T
        bias = 0.0 if getattr(clip, "logit_bias", None) is None else clip.logit_bias.item()
        zero_shot = ZeroShot(text.detach(), clip.logit_scale.exp().item(), bias)
    images = probe_images(pretrained_cfg, count=8 if zero_shot else 2)
    twin = open_clip_twin(source.config)
    inner = None
    if twin is not None:
        inner = verified_twin(twin, open_clip_translations(twin, visual), visual, images, source.source)
    if inner is not None:
        return twin_classifier(twin, inner, pretrained_cfg, labels, zero_shot, images)
    return _own_classifier(source, labels, zero_shot, pretrained_cfg)


def twin_classifier(
    twin: TimmTwin,
    inner: nn.Module,
    pretrained_cfg: dict[str, Any],
    labels: dict[str, Any],
    zero_shot: ZeroShot | None,
    images: torch.Tensor,
) -> tuple[PreTrainedModel, Any]:
    """A TimmWrapper classifier with the tower's weights and a new or a zero-shot head.

    Args:
        twin: how timm builds the tower.
        inner: the tower in timm, ending in its projection.
        pretrained_cfg: its input.
        labels: of the config.
        zero_shot: the text side, for a folded head.
        images: normalised images, on which the folded head is verified.
    """
    config = TimmWrapperConfig(
        architecture=twin.architecture, model_args=twin.model_args or None, pretrained_cfg=pretrained_cfg, **labels
    )
    model = TimmWrapperForImageClassification(config).eval()
    projection = inner.get_classifier() if twin.embed_dim else None
    ending = [name for name, module in inner.named_modules() if module is projection]
    state = {name: tensor for name, tensor in inner.state_dict().items() if name.rpartition(".")[0] not in ending}
    outcome = model.timm_model.load_state_dict(state, strict=False)
    left = {name.rpartition(".")[0] for name in outcome.missing_keys}
    if outcome.unexpected_keys or len(left) != 1:
        raise ValueError(f"{twin.architecture}: tensors {outcome} do not fit its classifier.")
    if zero_shot is not None:
        with torch.no_grad():
            features = inner(images)
        fold_zero_shot(model, projection, zero_shot, features, images)
    return model, timm_processor(config)


def _own_classifier(
    source: OpenClipModel, labels: dict[str, Any], zero_shot: ZeroShot | None, pretrained_cfg: dict[str, Any]
) -> tuple[PreTrainedModel, Any]:
    """`OpenClipForImageClassification`; it normalises features itself, so its zero-shot head is exact."""
    config = OpenClipVisionConfig(
        embed_dim=source.config["embed_dim"],
        vision_cfg=source.config["vision_cfg"],
        quick_gelu=bool(source.config.get("quick_gelu")),
        normalize_features=zero_shot is not None,
        **labels,
    )
    model = OpenClipForImageClassification(config).eval()
    model.visual.load_state_dict(source.clip.visual.state_dict(), strict=True)
    if zero_shot is not None:
        with torch.no_grad():
            model.classifier.weight.copy_(zero_shot.scale * zero_shot.text)
            model.classifier.bias.fill_(zero_shot.bias)
    logger.warning(
        "%s has no timm twin. Its checkpoints reload only where hf_robust_ft is imported, or elsewhere with "
        "trust_remote_code=True and open_clip_torch installed.",
        source.source,
    )
    size = pretrained_cfg["input_size"][-1]
    whole = pretrained_cfg["crop_mode"] == "squash"
    if pretrained_cfg["crop_mode"] == "border":
        raise ValueError(f"{source.source} pads its images (resize_mode 'longest'), which no processor here does.")
    return model, CLIPImageProcessor(
        size={"height": size, "width": size} if whole else {"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_center_crop=not whole,
        image_mean=pretrained_cfg["mean"],
        image_std=pretrained_cfg["std"],
    )


def _pretrained_cfg(preprocess: dict[str, Any], source: str) -> dict[str, Any]:
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(f"{source} takes images of {height} x {width} pixels; only square ones are supported.")
    return {
        "input_size": [3, height, width],
        "mean": list(preprocess["mean"]),
        "std": list(preprocess["std"]),
        "interpolation": preprocess["interpolation"] if preprocess["interpolation"] != "random" else "bicubic",
        "crop_pct": 1.0,
        "crop_mode": _CROPS[preprocess["resize_mode"]],
    }
