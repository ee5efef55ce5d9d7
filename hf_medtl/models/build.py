"""Classifier builder: backbone name and labels to model and image processor."""

import contextlib
import copy
import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
)
from transformers.utils import logging as transformers_logging

from hf_medtl.common.text import first_line, nearest
from hf_medtl.errors import MedtlError
from hf_medtl.models.backbones import classifier_config, timm_tags
from hf_medtl.models.cnn import PRESETS, MedicalCnnConfig
from hf_medtl.models.encoder_classifier import EncoderConfig, without_pooler
from hf_medtl.models.heads import add_head_dropout, find_head, reset_head
from hf_medtl.models.image_size import check_image_size, resize_model, reverse_channels, set_channels, set_image_size
from hf_medtl.models.preprocessing import build_processor, check_steps, size_of
from hf_medtl.models.size_limit import limited_size
from hf_medtl.models.stock_processor import takes_bgr
from hf_medtl.models.untrusted import check_model, load_config, plain_errors

logger = logging.getLogger(__name__)

OWN_NETWORKS = (*PRESETS, "vit_tiny")
UNUSED_HEAD = ("LABEL_0", "LABEL_1")  # labels of a head that nobody will use
TOWER = r"^(?:model\.)?(?:vision_(?:model|tower)\.)+"  # prefix of the image encoder in a model for images and text
ARCHITECTURES = Path(__file__).with_name("architectures")  # NAME/config.json and its preprocessor_config.json


def build_classifier(
    name: str,
    labels: tuple[str, ...],
    *,
    from_scratch: bool = False,
    revision: str | None = None,
    steps: Sequence[str] = (),
    fit: str = "squash",
    lung_model: str | None = None,
    head_dropout: float = 0.0,
    image_size: int | None = None,
    pooling: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Load a classifier for `labels` and its image processor.

    Args:
        name: Hub id or folder of any image model of `transformers` or timm, or one of our own architectures, see
            `is_custom_architecture`.
        labels: in the order of the outputs. A checkpoint with exactly these labels keeps its head; any other gets a
            new one.
        from_scratch: use only the architecture, with random weights. For `timm/NAME`, with or without the tag of
            pretrained weights, this needs no network.
        revision: branch, tag or commit on the Hub.
        steps: medical preprocessing steps, see `build_processor`.
        fit: as for `build_processor`.
        lung_model: as for `build_processor`.
        head_dropout: dropout rate of the inputs of the head, see `add_head_dropout`.
        image_size: height and width of its images in pixels, for which position embeddings are interpolated; None for
            that of the checkpoint.
        pooling: how an image encoder is pooled, see `classifier_config`.
        mean: per channel, of pixels in [0, 1], with which the images of a checkpoint without preprocessing settings
            are normalised.
        std: likewise.

    Raises:
        MedtlError: no such model, no network, not an image classifier, incomplete or non-finite weights, no linear
            head, an image size that the model can't have, or an unknown step or fit.
    """
    check_steps(steps, fit, lung_model)  # before weights are downloaded
    custom = is_custom_architecture(name)
    from_scratch = from_scratch or custom
    try:
        with plain_errors():  # of any library, at any checkpoint
            model = _build_model(name, labels, from_scratch, revision, image_size, pooling)
            if labels != UNUSED_HEAD:  # a model that will be saved
                check_unshared(name, model)
            add_head_dropout(find_head(model), head_dropout)
            own = str(ARCHITECTURES / name) if (ARCHITECTURES / name).is_dir() else None
            source, hub = own if custom else name, {"revision": revision}
            processor = build_processor(source, model.config, steps, fit, lung_model, image_size, mean, std, **hub)
            if not from_scratch and takes_bgr(name, **hub):
                reverse_channels(model)
            check_image_size(model, *size_of(processor))
            return model, processor
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise MedtlError(
            f"Can't build an image classifier from {name!r} ({first_line(error)}). Expected a model id on the Hub, "
            "such as google/vit-base-patch16-224-in21k, a folder with config.json"
            f"{'' if from_scratch else ' and model.safetensors'}, or random weights without a download: "
            f"{', '.join(OWN_NETWORKS)}.{nearest(name, OWN_NETWORKS)} Check the spelling, the network, or the path."
            f"{timm_tags(name)}"
        ) from error


def _build_model(
    name: str,
    labels: tuple[str, ...],
    from_scratch: bool,
    revision: str | None,
    image_size: int | None,
    pooling: str | None,
) -> PreTrainedModel:
    """Return the model of `build_classifier`."""
    stored = read_config(name, from_scratch, revision)
    config = classifier_config(name, stored, pooling)
    old_labels = tuple((config.id2label or {}).values())
    set_labels(config, labels)
    # DeiT and LeViT with a teacher would be classes with two heads, which give no loss: the first class has one.
    config.architectures = []
    if isinstance(config, TimmWrapperConfig):
        config.label_names = list(labels)  # a loaded config keeps the old names here, and writes them over ours
    resized = copy.deepcopy(config)
    set_channels(resized)
    if image_size is not None:
        set_image_size(resized, image_size)
    if from_scratch:
        model = AutoModelForImageClassification.from_config(resized, dtype=torch.float32)
        _init_like_timm(model)
        logger.info("%s with random weights", type(model).__name__)
        return model
    if isinstance(config, EncoderConfig) and not isinstance(stored, EncoderConfig):
        model, missing = _load_encoder(name, stored, config, revision)
    else:
        model, missing = load_weights(AutoModelForImageClassification, name, config, revision)
    head_ids = {id(p) for p in find_head(model).parameters()}
    head = {n for n, p in model.named_parameters() if id(p) in head_ids}
    check_missing(name, model, missing, {n for n, _ in model.named_parameters()} - head)
    if resized.to_dict() != config.to_dict():
        model = resize_model(model, resized)
    if old_labels != labels or missing & head:
        reset_head(model)
        if labels != UNUSED_HEAD:
            logger.info("New head for the labels %s", ", ".join(labels))
    check_finite(name, model.state_dict())
    return model


def is_custom_architecture(name: str) -> bool:
    """Return True for the name of one of our own networks, which have no pretrained weights.

    These are the ones of `cnn.py`, and vit_tiny, a ViT for images of 64 x 64 pixels that a CPU trains in half a minute.
    """
    return name in OWN_NETWORKS and not Path(name).exists()


def set_labels(config: PreTrainedConfig, labels: Sequence[str]) -> None:
    """Set `id2label` and `label2id`, in the order of the outputs."""
    config.num_labels = len(labels)  # PVT has it as a setting of its own
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}


def read_config(name: str, from_scratch: bool = False, revision: str | None = None) -> PreTrainedConfig:
    """Return the configuration of a folder, a Hub id, one of our own networks or, from scratch, a timm architecture.

    Raises:
        MedtlError: timm has no such architecture or no such tag, or the files ask for what no model needs.
        OSError, ValueError: no configuration was found.
    """
    if is_custom_architecture(name):
        preset = PRESETS.get(name)
        return AutoConfig.from_pretrained(ARCHITECTURES / name) if preset is None else MedicalCnnConfig(**preset)
    if not from_scratch or not name.startswith("timm/") or Path(name).exists():
        return load_config(name, revision=revision)
    import timm

    architecture = name.removeprefix("timm/")
    try:
        pretrained: Any = timm.get_pretrained_cfg(architecture, allow_unregistered=False)
    except RuntimeError as error:
        close = difflib.get_close_matches(architecture.split(".")[0], timm.list_models()) or ["resnet50"]
        raise MedtlError(f"{first_line(error)} Did you mean timm/{' or timm/'.join(close)}?") from error
    pretrained_cfg = pretrained.to_dict(remove_source=True, remove_null=True)
    arguments: dict[str, Any] = {"pretrained_cfg": pretrained_cfg}
    return TimmWrapperConfig(architecture=architecture.split(".")[0], **arguments)


def _init_like_timm(model: Any) -> None:
    """TRAP: `transformers` draws all layers of a timm model with a deviation of 0.02, from which no VGG would learn."""
    if isinstance(model.config, TimmWrapperConfig):
        import timm

        config = model.config
        fresh = timm.create_model(config.architecture, num_classes=config.num_labels, **(config.model_args or {}))
        model.timm_model.load_state_dict(fresh.state_dict())


def _load_encoder(
    name: str, stored: PreTrainedConfig, config: EncoderConfig, revision: str | None
) -> tuple[PreTrainedModel, set[str]]:
    """Load an encoder into a new classifier; also return the names of missing tensors, as `load_weights`.

    Args:
        name: Hub id or folder.
        stored: its configuration, which may be that of a model for images and text.
        config: of the classifier.
        revision: branch, tag or commit on the Hub.
    """
    arguments: dict[str, Any] = without_pooler(config.vision_config)
    if hasattr(stored, "vision_config"):
        arguments["key_mapping"] = {TOWER: ""}
    encoder, missing = load_weights(AutoModel, name, config.vision_config, revision, **arguments)
    model: Any = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    model.encoder.load_state_dict(encoder.state_dict())
    return model, {f"encoder.{key}" for key in missing} | {"classifier.weight", "classifier.bias"}


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Silence the report of `transformers` on tensors: `check_missing` and `load_trained` have better ones."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def load_weights(
    auto: Any, name: str, config: PreTrainedConfig, revision: str | None, **arguments: Any
) -> tuple[PreTrainedModel, set[str]]:
    """Load a model of an Auto class in float32; also return the names of missing or differently shaped tensors.

    Args:
        auto: the Auto class.
        name: Hub id or folder.
        config: of the model.
        revision: branch, tag or commit on the Hub.
        arguments: of the model's class.

    Raises:
        OSError, ValueError, KeyError: there is no such checkpoint.
    """
    with _quiet_loading(), plain_errors(), limited_size(name, revision):
        model, info = auto.from_pretrained(
            name,
            config=config,
            revision=revision,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            output_loading_info=True,
            **arguments,
        )
    return model, {*info["missing_keys"]} | {key for key, *_ in info["mismatched_keys"]}


def load_trained(auto: Any, name: str | Path, **hub: Any) -> Any:  # a PreTrainedModel, whose `to` is typed wrongly
    """Load a model whose weights are used as they are, in float32.

    Args:
        auto: Auto class of the model.
        name: folder or Hub id.
        hub: revision, trust_remote_code and the like.

    Raises:
        MedtlError: tensors are missing or not finite, or the files ask for what no model needs.
        OSError, ValueError, KeyError, RuntimeError: there is no such model.
    """
    hub = {"trust_remote_code": False, "revision": None} | hub
    hub["revision"] = check_model(name, **hub)
    with _quiet_loading(), plain_errors(), limited_size(name, hub["revision"]):
        model, loading = auto.from_pretrained(
            name, **hub, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    if absent := sorted(loading["missing_keys"]):
        raise MedtlError(
            f"{name} has no weights for {len(absent)} tensors of its model, such as {absent[0]}; they would be "
            "initialised randomly. Fine-tune it first, or use a fine-tuned model."
        )
    if unused := sorted(loading["unexpected_keys"]):
        logger.warning("%s has %d tensors that its model does not use, such as %r.", name, len(unused), unused[0])
    check_finite(str(name), model.state_dict())
    return model


def check_missing(name: str, model: PreTrainedModel, missing: set[str], body: set[str]) -> None:
    """Raise MedtlError if a checkpoint lacks tensors of the body, which would be initialised randomly."""
    lacking = sorted(body & missing)
    if lacking:
        raise MedtlError(
            f"{name} lacks {len(lacking)} of the {len(body)} tensors of the body of {type(model).__name__} "
            f"({', '.join(lacking[:3])} ...); they would be initialised randomly. Use a complete checkpoint of this "
            "architecture."
        )


def check_unshared(source: str, model: PreTrainedModel) -> None:
    """Raise MedtlError if layers share weights in a way that `save_pretrained` can't write, as in CoaT of timm.

    Args:
        source: folder or id they come from, for the message.
        model: the model.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = {*(getattr(model, "all_tied_weights_keys", None) or {})}
    shared = [group for group in names.values() if len({*group} - tied) > 1]
    if shared:
        raise MedtlError(
            f"{source} uses the same weights in several layers, such as {' and '.join(shared[0][:2])}, and "
            "transformers can't save such a model: training would end at its first checkpoint. Use another model."
        )


def check_finite(source: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise MedtlError if weights or buffers hold NaN or infinity, with which every answer would be NaN or wrong.

    Args:
        source: folder or id they come from, for the message.
        tensors: name -> values, such as a state dict.
    """
    broken = [name for name, x in tensors.items() if x.is_floating_point() and not torch.isfinite(x).all()]
    if broken:
        number = int((~torch.isfinite(tensors[broken[0]])).sum())
        raise MedtlError(
            f"{source} has weights that are not finite in {len(broken)} of its {len(tensors)} tensors, such as "
            f"{broken[0]} ({number} of {tensors[broken[0]].numel()} values): they were saved in too few bits, or their "
            "training diverged. Download them again, save them in float32, or use other weights."
        )
