"""Preprocessing: builds the image processor that is saved with the weights, and describes and compares processors."""

import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedConfig, TimmWrapperConfig, ViTImageProcessor

from hf_medtl.errors import MedtlError
from hf_medtl.models.processor import FITS, STEPS, MedicalImageProcessor, lung_model_folder, opencv, to_rgb
from hf_medtl.models.stock_processor import input_size, setting, stated_statistics, three_channel_statistics
from hf_medtl.models.untrusted import check_model, load_processor

LUNG_MARGIN = 0.05  # predicted lungs are a little too small, above all in the costophrenic angles


def build_processor(
    name: str | None,
    config: PreTrainedConfig,
    steps: Sequence[str] = (),
    fit: str = "squash",
    lung_model: str | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **hub: Any,
) -> Any:
    """Build an image processor that resizes the whole image to the model's size; nothing is cropped by default.

    Stock processors often resize the shorter side and crop the centre, which cuts the margins of the lungs. Ours keep
    size, mean, standard deviation and interpolation of the checkpoint. Without steps and with "squash" a stock class
    can do that; otherwise `MedicalImageProcessor` is used, whose code is saved beside the weights.

    Args:
        name: Hub id or folder of the checkpoint; None without one, for mean and standard deviation 0.5.
        config: its configuration. That of a timm model contains the preprocessing, and is changed in place.
        steps: some of STEPS, see `MedicalImageProcessor`.
        fit: "squash", or "pad" to keep the aspect ratio.
        lung_model: Hub id or folder of the segmentation model that lung_crop needs.
        image_size: height and width in pixels; None for those of the checkpoint. A timm configuration names its own.
        mean: per channel, of pixels in [0, 1]; only for a checkpoint that does not give it.
        std: likewise.
        hub: `revision`, `token`.

    Raises:
        MedtlError: an unknown step or fit, no such lung model, a checkpoint without preprocessing settings, or one with
            settings where `mean` and `std` are given.
    """
    check_steps(steps, fit, lung_model)
    given: dict[str, Any] | None = None
    if mean is not None and std is not None:
        given = {"image_mean": list(mean), "image_std": list(std)}
    plain = not steps and fit == "squash"
    if isinstance(config, TimmWrapperConfig):
        from transformers.models.timm_wrapper import TimmWrapperImageProcessor

        # The processor is made from config.json alone; its own save_pretrained does nothing.
        own = {key: config.pretrained_cfg.get(key) for key in ("mean", "std")}
        stated = None if None in own.values() else {f"image_{key}": list(value) for key, value in own.items()}
        values = three_channel_statistics(str(name), stated, given) if stated or given else None
        named = {} if values is None else {key.removeprefix("image_"): value for key, value in values.items()}
        config.pretrained_cfg = {**config.pretrained_cfg, **named, "crop_pct": 1.0, "crop_mode": "squash"}
        config.model_args = config.model_args or {}  # timm 1.0.31 also reads config.json, and fails at null
        timm = TimmWrapperImageProcessor(config.pretrained_cfg, config.architecture)
        _set_timm_processor(config, None if plain else MedicalImageProcessor)
        return timm if plain else _medical_from_timm(timm, steps, fit, lung_model)
    try:
        stock = load_processor(name, **hub) if name else ViTImageProcessor(size=None)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        if given is None:
            raise MedtlError(
                f"{name} has no usable preprocessor_config.json ({type(error).__name__}), so mean and standard "
                "deviation of its images are unknown. Use a checkpoint that has one, or give them with --image_mean "
                "and --image_std."
            ) from error
        stock = ViTImageProcessor(size=None, **given)
    settings: dict[str, Any] = {
        "size": {"height": image_size, "width": image_size} if image_size else input_size(stock, config),
        "resample": setting(stock, "resample", Image.Resampling.BICUBIC),
        "do_normalize": setting(stock, "do_normalize", False),
        "rescale_factor": setting(stock, "rescale_factor", 1 / 255),
        **three_channel_statistics(str(name), stated_statistics(stock), given),
    }
    return ViTImageProcessor(**settings) if plain else medical_processor(settings, steps, fit, lung_model)


def medical_processor(
    settings: dict[str, Any], steps: Sequence[str], fit: str, lung_model: str | None
) -> MedicalImageProcessor:
    """Build a `MedicalImageProcessor`.

    Args:
        settings: its other arguments.
        steps: as for `build_processor`.
        fit: as for `build_processor`.
        lung_model: as for `build_processor`.

    Raises:
        MedtlError: the lung model can't be loaded.
    """
    if lung_model is None:
        return MedicalImageProcessor(**settings, steps=steps, fit=fit)
    try:
        check_model(lung_model)
        folder = lung_model_folder(lung_model)
        return MedicalImageProcessor(**settings, steps=steps, fit=fit, lung_model=folder, crop_margin=LUNG_MARGIN)
    except (OSError, ValueError, KeyError) as error:
        raise MedtlError(
            f"--lung_model {lung_model} can't be loaded as a segmentation model ({str(error).splitlines()[0]}). Give "
            "the Hub id or folder of one, such as the run of recipes/unet_lungs.py."
        ) from error


def check_steps(steps: Sequence[str], fit: str, lung_model: str | None = None) -> None:
    """Raise MedtlError for an unknown step or fit, or an unsupported combination of arguments."""
    for step in steps:
        if step not in STEPS:
            raise MedtlError(f"Unknown preprocessing step {step!r}. Known: {', '.join(STEPS)}.")
    if fit not in FITS:
        raise MedtlError(f"Unknown fit {fit!r}. Known: {', '.join(FITS)}.")
    if "lung_crop" in steps and not lung_model:
        raise MedtlError(
            "lung_crop needs --lung_model, a run of recipes/unet_lungs.py or another lung segmentation model."
        )
    if lung_model and "lung_crop" not in steps:
        raise MedtlError("--lung_model is for --preprocessing lung_crop, which is not given.")
    if {"brain_crop", "lung_crop"} <= set(steps):
        raise MedtlError("--preprocessing takes one crop, found brain_crop and lung_crop.")


def _set_timm_processor(config: TimmWrapperConfig, processor: type[MedicalImageProcessor] | None) -> None:
    """Set the image processor class in a timm model's configuration; None for the default.

    TRAP: in a folder with a timm model `AutoImageProcessor` takes the class from config.json, although the class then
    reads preprocessor_config.json. With `auto_map` alone it would silently use the stock class if code is not trusted;
    with `image_processor_type` as well it raises an error.
    """
    for key in ("image_processor_type", "auto_map"):  # of the checkpoint that the run starts from
        config.__dict__.pop(key, None)
    if processor is not None:
        auto_map = {"AutoImageProcessor": f"processor.{processor.__name__}"}
        config.update({"image_processor_type": processor.__name__, "auto_map": auto_map})


def _medical_from_timm(
    timm: Any, steps: Sequence[str] = (), fit: str = "squash", lung_model: str | None = None
) -> MedicalImageProcessor:
    """Build a `MedicalImageProcessor` equal to a timm model's processor without a crop, with additional steps."""
    height, width = timm.data_config["input_size"][1:]
    settings = {
        "size": {"height": height, "width": width},
        "resample": getattr(Image.Resampling, timm.data_config["interpolation"].upper(), Image.Resampling.BICUBIC),
        "image_mean": list(timm.data_config["mean"]),
        "image_std": list(timm.data_config["std"]),
    }
    return medical_processor(settings, steps, fit, lung_model)


def shared_processor(processors: Sequence[Any], names: Sequence[str]) -> Any:
    """Return one processor for several models, equal to all up to mean and standard deviation (those of the first).

    Args:
        processors: one per model.
        names: names of the models, for messages.

    Raises:
        MedtlError: the processors differ in anything else.
    """
    comparable = [_medical_from_timm(each) if hasattr(each, "data_config") else each for each in processors]
    ignored = ("image_mean", "image_std", "auto_map", "image_processor_type")
    settings = [
        {"class": type(each).__name__} | {key: value for key, value in each.to_dict().items() if key not in ignored}
        for each in comparable
    ]
    for name, other in zip(names, settings, strict=True):
        different = [key for key in {**settings[0], **other} if settings[0].get(key) != other.get(key)]
        if different:
            pairs = "; ".join(f"{key} is {settings[0].get(key)} and {other.get(key)}" for key in different)
            raise MedtlError(
                f"{names[0]} and {name} preprocess images differently ({pairs}). Only mean and standard deviation may "
                "differ: train them with the same size, --preprocessing and --fit. Stock processors round differently "
                "when they resize; with a medical step, such as grayscale, all models use the same processor."
            )
    return comparable[0]


def size_of(processor: Any) -> tuple[int, int]:
    """Return height and width in pixels of what one of our image processors returns."""
    if hasattr(processor, "data_config"):
        return tuple(processor.data_config["input_size"][1:])
    return processor.size["height"], processor.size["width"]


def normalisation(processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and standard deviation (3, 1, 1) used by `processor`, scaled to pixels of 0..255."""
    source = processor.data_config if hasattr(processor, "data_config") else vars(processor)
    mean, std = (source["mean"], source["std"]) if "mean" in source else (source["image_mean"], source["image_std"])
    if not getattr(processor, "do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    scale = 1 / getattr(processor, "rescale_factor", 1 / 255)
    return torch.tensor(mean).view(3, 1, 1) * scale, torch.tensor(std).view(3, 1, 1) * scale


def to_uint8(processor: Any, images: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """Apply `processor` to RGB images without its normalisation; return (n, height, width, 3).

    Runs the processor itself and undoes its last step, so that training and `pipeline()` share one computation.

    Raises:
        MedtlError: the pixels before normalisation are not whole numbers of 0..255, so uint8 would lose information.
    """
    if getattr(processor, "tile", None):  # images may be large, and MedicalImageProcessor has whole numbers
        return np.stack([processor.prepare(to_rgb(image)) for image in images])
    mean, std = normalisation(processor)
    values = processor(list(images), return_tensors="pt")["pixel_values"] * std + mean
    pixels = values.round()
    if (values - pixels).abs().max() > 0.01 or pixels.min() < 0 or pixels.max() > 255:
        raise MedtlError(
            f"{type(processor).__name__} does more than resize 8-bit images and normalise them; training from "
            "preprocessed images would not equal pipeline(). Use a checkpoint with an ordinary image processor."
        )
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def describe_processor(processor: Any) -> str:
    """Describe the preprocessing in one sentence."""
    if hasattr(processor, "data_config"):
        mean, std = (processor.data_config[k] for k in ("mean", "std"))
    else:
        mean, std = processor.image_mean, processor.image_std
    size = size_of(processor)
    steps, fit = (processor.steps, processor.fit) if isinstance(processor, MedicalImageProcessor) else ((), "squash")
    cropped = {"brain_crop", "lung_crop"} & {*steps}
    parts = [
        "RGB",
        "cropped to the brain, or the whole image where none is found" if "brain_crop" in steps else "",
        "cropped to the lungs found by the segmentation model in lung_model, or the whole image where none are found"
        if "lung_crop" in steps
        else "",
        "grey values" if "grayscale" in steps else "",
        f"{'' if cropped else 'the whole image '}at its own resolution, in overlapping tiles of {size[0]} × {size[1]} "
        "pixels, with black margins if it is smaller"
        if getattr(processor, "tile", None)
        else f"{'' if cropped else 'the whole image '}resized to {size[0]} × {size[1]} pixels"
        f"{', keeping the aspect ratio with black margins' if fit == 'pad' else ''}",
        f"Gaussian blur (sigma {processor.blur_sigma:g} pixels)" if "blur" in steps else "",
        f"CLAHE (clip {processor.clahe_clip:g}, {processor.clahe_grid} × {processor.clahe_grid} tiles)"
        if "clahe" in steps
        else "",
        "normalised with mean ({}) and standard deviation ({})".format(
            *(", ".join(f"{x:.3f}" for x in values) for values in (mean, std))
        ),
    ]
    return ", ".join(filter(None, parts))


def preprocessing_key(processor: Any) -> str:
    """Return a cache key (settings and versions) that changes whenever the output of `to_uint8` might."""
    settings = getattr(processor, "data_config", None) or processor.to_dict()
    versions = [importlib.metadata.version(name) for name in ("pillow", "torchvision", "transformers", "timm")]
    if isinstance(processor, MedicalImageProcessor):
        settings = {key: value for key, value in settings.items() if key != "auto_map"}  # added at the first save
        code = Path(inspect.getfile(MedicalImageProcessor)).read_bytes()
        versions += [opencv().__version__, hashlib.sha256(code).hexdigest()]
    return json.dumps([type(processor).__name__, settings, versions], sort_keys=True, default=str)
