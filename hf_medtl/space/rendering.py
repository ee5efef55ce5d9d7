"""Overlays of heatmaps and masks, as PNG inside the page: no file is written or served."""

import base64
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from hf_medtl.data.images import encode_image
from hf_medtl.explain.maps import Heatmaps
from hf_medtl.explain.statistics import COLORMAP

MAX_OVERLAY_SIDE = 1024  # pixels of an overlay's longer side: heatmaps are smooth
# Okabe-Ito palette, safe for color-blind users. Blue is the last, since it is hard to see on black.
CLASS_COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167),
                (0, 114, 178))  # fmt: skip


def data_uri(image: Image.Image) -> str:
    """Return an image as PNG in a data URI; in grey if all channels are equal, which takes a third of the bytes."""
    if image.mode == "RGB":
        pixels = np.asarray(image)
        if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
            image = Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
    return "data:image/png;base64," + base64.b64encode(encode_image(image, compress_level=1)).decode("ascii")


def heatmap_overlay(values: Heatmaps) -> Image.Image:
    """Return a heatmap (H, W) in [0, 1] as RGBA, transparent at 0 and opaque at 1."""
    small = np.asarray(downscale(Image.fromarray(np.clip(values, 0, 1).astype(np.float32))))
    rgba = matplotlib.colormaps[COLORMAP](small)
    rgba[..., 3] = small
    return Image.fromarray((255 * rgba).round().astype(np.uint8))


def mask_overlay(mask: NDArray[np.uint8]) -> Image.Image:
    """Return a mask (H, W) of class indices as RGBA in the colors of the classes, the background transparent."""
    return _render_overlay(np.asarray(downscale(Image.fromarray(mask), Image.Resampling.NEAREST)))


def outline_overlay(mask: NDArray[np.uint8]) -> Image.Image:
    """Return the outlines of a mask (H, W) of class indices as RGBA."""
    small = np.asarray(downscale(Image.fromarray(mask), Image.Resampling.NEAREST))
    width = max(1, round(max(small.shape) / 250))
    outlines = np.zeros_like(small)
    for index in np.unique(small[small != 0]):
        region = small == index
        outlines[region & ~binary_erosion(region, iterations=width, border_value=0)] = index
    return _render_overlay(outlines)


def _render_overlay(mask: NDArray[np.uint8]) -> Image.Image:
    """Return class indices (H, W) as RGBA."""
    palette = np.zeros((256, 4), np.uint8)
    palette[1:] = [(*CLASS_COLORS[(index - 1) % len(CLASS_COLORS)], 255) for index in range(1, 256)]
    return Image.fromarray(palette[mask])


def downscale(image: Image.Image, resample: Any = Image.Resampling.BOX) -> Image.Image:
    """Return an image whose longer side has at most `MAX_OVERLAY_SIDE` pixels."""
    scale = MAX_OVERLAY_SIDE / max(image.size)
    if scale >= 1:
        return image
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resample)
