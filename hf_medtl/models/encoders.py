"""Encoders of segmentation networks and their pretrained weights, checked tensor by tensor."""

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

from hf_medtl.errors import MedtlError
from hf_medtl.models.build import first_line
from hf_medtl.models.smp import SmpConfig, build_network

PREFIX = re.compile(r"^((timm_model|encoder|model)\.)+")  # what TimmWrapper, SMP and SMP's timm encoders put before


@dataclass(frozen=True)
class EncoderWeights:
    """Tensors of a pretrained encoder, and what its pictures went through.

    Args:
        source: folder or name, for messages.
        names: encoders of SMP that might take the tensors, the best first.
        tensors: name without PREFIX -> values.
        mean, std: per channel, of pixels in [0, 1].
    """

    source: str
    names: tuple[str, ...]
    tensors: dict[str, torch.Tensor]
    mean: Sequence[float]
    std: Sequence[float]

    def check(self, encoder: nn.Module) -> None:
        """Raise MedtlError if tensors of `encoder` are not here in that shape; they would be random."""
        wanted = encoder.state_dict()
        missing = [key for key, like in wanted.items() if self._find(key, like) is None and not _counts(key)]
        if missing:
            raise MedtlError(
                f"{self.source} lacks {len(missing)} of the {len(wanted)} tensors of this encoder "
                f"({', '.join(missing[:3])} ...), or has them in another shape; they would be random. Use weights that "
                "were made for this encoder, or none."
            )

    @torch.no_grad()
    def fill(self, encoder: nn.Module) -> None:
        """Copy the values into `encoder`; what it has no place for, such as a classifier, is left out.

        Raises:
            MedtlError: some of its tensors are not here.
        """
        self.check(encoder)
        for key, tensor in encoder.state_dict().items():
            found = self._find(key, tensor)
            if found is not None:
                tensor.copy_(found)

    def _find(self, key: str, like: torch.Tensor) -> torch.Tensor | None:
        found = (self.tensors.get(spelling) for spelling in _spellings(PREFIX.sub("", key)))
        return next((x for x in found if x is not None and x.shape == like.shape), None)


def _spellings(key: str) -> Iterator[str]:
    """As it is, and stages_0.x as stages.0.x: timm joins the two where it makes features from a classifier."""
    yield key
    first, _, rest = key.partition(".")
    outer, _, inner = first.rpartition("_")
    yield f"{outer}.{inner}.{rest}"


def _counts(key: str) -> bool:
    return key.endswith("num_batches_tracked")  # changes nothing, and old checkpoints lack it


@functools.cache
def encoder_names() -> tuple[str, ...]:
    """All that SMP can build: its own encoders, and `tu-` with any architecture of timm."""
    import segmentation_models_pytorch
    import timm

    own = segmentation_models_pytorch.encoders.get_encoder_names()
    return (*own, *(f"tu-{name}" for name in timm.list_models()))


def check_encoder(name: str) -> None:
    """Raise MedtlError for an encoder that does not exist, with those of a similar name."""
    if name.split(".")[0] not in encoder_names():  # after the point: the tag of timm's weights
        close = difflib.get_close_matches(name, encoder_names()) or ["resnet34", "mit_b0", "tu-convnext_tiny"]
        raise MedtlError(f"Unknown encoder {name!r}. Such as {', '.join(close)} exist.")


def read_encoder(folder: Path, names: Sequence[str] = ()) -> EncoderWeights:
    """Weights from a folder of a timm model, an SMP encoder, an SMP model, or one of our own segmentation models.

    Args:
        folder: with config.json and model.safetensors. 16-bit values become 32-bit where they are filled in.
        names: encoders to take instead of those that the folder says.

    Raises:
        MedtlError: files are missing or damaged, or do not say for which encoder they are, or mean and standard
            deviation of its pictures.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        beside = folder / "preprocessor_config.json"
        pictures = {**config, **config.get("pretrained_cfg", {})}
        if beside.exists():
            found = json.loads(beside.read_text())
            pictures = {"mean": found.get("image_mean"), "std": found.get("image_std")}
    except (OSError, ValueError, SafetensorError) as error:
        raise MedtlError(
            f"{folder} holds no weights of an encoder ({first_line(error)}). Expected config.json and "
            "model.safetensors, as a timm model, an SMP model or one of ours has them."
        ) from error
    mean, std = pictures.get("mean"), pictures.get("std")
    if not mean or not std:
        raise MedtlError(
            f"{folder} does not say with which mean and standard deviation its encoder was trained. Write them into "
            'its config.json, such as "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225].'
        )
    if "encoder_name" in config:
        said: tuple[str, ...] = (config["encoder_name"],)
    else:
        # timm's architecture, thus SMP's wrapper of timm first: it has no layers that give no features.
        architecture = str(config.get("architecture", "")).split(".")[0]
        said = tuple(name.format(architecture) for name in ("tu-{}", "{}", "timm-{}") if architecture)
    known = tuple(name for name in names or said if name.split(".")[0] in encoder_names())
    if not known:
        raise MedtlError(
            f"{folder} does not say which encoder of SMP its weights are for ({' or '.join(said) or 'no architecture'})"
            ". Name the encoder, such as resnet34, or use other weights."
        )
    return EncoderWeights(str(folder), known, {PREFIX.sub("", k): x for k, x in tensors.items()}, mean, std)


def download_encoder(config: SmpConfig, weights: str) -> EncoderWeights:
    """Weights that SMP or timm publish for an encoder.

    Args:
        config: of the network.
        weights: "imagenet", or another name that SMP has for this encoder.

    Raises:
        MedtlError: there are none of this name, or no network.
    """
    import segmentation_models_pytorch

    name = config.encoder_name
    timm = name.startswith("tu-")
    known = {"imagenet"} if timm else set(segmentation_models_pytorch.encoders.encoders[name]["pretrained_settings"])
    if weights not in known:
        raise MedtlError(
            f"Unknown weights {weights!r} of the encoder {name}: no folder of that name, and SMP has "
            f"{', '.join(sorted(known))}. For random weights: none."
        )
    try:
        network = build_network(config, encoder_weights=True if timm else weights)
        pictures: dict[str, Any] = segmentation_models_pytorch.encoders.get_preprocessing_params(name, weights)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise MedtlError(
            f"The weights {weights!r} of the encoder {name} can't be downloaded ({first_line(error)}). Check the "
            "network, or give a folder with config.json and model.safetensors, or none for random weights."
        ) from error
    if pictures["input_space"] != "RGB" or list(pictures["input_range"]) != [0, 1]:
        raise MedtlError(
            f"The weights {weights!r} of {name} want {pictures['input_space']} pictures in {pictures['input_range']}; "
            "the image processor gives RGB in [0, 1]. Use other weights."
        )
    tensors = {PREFIX.sub("", key): x for key, x in network.encoder.state_dict().items()}
    return EncoderWeights(f"{name} ({weights})", (name,), tensors, pictures["mean"], pictures["std"])


def published_encoder(name: str, weights: str) -> tuple[str, str | None]:
    """Id on the Hub, and commit where SMP pins one, of weights that `download_encoder` took."""
    import segmentation_models_pytorch
    import timm

    if name.startswith("tu-"):
        known = timm.get_pretrained_cfg(name.removeprefix("tu-"))
        return str(known.hf_hub_id if known else name), None
    its = segmentation_models_pytorch.encoders.encoders[name]["pretrained_settings"][weights]
    return its["repo_id"], its["revision"]
