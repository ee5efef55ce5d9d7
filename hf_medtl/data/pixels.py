"""Grey-level windowing: mapping pixels with more than 8 bits to 0..255."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 20  # pixels windowed at a time, since float64 needs eight bytes for each

MAX_PIXELS = 100_000_000  # the largest radiographs have about 20 million


@dataclass(frozen=True)
class GreyRange:
    """Range of the grey values of an image with more than 8 bits, in the unit of `read_image`'s window.

    Attributes:
        low: Lowest finite value; NaN if there is none.
        high: Highest finite value.
        percentiles: The 0.5th and 99.5th percentile.
        window: The window (low, high) in the file's header, if any.
        unit: "HU" for Hounsfield units, "" if unknown.
    """

    low: float
    high: float
    percentiles: tuple[float, float]
    window: tuple[float, float] | None = None
    unit: str = ""

    @classmethod
    def from_pixels(cls, pixels: NDArray[Any], scaled: Callable[[float], float] = float, **more: Any) -> "GreyRange":
        """Measure stored values, `scaled` linearly to units; `more` are the other fields."""
        finite = pixels[np.isfinite(pixels)] if pixels.dtype.kind == "f" else pixels
        if not finite.size:
            return cls(np.nan, np.nan, (np.nan, np.nan), **more)
        low, high = sorted(scaled(float(value)) for value in (finite.min(), finite.max()))
        lower, upper = sorted(map(scaled, percentiles(finite)))
        return cls(low, high, (lower, upper), **more)


def apply_window(pixels: NDArray[Any], window: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Map grey values linearly to 0..255.

    Args:
        pixels: (H, W) values.
        window: Values (low, high) mapped to 0 and 255, beyond which values are clipped; by default the 0.5th and 99.5th
            percentile.
    """
    low, high = percentiles(pixels) if window is None else window

    def shade(block: NDArray[np.float64]) -> NDArray[np.float64]:
        finite = np.nan_to_num(block, nan=low, posinf=high, neginf=low)
        return (finite - low) / max(high - low, 1e-9)

    return map_in_blocks(pixels, shade)


def map_in_blocks(
    pixels: NDArray[Any], shade: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.uint8]:
    """Map pixels (H, ...) to 0..255 with `shade`, which returns 0..1 and is called on blocks of rows to save memory."""
    shades = np.empty(pixels.shape, np.uint8)
    step = max(1, _BLOCK * len(pixels) // max(1, pixels.size))
    for row in range(0, len(pixels), step):
        block = pixels[row : row + step].astype(np.float64)
        shades[row : row + step] = np.rint(255 * shade(block).clip(0, 1))
    return shades


def percentiles(pixels: NDArray[Any]) -> tuple[float, float]:
    """Return the 0.5th and 99.5th percentile of the finite pixels; (0, 1) if there are none."""
    if pixels.dtype.kind == "f":
        pixels = pixels[np.isfinite(pixels)]
    if not pixels.size:
        return 0.0, 1.0
    values: NDArray[Any] = pixels.astype(np.float32 if pixels.dtype.itemsize <= 2 else np.float64)
    low, high = np.percentile(values, [0.5, 99.5], overwrite_input=True)
    return float(low), float(high)
