"""Segmentation model builder: architecture or checkpoint and labels to model and image processor."""

import copy
import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerImageProcessor,
)
from transformers import initialization as init

from hf_medtl.common.text import first_line
from hf_medtl.errors import MedtlError
from hf_medtl.models.build import check_finite, check_missing, load_weights, set_labels
from hf_medtl.models.encoders import EncoderWeights, check_encoder, download_encoder, read_encoder
from hf_medtl.models.preprocessing import check_steps, medical_processor
from hf_medtl.models.smp import ARCHITECTURES, TILE_SIDES, SmpConfig, SmpForSemanticSegmentation
from hf_medtl.models.stock_processor import input_size
from hf_medtl.models.untrusted import load_config, load_processor

logger = logging.getLogger(__name__)


def build_segmenter(
    name: str,
    labels: tuple[str, ...],
    *,
    encoder: str | None = None,
    encoder_weights: str = "imagenet",
    image_size: int | None = None,
    revision: str | None = None,
    model_args: dict[str, Any] | None = None,
    steps: Sequence[str] = (),
    fit: str = "squash",
    lung_model: str | None = None,
    tile: int | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Load a model with logits (B, K, H, W) for `labels`, and its image processor, which resizes to a square.

    The processor is stock `SegformerImageProcessor`, or `MedicalImageProcessor` with steps or "pad". Either returns
    masks of the size of the image, also after a crop or with margins.

    Args:
        name: one of ARCHITECTURES for a new network, or Hub id or folder of a segmentation model of `transformers` or
            of ours. A checkpoint with exactly these labels keeps its head; any other gets a new one.
        labels: in the order of the outputs, including the background, usually first. One structure makes two labels.
        encoder: of a new network, see `SmpConfig`; None for the one that the folder in `encoder_weights` is made for,
            else resnet34.
        encoder_weights: of a new network: "imagenet" (from the Hub) or another name known to SMP, "none" for random
            weights, or a folder, see `read_encoder`.
        image_size: height and width in pixels; None for the checkpoint's, or 256 for a new network.
        revision: branch, tag or commit on the Hub, of a checkpoint.
        model_args: of a new network, further arguments of SMP's class.
        steps: some of STEPS, see `MedicalImageProcessor`.
        fit: "squash", or "pad" to keep the aspect ratio.
        lung_model: Hub id or folder of the segmentation model that lung_crop needs.
        tile: side in pixels of the tiles that images, which are then not resized, are cut into; None for whole images.

    Raises:
        MedtlError: an unknown name, no network, fewer than two labels, an encoder that does not fit the architecture
            or the size, weights that do not fit the encoder, no usable image processor, an unknown step or fit, or
            tiles or a crop for a model whose code can't undo them.
    """
    check_steps(steps, fit, lung_model)
    check_tile(tile)
    model, stock = _build(name, labels, encoder, encoder_weights, tile or image_size, revision, model_args)
    if isinstance(model, SmpForSemanticSegmentation):
        model.config.tile = tile
    elif tile:
        raise MedtlError(
            f"--tile works with {', '.join(ARCHITECTURES)}, whose code cuts images and joins masks, not with "
            f"{type(model).__name__}. Remove the option, or use one of these."
        )
    if not steps and fit == "squash" and not tile:
        return model, stock
    settings = {key: getattr(stock, key) for key in ("size", "resample", "image_mean", "image_std", "rescale_factor")}
    processor = medical_processor(settings, steps, fit, lung_model)
    if crops := {"brain_crop", "lung_crop"} & {*steps}:
        if not isinstance(model, SmpForSemanticSegmentation):
            raise MedtlError(
                f"--preprocessing {crops.pop()} works with {', '.join(ARCHITECTURES)}, not with "
                f"{type(model).__name__}: stock pipeline() could not tell where its masks belong. Remove the step, or "
                "use one of these."
            )
        processor.return_crop_boxes = True
    if tile:
        processor.tile = tile
    return model, processor


def check_tile(tile: int | None) -> None:
    """Raise MedtlError for tiles that no network takes."""
    if tile and not TILE_SIDES[0] <= tile <= TILE_SIDES[1]:
        raise MedtlError(f"--tile must be from {TILE_SIDES[0]} to {TILE_SIDES[1]} pixels, or 0, but is {tile}.")


def _build(
    name: str,
    labels: tuple[str, ...],
    encoder: str | None,
    encoder_weights: str,
    image_size: int | None,
    revision: str | None,
    model_args: dict[str, Any] | None,
) -> tuple[PreTrainedModel, SegformerImageProcessor]:
    """Return the model, and a processor without further steps."""
    if len(labels) < 2:
        raise MedtlError(f"Segmentation needs two labels or more, background included; found {', '.join(labels)}.")
    if name not in ARCHITECTURES or Path(name).exists():
        if "/" not in name and not Path(name).exists():
            close = difflib.get_close_matches(name, ARCHITECTURES) or ARCHITECTURES
            raise MedtlError(
                f"Unknown architecture {name!r}, and no folder of that name. Did you mean {', '.join(close)}? A model "
                "id on the Hub contains a slash."
            )
        return _load(name, labels, image_size, revision)
    if encoder:
        check_encoder(encoder)
    folder = Path(encoder_weights)
    weights = read_encoder(folder, [encoder] if encoder else []) if folder.is_dir() else None
    size = image_size or 256
    configs = []
    for candidate in weights.names if weights else (encoder or "resnet34",):
        configs.append(SmpConfig(name, candidate, model_args))
        set_labels(configs[-1], labels)
    config = _select_config(configs, weights, size)
    if weights is None and encoder_weights != "none":
        weights = download_encoder(config, encoder_weights)
    model = SmpForSemanticSegmentation(config)
    if weights:
        weights.fill(model.encoder)
    logger.info("%s on %s, encoder weights: %s", name, config.encoder_name, weights.source if weights else "random")
    mean, std = (weights.mean, weights.std) if weights else ([0.5] * 3, [0.5] * 3)
    return model, _processor(size, size, image_mean=list(mean), image_std=list(std))


def _select_config(configs: list[SmpConfig], weights: EncoderWeights | None, size: int) -> SmpConfig:
    """Return the first configuration whose network accepts this image size and whose encoder fits the weights."""
    problems = []
    for config in configs:
        try:
            encoder = _meta_model(config, size).encoder
            if weights:
                weights.check(encoder)
            return config
        except MedtlError as error:
            problems.append(error)
    raise problems[0]


def _meta_model(config: SmpConfig, size: int) -> SmpForSemanticSegmentation:
    """Build a model on the meta device (shapes without values) and run one image through it."""
    try:
        with torch.no_grad(), torch.device("meta"), init.meta_device_safe_creation_ops():
            model = SmpForSemanticSegmentation(config).eval()
            model(torch.empty(1, config.num_channels, size, size))
    except (ValueError, KeyError, TypeError, AssertionError, RuntimeError) as error:
        raise MedtlError(
            f"{config.architecture} with the encoder {config.encoder_name} does not work for images of {size} × "
            f"{size} pixels ({first_line(error)}). Use another encoder, architecture or size."
        ) from error
    return model


def _load(
    name: str, labels: tuple[str, ...], image_size: int | None, revision: str | None
) -> tuple[PreTrainedModel, SegformerImageProcessor]:
    """Load a checkpoint; a missing decoder, and a head for other labels, are initialised randomly."""
    try:
        config = load_config(name, revision=revision)
        processor = _processor_like(name, config, image_size, revision)
        same_labels = tuple((config.id2label or {}).values()) == labels
        set_labels(config, labels)
        model, missing = load_weights(AutoModelForSemanticSegmentation, name, config, revision)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise MedtlError(
            f"Can't build a segmentation model from {name!r} ({first_line(error)}). Expected one of "
            f"{', '.join(ARCHITECTURES)}, or a model for semantic segmentation: an id on the Hub, or a folder with "
            "config.json, model.safetensors and preprocessor_config.json. Check the spelling, the network, or the path."
        ) from error
    head = _label_dependent(model)
    body = {key for key in model.state_dict() if not key.endswith("num_batches_tracked")}
    if not same_labels:
        body -= head
    encoder = {key for key in body if key.startswith(f"{model.base_model_prefix}.")}
    if encoder and body > encoder and body - encoder <= missing:
        logger.info("%s holds no decoder: a new one is used", name)
        body = encoder
    check_missing(name, model, missing, body)
    if not same_labels:
        for key in head:
            parameter = model.get_parameter(key)
            nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else nn.init.zeros_(parameter)
        logger.info("New head for the labels %s", ", ".join(labels))
    check_finite(name, model.state_dict())
    return model, processor


def _processor_like(
    name: str, config: PreTrainedConfig, image_size: int | None, revision: str | None
) -> SegformerImageProcessor:
    """Return a processor with the size, interpolation, mean and standard deviation of a checkpoint, without a crop."""
    stock: Any = load_processor(name, revision=revision)
    if getattr(stock, "do_flip_channel_order", False) or not getattr(stock, "do_normalize", True):
        raise MedtlError(
            f"{name} expects images in another channel order or without normalisation, which "
            "SegformerImageProcessor does not support. Use another checkpoint."
        )
    size = {"height": image_size, "width": image_size} if image_size else input_size(stock, config)
    return _processor(
        **size,
        resample=Image.Resampling.BILINEAR if stock.resample is None else stock.resample,
        image_mean=list(stock.image_mean),
        image_std=list(stock.image_std),
        rescale_factor=stock.rescale_factor,
    )


def _label_dependent(model: PreTrainedModel) -> set[str]:
    """Return the names of the parameters whose shape depends on the number of labels."""
    config: PreTrainedConfig = copy.deepcopy(model.config)
    config.num_labels = int(model.config.num_labels or 0) + 1
    with torch.device("meta"), init.meta_device_safe_creation_ops():
        other = dict(AutoModelForSemanticSegmentation.from_config(config).named_parameters())
    return {key for key, parameter in model.named_parameters() if parameter.shape != other[key].shape}


def _processor(height: int, width: int, **settings: Any) -> SegformerImageProcessor:
    return SegformerImageProcessor(size={"height": height, "width": width}, do_reduce_labels=False, **settings)
