"""Maps of a segmentation network: what each class rests on, and where the network is not sure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from hf_medtl.errors import MedtlError
from hf_medtl.explain import maps
from hf_medtl.explain.geometry import find_geometry, restore
from hf_medtl.explain.layers import Logits, frozen
from hf_medtl.explain.maps import Maps

CAMS = ("gradcam", "gradcam++", "eigencam", "scorecam")


@dataclass(frozen=True)
class Segmented:
    """Maps of one picture, each (H, W) in [0, 1].

    Attributes:
        classes: label -> what it rests on; all 0 where the network finds no pixel of it.
        uncertainty: entropy of the probabilities of each pixel, as a share of the highest there can be, log K.
    """

    classes: dict[str, Maps]
    uncertainty: Maps


def explain_masks(
    model: PreTrainedModel,
    processor: Any,
    pictures: Sequence[Image.Image],
    classes: Sequence[int | str] | None = None,
    method: str = "gradcam",
    layer: str | None = None,
    batch_size: int = 8,
) -> list[Segmented]:
    """Maps of each picture. The model is as it was before when this ends.

    A class's map is that of the sum of its logits over the pixels that are predicted to be of it. Source: Vinogradova
    et al. 2020, Towards interpretable semantic segmentation via gradient-weighted class activation mapping,
    https://arxiv.org/abs/2002.11434.

    Args:
        model: a semantic segmentation network.
        processor: its image processor.
        pictures: of any size.
        classes: indices or labels; None for all but the first, which is the background.
        method: one of CAMS.
        layer: name of the module whose features are used; None finds one, see `find_layer`.
        batch_size: pictures at a time.

    Raises:
        MedtlError: no such method, class or layer.
    """
    if method not in CAMS:
        raise MedtlError(f"Maps of segmentation networks are by {', '.join(CAMS)}; found {method!r}.")
    names = maps.label_names(model)
    default = [index for index in sorted(names) if index]
    wanted = maps.class_indices(names, default if classes is None else classes, len(classes or default))
    assert wanted is not None
    cam = maps.cam_class(method)
    found = []
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        pixels = maps.to_pixels(processor, batch)
        with frozen(model):
            with torch.no_grad():
                logits = Logits(model)(pixels)
            predicted = logits.argmax(dim=1)
            unsure = entropy(torch.nn.functional.interpolate(logits, pixels.shape[-2:], mode="bilinear"))
            seen = {}
            for index in wanted.tolist():
                targets = [_Region(index, picture == index) for picture in predicted]
                seen[names[index]] = maps.activation_maps(cam, model, pixels.detach().clone(), targets, layer)
        for i, picture in enumerate(batch):
            geometry, size = find_geometry(processor, picture), (picture.height, picture.width)
            whole = {name: restore(maps.normalise(values[i]), geometry, size) for name, values in seen.items()}
            found.append(Segmented(whole, restore(unsure[i], geometry, size)))
    return found


def entropy(logits: torch.Tensor) -> Maps:
    """Entropy of each pixel's probabilities by the highest there can be: (n, H, W) of logits (n, K, H, W)."""
    chances = logits.softmax(dim=1)
    return (torch.special.entr(chances).sum(dim=1) / np.log(chances.shape[1])).clamp(0, 1).cpu().numpy()


class _Region:
    """The sum of a class's logits over some pixels."""

    def __init__(self, index: int, region: torch.Tensor) -> None:
        self.index, self.region = index, region

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits[self.index] * self.region).sum()
