"""Test-time augmentation and Monte Carlo dropout: repeated predictions of the same images."""

from typing import NamedTuple

import torch
from torch import nn
from torchvision.transforms.v2.functional import InterpolationMode, affine, horizontal_flip

from hf_medtl.errors import MedtlError
from hf_medtl.models.copies import Model, shared_copy


class AffineView(NamedTuple):
    """A small rotation, zoom or horizontal flip that `undo` reverses."""

    degrees: float = 0.0
    zoom: float = 1.0
    mirrored: bool = False

    def apply(self, pixels: torch.Tensor) -> torch.Tensor:
        """Transform `pixel_values` (n, C, H, W); areas from outside the image repeat the values at its edge."""
        pixels = horizontal_flip(pixels) if self.mirrored else pixels
        return _warp(pixels, self.degrees, self.zoom)

    def undo(self, maps: torch.Tensor) -> torch.Tensor:
        """Map network outputs (n, K, h, w) for transformed images back to the original orientation."""
        maps = _warp(maps, -self.degrees, 1 / self.zoom)
        return horizontal_flip(maps) if self.mirrored else maps


_WARPS = ((5, 1), (-5, 1), (0, 1.05), (0, 0.95), (10, 1), (-10, 1), (5, 1.05), (-5, 0.95))  # degrees, zoom
UNMIRRORED = tuple(AffineView(degrees, zoom) for degrees, zoom in _WARPS)
# The plain flip comes first: it changes the image most and costs no sharpness.
MIRRORED = (AffineView(mirrored=True), *(view._replace(mirrored=flip) for view in UNMIRRORED for flip in (False, True)))


def tta_views(number: int, mirrored: bool) -> tuple[AffineView, ...]:
    """Return the first `number` views, besides the image itself.

    Args:
        number: number of views.
        mirrored: include flipped views. Only for a model that was trained with flipped images: in a chest the heart is
            on the left.

    Raises:
        MedtlError: the number is negative or larger than the number of views.
    """
    available = MIRRORED if mirrored else UNMIRRORED
    if not 0 <= number <= len(available):
        raise MedtlError(f"tta must be 0 to {len(available)} views for this model, found tta {number}.")
    return available[:number]


def monte_carlo_dropout(model: Model) -> Model:
    """Return a copy with the same weights and dropout alone switched on: each forward pass is a random draw.

    Source: Gal and Ghahramani 2016, Dropout as a Bayesian Approximation, https://arxiv.org/abs/1506.02142.

    Raises:
        MedtlError: the model has no dropout, so that all passes would be the same.
    """
    copy = shared_copy(model).eval()
    layers = [module for module in copy.modules() if isinstance(module, nn.modules.dropout._DropoutNd) and module.p]
    if not layers:
        raise MedtlError(
            "This model has no dropout, so every pass would give the same result. Leave out mc_dropout, or use tta."
        )
    for layer in layers:
        layer.train()
    return copy


def _warp(pixels: torch.Tensor, degrees: float, zoom: float) -> torch.Tensor:
    if not degrees and zoom == 1:
        return pixels
    # Beyond the corners of a rotated image, repeat its edge: black would be another value after normalisation, and a
    # new shape in the image.
    margin = max(pixels.shape[-2:]) // 4
    padded = nn.functional.pad(pixels, (margin,) * 4, mode="replicate")
    padded = affine(padded, degrees, [0, 0], zoom, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)
    return padded[..., margin:-margin, margin:-margin]
