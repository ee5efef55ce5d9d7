"""A backbone and labels -> model and image processor."""

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
)
from transformers.utils import logging as transformers_logging

from hf_medtl.errors import MedtlError
from hf_medtl.models.cnn import PRESETS, MedicalCnnConfig
from hf_medtl.models.heads import drop_out, find_head, reset_head
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
    lung_model: str | None = None,
    head_dropout: float = 0.0,
) -> tuple[PreTrainedModel, Any]:
    """Load a classifier for `labels` and its image processor.

    Args:
        name: Hub id or folder of any image model of `transformers` or timm, or one of our own networks, see `is_ours`.
        labels: in the order of the outputs. A checkpoint made for just these keeps its head; any other gets a new one.
        from_scratch: take only the architecture, with random weights. That of `timm/NAME`, with or without the tag of
            its weights, needs no network.
        revision: branch, tag or commit on the Hub.
        steps, fit, lung_model: medical preprocessing, see `build_processor`.
        head_dropout: share of the head's inputs that training drops, see `drop_out`.

    Raises:
        MedtlError: no such model, no network, not an image classifier, weights that don't fill the model, no linear
            head, an unknown step or fit.
    """
    check_steps(steps, fit, lung_model)  # before weights are downloaded
    missing: set[str] = set()
    id2label = dict(enumerate(labels))
    label2id = {label: i for i, label in id2label.items()}
    try:
        config = read_config(name, from_scratch, revision)
        from_scratch = from_scratch or is_ours(name)
        old_labels = tuple((config.id2label or {}).values())
        config.id2label, config.label2id = id2label, label2id
        # DeiT and LeViT with a teacher would be classes with two heads, which give no loss: the first class has one.
        config.architectures = []
        if isinstance(config, TimmWrapperConfig):
            config.label_names = list(labels)  # a loaded config keeps the old names here, and writes them over ours
        if from_scratch:
            model = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
            _draw_as_timm(model)
        else:
            model, missing = load_weights(AutoModelForImageClassification, name, config, revision)
            head = {id(p) for p in find_head(model).parameters()}
            body = {n for n, p in model.named_parameters() if id(p) not in head}
            refuse_missing(name, model, missing, body)
            missing &= {n for n, p in model.named_parameters() if id(p) in head}
    except (OSError, ValueError, KeyError) as error:
        raise MedtlError(
            f"No image classifier can be made from {name!r} ({first_line(error)}). Expected a model id on the Hub, "
            "such as google/vit-base-patch16-224-in21k, a folder with config.json"
            f"{'' if from_scratch else ' and model.safetensors'}, or {' or '.join(PRESETS)}. Check the spelling, the "
            f"network, or the path.{_tags(name)}"
        ) from error
    drop_out(find_head(model), head_dropout)
    if from_scratch:
        logger.info("%s with random weights", type(model).__name__)
    elif old_labels != labels or missing:
        reset_head(model)
        logger.info("New head for the labels %s", ", ".join(labels))
    processor = build_processor(
        None if is_ours(name) else name, model.config, steps, fit, lung_model, revision=revision
    )
    return model, processor


def is_ours(name: str) -> bool:
    """Whether a name is that of one of our own networks (`cnn.py`), which have no weights to start from."""
    return name in PRESETS and not Path(name).exists()


def read_config(name: str, from_scratch: bool = False, revision: str | None = None) -> PreTrainedConfig:
    """Configuration of a folder, an id on the Hub, one of our own networks, or, from scratch, of timm's own table.

    Raises:
        MedtlError: timm has no such architecture or no such tag.
        OSError, ValueError: there is none.
    """
    if is_ours(name):
        return MedicalCnnConfig(**PRESETS[name])
    if not from_scratch or not name.startswith("timm/") or Path(name).exists():
        return AutoConfig.from_pretrained(name, revision=revision)
    import timm

    architecture = name.removeprefix("timm/")
    try:
        pretrained: Any = timm.get_pretrained_cfg(architecture, allow_unregistered=False)
    except RuntimeError as error:
        close = difflib.get_close_matches(architecture.split(".")[0], timm.list_models()) or ["resnet50"]
        raise MedtlError(f"{first_line(error)} Such as timm/{' or timm/'.join(close)} exist.") from error
    known = {"pretrained_cfg": pretrained.to_dict(remove_source=True, remove_null=True)}
    return TimmWrapperConfig(architecture=architecture.split(".")[0], **known)


def _tags(name: str) -> str:
    """What to try for a timm architecture without the tag of its weights."""
    import timm

    found = timm.list_pretrained(f"{name.removeprefix('timm/')}.*") if name.startswith("timm/") else []
    return f" Weights of this architecture: timm/{', timm/'.join(found[:4])}." if found else ""


def _draw_as_timm(model: Any) -> None:
    """TRAP: `transformers` draws all layers of a timm model with a deviation of 0.02, from which no VGG would learn."""
    if isinstance(model.config, TimmWrapperConfig):
        import timm

        config = model.config
        fresh = timm.create_model(config.architecture, num_classes=config.num_labels, **(config.model_args or {}))
        model.timm_model.load_state_dict(fresh.state_dict())


def load_weights(
    auto: Any, name: str, config: PreTrainedConfig, revision: str | None
) -> tuple[PreTrainedModel, set[str]]:
    """Model of an Auto class in float32, and the names of tensors that the checkpoint lacks or has in another shape.

    Raises:
        OSError, ValueError, KeyError: there is no such checkpoint.
    """
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report of missing weights: `refuse_missing` says it better
    try:
        model, info = auto.from_pretrained(
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
    return model, {*info["missing_keys"]} | {key for key, *_ in info["mismatched_keys"]}


def refuse_missing(name: str, model: PreTrainedModel, missing: set[str], body: set[str]) -> None:
    """Raise MedtlError if tensors of the body are missing in a checkpoint; they would be random."""
    lacking = sorted(body & missing)
    if lacking:
        raise MedtlError(
            f"{name} lacks {len(lacking)} of the {len(body)} tensors of {type(model).__name__}'s body "
            f"({', '.join(lacking[:3])} ...); they would be random. Use a complete checkpoint of this architecture."
        )


def first_line(error: Exception) -> str:
    """What an error of a library says, without the rest."""
    return str(error).strip().split("\n")[0][:200]
