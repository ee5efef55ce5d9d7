"""Input of classifiers: position embeddings for another image size, and stems of one channel for RGB images."""

import inspect
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers import AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel, TimmWrapperConfig
from transformers import initialization as init

from hf_medtl.common.text import first_line
from hf_medtl.errors import MedtlError
from hf_medtl.models.processor import MAX_SIDE

TABLE = "relative_position_bias_table"  # of BEiT and Swin: a bias for each offset between two patches
ANTIALIASED = ("dinov2_with_registers", "tipsv2_vision_model")  # model types whose own interpolation smooths


def set_image_size(config: PreTrainedConfig, size: int) -> None:
    """Set the height and width in pixels of the images of a model, in its configuration.

    Convolutional networks take any size, and where the configuration names none, nothing is changed.

    Args:
        config: changed in place.
        size: pixels.

    Raises:
        MedtlError: the size does not fit the patches or the windows of the model; names the nearest that do.
    """
    if isinstance(config, TimmWrapperConfig):
        _set_timm_size(config, size)
        return
    vision: Any = getattr(config, "vision_config", None) or config
    own = getattr(vision, "image_size", None)
    if own is None or own in (size, [size, size], (size, size)):
        return
    if hasattr(vision, "window_size") and hasattr(vision, "depths"):
        reason = f"its stages can't be divided into windows of {vision.window_size} × {vision.window_size} patches"
        _check_fit(size, lambda pixels: _has_windows(vision, pixels), reason)
    elif hasattr(vision, "patch_size") and hasattr(vision, "num_attention_heads"):
        _check_patches(size, vision.patch_size)
    vision.image_size = size if isinstance(own, int) else [size, size]


def set_channels(config: PreTrainedConfig) -> None:
    """Set three channels in the configuration, changed in place, of a model for grey images: ours are always RGB."""
    if isinstance(config, TimmWrapperConfig):
        arguments = dict(config.model_args or {})
        if arguments.get("in_chans") == 1:
            del arguments["in_chans"]
            size = config.pretrained_cfg["input_size"]
            config.pretrained_cfg = {**config.pretrained_cfg, "input_size": [3, *size[1:]]}
            config.model_args = arguments
        return
    vision: Any = getattr(config, "vision_config", None) or config
    if getattr(vision, "num_channels", 3) == 1:
        vision.num_channels = 3


def resize_model(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Return a classifier with the weights of `model` for the image size and channels of `config`.

    Position embeddings are interpolated once, here, as the library of the model does it when it meets another size:
    bicubic, biases of relative positions bilinear, and those of timm by its own functions. So stock classes load the
    saved model without further settings. A stem of one channel becomes one of three with a third of its weights each,
    whose output for a grey image is the same.

    Args:
        model: classifier with its weights.
        config: its configuration after `set_image_size` and `set_channels`.

    Raises:
        MedtlError: a tensor depends on the size in a way that is not known.
    """
    resized: PreTrainedModel = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    weights, expected = model.state_dict(), resized.state_dict()
    if isinstance(config, TimmWrapperConfig):
        network: Any = resized.timm_model
        original: Any = model.timm_model
        convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        if convert is not None:
            weights = {f"timm_model.{key}": x for key, x in convert(original.state_dict(), network).items()}
    buffers = {name for name, _ in resized.named_buffers()}
    for name, like in expected.items():
        if name not in weights or weights[name].shape != like.shape:
            weights[name] = like if name in buffers else _interpolate(model, name, weights.get(name), like)
    resized.load_state_dict({name: weights[name] for name in expected})
    return resized.train(model.training)


@torch.no_grad()
def reverse_channels(model: PreTrainedModel) -> None:
    """Reverse the channels of the first convolution, so that a model for BGR images gives the same for RGB ones."""
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    stem.weight.copy_(stem.weight.flip(1))


@torch.no_grad()  # TRAP: BEiT caches tensors, and training can't use those of inference mode
def check_image_size(model: PreTrainedModel, height: int, width: int, **arguments: Any) -> None:
    """Raise MedtlError if a classifier gives no logits (1, K) for an image of this height and width in pixels.

    Args:
        model: the classifier; it is left as it is.
        height: pixels.
        width: pixels.
        arguments: of its forward, see `size_arguments`.
    """
    training, labels = model.training, len(model.config.id2label or ())
    try:
        logits = model.eval()(pixel_values=torch.zeros(1, 3, height, width, device=model.device), **arguments).logits
        if logits.shape != (1, labels):
            raise ValueError(f"expected logits of the shape (1, {labels}), found {tuple(logits.shape)}")
    except Exception as error:  # of any library, at any layer
        raise MedtlError(
            f"{type(model).__name__} does not work for images of {height} × {width} pixels ({first_line(error)}). Use "
            "another --image_size or another backbone."
        ) from error
    finally:
        model.train(training)


def size_arguments(model: PreTrainedModel) -> dict[str, Any]:
    """Return the arguments with which a model takes images of another size than its own."""
    accepted = "interpolate_pos_encoding" in inspect.signature(type(model).forward).parameters
    return {"interpolate_pos_encoding": True} if accepted else {}


def _set_timm_size(config: TimmWrapperConfig, size: int) -> None:
    """Set `img_size` of an architecture that has it, and the size of its images; convolutional networks have none."""
    import timm

    arguments = dict(config.model_args or {})
    with torch.device("meta"), init.meta_device_safe_creation_ops():
        network = timm.create_model(config.architecture, **arguments)
    own = list(config.pretrained_cfg["input_size"])
    if takes_img_size(network) and [size, size] != own[1:]:
        patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        if patch is not None and not arguments.get("dynamic_img_pad"):
            _check_patches(size, patch)
        config.model_args = arguments | {"img_size": size}
    config.pretrained_cfg = {**config.pretrained_cfg, "input_size": [own[0], size, size]}


def takes_img_size(network: nn.Module) -> bool:
    """Return True if a network of timm is built for one image size."""
    return "img_size" in inspect.signature(type(network).__init__).parameters


def _check_patches(size: int, patch: Any) -> None:
    """Check that an image consists of whole patches; `patch` is one side or both, in pixels."""
    sides = (patch, patch) if isinstance(patch, int) else tuple(patch)
    reason = f"it does not consist of whole patches of {sides[0]} × {sides[-1]} pixels"
    _check_fit(size, lambda pixels: all(pixels % side == 0 for side in sides), reason)


def _check_fit(size: int, fits: Callable[[int], bool], reason: str) -> None:
    """Raise MedtlError with the nearest sizes that fit, unless `size` does."""
    if fits(size):
        return
    below = next((pixels for pixels in range(size, 0, -1) if fits(pixels)), None)
    above = next((pixels for pixels in range(size, MAX_SIDE + 1) if fits(pixels)), None)
    nearest = " or ".join(str(pixels) for pixels in (below, above) if pixels)
    raise MedtlError(f"An image of --image_size {size} does not fit this model: {reason}. The nearest is {nearest}.")


def _has_windows(config: Any, size: int) -> bool:
    """Return True if every stage of a Swin consists of whole windows; those of Swin v2 may be smaller than its own."""
    for stage in range(len(config.depths)):
        side, rest = divmod(size, config.patch_size * 2**stage)
        window = min(side, config.window_size) if config.model_type == "swinv2" else config.window_size
        if rest or not side or side % window:
            return False
    return True


def _interpolate(model: PreTrainedModel, name: str, values: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """Interpolate a grid of embeddings (1, n, C) or (n, C), which begins or ends with tokens that have no position.

    A convolution of one channel (out, 1, h, w) is spread over three.
    """
    if values is None or values.ndim != like.ndim:
        raise _size_error(model, name)
    if values.ndim == 4 and values.shape[1] == 1 and values.expand(-1, 3, -1, -1).shape == like.shape:
        return values.expand_as(like) / 3
    table, grid = name.endswith(TABLE), values[0] if values.ndim == 3 and len(values) == 1 else values
    if grid.ndim != 2 or like.shape[-1] != grid.shape[-1]:
        raise _size_error(model, name)
    old, new = math.isqrt(len(grid)), math.isqrt(like.shape[-2])
    others = len(grid) - old**2
    if others != like.shape[-2] - new**2:
        raise _size_error(model, name)
    (first, second) = grid.split([old**2, others] if table else [others, old**2])
    positions = (first if table else second).T.reshape(1, -1, old, old)
    model_type = (getattr(model.config, "vision_config", None) or model.config).model_type
    options: dict[str, Any] = {"mode": "bilinear" if table else "bicubic", "antialias": model_type in ANTIALIASED}
    positions = interpolate(positions.float(), (new, new), align_corners=False, **options).reshape(-1, new**2).T
    return torch.cat([positions, second] if table else [first, positions]).reshape(like.shape)


def _size_error(model: PreTrainedModel, name: str) -> MedtlError:
    return MedtlError(
        f"{type(model).__name__} has weights for one image size only ({name}), and they can't be interpolated. Leave "
        "out --image_size."
    )
