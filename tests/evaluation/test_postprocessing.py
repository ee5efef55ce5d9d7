"""Tests of largest components and filled holes, on drawn masks."""

import json

import numpy as np
import pytest

from hf_medtl import MedtlError
from hf_medtl.evaluation.postprocessing import check_postprocessing, fill_holes, largest_components, postprocess


def drawn(text: str) -> np.ndarray:
    return np.array([[int(pixel) for pixel in row] for row in text.split()], np.uint8)


LUNGS = drawn("""
    11000011
    11000011
    11010011
    00000000
    00011000""")


def test_keeps_largest_components():
    assert np.array_equal(largest_components(LUNGS, 2), LUNGS * (np.arange(8) // 2 % 3 == 0) * (LUNGS > 0))
    assert np.array_equal(largest_components(LUNGS, 9), LUNGS)
    assert largest_components(LUNGS, 1).sum() == 6
    assert largest_components(LUNGS, 1)[0, 0] == 1  # the first of two of equal size


def test_diagonal_neighbours_are_connected():
    stairs = drawn("1000 0100 0010 0001")
    assert np.array_equal(largest_components(stairs, 1), stairs)
    ring = drawn("0100 1010 0100 0000")  # a hole, closed by corners only
    assert fill_holes(ring)[1, 1] == 1


def test_holes_are_filled_and_gaps_are_not():
    ring = drawn("00000 01110 01010 01110 00000")
    assert np.array_equal(fill_holes(ring), drawn("00000 01110 01110 01110 00000"))
    assert fill_holes(ring, fill=False) is ring
    for open_ring in ("00000 01110 01010 01010 00000", "01110 01010 01110 00000", "1110 1000 1110"):
        mask = drawn(open_ring)
        filled = fill_holes(mask)
        assert np.array_equal(filled, mask) == (open_ring != "01110 01010 01110 00000")
    at_edge = drawn("010 010 111")  # enclosed by the image's edge
    assert np.array_equal(fill_holes(at_edge), at_edge)


def test_classes_are_postprocessed_separately():
    mask = drawn("""
        1111100
        1000102
        1020102
        1000102
        1111100""")
    filled = drawn("""
        1111100
        1111102
        1121102
        1111102
        1111100""")
    assert np.array_equal(fill_holes(mask), filled)
    largest = postprocess(mask, {"largest_components": 1})
    assert (largest == 2).sum() == 3
    assert np.array_equal(largest == 1, mask == 1)
    # Components first: the small 2 inside is removed and filled with the class that encloses it.
    processed = postprocess(mask, {"fill_holes": True, "largest_components": 1})
    assert (processed[1:4, 1:4] == 1).all()


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_dtype_is_kept_and_argument_unchanged(dtype):
    mask = LUNGS.astype(dtype)
    original = mask.copy()
    steps = json.loads('{"largest_components": 2, "fill_holes": true}')  # as config.json gives them
    processed = postprocess(mask, steps)
    assert processed.dtype == dtype
    assert np.array_equal(mask, original)
    assert np.array_equal(processed, largest_components(LUNGS, 2).astype(dtype))
    empty = np.zeros((5, 6), dtype)
    assert np.array_equal(postprocess(empty, steps), empty)
    assert np.array_equal(postprocess(~empty if dtype is bool else empty + 1, steps), np.ones((5, 6), dtype))
    assert postprocess(mask, {}) is mask


def test_invalid_arguments_raise():
    for steps, words in (
        ({"largest_component": 2}, "'largest_component'. Known steps: largest_components, fill_holes"),
        ({"largest_components": 0}, "at least 1, found 0"),
        ({"largest_components": True}, "found True"),
        ({"largest_components": 1.5}, "found 1.5"),
        ({"fill_holes": 1}, "true or false, found 1"),
    ):
        with pytest.raises(MedtlError, match=words):
            check_postprocessing(steps)
    with pytest.raises(ValueError, match=r"\(H, W\), found \(5, 8, 1\)"):
        postprocess(LUNGS[..., None], {})
