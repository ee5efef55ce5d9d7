"""Windows of an image with more than 8 bits: the grey values that become black and white."""

import math
from dataclasses import dataclass

import numpy as np

from hf_medtl.data.pixels import GreyRange
from hf_medtl.errors import MedtlError

CONSTANT = "Every pixel of the image has the same value: it shows nothing. Choose another one."
# Radiopaedia, "Windowing (CT)": level ± width / 2.
CT_WINDOWS = {
    "brain": (0.0, 80.0),
    "lung": (-1350.0, 150.0),
    "soft tissue": (-150.0, 250.0),
    "bone": (-500.0, 1300.0),
}


@dataclass(frozen=True)
class Windowing:
    """Grey values and windows of an image with more than 8 bits, for the sliders of level and width.

    Args:
        low, high: lowest and highest grey value of the frame that is shown first.
        window: (low, high) that is shown first. `Upload.image()` shows the same, except for a DICOM file with a curve
            (VOI LUT) instead of a window: then this is close to it.
        unit: "HU" for CT, otherwise "".
        presets: name -> (low, high).
    """

    low: float
    high: float
    window: tuple[float, float]
    unit: str
    presets: dict[str, tuple[float, float]]

    @classmethod
    def from_greys(cls, greys: GreyRange) -> "Windowing":
        """Choose the initial window and the presets, without those of zero width.

        Raises:
            MedtlError: no pixel has a finite value, or all have the same.
        """
        if not np.isfinite([greys.low, greys.high]).all():
            raise MedtlError("No pixel has a finite value. Export the image again.")
        if greys.low == greys.high:
            raise MedtlError(CONSTANT)
        own = {"as stored in the file": greys.window} if greys.window else {}
        full = (greys.low, greys.high)
        default = {"percentiles 0.5 to 99.5": greys.percentiles, "full range": full}
        others = CT_WINDOWS if greys.unit == "HU" else default
        presets = {name: (low, high) for name, (low, high) in (own | others).items() if low < high}
        first = greys.window or greys.percentiles
        return cls(*full, first if first[0] < first[1] else full, greys.unit, presets)

    def slider_range(self) -> tuple[float, float, float]:
        """Return the lowest and highest grey value that the sliders need, and their step.

        Windows may exceed the values of the image, and Gradio rejects values outside the range of a slider.
        """
        ends = [(self.low, self.high), self.window, *self.presets.values()]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        span = max(high - low, 1e-6)
        step = 1.0 if span > 100 else 10.0 ** math.floor(math.log10(span / 100))
        first, last = math.floor(low / step), math.ceil(high / step)
        return first * step, max(last, first + 1) * step, step

    def level_and_width(self, window: tuple[float, float]) -> tuple[float, float]:
        """Return level and width of a window (low, high), rounded to the steps of the sliders."""
        low, high = window
        step = self.slider_range()[-1]
        return round((low + high) / 2 / step) * step, max(1, round((high - low) / step)) * step
