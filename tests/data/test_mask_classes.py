"""Tests of the fractions of classes in masks."""

import numpy as np
import pytest
from PIL import Image

from hf_medtl.data.mask_classes import class_fractions


def test_fractions_count_images_of_all_sizes_the_same(tmp_path):
    small, large = np.zeros((10, 10), np.uint8), np.zeros((40, 50), np.uint8)
    small[:5], large[:, :10] = 255, 255
    for name, mask in (("small", small), ("large", large), ("empty", large * 0)):
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    files = [[tmp_path / f"{name}.png"] for name in ("small", "large", "empty")]
    assert class_fractions(files, None, 2) == pytest.approx(np.array([[0.5, 0.5], [0.8, 0.2], [1, 0]]))


def test_fractions_by_declared_values_leave_out_pixels_without_annotation(tmp_path):
    mask = np.full((10, 10), 7, np.uint8)
    mask[:2], mask[2:6] = 128, 200
    Image.fromarray(mask).save(tmp_path / "mask.png")
    fractions = class_fractions([[tmp_path / "mask.png"]], {7: 0, 128: 1, 200: 255}, 3)
    assert fractions == pytest.approx(np.array([[4 / 6, 2 / 6, 0]]))
