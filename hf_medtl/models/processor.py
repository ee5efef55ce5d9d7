"""What an image goes through before the model: decided once, saved with the weights."""

import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, PreTrainedConfig, TimmWrapperConfig, ViTImageProcessor

from hf_medtl.errors import MedtlError


def build_processor(name: str, config: PreTrainedConfig, **hub: Any) -> Any:
    """Image processor that resizes the whole picture to the model's size; nothing is cropped away.

    Stock processors often resize the shorter side and crop the centre, which cuts the margins of the lungs. Ours keep
    size, mean, standard deviation and interpolation of the checkpoint, and squash.

    Args:
        name: Hub id or folder of the checkpoint.
        config: its configuration; of a timm model the preprocessing lives there, and is changed there.
        hub: `revision`, `token`.

    Raises:
        MedtlError: the checkpoint says nothing about preprocessing.
    """
    if isinstance(config, TimmWrapperConfig):
        # The processor is made from config.json alone; its own save_pretrained does nothing.
        config.pretrained_cfg = {**config.pretrained_cfg, "crop_pct": 1.0, "crop_mode": "squash"}
        from transformers.models.timm_wrapper import TimmWrapperImageProcessor

        return TimmWrapperImageProcessor(config.pretrained_cfg, config.architecture)
    try:
        stock = AutoImageProcessor.from_pretrained(name, **hub)
    except (OSError, ValueError) as error:
        raise MedtlError(
            f"{name} has no usable preprocessor_config.json ({type(error).__name__}), so size, mean and standard "
            "deviation of its pictures are unknown. Use a checkpoint that has one."
        ) from error
    return ViTImageProcessor(
        size=input_size(stock, config),
        resample=stock.resample,
        image_mean=list(stock.image_mean),
        image_std=list(stock.image_std),
        do_normalize=stock.do_normalize,
        rescale_factor=stock.rescale_factor,
    )


def input_size(processor: Any, config: PreTrainedConfig) -> dict[str, int]:
    """Height and width in pixels that a stock processor hands to its model."""
    for size in (getattr(processor, "crop_size", None) if processor.do_center_crop else None, processor.size):
        if size and size.get("height"):
            return {"height": size["height"], "width": size["width"]}
        if size and size.get("shortest_edge"):
            return {"height": size["shortest_edge"], "width": size["shortest_edge"]}
    return {"height": config.image_size, "width": config.image_size}


def normalisation(processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (3, 1, 1) that `processor` normalises with, for pixels of 0..255."""
    source = processor.data_config if hasattr(processor, "data_config") else vars(processor)
    mean, std = (source["mean"], source["std"]) if "mean" in source else (source["image_mean"], source["image_std"])
    if not getattr(processor, "do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    scale = 1 / getattr(processor, "rescale_factor", 1 / 255)
    return torch.tensor(mean).view(3, 1, 1) * scale, torch.tensor(std).view(3, 1, 1) * scale


def to_uint8(processor: Any, images: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """What `processor` makes of RGB pictures before it normalises: (n, height, width, 3).

    Run the processor itself and undo its last step, so that training sees the same computation as `pipeline()`.

    Raises:
        MedtlError: the pixels are not whole numbers of 0..255 before normalisation, so that uint8 would lose some.
    """
    mean, std = normalisation(processor)
    values = processor(list(images), return_tensors="pt")["pixel_values"] * std + mean
    pixels = values.round()
    if (values - pixels).abs().max() > 0.01 or pixels.min() < 0 or pixels.max() > 255:
        raise MedtlError(
            f"{type(processor).__name__} does more than resize 8-bit pictures and normalise them; training from "
            "prepared pictures would not equal pipeline(). Use a checkpoint with an ordinary image processor."
        )
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def describe_processor(processor: Any) -> str:
    """One sentence for people: what happens to a picture."""
    if hasattr(processor, "data_config"):
        size, mean, std = processor.data_config["input_size"][1:], *(processor.data_config[k] for k in ("mean", "std"))
    else:
        size, mean, std = (processor.size.height, processor.size.width), processor.image_mean, processor.image_std
    numbers = (", ".join(f"{x:.3f}" for x in values) for values in (mean, std))
    text = "RGB, the whole picture resized to {} × {} pixels, normalised with mean ({}) and standard deviation ({})"
    return text.format(*size, *numbers)


def preprocessing_key(processor: Any) -> str:
    """Text that changes whenever the pixels that `to_uint8` gives might: settings and versions."""
    settings = getattr(processor, "data_config", None) or processor.to_dict()
    versions = [importlib.metadata.version(name) for name in ("pillow", "torchvision", "transformers", "timm")]
    return json.dumps([type(processor).__name__, settings, versions], sort_keys=True, default=str)
