import math

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp
from statsmodels.stats.contingency_tables import mcnemar as reference
from statsmodels.stats.multitest import multipletests

from hf_medtl.evaluation.delong import auc_interval, delong
from hf_medtl.evaluation.metrics import classification_metrics
from hf_medtl.evaluation.score_intervals import newcombe_auc_interval
from hf_medtl.evaluation.significance import auc_difference, holm, mcnemar, paired_bootstrap, paired_jackknife


def correlated_scores(seed, n=80, patients=None, ties=False):
    """Simulate two correlated scores of the same images; images of a patient are correlated, too."""
    rng = np.random.default_rng(seed)
    groups = np.arange(n) if patients is None else rng.integers(0, patients, n)
    y = rng.random(n) < 0.4
    shared = rng.normal(size=n) + rng.normal(size=n)[groups]
    scores = np.column_stack([y * 1.2 + shared + rng.normal(0, 0.5, n), y * 0.6 + shared + rng.normal(0, 0.8, n)])
    return y, np.round(scores) if ties else scores, groups


def components(y, scores):
    """Compute DeLong's components pair by pair."""
    kernel = [(s[y][:, None] > s[~y]) + 0.5 * (s[y][:, None] == s[~y]) for s in scores.T]
    return np.array([k.mean() for k in kernel]), [k.mean(axis=1) for k in kernel], [k.mean(axis=0) for k in kernel]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_midrank_auc_equals_all_pairs(seed, ties):
    y, scores, _ = correlated_scores(seed, ties=ties)
    auc, v10, v01 = components(y, scores)
    result = delong(y, scores)
    assert result.auc == pytest.approx(auc, abs=1e-12)
    assert result.covariance == pytest.approx(np.cov(v10) / y.sum() + np.cov(v01) / (~y).sum(), abs=1e-12)
    assert result.dof == min(y.sum(), (~y).sum()) - 1


@pytest.mark.parametrize("seed", range(3))
def test_clustered_variance_matches_obuchowski(seed):
    """Obuchowski's formulas of 1997, sum by sum; patients have images of both classes."""
    y, scores, groups = correlated_scores(seed, n=90, patients=30, ties=True)
    auc, v10, v01 = components(y, scores)
    m, n = y.sum(), (~y).sum()
    patients = np.unique(groups)
    i10, i01, i = np.unique(groups[y]).size, np.unique(groups[~y]).size, patients.size
    expected = np.zeros((2, 2))
    for r in range(2):
        for s in range(2):
            s10 = s01 = s11 = s11_back = 0.0
            for patient in patients:
                of_one, of_other = groups[y] == patient, groups[~y] == patient
                x_r, x_s = ((v10[k][of_one] - auc[k]).sum() for k in (r, s))
                y_r, y_s = ((v01[k][of_other] - auc[k]).sum() for k in (r, s))
                s10, s01 = s10 + x_r * x_s, s01 + y_r * y_s
                s11, s11_back = s11 + x_r * y_s, s11_back + x_s * y_r
            expected[r, s] = i10 / (i10 - 1) * s10 / m**2 + i01 / (i01 - 1) * s01 / n**2
            expected[r, s] += i / (i - 1) * (s11 + s11_back) / (m * n)
    assert delong(y, scores, groups).covariance == pytest.approx(expected, abs=1e-12)
    copied = delong(np.repeat(y, 3), np.repeat(scores, 3, axis=0), np.repeat(np.arange(90), 3))
    assert copied.covariance == pytest.approx(delong(y, scores).covariance)


def test_auc_interval_matches_delong():
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(50), 4)
    y = groups % 3 == 0
    scores = (2 * y + rng.normal(size=50)[groups] + 0.5 * rng.normal(size=200))[:, None]
    alone, grouped = auc_interval(y, scores[:, 0]), auc_interval(y, scores[:, 0], groups)
    assert alone.value == grouped.value
    assert grouped.high - grouped.low > 1.2 * (alone.high - alone.low)
    se = math.sqrt(delong(y, scores[:, 0]).covariance[0, 0])
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * se, rel=0.05)
    assert alone.value - alone.low > alone.high - alone.value  # on the logit scale, away from 1
    perfect = auc_interval(y, y.astype(float))
    assert perfect == (1, *newcombe_auc_interval(1.0, y.sum(), (~y).sum()))
    one_patient = auc_interval([1, 1, 0, 0, 0], [0.9, 0.2, 0.3, 0.1, 0.1], ["a", "a", "b", "c", "d"])
    assert one_patient[1:] == newcombe_auc_interval(one_patient.value, 1, 3)
    assert np.isnan(auc_interval(np.ones(5), np.arange(5))).all()
    for bad, words in (
        (([0, 1], [0.5]), "scores"),
        (([0, 1], [0.5, np.nan]), "finite"),
        (([0, 1], [0, 1], [0]), "grou"),
    ):
        with pytest.raises(ValueError, match=words):
            delong(*bad)


def test_auc_difference_is_paired():
    y, scores, groups = correlated_scores(1, n=150)
    difference = auc_difference(y, *scores.T)
    aucs = delong(y, scores)
    assert difference.value == pytest.approx(aucs.auc[0] - aucs.auc[1])
    z = difference.value / math.sqrt(aucs.covariance[0, 0] + aucs.covariance[1, 1] - 2 * aucs.covariance[0, 1])
    assert difference.p_value == pytest.approx(math.erfc(abs(z) / math.sqrt(2)))
    assert (difference.low > 0) == (difference.p_value < 0.05)
    back = auc_difference(y, *scores.T[::-1])
    assert back == pytest.approx((-difference.value, -difference.high, -difference.low, difference.p_value))
    assert auc_difference(y, scores[:, 0], 3 * scores[:, 0] + 1) == (0, 0, 0, 1)
    assert auc_difference(y, *scores.T, groups).p_value > difference.p_value  # t instead of z
    assert math.isnan(auc_difference([1, 0, 0], [3, 2, 1], [1, 2, 3]).p_value)


def test_type_i_error_of_auc_difference_is_5_percent():
    """With equally good scores of several images per patient, ignoring patients rejects far more often."""
    rng = np.random.default_rng(0)
    grouped = alone = 0
    for _ in range(400):
        groups = np.repeat(np.arange(60), 4)
        y = groups % 2 == 0
        scores = y[:, None] + rng.normal(size=(60, 2))[groups] + 0.5 * rng.normal(size=(240, 2))
        grouped += auc_difference(y, *scores.T, groups).p_value < 0.05
        alone += auc_difference(y, *scores.T).p_value < 0.05
    assert 0.025 < grouped / 400 < 0.085
    assert alone / 400 > 0.2


@pytest.mark.parametrize(("more", "fewer"), [(0, 0), (1, 0), (3, 9), (12, 12), (5, 19), (150, 86), (30, 12)])
def test_mcnemar_equals_statsmodels(more, fewer):
    """150 and 86 are Agresti's table of approval ratings (Categorical Data Analysis, 10.1)."""
    one = np.repeat([1, 0, 1, 0], [more, fewer, 40, 10]).astype(bool)
    other = np.repeat([0, 1, 1, 0], [more, fewer, 40, 10]).astype(bool)
    table = [[40, more], [fewer, 10]]
    assert mcnemar(one, other) == pytest.approx(reference(table, exact=more + fewer < 25).pvalue, abs=1e-12)
    assert mcnemar(one, other) == mcnemar(other, one, np.arange(one.size))
    with pytest.raises(ValueError, match="paired_bootstrap does"):
        mcnemar(one, other, np.zeros(one.size))
    with pytest.raises(ValueError, match="two decisions"):
        mcnemar(one, other[:-1])


def test_mcnemar_equals_hand_calculation():
    # 10 of 12 discordant pairs on one side: 2 (1 + 12 + 66) / 4096.
    assert mcnemar([1] * 10 + [0] * 2, [0] * 10 + [1] * 2) == pytest.approx(2 * 79 / 4096)
    assert binomtest(10, 12).pvalue == pytest.approx(2 * 79 / 4096)


@pytest.mark.slow
def test_holm_equals_statsmodels():
    rng = np.random.default_rng(0)
    for m in (1, 2, 5, 20):
        p = rng.random(m) ** 3
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]).size == 0
    for bad in ([0.5, 1.2], [0.5, np.nan], [[0.5]]):
        with pytest.raises(ValueError, match="p-values"):
            holm(bad)


def test_paired_bootstrap_agrees_with_delong():
    y, scores, groups = correlated_scores(2, n=200)
    probabilities = [np.column_stack([1 - p, p]) for p in 1 / (1 + np.exp(-scores.T))]

    def difference(weights):
        areas = [classification_metrics(y, p, weights=weights, names=["roc_auc"])["roc_auc"] for p in probabilities]
        return np.subtract(*areas)

    result = paired_bootstrap(difference, y.astype(int), groups, resamples=1000)
    expected = auc_difference(y, *scores.T)
    assert result == pytest.approx(expected, abs=0.02)
    same = paired_bootstrap(lambda w: 0.0 if w is None else np.zeros(len(w)), y.astype(int), groups, resamples=50)
    assert same == (0, 0, 0, 1)
    assert math.isnan(
        paired_bootstrap(lambda w: np.nan if w is None else np.full(len(w), np.nan), y.astype(int), groups)[3]
    )


def test_paired_jackknife_equals_paired_t_test():
    rng = np.random.default_rng(0)
    gains = rng.normal(0.1, 0.5, 40)
    one = np.zeros(40, int)

    def difference(weights):
        return gains.mean() if weights is None else weights @ gains / weights.sum(axis=1)

    result, classic = paired_jackknife(difference, one, np.arange(40)), ttest_1samp(gains, 0)
    limits = classic.confidence_interval(0.95)
    assert result == pytest.approx((gains.mean(), limits.low, limits.high, classic.pvalue))
    same = paired_jackknife(lambda w: 0.0 if w is None else np.zeros(len(w)), one, np.arange(40))
    assert (same.value, same.p_value) == (0, 1)
    assert math.isnan(same.low)


def test_paired_jackknife_keeps_its_level():
    """Two equally good models differ significantly in about 1 of 20 studies; by the bootstrap in more."""
    rng, rejected = np.random.default_rng(0), []
    for _ in range(300):
        y, shared = np.repeat([0, 1], [30, 15]), rng.normal(0, 0.5, 45)
        scores = [y + shared + rng.normal(0, 0.5, 45) for _ in range(2)]

        def difference(weights, y=y, scores=scores):
            rows = np.ones((1, 45)) if weights is None else weights.astype(float)
            gain = (y == (scores[0] > 0.5)).astype(float) - (y == (scores[1] > 0.5))
            means = rows @ gain / rows.sum(axis=1)
            return means[0] if weights is None else means

        rejected.append(paired_jackknife(difference, y, np.arange(45)).p_value < 0.05)
    assert 0.01 < np.mean(rejected) < 0.08
