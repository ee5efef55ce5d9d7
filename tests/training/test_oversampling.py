"""Tests of repeat factors and of the images of an epoch."""

import numpy as np
import pytest

from hf_medtl.training.oversampling import repeat_factors, repeated_images


def test_factors_are_those_of_the_rarest_class_of_an_image():
    present = np.zeros((100, 3), bool)
    present[:80, 0] = True  # frequent
    present[75:84, 1] = True  # 9 of 100, and five of them beside the frequent class
    factors = repeat_factors(present, 0.36)
    assert factors[:75] == pytest.approx(1)
    assert factors[75:84] == pytest.approx(2)  # sqrt(0.36 / 0.09)
    assert factors[84:] == pytest.approx(1)  # without any class, as the third class has no image
    assert repeat_factors(present, 0.05) == pytest.approx(1)
    assert repeat_factors(np.zeros((4, 1), bool), 1.0) == pytest.approx(1)


def test_each_image_is_shown_at_least_once_and_fractions_on_average():
    factors = np.repeat([1.0, 2.5, 3.0], [50, 400, 2])
    shown = repeated_images(factors, seed=3)
    times = np.bincount(shown, minlength=len(factors))
    assert (times[:50] == 1).all()
    assert set(times[50:450]) == {2, 3}
    assert times[50:450].mean() == pytest.approx(2.5, abs=0.1)
    assert (times[450:] == 3).all()
    assert np.array_equal(shown, repeated_images(factors, seed=3))
    assert not np.array_equal(shown, repeated_images(factors, seed=4))
