"""Tolerance of the surface Dice: a distance in pixels or in millimetres."""

import math
import re
from dataclasses import dataclass

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.masks import SURFACE_TOLERANCE


@dataclass(frozen=True)
class Tolerance:
    """A distance between outlines that is as good as none.

    Attributes:
        value: At least 0.
        unit: "pixels" of the image at its own size, or "mm".
    """

    value: float = SURFACE_TOLERANCE
    unit: str = "pixels"

    @classmethod
    def parse(cls, text: float | str) -> "Tolerance":
        """Return the tolerance that a text such as 3, "3 pixels" or 1.5mm names.

        Raises:
            MedtlError: Another text, or a number below 0.
        """
        match = re.fullmatch(r"([0-9.]+(?:e-?[0-9]+)?)\s*(pixels?|px|mm)?", str(text).strip().lower())
        try:
            value = float(match[1]) if match else math.nan
        except ValueError:
            value = math.nan
        if match is None or not math.isfinite(value):
            raise MedtlError(
                "--surface_tolerance must be a distance in pixels or mm of at least 0, such as 2 or 1.5mm, but is "
                f"{text!r}."
            )
        return cls(value, "mm" if match[2] == "mm" else "pixels")

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"
