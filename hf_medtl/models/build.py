"""A backbone and labels -> model and image processor."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel, TimmWrapperConfig
from transformers.utils import logging as transformers_logging

from hf_medtl.errors import MedtlError
from hf_medtl.models.head import find_head, reset_head
from hf_medtl.models.preprocessing import build_processor, check_steps

logger = logging.getLogger(__name__)


def build(
    name: str,
    labels: tuple[str, ...],
    *,
    from_scratch: bool = False,
    revision: str | None = None,
    steps: Sequence[str] = (),
    fit: str = "squash",
) -> tuple[PreTrainedModel, Any]:
    """Load a classifier for `labels` and its image processor.

    Args:
        name: Hub id or folder of any image model of `transformers` or timm.
        labels: in the order of the outputs. A checkpoint made for just these keeps its head; any other gets a new one.
        from_scratch: take only the architecture, with random weights.
        revision: branch, tag or commit on the Hub.
        steps, fit: medical preprocessing, see `build_processor`.

    Raises:
        MedtlError: no such model, no network, not an image classifier, weights that don't fill the model, an unknown
            step or fit.
    """
    check_steps(steps, fit)  # before weights are downloaded
    id2label = dict(enumerate(labels))
    label2id = {label: i for i, label in id2label.items()}
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        old_labels = tuple(config.id2label.values())
        config.id2label, config.label2id = id2label, label2id
        if isinstance(config, TimmWrapperConfig):
            config.label_names = list(labels)  # a loaded config keeps the old names here, and writes them over ours
        if from_scratch:
            model = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
        else:
            model = _load_weights(name, config, revision)
    except (OSError, ValueError, KeyError) as error:
        raise MedtlError(
            f"No image classifier can be made from {name!r} ({_first_line(error)}). Expected a model id on the Hub, "
            "such as google/vit-base-patch16-224-in21k, or a folder with config.json"
            f"{'' if from_scratch else ' and model.safetensors'}. Check the spelling, the network, or the path."
        ) from error
    if from_scratch:
        logger.info("%s with random weights", type(model).__name__)
    elif old_labels != labels:
        reset_head(model)
        logger.info("New head for the labels %s", ", ".join(labels))
    processor = build_processor(name, model.config, steps, fit, revision=revision)
    return model, processor


def _load_weights(name: str, config: Any, revision: str | None) -> PreTrainedModel:
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report of missing weights is checked here instead
    try:
        model, info = AutoModelForImageClassification.from_pretrained(
            name,
            config=config,
            revision=revision,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    finally:
        transformers_logging.set_verbosity(level)
    head = {id(p) for p in find_head(model).parameters()}
    body = {n for n, p in model.named_parameters() if id(p) not in head}
    missing = sorted(body & ({*info["missing_keys"]} | {key for key, *_ in info["mismatched_keys"]}))
    if missing:
        raise MedtlError(
            f"{name} lacks {len(missing)} of the {len(body)} tensors of {type(model).__name__}'s body "
            f"({', '.join(missing[:3])} ...); they would be random. Use a complete checkpoint of this architecture."
        )
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
