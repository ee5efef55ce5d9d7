"""Class of the classifier for a checkpoint: a stock class where there is one, otherwise one on its image encoder."""

import re
from typing import Any

from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, PreTrainedConfig, ViTConfig

from hf_medtl.errors import MedtlError
from hf_medtl.models.encoder_classifier import ENCODERS, EncoderConfig

DINOV3 = re.compile(r"dinov3(?:-vit(s|b|l|h|7b)\d+(plus)?|-convnext-(\w+?)-|)")
VIT_SIZES = {"s": "small", "b": "base", "l": "large", "h": "huge", "7b": "7b"}
OWN_POOLING = {"deit": "cls", "ijepa": "mean", "vit": "cls", "vit_msn": "cls"}  # of stock classifiers
# Model types whose stock classifier does not take pixel values alone -> why they are refused.
UNFIT = {
    "siglip2": "SigLIP 2 NaFlex takes patches of images of any shape instead of images of one size. Use a checkpoint "
    "with a fixed size, such as google/siglip2-base-patch16-224.",
    "siglip2_vision_model": "SigLIP 2 NaFlex takes patches of images of any shape instead of images of one size. Use a "
    "checkpoint with a fixed size, such as google/siglip2-base-patch16-224.",
    "imagegpt": "ImageGPT takes colours of a palette instead of images. Use another backbone.",
    "shieldgemma2": "ShieldGemma 2 answers questions of a policy and has no head for labels. Use another backbone.",
}


def classifier_config(name: str, config: PreTrainedConfig, pooling: str | None = None) -> PreTrainedConfig:
    """Return the configuration of a classifier for a checkpoint: its own, or that of its encoder in an EncoderConfig.

    Args:
        name: of the checkpoint, for the message.
        config: its configuration.
        pooling: cls, mean or attention, see `EncoderConfig`; None for that of the stock class, or the encoder's own.

    Raises:
        MedtlError: there is no image encoder in it that is supported, or it can't be pooled in this way.
    """
    model_type = config.model_type
    if model_type in UNFIT:
        raise MedtlError(f"{name}: {UNFIT[model_type]}")
    if model_type == "vit_mae":  # the same body, which leaves out no patches
        settings = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
        config = ViTConfig.from_dict(settings)
    if pooling in (None, OWN_POOLING.get(config.model_type)) and type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return config
    vision: Any
    if isinstance(config, EncoderConfig):
        vision = config.vision_config
        if pooling in (None, config.pooling):
            return config
    else:
        vision = config if config.model_type in ENCODERS else getattr(config, "vision_config", None)
    if getattr(vision, "model_type", None) not in ENCODERS:
        advice = (
            "--pooling is for image encoders; this network has a pooling of its own. Remove the option."
            if pooling is not None and type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
            else f"Use an image classifier, or one of the encoders {', '.join(ENCODERS)}."
        )
        raise MedtlError(f"{name} is a {type(config).__name__}, without an image encoder that is supported. {advice}")
    try:
        return EncoderConfig(vision, pooling, id2label=config.id2label, label2id=config.label2id)
    except ValueError as error:
        raise MedtlError(f"--pooling {pooling}: {error}") from error


def timm_tags(name: str) -> str:
    """Suggest weights in timm: of an architecture that was named without a tag, or of a DINOv3, which is gated."""
    import timm

    if name.startswith("timm/"):
        names = timm.list_pretrained(f"{name.removeprefix('timm/')}.*")
        return f" Weights of this architecture: timm/{', timm/'.join(names[:4])}." if names else ""
    if not (match := DINOV3.search(name.lower())):
        return ""
    vit, plus, convnext = match.groups()
    size = f"{VIT_SIZES.get(vit or '', '*')}{'_plus' if plus else ''}"
    names = timm.list_pretrained(f"convnext_{convnext}.dinov3*" if convnext else f"vit_{size}_patch16_dinov3.*")
    return f" The same network without a gate: timm/{', timm/'.join(names[:4])}." if names else ""
