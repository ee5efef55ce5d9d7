"""Settings of stock image processors: size, mean and standard deviation, and order of channels."""

from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from hf_medtl.errors import MedtlError
from hf_medtl.models.untrusted import load_processor


def takes_bgr(name: str | None, **hub: Any) -> bool:
    """Return True if the stock processor of a checkpoint reverses the channels, as that of MobileViT does."""
    try:
        return bool(name) and bool(getattr(load_processor(str(name), **hub), "do_flip_channel_order", False))
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError):
        return False  # `build_processor` says what is wrong


def setting(processor: Any, name: str, default: Any) -> Any:
    """Return a setting of a stock processor, or `default` if it has none."""
    value = getattr(processor, name, None)
    return default if value is None else value


def stated_statistics(processor: Any) -> dict[str, list[float]] | None:
    """Return mean and standard deviation per channel, of rescaled pixels, of a stock processor; None if it has none.

    EfficientNet's may shift pixels to [-1, 1] before, and divide by the standard deviation again after it.
    """
    if not getattr(processor, "do_normalize", None):
        return {"image_mean": [0.0], "image_std": [1.0]}
    mean, std = (getattr(processor, name, None) for name in ("image_mean", "image_std"))
    if mean is None or std is None:
        return None
    mean, std = np.ravel(mean), np.ravel(std)
    if getattr(processor, "rescale_offset", False):
        mean = mean + 1
    if getattr(processor, "include_top", False):
        std = std**2
    return {"image_mean": mean.tolist(), "image_std": std.tolist()}


def three_channel_statistics(
    name: str, stated: dict[str, list[float]] | None, given: dict[str, list[float]] | None
) -> dict[str, list[float]]:
    """Return mean and standard deviation of three channels, from a checkpoint that states them or as they were given.

    Raises:
        MedtlError: neither, or both and they differ.
    """
    if stated is None and given is None:
        raise MedtlError(
            f"{name} does not say with which mean and standard deviation its images are normalised. Give them with "
            "--image_mean and --image_std, such as 0.5 and 0.5."
        )
    if lengths := {len(value) for each in (stated, given) if each for value in each.values()} - {1, 3}:
        raise MedtlError(
            f"{name} normalises images of {max(lengths)} channels, and images here are RGB. Use another checkpoint."
        )
    own, other = (
        None if each is None else {key: [*value] * (3 // len(value)) for key, value in each.items()}
        for each in (stated, given)
    )
    if own and other and not all(np.allclose(own[key], other[key], atol=1e-4) for key in own):
        raise MedtlError(
            f"{name} says that its images are normalised with the mean {own['image_mean']} and the standard deviation "
            f"{own['image_std']}. Remove --image_mean and --image_std, which differ."
        )
    return own or other or {}


def parse_statistics(mean: str | None, std: str | None) -> tuple[list[float], list[float]] | tuple[None, None]:
    """Parse --image_mean and --image_std: one number, or three separated by commas; two None if both are None.

    Raises:
        MedtlError: one without the other, no such numbers, or a standard deviation that is not above 0.
    """
    if mean is None and std is None:
        return None, None
    if mean is None or std is None:
        raise MedtlError("--image_mean and --image_std belong together. Give both, or neither.")
    return parse_channels("image_mean", mean), parse_channels("image_std", std)


def parse_channels(option: str, text: str) -> list[float]:
    """Parse image_mean or image_std: one number, or three separated by commas.

    Raises:
        MedtlError: no such numbers, or a standard deviation that is not above 0.
    """
    try:
        numbers = [float(part) for part in str(text).split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not np.isfinite(numbers).all() or (option == "image_std" and min(numbers) <= 0):
        raise MedtlError(
            f"--{option} must be one number{' above 0' * (option == 'image_std')}, or three for red, green and blue, "
            f"such as 0.485,0.456,0.406, but is {text!r}."
        )
    return numbers


def input_size(processor: Any, config: PreTrainedConfig) -> dict[str, int]:
    """Return height and width in pixels of the images that a stock processor produces, or those of the model.

    Raises:
        MedtlError: neither says.
    """
    vision: Any = getattr(config, "vision_config", None) or config
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", None) else None
    own = getattr(vision, "image_size", None)
    own = {"shortest_edge": own} if isinstance(own, int) else dict(zip(("height", "width"), own or (), strict=False))
    for size in (crop, getattr(processor, "size", None), own):
        if size and size.get("height"):
            return {"height": size["height"], "width": size["width"]}
        if size and size.get("shortest_edge"):
            return {"height": size["shortest_edge"], "width": size["shortest_edge"]}
    raise MedtlError(
        f"Neither the {type(config).__name__} nor the image processor says which size images have. Give --image_size."
    )
