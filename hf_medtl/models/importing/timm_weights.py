"""Tensors of other libraries fitted to an architecture of timm."""

import difflib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from hf_medtl.common.text import abbreviate, first_line
from hf_medtl.errors import MedtlError

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Variant:
    """Architecture of others that is one of timm's with other arguments.

    Attributes:
        name: timm's name.
        options: The arguments.
        mean: Of pixels in [0, 1] in each channel.
        std: Their standard deviation.
    """

    name: str
    options: Mapping[str, Any]
    mean: float
    std: float


# https://github.com/hustvl/EVA-X, eva_x.py and classification/utils/datasets.py
VARIANTS = {
    f"eva_x_{size}_patch16": Variant(
        f"eva02_{size}_patch14_224", {"patch_size": 16, "ref_feat_shape": [14, 14]}, 0.49185243, 0.28509309
    )
    for size in ("tiny", "small", "base")
}


def create(name: str, **options: Any) -> nn.Module:
    """Return a timm model without a head, with random weights.

    Args:
        name: Name of an architecture, with or without timm/ before it.
        options: Arguments of `timm.create_model`; those that are None are left out.

    Raises:
        MedtlError: timm has no such architecture, or it does not take the options.
    """
    name = name.removeprefix("timm/")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], [*timm.list_models(), *VARIANTS], n=3, cutoff=0.6)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise MedtlError(f"timm {timm.__version__} has no architecture {name!r}.{hint} timm.list_models() lists them.")
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **given).eval()
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise MedtlError(f"timm can't build {name} with {given} ({first_line(error)}).") from error


def load_tensors(model: nn.Module, name: str, tensors: Tensors, prefix: str | None = None) -> list[str]:
    """Load tensors into a timm model, which gets a head if there is one among them.

    Names of OpenAI's CLIP, of older versions of timm and of other libraries that timm knows are translated by timm,
    numbered modules by their order. A stem of one channel becomes one of three with the same output for grey images.

    Args:
        model: Of `create`.
        name: Its architecture.
        tensors: Name -> tensor.
        prefix: What the names of the model's tensors begin with; found by itself if None.

    Returns:
        The names of tensors that the model has no place for.

    Raises:
        MedtlError: A tensor of the model is missing or has another shape.
    """
    start = find_prefix(model, tensors) if prefix is None else prefix
    chosen = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
    if not chosen:
        raise MedtlError(f"--prefix {prefix}: no tensor begins with it. The names are {_names(tensors)}.")
    chosen = _name_children(model, chosen)
    is_clip = "class_embedding" in chosen
    if is_clip:
        chosen = {f"visual.{key}": value for key, value in chosen.items()}
    fitted = _translate(model, name, chosen)
    head = str(getattr(model, "pretrained_cfg", {}).get("classifier") or "")
    weight = fitted.get(f"{head}.weight")
    if is_clip:  # the projection to the space of texts
        fitted = {key: value for key, value in fitted.items() if not key.startswith("head.")}
    elif weight is not None and weight.ndim == 2 and weight.shape[1] == getattr(model, "num_features", 0):
        model.reset_classifier(len(weight))  # type: ignore[operator]
    fitted = _spread_stem(model, fitted)
    _check_complete(model, name, chosen, fitted)
    state = model.state_dict()
    model.load_state_dict({key: value for key, value in fitted.items() if key in state}, strict=False)
    broken = next((key for key, value in model.state_dict().items() if not torch.isfinite(value).all()), None)
    if broken:
        raise MedtlError(f"The tensor {broken} holds NaN or infinity. Download the file again, or give another one.")
    unused = [key for key in tensors if not key.startswith(start)]
    return [*unused, *(key for key in fitted if key not in state)]


def find_prefix(model: nn.Module, tensors: Tensors) -> str:
    """Return what the names of most tensors of a model begin with in a file.

    Raises:
        MedtlError: Two prefixes fit as well, such as those of a teacher and a student.
    """
    if clip := [key for key in tensors if key.endswith("class_embedding")]:
        return clip[0].removesuffix("class_embedding")
    counts: dict[str, int] = {}
    own = set(model.state_dict())
    for key in tensors:
        parts = key.split(".")
        for number in range(len(parts)):
            if ".".join(parts[number:]) in own:
                start = ".".join(parts[:number])
                counts[start] = counts.get(start, 0) + 1
    best = sorted(counts, key=lambda start: counts[start], reverse=True)[:2]
    if len(best) == 2 and counts[best[0]] == counts[best[1]]:
        raise MedtlError(f"The names fit with {best[0]!r} and with {best[1]!r} before them: give one with --prefix.")
    return f"{best[0]}." if best and best[0] else ""


def _name_children(model: nn.Module, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Name the numbered modules of an `nn.Sequential` of a model's children, as in RadImageNet, as the model does."""
    if not all(key.partition(".")[0].isdecimal() for key in tensors):
        return dict(tensors)
    children = dict(enumerate(name for name, _ in model.named_children()))
    renamed = {}
    for key, value in tensors.items():
        first, _, rest = key.partition(".")
        renamed[f"{children.get(int(first), first)}.{rest}"] = value
    return renamed


def _translate(model: nn.Module, name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Let timm translate names and layouts, as it does for the weights it downloads."""
    entry = timm.model_entrypoint(name.removeprefix("timm/"))
    module = sys.modules[entry.__module__]
    translate = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if translate is None:
        return tensors
    try:
        return dict(translate(dict(tensors), model))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise MedtlError(
            f"The tensors are not those of {name} ({type(error).__name__}: {first_line(error)}). Their names are "
            f"{_names(tensors)}: give another --as, or --prefix."
        ) from error


def _spread_stem(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with a stem of one channel as one of three that gives the same for grey images."""
    state = model.state_dict()
    spread = {}
    for key, value in tensors.items():
        wanted = state.get(key)
        if wanted is not None and value.ndim == 4 and value.shape[1] == 1 and wanted.shape[1] == 3:
            value = value.repeat(1, 3, 1, 1) / 3
        spread[key] = value
    return spread


def _check_complete(model: nn.Module, name: str, before: Tensors, tensors: Tensors) -> None:
    """Raise MedtlError if a parameter or a statistic of the model has no tensor of its shape."""
    positions = next((value for key, value in before.items() if re.search(r"pos(itional)?_embed(ding)?$", key)), None)
    own = model.state_dict()
    if positions is not None and "pos_embed" in own and positions.numel() != own["pos_embed"].numel():
        raise MedtlError(
            f"The position embedding of the file ({_shape(positions)}) is for another image size than that of {name} "
            f"({_shape(own['pos_embed'])}): give it with --image_size, or another --as."
        )
    needed = {key for key, _ in model.named_parameters()} | {key for key in own if key.endswith(("_mean", "_var"))}
    missing = [key for key in own if key in needed and key not in tensors]
    if missing:
        raise MedtlError(
            f"{len(missing)} of {len(needed)} tensors of {name} are not in the file, such as {missing[0]}. Its names "
            f"are {_names(before)}: give another --as, or with --prefix what they begin with."
        )
    for key in sorted(needed):
        if tensors[key].shape != own[key].shape:
            raise MedtlError(
                f"{key} has the shape {_shape(tensors[key])} in the file, but {_shape(own[key])} in {name}: give "
                "another --as, or --image_size."
            )


def _shape(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _names(tensors: Tensors) -> str:
    return abbreviate(list(tensors), 3)
