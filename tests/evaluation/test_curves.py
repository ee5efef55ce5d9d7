"""Tests of curves with bands over groups."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from hf_medtl.evaluation.curves import (
    THRESHOLDS,
    ecdf_band,
    net_benefit_band,
    precision_recall_band,
    reliability_points,
    roc_band,
)
from hf_medtl.evaluation.operating_points import net_benefit


@pytest.fixture(scope="module")
def sample():
    """Return 200 images, two in each group, with ties among scores."""
    rng = np.random.default_rng(0)
    groups = np.arange(200) // 2
    positive = (groups % 3) == 0
    score = np.round(1 / (1 + np.exp(-(positive * 2 - 1 + rng.normal(0, 1.2, 200)))), 2)
    return positive, score, groups


def test_areas_under_curves_equal_metrics(sample):
    positive, score, _ = sample
    roc, precision = roc_band(*sample, resamples=50), precision_recall_band(*sample, resamples=50)
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(roc_auc_score(positive, score))
    assert np.trapezoid(precision.y, precision.x) == pytest.approx(average_precision_score(positive, score))


@pytest.mark.parametrize("curve_of", [roc_band, precision_recall_band, net_benefit_band])
def test_band_contains_curve_and_resamples_groups(sample, curve_of):
    positive, score, groups = sample
    curve = curve_of(positive, score, groups, resamples=400)
    assert (curve.low <= curve.high).all()
    # The height of a step curve is between those of the neighbouring points.
    last = np.searchsorted(curve.x, curve.at, side="right") - 1
    first = np.searchsorted(curve.x, curve.at).clip(0, len(curve.y) - 1)
    beside = np.sort([curve.y[last], curve.y[first]], axis=0)
    assert ((curve.low <= beside[1] + 1e-9) & (beside[0] - 1e-9 <= curve.high)).mean() > 0.97
    copies = np.repeat(positive, 4), np.repeat(score, 4)  # copies are no additional evidence
    wide = curve_of(*copies, np.repeat(np.arange(200), 4), resamples=400)
    narrow = curve_of(*copies, np.arange(800), resamples=400)
    assert (wide.high - wide.low).mean() > 1.5 * (narrow.high - narrow.low).mean()
    again = curve_of(positive, score, groups, resamples=400)
    np.testing.assert_array_equal(again.low, curve.low)


def test_decision_curve_equals_net_benefit(sample):
    positive, score, groups = sample
    np.testing.assert_allclose(
        net_benefit_band(positive, score, groups, 20).y, net_benefit(positive, score, THRESHOLDS)
    )


def test_perfect_model_has_zero_width_band():
    positive = np.arange(40) % 2 == 0
    curve = roc_band(positive, positive * 0.8, np.arange(40), resamples=50)
    assert (curve.low == 1).all() and (curve.high == 1).all()


def test_reliability_has_limits_without_any_error():
    probability = np.repeat([0.1, 0.9], 30)
    bins = reliability_points(probability > 0.5, probability, np.arange(60))
    assert bins.predicted == pytest.approx([0.1, 0.9])
    assert bins.observed.tolist() == [0, 1]
    assert bins.n.tolist() == [30, 30]
    assert 0.05 < bins.high[0] < 0.2
    assert 0.8 < bins.low[1] < 0.95


def test_fractions_of_images_rise_to_one(sample):
    _, score, groups = sample
    curve = ecdf_band(score, groups, resamples=100)
    assert (np.diff(curve.y) >= 0).all()
    assert curve.y[-1] == 1
    assert ((curve.low <= curve.y) & (curve.y <= curve.high)).mean() > 0.95


def test_rejects_inputs_without_curve():
    with pytest.raises(ValueError, match="only one class"):
        roc_band([1, 1], [0.1, 0.2], [0, 1])
    with pytest.raises(ValueError, match="shape"):
        roc_band([1, 0], [0.1], [0, 1])
