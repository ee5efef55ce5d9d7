import warnings

import numpy as np
import pytest

from hf_medtl.evaluation.metrics import classification_metrics
from hf_medtl.evaluation.operating_points import net_benefit, sensitivity_at

POSITIVE = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0])
SCORES = np.array([0.9, 0.8, 0.4, 0.3, 0.7, 0.4, 0.2, 0.2, 0.1])


def test_operating_points_are_best_of_all_thresholds():
    rng = np.random.default_rng(0)
    for _ in range(20):
        y, s = rng.random(60) < 0.4, rng.integers(0, 12, 60) / 12
        points = [((s >= t)[y].mean(), (s < t)[~y].mean()) for t in (*np.unique(s), np.inf)]
        for target in (0, 0.3, 0.8, 0.95, 1):
            sensitivity, specificity = max(pair for pair in points if pair[1] >= target)
            point = sensitivity_at(target, y, s)
            assert point[1:] == pytest.approx((sensitivity, specificity))
            assert ((s >= point.threshold)[y].mean(), (s < point.threshold)[~y].mean()) == pytest.approx(point[1:])
            specificity, sensitivity = max((b, a) for a, b in points if a >= target)
            assert sensitivity_at(target, ~y, -s)[1:] == pytest.approx((specificity, sensitivity))


def test_operating_points_equal_hand_calculation():
    assert sensitivity_at(0.6, POSITIVE, SCORES) == pytest.approx((0.3, 1.0, 0.6))
    assert sensitivity_at(1.0, POSITIVE, SCORES) == pytest.approx((0.8, 0.5, 1.0))
    assert sensitivity_at(0.5, 1 - POSITIVE, -SCORES) == pytest.approx((-0.7, 1.0, 0.5))  # negative up to 0.7
    assert sensitivity_at(1.0, [0, 1], [0.9, 0.1]) == (np.inf, 0.0, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(sensitivity_at(0.9, [1, 1], [0.1, 0.2])).all()
    for bad, words in (((1.5, [0, 1], [0, 1]), "specificity in"), ((0.5, [0, 1], [0]), "shape")):
        with pytest.raises(ValueError, match=words):
            sensitivity_at(*bad)
    with pytest.raises(ValueError, match="finite"):
        sensitivity_at(0.5, [0, 1], [0, np.nan])


def test_net_benefit_equals_hand_calculation():
    # From 0.3 on: 4 true, 2 false positives of 9, a false one weighs 3 / 7. At 0 all are treated and nothing weighs.
    assert net_benefit(POSITIVE, SCORES, [0, 0.3, 0.75]) == pytest.approx([4 / 9, 4 / 9 - 2 / 9 * 3 / 7, 2 / 9])
    all_treated = net_benefit(POSITIVE, np.ones(9), [0.3])
    assert all_treated == pytest.approx(4 / 9 - 5 / 9 * 3 / 7)
    with pytest.raises(ValueError, match="below 1"):
        net_benefit(POSITIVE, SCORES, [1.0])


def predictive_values_at(prevalence, sensitivity, specificity):
    """PPV and NPV at another prevalence: those of true and false positives and negatives weighted by it."""
    rest = 1 - prevalence
    weights = [prevalence * sensitivity, prevalence * (1 - sensitivity), rest * specificity, rest * (1 - specificity)]
    probabilities = np.array([[0, 1], [1, 0], [1, 0], [0, 1]])
    values = classification_metrics([1, 1, 0, 0], probabilities, weights=weights)
    return values["ppv"], values["npv"]


def test_weights_give_predictive_values_at_another_prevalence():
    # 1 % prevalence, 90 % sensitivity, 91 % specificity: the mammography example of Gigerenzer, about 1 in 10.
    ppv, npv = predictive_values_at(0.01, 0.9, 0.91)
    assert ppv == pytest.approx(0.009 / (0.009 + 0.0891))
    assert npv == pytest.approx(0.9009 / (0.9009 + 0.001))
    ppv, npv = np.transpose([predictive_values_at(prevalence, 1.0, 1.0) for prevalence in (0.0, 1.0, 0.5)])
    assert np.array_equal(ppv, [np.nan, 1, 1], equal_nan=True)
    assert np.array_equal(npv, [1, np.nan, 1], equal_nan=True)
    with pytest.raises(ValueError, match="weights of at least 0"):
        predictive_values_at(1.2, 0.9, 0.9)
