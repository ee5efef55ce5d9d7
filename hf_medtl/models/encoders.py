"""Pretrained encoder weights for segmentation networks, checked tensor by tensor."""

import difflib
import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hf_medtl.common.text import first_line
from hf_medtl.errors import MedtlError
from hf_medtl.models.build import check_finite
from hf_medtl.models.smp import SmpConfig, build_network
from hf_medtl.models.untrusted import check_model

PREFIX = re.compile(r"^((timm_model|encoder|model)\.)+")  # added by TimmWrapper, SMP and SMP's timm encoders


@dataclass(frozen=True)
class EncoderWeights:
    """Tensors of a pretrained encoder, and the normalisation of the images that it was trained on.

    Args:
        source: folder or name, for messages.
        names: SMP encoders that might fit the tensors, the best first.
        tensors: name without PREFIX -> values.
        mean, std: per channel, of pixels in [0, 1].
    """

    source: str
    names: tuple[str, ...]
    tensors: dict[str, torch.Tensor]
    mean: Sequence[float]
    std: Sequence[float]

    def check(self, encoder: nn.Module) -> None:
        """Raise MedtlError if tensors of `encoder` are missing, have another shape, or are not finite."""
        expected = encoder.state_dict()
        missing = [key for key, like in expected.items() if self._match(key, like) is None and not _is_counter(key)]
        if missing:
            raise MedtlError(
                f"{self.source} lacks {len(missing)} of the {len(expected)} tensors of this encoder "
                f"({', '.join(missing[:3])} ...), or has them in another shape; they would be initialised randomly. "
                "Use weights made for this encoder, or none."
            )
        matches = ((key, self._match(key, like)) for key, like in expected.items())
        check_finite(self.source, {key: values for key, values in matches if values is not None})

    @torch.no_grad()
    def fill(self, encoder: nn.Module) -> None:
        """Copy the values into `encoder`; tensors it does not have, such as those of a classifier, are ignored.

        Raises:
            MedtlError: tensors of the encoder are missing or not finite.
        """
        self.check(encoder)
        for key, tensor in encoder.state_dict().items():
            values = self._match(key, tensor)
            if values is not None:
                tensor.copy_(values)

    def _match(self, key: str, like: torch.Tensor) -> torch.Tensor | None:
        candidates = (self.tensors.get(spelling) for spelling in _spellings(PREFIX.sub("", key)))
        return next((x for x in candidates if x is not None and x.shape == like.shape), None)


def _spellings(key: str) -> Iterator[str]:
    """Yield the key itself, and stages_0.x as stages.0.x: timm's feature extractors join the two."""
    yield key
    first, _, rest = key.partition(".")
    outer, _, inner = first.rpartition("_")
    yield f"{outer}.{inner}.{rest}"


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")  # changes nothing, and old checkpoints lack it


@functools.cache
def encoder_names() -> tuple[str, ...]:
    """Return all encoders that SMP can build: its own, and `tu-` with any architecture of timm."""
    import segmentation_models_pytorch
    import timm

    own = segmentation_models_pytorch.encoders.get_encoder_names()
    return (*own, *(f"tu-{name}" for name in timm.list_models()))


def check_encoder(name: str) -> None:
    """Raise MedtlError for an unknown encoder, with similar names."""
    if name.split(".")[0] not in encoder_names():  # after the point: the tag of timm's weights
        close = difflib.get_close_matches(name, encoder_names()) or ["resnet34", "mit_b0", "tu-convnext_tiny"]
        raise MedtlError(f"Unknown encoder {name!r}. Did you mean {', '.join(close)}?")


def read_encoder(folder: Path, names: Sequence[str] = ()) -> EncoderWeights:
    """Read weights from a folder of a timm model, an SMP encoder, an SMP model, or one of our segmentation models.

    Args:
        folder: with config.json and model.safetensors. 16-bit values become 32-bit when they are copied.
        names: encoders to use instead of those that the folder names.

    Raises:
        MedtlError: files are missing or damaged, or do not name the encoder, or the mean and standard deviation of its
            images.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        check_model(folder)
        tensors = load_file(folder / "model.safetensors")
        normalisation = {**config, **config.get("pretrained_cfg", {})}
        if (folder / "preprocessor_config.json").exists():
            processor = json.loads((folder / "preprocessor_config.json").read_text())
            normalisation = {"mean": processor.get("image_mean"), "std": processor.get("image_std")}
    except (OSError, ValueError, SafetensorError) as error:
        raise MedtlError(
            f"{folder} holds no weights of an encoder ({first_line(error)}). Expected config.json and "
            "model.safetensors of a timm model, an SMP model or one of ours."
        ) from error
    mean, std = normalisation.get("mean"), normalisation.get("std")
    if not mean or not std:
        raise MedtlError(
            f"{folder} does not contain the mean and standard deviation that its encoder was trained with. Write them "
            'into its config.json, such as "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225].'
        )
    if "encoder_name" in config:
        candidates: tuple[str, ...] = (config["encoder_name"],)
    else:
        # The folder names timm's architecture, so SMP's wrapper of timm comes first: it has feature layers only.
        architecture = str(config.get("architecture", "")).split(".")[0]
        candidates = tuple(name.format(architecture) for name in ("tu-{}", "{}", "timm-{}") if architecture)
    available = tuple(name for name in names or candidates if name.split(".")[0] in encoder_names())
    if not available:
        raise MedtlError(
            f"{folder} does not name an encoder of SMP (found {' or '.join(candidates) or 'no architecture'}). Name "
            "the encoder, such as resnet34, or use other weights."
        )
    return EncoderWeights(str(folder), available, {PREFIX.sub("", k): x for k, x in tensors.items()}, mean, std)


def download_encoder(config: SmpConfig, weights: str) -> EncoderWeights:
    """Download weights that SMP or timm publish for an encoder.

    Args:
        config: of the network.
        weights: "imagenet", or another name known to SMP for this encoder.

    Raises:
        MedtlError: there are no weights of this name, or no network.
    """
    import segmentation_models_pytorch

    name = config.encoder_name
    timm = name.startswith("tu-")
    smp_encoders = segmentation_models_pytorch.encoders
    available = {"imagenet"} if timm else set(smp_encoders.encoders[name]["pretrained_settings"])
    if weights not in available:
        raise MedtlError(
            f"Unknown weights {weights!r} of the encoder {name}: no folder of that name, and SMP has "
            f"{', '.join(sorted(available))}. For random weights: none."
        )
    try:
        network = build_network(config, encoder_weights=True if timm else weights)
        settings: dict[str, Any] = smp_encoders.get_preprocessing_params(name, weights)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise MedtlError(
            f"The weights {weights!r} of the encoder {name} can't be downloaded ({first_line(error)}). Check the "
            "network, or give a folder with config.json and model.safetensors, or none for random weights."
        ) from error
    if settings["input_space"] != "RGB" or list(settings["input_range"]) != [0, 1]:
        raise MedtlError(
            f"The weights {weights!r} of {name} expect {settings['input_space']} images in {settings['input_range']}; "
            "the image processor produces RGB in [0, 1]. Use other weights."
        )
    tensors = {PREFIX.sub("", key): x for key, x in network.encoder.state_dict().items()}
    return EncoderWeights(f"{name} ({weights})", (name,), tensors, settings["mean"], settings["std"])


def encoder_source(name: str, weights: str) -> tuple[str, str | None]:
    """Return the Hub id of weights used by `download_encoder`, and the commit where SMP pins one."""
    import segmentation_models_pytorch
    import timm

    if name.startswith("tu-"):
        pretrained = timm.get_pretrained_cfg(name.removeprefix("tu-"))
        return str(pretrained.hf_hub_id if pretrained else name), None
    settings = segmentation_models_pytorch.encoders.encoders[name]["pretrained_settings"][weights]
    return settings["repo_id"], settings["revision"]
