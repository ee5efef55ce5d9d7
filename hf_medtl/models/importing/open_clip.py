"""Visual towers of open_clip's models, such as BiomedCLIP, as timm models with the same features."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from hf_medtl.errors import MedtlError
from hf_medtl.models.importing import timm_weights

CONFIG = "open_clip_config.json"
WEIGHTS = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors"),
    "open_clip_pytorch_model.bin",
)
# Width, layers and patch size of open_clip's own vision transformers -> timm's name of the same.
TOWERS = {
    (256, 10, 16): "vit_xsmall_patch16_clip",
    (512, 12, 16): "vit_medium_patch16_clip",
    (512, 12, 32): "vit_medium_patch32_clip",
    (768, 12, 32): "vit_base_patch32_clip",
    (768, 12, 16): "vit_base_patch16_clip",
    (1024, 24, 14): "vit_large_patch14_clip",
    (1280, 32, 14): "vit_huge_patch14_clip",
    (1408, 40, 14): "vit_giant_patch14_clip",
    (1664, 48, 14): "vit_gigantic_patch14_clip",
}
_USUAL = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout"}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP, where none are given


def read_config(find: Callable[[str], Path | None]) -> dict[str, Any]:
    """Return the configuration of a model of open_clip.

    Args:
        find: Returns the path of a file of the model by its name; None if there is none.

    Raises:
        MedtlError: There is none, or it is damaged.
    """
    path = find(CONFIG)
    if path is None:
        raise MedtlError(
            f"The model has no {CONFIG}. Give one that open_clip has written, such as OWNER/NAME on the Hub."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config["model_cfg"]["vision_cfg"], dict):
            return dict(config)
    except (KeyError, TypeError, ValueError):
        pass
    raise MedtlError(f"{path} is not a configuration of open_clip: it has no model_cfg.vision_cfg. Download it again.")


def choose_architecture(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return timm's name of the visual tower, and its arguments.

    Args:
        config: Of `read_config`.

    Raises:
        MedtlError: timm has no such tower.
    """
    model, vision = config["model_cfg"], config["model_cfg"]["vision_cfg"]
    if name := vision.get("timm_model_name"):
        pool = vision.get("timm_pool", "avg")
        if pool in ("abs_attn", "rot_attn"):
            raise MedtlError(
                f"The visual tower pools by {pool}, which is no part of timm's {name}: it can't be imported."
            )
        projects = vision.get("timm_proj", "linear") in ("linear", "mlp")
        # open_clip keeps the pooling of a timm model that has no pool_size, unless it is named.
        return str(name), {"global_pool": pool} if pool or not projects else {}
    layers, size = vision.get("layers", 12), vision.get("image_size", 224)
    key = vision.get("width", 768), layers if isinstance(layers, int) else 0, vision.get("patch_size", 16)
    unusual = sorted(name for name in vision.keys() - _USUAL if vision[name])
    gelu = "_quickgelu" if model.get("quick_gelu") else ""
    name = f"{TOWERS.get(key)}{gelu}_{size}"
    if unusual or not timm.is_model(name):
        settings = ", ".join(f"{name} {vision[name]}" for name in unusual or vision)
        raise MedtlError(f"timm has no architecture for this visual tower ({settings}), so it can't be imported.")
    return name, {}


def convert(tensors: dict[str, torch.Tensor], config: Mapping[str, Any]) -> tuple[nn.Module, str, dict[str, Any]]:
    """Return the visual tower as a timm model without a head, its name and its arguments.

    Its features are those before the projection to the space of texts.

    Args:
        tensors: Those of the whole model of open_clip, or of its visual tower.
        config: Of `read_config`.

    Raises:
        MedtlError: They do not fit the configuration.
    """
    name, options = choose_architecture(config)
    is_trunk = bool(config["model_cfg"]["vision_cfg"].get("timm_model_name"))
    model = timm_weights.create(name, **options)
    prefix = next((p for p in ("visual.trunk.", "trunk.") if any(key.startswith(p) for key in tensors)), "")
    timm_weights.load_tensors(model, name, tensors, prefix if is_trunk else "visual.")
    return model, name, options


def preprocessing(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return mean, std and interpolation of the images."""
    settings = config.get("preprocess_cfg") or {}
    return {
        "mean": list(settings.get("mean") or MEAN),
        "std": list(settings.get("std") or STD),
        "interpolation": settings.get("interpolation") or "bicubic",
    }
