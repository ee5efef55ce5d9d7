"""Tests of the tolerance of the surface Dice."""

import pytest

from hf_medtl import MedtlError
from hf_medtl.evaluation.tolerance import Tolerance


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [("2", 2, "pixels"), (3, 3, "pixels"), ("1.5mm", 1.5, "mm"), (" 4 px", 4, "pixels"), ("0 MM", 0, "mm")],
)
def test_tolerance_is_pixels_or_mm(text, value, unit):
    tolerance = Tolerance.parse(text)
    assert (tolerance.value, tolerance.unit) == (value, unit)
    assert Tolerance.parse(str(tolerance)) == tolerance
    assert str(Tolerance()) == "2 pixels"


@pytest.mark.parametrize("text", ["", "-1", "two", "2cm", "1.2.3", "nan", "inf", "2 pixels mm"])
def test_other_texts_are_refused(text):
    with pytest.raises(MedtlError, match="--surface_tolerance must be a distance in pixels or mm of at least 0"):
        Tolerance.parse(text)
