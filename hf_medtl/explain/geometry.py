"""Crop and resize geometry of image processors, and mapping of heatmaps back to the original image."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.errors import MedtlError

Box = tuple[float, float, float, float]
MAX_PROBE = 4_000_000  # pixels of the images that a processor is measured with
TOLERANCE = 0.01  # of the side of an image: the resolution of a ramp of 256 grey values, and a margin


class Geometry(NamedTuple):
    """Two boxes of left, top, right, bottom in pixels: `crop` of the image becomes `inner` of the model's input.

    Attributes:
        crop: in the original image.
        inner: in the model's input.
    """

    crop: Box
    inner: Box


def find_geometry(processor: Any, image: Image.Image) -> Geometry:
    """Determine how an image processor crops and resizes an image.

    `MedicalImageProcessor`, whose crops depend on the image, reports it. For stock processors it is measured with
    images of this size: black, white, and ramps from left to right and from top to bottom locate each pixel's origin.

    Raises:
        MedtlError: the processor does more than resize, crop and pad, such as rotating.
    """
    if hasattr(processor, "geometry"):
        return Geometry(*processor.geometry(image))
    width, height = image.size
    try:
        return _measure(processor, width, height)
    except MedtlError:
        factor = -(-64 // min(width, height))  # ramps of few pixels are bent everywhere by the resampling filter
        if factor == 1 or factor**2 * width * height > MAX_PROBE:
            raise
        # An image of the same shape with more pixels is cropped alike, unless the processor does not resize.
        (left, top, right, bottom), inner = _measure(processor, factor * width, factor * height)
        return Geometry((left / factor, top / factor, right / factor, bottom / factor), inner)


def _measure(processor: Any, width: int, height: int) -> Geometry:
    right_ramp = np.broadcast_to(_ramp(width), (height, width))
    down_ramp = np.broadcast_to(_ramp(height)[:, None], (height, width))
    probes = [np.zeros((height, width), np.uint8), np.full((height, width), 255, np.uint8), right_ramp, down_ramp]
    rgb = [Image.fromarray(np.ascontiguousarray(probe)).convert("RGB") for probe in probes]
    black, white, right, below = np.asarray(processor(rgb, return_tensors="pt")["pixel_values"])[:, 0].astype(float)
    # Padding has the same value in black and in white; the image must fill a box.
    contrast = white - black
    inside = contrast > 0.5 * contrast.max()
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows) or not inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all():
        raise _unsupported(processor)
    inner = float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    x, y = ((ramp - black)[window] / contrast[window] for ramp in (right, below))
    if max(x.std(axis=0).max(), y.std(axis=1).max()) > TOLERANCE:  # a column has one x, a row has one y
        raise _unsupported(processor)
    left, end = _edges(x.mean(axis=0), processor)
    top, bottom = _edges(y.mean(axis=1), processor)
    return Geometry((left * width, top * height, end * width, bottom * height), inner)


def restore(values: NDArray[np.floating], geometry: Geometry, size: tuple[int, int]) -> NDArray[np.float32]:
    """Map a heatmap of the model's input to the coordinates of the original image.

    Args:
        values: (h, w) of the input.
        geometry: of the image, see `find_geometry`.
        size: height and width of the image.

    Returns:
        (H, W); 0 outside of the crop.
    """
    height, width = size
    (left, top, right, bottom), (a, b, c, d) = geometry
    x = [int(np.clip(round(edge), 0, width)) for edge in (left, right)]
    y = [int(np.clip(round(edge), 0, height)) for edge in (top, bottom)]
    restored = np.zeros(size, np.float32)
    if x[0] >= x[1] or y[0] >= y[1]:
        return restored
    columns = [float(np.clip(a + (edge - left) * (c - a) / (right - left), a, c)) for edge in x]
    rows = [float(np.clip(b + (edge - top) * (d - b) / (bottom - top), b, d)) for edge in y]
    crop = Image.fromarray(np.ascontiguousarray(values, np.float32)).resize(
        (x[1] - x[0], y[1] - y[0]), Image.Resampling.BILINEAR, box=(columns[0], rows[0], columns[1], rows[1])
    )
    restored[y[0] : y[1], x[0] : x[1]] = np.asarray(crop)
    return restored


def _ramp(length: int) -> NDArray[np.uint8]:
    """Return grey values that rise from 0 to 255: at the centre of a pixel, its relative position."""
    return np.round(255 * (np.arange(length) + 0.5) / length).astype(np.uint8)


def _edges(positions: NDArray[np.float64], processor: Any) -> tuple[float, float]:
    """Fit a line through the relative positions of pixel centres; return the edges of the first and last pixel."""
    count = len(positions)
    centres = np.arange(count) + 0.5
    # The resampling filter bends the ramp at the edges of the image.
    used = (positions > 0.03) & (positions < 0.97) if count > 8 else np.ones(count, bool)
    if count == 1:
        return float(positions[0]) - 0.5, float(positions[0]) + 0.5
    slope, start = np.polyfit(centres[used], positions[used], 1)
    if slope * count < TOLERANCE or np.abs(slope * centres + start - positions)[used].max() > TOLERANCE:
        raise _unsupported(processor)
    return float(start), float(slope * count + start)


def _unsupported(processor: Any) -> MedtlError:
    return MedtlError(
        f"{type(processor).__name__} does more than resize, crop and pad images, so heatmaps can't be mapped back to "
        "the original image. Use a checkpoint with an ordinary image processor."
    )
