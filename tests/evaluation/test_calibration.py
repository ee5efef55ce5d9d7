import warnings

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit
from sklearn.metrics import brier_score_loss

from hf_medtl.evaluation.calibration import (
    brier_decomposition,
    calibration_bins,
    calibration_error,
    calibration_line,
)


def forecasts(n=400, slope=1.0, shift=0.0, seed=0):
    """Simulate outcomes, and probabilities that are off by a slope and a shift of the logit."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-0.5, 1.5, n)
    return rng.random(n) < expit(truth), expit((truth - shift) / slope)


@pytest.mark.parametrize(("slope", "shift"), [(1, 0), (0.5, -1), (2, 1)])
def test_calibration_line_equals_statsmodels(slope, shift):
    y, p = forecasts(slope=slope, shift=shift)
    fit = sm.GLM(y, sm.add_constant(logit(p)), family=sm.families.Binomial()).fit()
    large = sm.GLM(y, np.ones(y.size), offset=logit(p), family=sm.families.Binomial()).fit()
    assert calibration_line(y, p) == pytest.approx((fit.params[1], fit.params[0], large.params[0]), abs=1e-6)


def test_calibration_line_recovers_slope_and_intercept():
    line = calibration_line(*forecasts(200_000, slope=0.5, shift=-1))
    assert line.slope == pytest.approx(0.5, abs=0.02)
    assert line.intercept == pytest.approx(-1, abs=0.03)


def test_calibration_line_of_separable_or_constant_is_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apart = calibration_line([0, 0, 1, 1], [0.0, 0.2, 0.9, 1.0])
        constant = calibration_line([0, 0, 1, 1], [0.4] * 4)
        one_class = calibration_line([1, 1, 1], [0.2, 0.4, 0.5])
        extreme = calibration_line([0, 1, 0, 1, 1], [0.0, 0.0, 1.0, 1.0, 1.0])
    assert np.isnan(apart[:2]).all()
    assert np.isfinite(apart.in_the_large)
    assert np.isnan(constant[:2]).all()
    assert constant.in_the_large == pytest.approx(logit(0.5) - logit(0.4))
    assert np.isnan(one_class).all()
    # One of two events at p = 0, two of three at p = 1: a line through logit(1 / 2) and logit(2 / 3).
    assert extreme.slope == pytest.approx(logit(2 / 3) / (2 * logit(1 - 1e-7)))


def test_brier_decomposition_adds_up():
    y, p = forecasts()
    parts = brier_decomposition(y, p)
    assert parts.reliability - parts.resolution + parts.uncertainty + parts.within == pytest.approx(
        brier_score_loss(y, p)
    )
    assert parts.uncertainty == pytest.approx(y.mean() * (1 - y.mean()))
    # By hand: 0.2 predicted four times with one event, 0.8 four times with four events.
    y, p = np.array([0, 0, 0, 1, 1, 1, 1, 1]), np.repeat([0.2, 0.8], 4)
    assert brier_decomposition(y, p) == pytest.approx(
        ((0.05**2 + 0.2**2) / 2, ((0.25 - 0.625) ** 2 + (1 - 0.625) ** 2) / 2, 0.625 * 0.375, 0)
    )


def test_calibration_error_of_calibrated_is_unbiased():
    """The mean of its square, before clipping at 0, is 0; that of the plain binned error is not."""
    debiased, plain = [], []
    for seed in range(300):
        y, p = forecasts(200, seed=seed)
        debiased.append(calibration_error(y, p))
        order = np.argsort(p).reshape(10, 20)
        plain.append(np.abs(p[order].mean(axis=1) - y[order].mean(axis=1)).mean())
    assert np.mean(plain) > 0.06
    assert np.median(debiased) < 0.03
    y, p = forecasts(100_000, slope=0.5)
    truth = np.sqrt(np.mean((p - expit(logit(p) * 0.5)) ** 2))
    assert calibration_error(y, p, bins=50) == pytest.approx(truth, abs=0.005)
    assert np.isnan(calibration_error([0, 1, 1], [0.1, 0.5, 0.9]))


def test_equal_confidences_share_a_bin():
    assert calibration_bins(np.array([0.5] * 7 + [0.9] * 3), 10).tolist() == [0] * 7 + [7] * 3
    assert np.bincount(calibration_bins(np.random.default_rng(0).permutation(1000) / 1000, 10)).tolist() == [100] * 10
    with pytest.raises(ValueError, match="at least 1 bin"):
        calibration_bins(np.array([0.5]), 0)


def test_invalid_arguments_raise():
    for function in (calibration_line, brier_decomposition, calibration_error):
        with pytest.raises(ValueError, match="shape"):
            function([0, 1], [0.5])
        with pytest.raises(ValueError, match=r"probabilities in 0\.\.1"):
            function([0, 1], [0.5, 1.5])
        with pytest.raises(ValueError, match=r"probabilities in 0\.\.1"):
            function([0, 1], [0.5, np.nan])
