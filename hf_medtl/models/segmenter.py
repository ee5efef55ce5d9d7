"""A segmentation network and labels -> model and image processor."""

import copy
import difflib
import logging
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerImageProcessor,
)
from transformers import initialization as init

from hf_medtl.errors import MedtlError
from hf_medtl.models.build import first_line, load_weights, refuse_missing
from hf_medtl.models.encoders import EncoderWeights, check_encoder, download_encoder, read_encoder
from hf_medtl.models.preprocessing import input_size
from hf_medtl.models.smp import ARCHITECTURES, SmpConfig, SmpForSemanticSegmentation

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
) -> tuple[PreTrainedModel, SegformerImageProcessor]:
    """A model that gives logits (B, K, H, W) for `labels`, and its image processor, which resizes to a square.

    Args:
        name: one of ARCHITECTURES for a new network, or Hub id or folder of a segmentation model of `transformers` or
            of ours. A checkpoint made for just these labels keeps its head; any other gets a new one.
        labels: in the order of the outputs, the background among them, usually first. One structure makes two labels.
        encoder: of a new network, see `SmpConfig`; None for the one that the folder in `encoder_weights` is made for,
            else resnet34.
        encoder_weights: of a new network: "imagenet" (from the Hub) or another name that SMP has, "none" for random
            ones, or a folder, see `read_encoder`.
        image_size: height and width in pixels; None for the checkpoint's, or 256 for a new network.
        revision: branch, tag or commit on the Hub, of a checkpoint.
        model_args: of a new network, further arguments of SMP's class.

    Raises:
        MedtlError: an unknown name, no network, fewer than two labels, an encoder that the architecture or the size
            does not suit, weights that don't fill the encoder, no usable image processor.
    """
    if len(labels) < 2:
        raise MedtlError(f"Segmentation needs two labels or more, background included; found {', '.join(labels)}.")
    label_maps: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    if name not in ARCHITECTURES or Path(name).exists():
        if "/" not in name and not Path(name).exists():
            close = difflib.get_close_matches(name, ARCHITECTURES) or ARCHITECTURES
            raise MedtlError(
                f"Unknown architecture {name!r}, and no folder of that name. Such as {', '.join(close)} exist; an id "
                "on the Hub has a slash."
            )
        return _load(name, label_maps, image_size, revision)
    if encoder:
        check_encoder(encoder)
    folder = Path(encoder_weights)
    weights = read_encoder(folder, [encoder] if encoder else []) if folder.is_dir() else None
    size = image_size or 256
    encoders = weights.names if weights else (encoder or "resnet34",)
    config = _choose([SmpConfig(name, candidate, model_args, **label_maps) for candidate in encoders], weights, size)
    if weights is None and encoder_weights != "none":
        weights = download_encoder(config, encoder_weights)
    model = SmpForSemanticSegmentation(config)
    if weights:
        weights.fill(model.encoder)
    logger.info("%s on %s, encoder weights: %s", name, config.encoder_name, weights.source if weights else "random")
    mean, std = (weights.mean, weights.std) if weights else ([0.5] * 3, [0.5] * 3)
    return model, _processor(size, size, image_mean=list(mean), image_std=list(std))


def _choose(configs: list[SmpConfig], weights: EncoderWeights | None, size: int) -> SmpConfig:
    """The first whose network takes pictures of this size and whose encoder the weights fill."""
    problems = []
    for config in configs:
        try:
            encoder = _outline(config, size).encoder
            if weights:
                weights.check(encoder)
            return config
        except MedtlError as error:
            problems.append(error)
    raise problems[0]


def _outline(config: SmpConfig, size: int) -> SmpForSemanticSegmentation:
    """A model with shapes but without values, after it has seen a picture."""
    try:
        with torch.no_grad(), torch.device("meta"), init.meta_device_safe_creation_ops():
            model = SmpForSemanticSegmentation(config).eval()
            model(torch.empty(1, config.num_channels, size, size))
    except (ValueError, KeyError, TypeError, AssertionError, RuntimeError) as error:
        raise MedtlError(
            f"{config.architecture} with the encoder {config.encoder_name} does not work for pictures of {size} × "
            f"{size} pixels ({first_line(error)}). Use another encoder, architecture or size."
        ) from error
    return model


def _load(
    name: str, label_maps: dict[str, Any], image_size: int | None, revision: str | None
) -> tuple[PreTrainedModel, SegformerImageProcessor]:
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        processor = _processor_like(name, config, image_size, revision)
        old_labels = tuple((config.id2label or {}).values())
        config.id2label, config.label2id = label_maps["id2label"], label_maps["label2id"]
        model, missing = load_weights(AutoModelForSemanticSegmentation, name, config, revision)
    except (OSError, ValueError, KeyError) as error:
        raise MedtlError(
            f"No segmentation model can be made from {name!r} ({first_line(error)}). Expected one of "
            f"{', '.join(ARCHITECTURES)}, or a model for semantic segmentation: an id on the Hub, or a folder with "
            "config.json, model.safetensors and preprocessor_config.json. Check the spelling, the network, or the path."
        ) from error
    same, head = old_labels == tuple(label_maps["label2id"]), _head(model)
    body = {key for key in model.state_dict() if not key.endswith("num_batches_tracked")} - (set() if same else head)
    encoder = {key for key in body if key.startswith(f"{model.base_model_prefix}.")}
    if encoder and body > encoder and body - encoder <= missing:
        logger.info("%s holds no decoder: a new one", name)
        body = encoder
    refuse_missing(name, model, missing, body)
    if not same:
        for key in head:
            parameter = model.get_parameter(key)
            nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else nn.init.zeros_(parameter)
        logger.info("New head for the labels %s", ", ".join(label_maps["label2id"]))
    return model, processor


def _processor_like(
    name: str, config: PreTrainedConfig, image_size: int | None, revision: str | None
) -> SegformerImageProcessor:
    """One with size, interpolation, mean and standard deviation of a checkpoint, which crops nothing away."""
    stock: Any = AutoImageProcessor.from_pretrained(name, revision=revision)
    if getattr(stock, "do_flip_channel_order", False) or not getattr(stock, "do_normalize", True):
        raise MedtlError(
            f"{name} wants pictures in another order of colours or without normalisation, which "
            "SegformerImageProcessor does not give. Use another checkpoint."
        )
    size = {"height": image_size, "width": image_size} if image_size else input_size(stock, config)
    return _processor(
        **size,
        resample=Image.Resampling.BILINEAR if stock.resample is None else stock.resample,
        image_mean=list(stock.image_mean),
        image_std=list(stock.image_std),
        rescale_factor=stock.rescale_factor,
    )


def _head(model: PreTrainedModel) -> set[str]:
    """Names of the parameters that change their shape with the number of labels."""
    config: PreTrainedConfig = copy.deepcopy(model.config)
    config.num_labels = int(model.config.num_labels or 0) + 1
    with torch.device("meta"), init.meta_device_safe_creation_ops():
        other = dict(AutoModelForSemanticSegmentation.from_config(config).named_parameters())
    return {key for key, parameter in model.named_parameters() if parameter.shape != other[key].shape}


def _processor(height: int, width: int, **settings: Any) -> SegformerImageProcessor:
    return SegformerImageProcessor(size={"height": height, "width": width}, do_reduce_labels=False, **settings)
