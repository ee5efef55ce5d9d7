"""Where in the original picture the model's picture comes from, and the way back for maps."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.errors import MedtlError

Box = tuple[float, float, float, float]
WORST = 0.01  # of a picture's side: what a ramp of 256 grey values tells, and a margin


class Geometry(NamedTuple):
    """Two boxes of left, top, right, bottom in pixels: what is in `crop` of the picture is in `inner` of the input.

    Attributes:
        crop: in the original picture.
        inner: in what the model sees.
    """

    crop: Box
    inner: Box


def find_geometry(processor: Any, picture: Image.Image) -> Geometry:
    """What an image processor does to the places of a picture.

    `MedicalImageProcessor`, whose crops depend on the picture, says it. Of stock processors it is measured: pictures of
    this size, black, white, and ramps from left to right and from top to bottom, tell where each pixel came from.

    Raises:
        MedtlError: the processor does more than resize, crop and pad, such as turning.
    """
    if hasattr(processor, "geometry"):
        return Geometry(*processor.geometry(picture))
    width, height = picture.size
    across = np.broadcast_to(_ramp(width), (height, width))
    down = np.broadcast_to(_ramp(height)[:, None], (height, width))
    probes = [np.zeros((height, width), np.uint8), np.full((height, width), 255, np.uint8), across, down]
    rgb = [Image.fromarray(np.ascontiguousarray(probe)).convert("RGB") for probe in probes]
    black, white, right, below = np.asarray(processor(rgb, return_tensors="pt")["pixel_values"])[:, 0].astype(float)
    range_ = white - black
    inside = range_ > 0.5 * range_.max()
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows) or not inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all():
        raise _strange(processor)
    box = float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    x, y = ((ramp - black)[part] / range_[part] for ramp in (right, below))
    if max(x.std(axis=0).max(), y.std(axis=1).max()) > WORST:  # a column has one x, a row has one y
        raise _strange(processor)
    left, end = _edges(x.mean(axis=0), processor)
    top, bottom = _edges(y.mean(axis=1), processor)
    return Geometry((left * width, top * height, end * width, bottom * height), box)


def restore(values: NDArray[np.floating], geometry: Geometry, size: tuple[int, int]) -> NDArray[np.float32]:
    """A map of the model's input, in the coordinates of the original picture.

    Args:
        values: (h, w) of the input.
        geometry: of the picture, see `find_geometry`.
        size: height and width of the picture.

    Returns:
        (H, W); 0 outside of what the model saw.
    """
    height, width = size
    (left, top, right, bottom), (a, b, c, d) = geometry
    x = [int(np.clip(round(edge), 0, width)) for edge in (left, right)]
    y = [int(np.clip(round(edge), 0, height)) for edge in (top, bottom)]
    whole = np.zeros(size, np.float32)
    if x[0] >= x[1] or y[0] >= y[1]:
        return whole
    columns = [float(np.clip(a + (edge - left) * (c - a) / (right - left), a, c)) for edge in x]
    rows = [float(np.clip(b + (edge - top) * (d - b) / (bottom - top), b, d)) for edge in y]
    part = Image.fromarray(np.ascontiguousarray(values, np.float32)).resize(
        (x[1] - x[0], y[1] - y[0]), Image.Resampling.BILINEAR, box=(columns[0], rows[0], columns[1], rows[1])
    )
    whole[y[0] : y[1], x[0] : x[1]] = np.asarray(part)
    return whole


def _ramp(length: int) -> NDArray[np.uint8]:
    """Grey values that rise from 0 to 255: at a pixel's centre the share of the way."""
    return np.round(255 * (np.arange(length) + 0.5) / length).astype(np.uint8)


def _edges(shares: NDArray[np.float64], processor: Any) -> tuple[float, float]:
    """Where the first pixel begins and the last one ends, as shares of the picture, by a line through all centres."""
    count = len(shares)
    places = np.arange(count) + 0.5
    # The resampling filter bends the ramp at the picture's edges.
    used = (shares > 0.03) & (shares < 0.97) if count > 8 else np.ones(count, bool)
    if count == 1:
        return float(shares[0]) - 0.5, float(shares[0]) + 0.5
    slope, start = np.polyfit(places[used], shares[used], 1)
    if slope <= 0 or np.abs(slope * places + start - shares)[used].max() > WORST:
        raise _strange(processor)
    return float(start), float(slope * count + start)


def _strange(processor: Any) -> MedtlError:
    return MedtlError(
        f"{type(processor).__name__} does more than resize, crop and pad pictures, so maps can't be brought back to "
        "the original picture. Use a checkpoint with an ordinary image processor."
    )
