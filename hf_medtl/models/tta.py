"""A model asked several times about the same pictures: changed ones, or with dropout switched on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torchvision.transforms.v2.functional import InterpolationMode, affine, horizontal_flip

from hf_medtl.errors import MedtlError


class View(NamedTuple):
    """A small change of pictures, which `undo` takes back."""

    degrees: float = 0.0
    zoom: float = 1.0
    mirrored: bool = False

    def apply(self, pixels: torch.Tensor) -> torch.Tensor:
        """Changed pictures, (n, C, H, W) as the image processor made them; the edge's values come in from outside."""
        pixels = horizontal_flip(pixels) if self.mirrored else pixels
        return _warp(pixels, self.degrees, self.zoom)

    def undo(self, maps: torch.Tensor) -> torch.Tensor:
        """What a network gave for changed pictures, (n, K, h, w), put back where it belongs."""
        maps = _warp(maps, -self.degrees, 1 / self.zoom)
        return horizontal_flip(maps) if self.mirrored else maps


TURNS = (View(5), View(-5), View(zoom=1.05), View(zoom=0.95), View(10), View(-10), View(5, 1.05), View(-5, 0.95))
# Mirrored first: it changes most and costs no sharpness.
MIRRORED = (View(mirrored=True), *(its for view in TURNS for its in (view, view._replace(mirrored=True))))


def views(number: int, mirrored: bool) -> tuple[View, ...]:
    """The first so many views, besides the picture itself.

    Args:
        number: how many.
        mirrored: whether left and right may be exchanged. Only a model that has learnt from such pictures should see
            them: in a chest the heart is on the left.

    Raises:
        MedtlError: there are not so many.
    """
    known = MIRRORED if mirrored else TURNS
    if not 0 <= number <= len(known):
        raise MedtlError(f"There are 0 to {len(known)} views of a picture for this model, found tta {number}.")
    return known[:number]


@contextmanager
def dropout_on(model: nn.Module) -> Iterator[None]:
    """Dropout as in training, all else as in evaluation: each pass is a draw (Monte Carlo dropout).

    Source: Gal and Ghahramani 2016, Dropout as a Bayesian Approximation, https://arxiv.org/abs/1506.02142.

    Raises:
        MedtlError: the model has no dropout, so that all passes would be the same.
    """
    found = [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd) and module.p]
    if not found:
        raise MedtlError("This model has no dropout: every pass would give the same. Leave mc_dropout out, or use tta.")
    before = [module.training for module in found]
    try:
        for module in found:
            module.train()
        yield
    finally:
        for module, mode in zip(found, before, strict=True):
            module.train(mode)


def _warp(pixels: torch.Tensor, degrees: float, zoom: float) -> torch.Tensor:
    if not degrees and zoom == 1:
        return pixels
    # Past the corners of a turned picture its edge goes on: black would be another value after normalisation, and
    # a new shape in the picture.
    margin = max(pixels.shape[-2:]) // 4
    wide = nn.functional.pad(pixels, (margin,) * 4, mode="replicate")
    wide = affine(wide, degrees, [0, 0], zoom, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)
    return wide[..., margin:-margin, margin:-margin]
