import math
import warnings

import numpy as np
import pytest
import scipy.stats
from scipy.stats import binomtest, norm

from benchmarks.coverage import bootstrap_intervals
from hf_medtl.evaluation.delong import auc_interval
from hf_medtl.evaluation.evaluate import classification_results
from hf_medtl.evaluation.intervals import (
    METHOD_DESCRIPTIONS,
    METHODS,
    Interval,
    bootstrap_weights,
    intervals_by_source,
    mean_intervals,
    metric_intervals,
)
from hf_medtl.evaluation.metrics import METRICS, classification_metrics
from hf_medtl.evaluation.resampling import bootstrap_group_counts
from hf_medtl.evaluation.score_intervals import average_precision_floor, newcombe_auc_interval, rate_interval, wilson


def two_columns(score):
    return np.column_stack([1 - np.asarray(score), score])


def study(rng, patients=100, images=1, shift=1.5, sd_patient=0.0):
    """Simulate patients, half of them positive, whose images have correlated scores."""
    labels = np.repeat(np.arange(patients) % 2, images)
    groups = np.repeat(np.arange(patients), images)
    noise = np.sqrt(1 - sd_patient**2) * rng.normal(size=labels.size) + sd_patient * rng.normal(size=patients)[groups]
    logit = shift * (labels - 0.5) + noise
    return labels, two_columns(1 / (1 + np.exp(-2 * logit))), groups


def test_wilson_equals_statsmodels_and_scipy():
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-7)  # as published by statsmodels
    ci = binomtest(51, 51).proportion_ci(0.9, method="wilson")
    assert wilson(51, 51, 0.9) == pytest.approx((ci.low, 1.0))
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError):
        wilson(11, 10)
    with pytest.raises(ValueError, match="level between 0 and 1, got 95"):
        wilson(8, 10, 95)


@pytest.mark.parametrize(("auc", "m", "n"), [(0.8, 30, 40), (0.97, 12, 300), (1.0, 25, 26), (0.0, 5, 9), (0.6, 1, 1)])
def test_newcombe_solves_quartic(auc, m, n):
    """The same equation squared and cleared of fractions, solved as a polynomial in theta."""
    theta = np.polynomial.Polynomial([0, 1])
    z, spare = norm.ppf(0.975), (m + n) / 2 - 1
    shape = (2 - theta) * (1 + theta) + spare * ((1 - theta) * (1 + theta) + theta * (2 - theta))
    quartic = (auc - theta) ** 2 * (2 - theta) * (1 + theta) * m * n - z**2 * theta * (1 - theta) * shape
    roots = [r.real for r in quartic.roots() if abs(r.imag) < 1e-9 and -1e-9 < r.real < 1 + 1e-9]
    assert newcombe_auc_interval(auc, m, n) == pytest.approx((min(roots), max(roots)), abs=1e-9)


def test_newcombe_at_the_boundary():
    low, high = newcombe_auc_interval(1.0, 25, 26)
    assert high == 1.0
    assert low == pytest.approx(0.920859, abs=1e-6)
    assert newcombe_auc_interval(0.0, 26, 25) == pytest.approx((0.0, 1 - low))
    assert newcombe_auc_interval(1.0, 10**6, 10**6)[0] > 1 - 1e-5
    for bad in [(1.1, 5, 5), (math.nan, 5, 5), (0.9, 0, 5)]:
        with pytest.raises(ValueError, match=r"AUC in 0\.\.1"):
            newcombe_auc_interval(*bad)


def test_average_precision_floor_equals_worst_ranking():
    """50 of 1,000 negatives rank above all positives: the AUC is 0.95."""
    labels = np.repeat([0, 1, 0], [50, 2000, 950])
    metrics = classification_metrics(labels, two_columns(np.linspace(1, 0, labels.size)))
    assert metrics["roc_auc"] == pytest.approx(0.95)
    assert average_precision_floor(0.95, 2000, 1000) == pytest.approx(metrics["average_precision"], abs=1e-3)
    assert average_precision_floor(1.0, 5, 5) == 1.0


def test_resampling_draws_whole_groups_within_each_label():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    groups = np.array([0, 0, 1, 2, 2, 3, 3, 3])  # group 3 is mostly positive
    drawn = bootstrap_weights(labels, groups, 500)
    assert drawn.shape == (500, 8)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 5] == drawn[:, 7]).all()
    assert (drawn[:, [0, 2]].sum(axis=1) == 2).all()
    assert (drawn[:, [3, 5]].sum(axis=1) == 2).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(8), abs=0.1)
    assert len(np.unique(drawn[:, 0])) == 3


def test_every_resample_contains_rare_class():
    rng = np.random.default_rng(0)
    labels = np.r_[np.ones(2, int), np.zeros(200, int)]
    intervals = metric_intervals(labels, two_columns(rng.random(202)), np.arange(202), resamples=200)
    assert all(isinstance(interval, Interval) for interval in intervals.values())
    assert not np.isnan(list(intervals.values())).any()


def test_intervals_depend_on_seed_and_level():
    labels, p, groups = study(np.random.default_rng(1))
    intervals = metric_intervals(labels, p, groups, resamples=300)
    assert {name: interval.value for name, interval in intervals.items()} == classification_metrics(labels, p)
    assert intervals == metric_intervals(labels, p, [f"patient {g}" for g in groups], resamples=300)
    assert intervals != metric_intervals(labels, p, groups, resamples=300, seed=1)
    narrow = metric_intervals(labels, p, groups, resamples=300, level=0.5)
    for name, interval in intervals.items():
        assert interval.low < narrow[name].low < narrow[name].high < interval.high
        if name != "ece":
            assert interval.low < interval.value < interval.high


def test_agrees_with_wilson_away_from_boundary():
    labels, p, groups = study(np.random.default_rng(2), patients=1000)
    interval = metric_intervals(labels, p, groups)["accuracy"]
    assert interval[1:] == pytest.approx(wilson(round(interval.value * 1000), 1000), abs=0.005)


def test_duplicate_images_do_not_narrow_interval():
    labels, p, groups = study(np.random.default_rng(3), patients=60)
    once = metric_intervals(labels, p, groups, resamples=500)
    copied = [np.repeat(a, 9, axis=0) for a in (labels, p, groups)]
    grouped = metric_intervals(*copied, resamples=500)
    naive = metric_intervals(*copied[:2], np.arange(540), resamples=500)
    drawn, drawn_copies = (bootstrap_intervals(*x, resamples=500) for x in ((labels, p, groups), copied))
    assert drawn_copies["accuracy"] == pytest.approx(drawn["accuracy"])
    for name in ("accuracy", "sensitivity", "roc_auc", "average_precision", "brier"):
        width, grouped_width, naive_width = (result[name].high - result[name].low for result in (once, grouped, naive))
        assert grouped_width == pytest.approx(width, rel=0.05)  # where n is estimated, t replaces z
        assert naive_width < 0.5 * grouped_width


def test_no_error_gives_interval_of_nonzero_width():
    labels = np.repeat([1, 0], [25, 26])
    rng = np.random.default_rng(0)
    score = np.where(labels == 1, 0.75, 0.25) + rng.uniform(-0.2, 0.2, 51)
    intervals = metric_intervals(labels, two_columns(score), np.arange(51), resamples=200)
    positives, negatives = wilson(25, 25)[0], wilson(26, 26)[0]
    lows = {
        "accuracy": wilson(51, 51)[0],
        "balanced_accuracy": 1 - math.hypot(1 - positives, 1 - negatives) / 2,
        "sensitivity": positives,
        "specificity": negatives,
        "ppv": positives,
        "npv": negatives,
        "f1": 2 * positives / (1 + positives),
        "roc_auc": newcombe_auc_interval(1.0, 25, 26)[0],
        "average_precision": average_precision_floor(newcombe_auc_interval(1.0, 25, 26)[0], 25, 26),
    }
    assert {name: intervals[name].low for name in lows} == pytest.approx(lows)
    assert all(intervals[name][::2] == (1.0, pytest.approx(1.0)) for name in lows)
    copies = metric_intervals(
        *(np.repeat(a, 4, axis=0) for a in (labels, two_columns(score), np.arange(51))), resamples=200
    )
    assert {name: copies[name].low for name in lows} == pytest.approx(lows)
    wrong = metric_intervals(1 - labels, two_columns(score), np.arange(51), resamples=200)
    for name in ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "f1", "roc_auc"):
        assert wrong[name].low == wrong[name].value == 0
        assert 0.03 < wrong[name].high < 0.2


def test_no_error_in_three_classes_gives_interval_of_nonzero_width():
    labels = np.arange(60) % 3
    intervals = metric_intervals(labels, np.eye(3)[labels] * 0.7 + 0.1, np.arange(60), resamples=100)
    assert intervals["accuracy"].low == pytest.approx(wilson(60, 60)[0])
    assert intervals["sensitivity"].low == pytest.approx(1 - (1 - wilson(20, 20)[0]) / math.sqrt(3))
    for name in set(intervals) - {"brier", "ece"}:
        assert 0.5 < intervals[name].low < intervals[name].value == 1.0


def test_stratum_without_error_widens_interval():
    """All 8 positives and 80 of 100 negatives are detected: sensitivity has the interval of 8 of 8."""
    labels = np.repeat([1, 0, 0], [8, 20, 80])
    score = np.repeat([0.9, 0.8, 0.1], [8, 20, 80])
    intervals = metric_intervals(labels, two_columns(score), np.arange(108), resamples=500)
    assert intervals["sensitivity"][1:] == wilson(8, 8)
    assert intervals["balanced_accuracy"].low <= 0.9 - (1 - wilson(8, 8)[0]) / 2
    assert 0.8 < intervals["specificity"].high < 0.9


def test_class_of_one_patient_gives_widest_interval():
    """Four images of one positive patient, three decided positive, are always drawn together."""
    labels, groups = np.repeat([1, 0], [4, 50]), np.r_[[0] * 4, np.arange(1, 51)]
    score = np.r_[0.9, 0.8, 0.7, 0.4, np.random.default_rng(0).uniform(0, 0.6, 50)]
    sensitivity = metric_intervals(labels, two_columns(score), groups, resamples=200)["sensitivity"]
    assert sensitivity == (0.75, wilson(0, 1)[0], wilson(1, 1)[1])


def test_undefined_metrics_are_nan_without_warning():
    labels, p, groups = study(np.random.default_rng(4), patients=40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_class = metric_intervals(np.zeros(40, int), p, groups, resamples=50)
        never_called = metric_intervals(labels, p, groups, threshold=2.0, resamples=50)
        rarely_called = metric_intervals(labels, p, groups, threshold=p[:, 1].max(), resamples=50)
    assert np.isnan(one_class["roc_auc"]).all()
    assert np.isnan(one_class["sensitivity"]).all()
    assert np.isnan(never_called["ppv"]).all()
    assert never_called["sensitivity"] == (0.0, *wilson(0, 20))
    assert rarely_called["ppv"] == (1.0, *wilson(1, 1))


def test_invalid_arguments_raise():
    labels, p, groups = study(np.random.default_rng(5), patients=4)
    for options, message in [
        ({"groups": groups[:3]}, r"groups of shape \(4,\), found \(3,\)"),
        ({"groups": ["a", "b", math.nan, None]}, "found 2 missing"),
        ({"level": 95}, "level between 0 and 1, got 95"),
        ({"resamples": 0}, "at least 1 resample"),
        ({"labels": [0, 1, 2, 0]}, "labels in 0..1"),
    ]:
        with pytest.raises(ValueError, match=message):
            metric_intervals(**{"labels": labels, "probabilities": p, "groups": groups, **options})


@pytest.mark.slow
@pytest.mark.parametrize(("images", "sd_patient"), [(1, 0.0), (3, 0.8)])
def test_intervals_reach_nominal_coverage(images, sd_patient):
    """At least 90 % of 200 studies of 100 patients cover the truth, whether images are correlated or not."""
    rng = np.random.default_rng(6)
    truth = {"accuracy": norm.cdf(0.75), "roc_auc": norm.cdf(1.5 / math.sqrt(2))}
    covered = dict.fromkeys(truth, 0)
    for _ in range(200):
        intervals = metric_intervals(*study(rng, 100, images, 1.5, sd_patient), resamples=300)
        for name, value in truth.items():
            covered[name] += intervals[name].low <= value <= intervals[name].high
    for count in covered.values():
        assert 0.90 <= count / 200 <= 0.99


def test_means_equal_manual_patient_bootstrap():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), rng.integers(1, 5, 40))
    dice = np.clip(0.8 + rng.normal(0, 0.1, 40)[groups] + rng.normal(0, 0.02, groups.size), 0, 1)
    intervals = mean_intervals({"dice": dice, "iou": dice / (2 - dice)}, groups)
    assert intervals["dice"].value == pytest.approx(dice.mean())
    means = []
    for _ in range(2000):
        drawn = rng.integers(40, size=40)
        means.append(np.concatenate([dice[groups == g] for g in drawn]).mean())
    assert intervals["dice"][1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.004)
    # With each image as its own patient the interval would be too narrow, since images of a patient are alike.
    alone = mean_intervals({"dice": dice}, np.arange(dice.size))["dice"]
    assert intervals["dice"].high - intervals["dice"].low > 1.3 * (alone.high - alone.low)
    assert mean_intervals({"iou": dice / (2 - dice)}, groups)["iou"] == pytest.approx(intervals["iou"])  # same draws
    narrow = mean_intervals({"dice": dice}, groups, level=0.5)["dice"]
    assert intervals["dice"].low < narrow.low < narrow.high < intervals["dice"].high


@pytest.mark.parametrize("scale", ["logit", "log", "plain"])
def test_studentized_limits_equal_loop(scale):
    """Compare with each resample's mean and standard error, computed group by group, on the scale of the values."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(30), rng.integers(1, 4, 30))
    strata = (np.arange(30) >= 12).astype(int)
    fractions = rng.beta(5, 2, groups.size)
    values = {"logit": fractions, "log": 30 * fractions, "plain": 30 * fractions - 20}[scale]
    transform = {"logit": lambda m: np.log(m / (1 - m)), "log": np.log, "plain": lambda m: m}[scale]
    slope = {"logit": lambda m: 1 / (m * (1 - m)), "log": lambda m: 1 / m, "plain": lambda m: 1.0}[scale]

    def mean_and_error(drawn):
        size = np.array([(groups == g).sum() for g in drawn])
        total = np.array([values[groups == g].sum() for g in drawn])
        mean = total.sum() / size.sum()
        variance = 0.0
        for stratum in (0, 1):
            rest = (total - mean * size)[strata[drawn] == stratum]
            variance += rest.size / (rest.size - 1) * ((rest - rest.mean()) ** 2).sum()
        return mean, math.sqrt(variance) / size.sum()

    mean, error = mean_and_error(np.arange(30))
    ratios = []
    for row in bootstrap_group_counts(strata, 300, seed=5):
        other, other_error = mean_and_error(np.repeat(np.arange(30), row))
        ratios.append((transform(other) - transform(mean)) / (slope(other) * other_error))
    small, large = np.quantile(ratios, 0.025, method="lower"), np.quantile(ratios, 0.975, method="higher")
    interval = mean_intervals({"x": values}, groups, strata[groups], resamples=300, seed=5)["x"]
    assert transform(np.array(interval[1:])) == pytest.approx(
        [transform(mean) - large * slope(mean) * error, transform(mean) - small * slope(mean) * error]
    )


def test_limits_of_means_stay_in_value_range():
    for values, low, high in (
        ([0.99, 1.0, 1.0, 0.9, 1.0, 0.2], 0, 1),
        ([0.0, 0.1, 0.0, 0.0, 90.0], 0, math.inf),
        ([1.0, 1.0, 0.0], 0, 1),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            interval = mean_intervals({"x": values}, range(len(values)))["x"]
        assert low <= interval.low <= interval.value <= interval.high <= high


def test_results_name_method_and_reason():
    labels, p, groups = study(np.random.default_rng(0), patients=40)
    results = classification_results(labels, p, groups.tolist(), ["no", "yes"], "yes", 2.0)
    assert results["interval_methods"]["sensitivity"].startswith("Wilson")
    assert results["interval_methods"]["roc_auc"].startswith("DeLong")
    assert list(results["interval_methods"]) == list(results["metrics"])
    assert results["metrics"]["ppv"]["reason"] == "no image is decided positive (class 1)"
    assert "reason" not in results["metrics"]["npv"]
    three = classification_results(np.arange(30) % 3, np.eye(3)[np.arange(30) % 3], list(range(30)), ["a", "b", "c"])
    assert (
        three["interval_methods"]["sensitivity"]
        == three["interval_methods"]["roc_auc"]
        == METHOD_DESCRIPTIONS["jackknife"]
    )


def test_resampling_keeps_strata_sizes():
    groups = np.arange(60)
    sources = np.where(groups < 20, "a", "b")
    values = np.where(groups < 20, 1.0, 0.0) + np.random.default_rng(0).normal(0, 0.01, 60)
    loose, fixed = mean_intervals({"x": values}, groups)["x"], mean_intervals({"x": values}, groups, sources)["x"]
    assert fixed.value == loose.value
    assert fixed.high - fixed.low < 0.1 * (loose.high - loose.low)


def test_intervals_by_source():
    groups = np.array([f"p{i // 2}" for i in range(60)])
    sources = np.where(np.arange(60) < 20, "Montgomery", "Shenzhen")
    dice = np.random.default_rng(0).uniform(0.6, 1, 60)
    results = intervals_by_source({"dice": dice}, groups, sources)
    assert (results["overall"]["n"], results["overall"]["n_groups"]) == (60, 30)
    assert list(results["sources"]) == ["Montgomery", "Shenzhen"]
    one = results["sources"]["Montgomery"]
    assert (one["n"], one["n_groups"]) == (20, 10)
    assert one["metrics"] == mean_intervals({"dice": dice[:20]}, groups[:20])
    assert results["overall"]["metrics"] == mean_intervals({"dice": dice}, groups, sources)
    same = intervals_by_source({"dice": dice}, groups, ["x"] * 60)
    assert same["overall"]["metrics"] == same["sources"]["x"]["metrics"]


def test_sample_without_variance_has_no_limits():
    for values, groups in (([1.0] * 9, range(9)), ([0.5, 0.9, 0.7], ["p"] * 3), ([0.1] * 7, range(7))):
        interval = mean_intervals({"dice": values}, list(groups))["dice"]
        assert interval.value == pytest.approx(np.mean(values))
        assert np.isnan(interval.low)
        assert np.isnan(interval.high)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_published_values(successes, n, low, high):
    """Newcombe 1998, Stat Med 17:857-872, table I, method 3."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_clustered_proportions_use_effective_sample_size():
    rng = np.random.default_rng(0)
    everyone = np.ones(60, bool)
    success = rng.random(60) < 0.7
    assert rate_interval(success, everyone, np.arange(60)) == (success.mean(), *wilson(success.sum(), 60))
    # Three copies of each give the same as one, except for t instead of z.
    copies = rate_interval(np.repeat(success, 3), np.repeat(everyone, 3), np.repeat(np.arange(60), 3))
    assert copies == pytest.approx((success.mean(), *wilson(success.sum(), 60, dof=59)))
    # Groups of one success and one failure vary less than single images; the interval is not narrower for that.
    balanced = rate_interval(np.tile([True, False], 20), np.ones(40, bool), np.repeat(np.arange(20), 2))
    assert balanced == pytest.approx((0.5, *wilson(20, 40, dof=19)))
    assert np.isnan(rate_interval(success, ~everyone, np.arange(60))[0])


def two_sample_auc(positives, negatives, axis=-1):
    wins = np.expand_dims(positives, -1) - np.expand_dims(negatives, -2)
    return ((wins > 0) + 0.5 * (wins == 0)).mean(axis=(-1, -2))


def test_bca_equals_scipy():
    labels, p, groups = study(np.random.default_rng(8), patients=60)
    score = p[:, 1]
    intervals = bootstrap_intervals(labels, p, groups, "bca", 9999, names=["roc_auc", "brier"])
    samples = (score[labels == 1], score[labels == 0])
    reference = scipy.stats.bootstrap(samples, two_sample_auc, n_resamples=9999, vectorized=True, batch=500, rng=1)
    plain = bootstrap_intervals(labels, p, groups, "percentile", 9999, names=["roc_auc"])
    assert intervals["roc_auc"][1:] == pytest.approx(reference.confidence_interval, abs=0.004)
    assert abs(plain["roc_auc"].low - intervals["roc_auc"].low) > 0.006  # and not that of the percentiles
    squares = (score - labels) ** 2
    once = bootstrap_intervals(np.zeros(60, int), two_columns(np.sqrt(squares)), groups, "bca", 9999, names=["brier"])[
        "brier"
    ]
    reference = scipy.stats.bootstrap((squares,), np.mean, n_resamples=9999, rng=1)
    assert once[1:] == pytest.approx(reference.confidence_interval, abs=0.004)


def test_jackknife_of_auc_equals_delong():
    for images, sd in ((1, 0.0), (3, 0.8)):
        labels, p, groups = study(np.random.default_rng(9), patients=200, images=images, sd_patient=sd)
        default, left_out = (
            metric_intervals(labels, p, groups, names=["roc_auc"], methods=m)["roc_auc"] for m in ({}, "jackknife")
        )
        assert default == pytest.approx(auc_interval(labels, p[:, 1], groups))
        assert left_out == pytest.approx(default, abs=5e-4)


def test_jackknife_blocks_replace_many_groups():
    labels, p, groups = study(np.random.default_rng(10), patients=3000)
    names = ["average_precision", "mcc"]
    blocks = metric_intervals(labels, p, groups, names=names, methods="jackknife")
    drawn = bootstrap_intervals(labels, p, groups, resamples=500, names=names)
    for name in blocks:
        assert np.subtract(*blocks[name][1:]) == pytest.approx(np.subtract(*drawn[name][1:]), rel=0.15)


def test_unknown_method_raises():
    labels, p, groups = study(np.random.default_rng(0), patients=10)
    for methods, words in (("guess", "found 'guess'"), ({"brier": "wilson"}, "for brier"), ("studentised", "accuracy")):
        with pytest.raises(ValueError, match=words):
            metric_intervals(labels, p, groups, methods=methods)
    assert set(METHODS) == set(METRICS)
    assert set(METHODS.values()) <= set(METHOD_DESCRIPTIONS)


def test_unobserved_failure_is_outside_limits_of_few_patients():
    """No method can account for it, as the docstring states."""
    rng = np.random.default_rng(0)
    truth = 0.93 * 40 / 43 + 0.07 * 0.4
    covered = 0
    for study in range(300):
        values = np.where(rng.random(20) < 0.07, rng.uniform(0, 0.8, 20), rng.beta(40, 3, 20))
        interval = mean_intervals({"dice": values}, np.arange(20), resamples=200, seed=study)["dice"]
        covered += interval.low <= truth <= interval.high
    assert 0.64 < covered / 300 < 0.84


def test_means_reject_invalid_input():
    for values, groups, words in (
        ({"dice": [0.5, np.nan]}, ["a", "b"], "1 of 2 not"),
        ({"dice": []}, [], "finite values"),
        ({"dice": [0.5, 0.6]}, ["a", None], "1 missing"),
        ({"dice": [0.5, 0.6]}, ["a"], "shape"),
        ({"dice": [0.5, 0.6], "iou": [0.5]}, ["a", "b"], "dimension"),
    ):
        with pytest.raises(ValueError, match=words):
            mean_intervals(values, groups)
    with pytest.raises(ValueError, match="resample"):
        mean_intervals({"dice": [0.5, 0.6]}, ["a", "b"], resamples=0)
    with pytest.raises(ValueError, match="shape"):
        intervals_by_source({"dice": [0.5, 0.6]}, ["a", "b"], ["x"])
