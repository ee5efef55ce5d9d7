"""Heatmaps of segmentation networks: class activation maps and uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from hf_medtl.errors import MedtlError
from hf_medtl.explain import maps
from hf_medtl.explain.geometry import Box, find_geometry, restore
from hf_medtl.explain.layers import Logits, eval_without_grads
from hf_medtl.explain.maps import Heatmaps

CAMS = ("gradcam", "gradcam++", "eigencam", "scorecam")


@dataclass(frozen=True)
class SegmentationExplanation:
    """Heatmaps of one image, each (H, W) in [0, 1].

    Attributes:
        classes: label -> class activation map; all 0 if no pixel is predicted to be of the class.
        uncertainty: entropy of the probabilities of each pixel, divided by its maximum, log K.
    """

    classes: dict[str, Heatmaps]
    uncertainty: Heatmaps


def explain_masks(
    model: PreTrainedModel,
    processor: Any,
    images: Sequence[Image.Image],
    classes: Sequence[int | str] | None = None,
    method: str = "gradcam",
    layer: str | None = None,
    batch_size: int = 8,
) -> list[SegmentationExplanation]:
    """Compute heatmaps of each image. The state of the model is restored afterwards.

    The map of a class explains the sum of its logits over the pixels predicted to be of it. Source: Vinogradova et al.
    2020, Towards interpretable semantic segmentation via gradient-weighted class activation mapping,
    https://arxiv.org/abs/2002.11434.

    Args:
        model: a semantic segmentation network.
        processor: its image processor.
        images: of any size.
        classes: indices or labels; None for all but the first, which is the background.
        method: one of CAMS.
        layer: name of the module whose features are used; None finds one, see `find_layer`.
        batch_size: images per forward pass.

    Raises:
        MedtlError: no such method, class or layer.
    """
    if method not in CAMS:
        raise MedtlError(f"Unknown method {method!r} for segmentation networks. Known: {', '.join(CAMS)}.")
    tile = getattr(model.config, "tile", None)
    if tile and any(max(image.size) > tile for image in images):
        raise MedtlError(
            f"Class activation maps need the features of a whole image, but {type(model).__name__} sees tiles of "
            f"{tile} pixels. Crop the images to that size, or use the uncertainty of Predictor, which has no limit."
        )
    names = maps.label_names(model)
    if classes is None:
        classes = [index for index in sorted(names) if index]
    indices = maps.class_indices(names, classes, len(classes))
    assert indices is not None
    cam = maps.grad_cam_class(method)
    explanations = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        pixels = maps.to_pixel_values(processor, batch)
        with eval_without_grads(model) as copy:
            with torch.no_grad():
                logits = Logits(copy)(pixels)
            predicted = logits.argmax(dim=1)
            geometries = [find_geometry(processor, image) for image in batch]
            for region, geometry in zip(predicted, geometries, strict=True):
                _forget_margins(region, geometry.inner, pixels.shape[-2:])
            uncertainty = entropy(torch.nn.functional.interpolate(logits, pixels.shape[-2:], mode="bilinear"))
            class_maps = {}
            for index in indices.tolist():
                targets = [_RegionTarget(index, classes_of == index) for classes_of in predicted]
                class_maps[names[index]] = maps.activation_maps(cam, copy, pixels.detach().clone(), targets, layer)
        for i, (image, geometry) in enumerate(zip(batch, geometries, strict=True)):
            size = image.height, image.width
            restored = {name: restore(maps.normalise(values[i]), geometry, size) for name, values in class_maps.items()}
            explanations.append(SegmentationExplanation(restored, restore(uncertainty[i], geometry, size)))
    return explanations


def _forget_margins(region: torch.Tensor, inner: Box, size: Sequence[int]) -> None:
    """Set the classes (h, w) outside of the image, within a model's input of `size`, to -1."""
    y, x = (length / side for length, side in zip(region.shape, size, strict=True))
    left, top, right, bottom = round(inner[0] * x), round(inner[1] * y), round(inner[2] * x), round(inner[3] * y)
    region[:top], region[bottom:], region[:, :left], region[:, right:] = -1, -1, -1, -1


def entropy(logits: torch.Tensor) -> Heatmaps:
    """Return the entropy of each pixel's probabilities, divided by its maximum: (n, H, W) of logits (n, K, H, W)."""
    probabilities = logits.softmax(dim=1)
    return (torch.special.entr(probabilities).sum(dim=1) / np.log(probabilities.shape[1])).clamp(0, 1).cpu().numpy()


class _RegionTarget:
    """Sum of the logits of a class over some pixels."""

    def __init__(self, index: int, region: torch.Tensor) -> None:
        self.index, self.region = index, region

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits[self.index] * self.region).sum()
