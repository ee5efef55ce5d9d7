import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from hf_medtl.evaluation.metrics import (
    METRICS,
    classification_metrics,
    confusion_matrix,
    decide,
    undefined_reasons,
)

NAMES = [
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "f1",
    "roc_auc",
    "average_precision",
    "brier",
    "ece",
]


def study(n_classes, seed, n=300):
    """Simulate labels, probabilities with many ties, and integer weights with zeros."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    parts = rng.integers(1, 6, (n, n_classes)).astype(float)
    parts[np.arange(n), labels] += rng.integers(0, 6, n)
    return labels, parts / parts.sum(axis=1, keepdims=True), rng.integers(0, 4, n)


def binary_reference(labels, score, decided, weights):
    """Compute metrics of one class against the rest with scikit-learn."""
    rates = {}
    for name, of, side in [
        ("sensitivity", sk.recall_score, 1),
        ("specificity", sk.recall_score, 0),
        ("ppv", sk.precision_score, 1),
        ("npv", sk.precision_score, 0),
        ("f1", sk.f1_score, 1),
    ]:
        rates[name] = of(labels, decided, pos_label=side, sample_weight=weights)
    rates["roc_auc"] = sk.roc_auc_score(labels, score, sample_weight=weights)
    rates["average_precision"] = sk.average_precision_score(labels, score, sample_weight=weights)
    return rates


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("positive", "threshold"), [(1, None), (0, None), (1, 0.35), (0, 0.7)])
def test_two_classes_agree_with_scikit_learn(seed, positive, threshold):
    labels, p, weights = study(2, seed)
    y, score = labels == positive, p[:, positive]
    decided = score >= (0.5 if threshold is None else threshold)
    expected = binary_reference(y, score, decided, weights)
    expected["accuracy"] = sk.accuracy_score(y, decided, sample_weight=weights)
    expected["balanced_accuracy"] = sk.balanced_accuracy_score(y, decided, sample_weight=weights)
    expected["brier"] = sk.brier_score_loss(y, score, sample_weight=weights)
    metrics = classification_metrics(labels, p, positive, threshold, weights)
    assert list(metrics) == NAMES
    assert all(type(value) is float for value in metrics.values())
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_four_classes_agree_with_scikit_learn(seed):
    labels, p, weights = study(4, seed)
    decided = p.argmax(axis=1)
    by_class = [binary_reference(labels == k, p[:, k], decided == k, weights) for k in range(4)]
    expected = {name: np.mean([metrics[name] for metrics in by_class]) for name in by_class[0]}
    expected["accuracy"] = sk.accuracy_score(labels, decided, sample_weight=weights)
    expected["balanced_accuracy"] = sk.balanced_accuracy_score(labels, decided, sample_weight=weights)
    expected["brier"] = np.average(((p - np.eye(4)[labels]) ** 2).sum(axis=1), weights=weights)
    metrics = classification_metrics(labels, p, weights=weights)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert metrics["roc_auc"] == pytest.approx(
        sk.roc_auc_score(labels, p, multi_class="ovr", average="macro", sample_weight=weights)
    )


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_vectorized_weights_equal_loop(n_classes, dtype, monkeypatch):
    labels, p, _ = study(n_classes, 7, n=120)
    weights = np.random.default_rng(1).integers(0, 4, (13, 120)).astype(dtype)
    monkeypatch.setattr("hf_medtl.evaluation.metrics.BLOCK_CELLS", 5 * 120)  # blocks of 5, 5 and 3 rows
    together = classification_metrics(labels, p, weights=weights)
    for b, row in enumerate(weights):
        assert {name: values[b] for name, values in together.items()} == pytest.approx(
            classification_metrics(labels, p, weights=row), abs=1e-12
        )
    assert classification_metrics(labels, p, weights=weights[:1])["accuracy"].shape == (1,)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_weight_equals_repeated_case(n_classes):
    labels, p, weights = study(n_classes, 3)
    weighted = classification_metrics(labels, p, weights=weights)
    repeated = classification_metrics(np.repeat(labels, weights), np.repeat(p, weights, axis=0))
    for metrics in (weighted, repeated):
        metrics.pop("ece")  # its bins are those of the unweighted sample
    assert weighted == pytest.approx(repeated, abs=1e-12)
    assert classification_metrics(labels, p) == classification_metrics(labels, p, weights=np.ones(300))


def test_calibration_error_equals_hand_calculation():
    score = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    labels = np.array([0, 0, 1, 0, 1, 1, 0, 1])
    p = np.column_stack([1 - score, score])
    # Two bins of four: |0.25 - 0.25| and |0.75 - 0.75|; four of two: 0.15, 0.15, 0.35, 0.35.
    assert classification_metrics(labels, p, bins=2)["ece"] == pytest.approx(0.0)
    assert classification_metrics(labels, p, bins=4)["ece"] == pytest.approx(0.25)
    # Only the third pair counts, its wrong case three times: |(0.6 + 0.7) / 2 - 1| without, with weights 1 and 3.
    assert classification_metrics(labels, p, bins=4, weights=[0, 0, 0, 0, 1, 3, 0, 0])["ece"] == pytest.approx(0.325)


def test_calibration_error_uses_top_label():
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.9, 0.05, 0.05]])
    # One bin: mean confidence 0.75, three of four right.
    assert classification_metrics([0, 1, 0, 0], p, bins=1)["ece"] == pytest.approx(0.0)
    # Two bins: (0.6 + 0.7) / 2 against 1, and (0.8 + 0.9) / 2 against 1 / 2.
    assert classification_metrics([0, 1, 0, 0], p, bins=2)["ece"] == pytest.approx((0.35 + 0.35) / 2)


def test_undefined_metrics_are_nan_without_warning():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        none_decided = classification_metrics([0, 1, 0], p)
        no_positive = classification_metrics([0, 0, 0], p)
        no_negative = classification_metrics([1, 1, 1], p)
        nothing = classification_metrics([0, 1, 0], p, weights=[0, 0, 0])
        absent = classification_metrics([0, 0, 1], np.eye(3)[[0, 0, 1]])
        # 0.1 + 0.2 - 0.3 is not 0 in floating point: an absent class must still be seen as absent.
        rounding = classification_metrics([0, 1, 0], p, weights=[[0.1, 0, 0.2], [0, 0.3, 0]])
    undefined = [[k for k, v in metrics.items() if np.isnan(v)] for metrics in (none_decided, no_positive, no_negative)]
    assert undefined == [
        ["ppv"],
        ["balanced_accuracy", "sensitivity", "ppv", "f1", "roc_auc", "average_precision"],
        ["balanced_accuracy", "specificity", "ppv", "roc_auc"],
    ]
    assert none_decided["f1"] == 0.0
    assert all(np.isnan(list(nothing.values())))
    assert np.isnan([absent[k] for k in ("sensitivity", "ppv", "f1", "roc_auc", "average_precision")]).all()
    assert absent["accuracy"] == 1.0
    assert np.isnan(rounding["roc_auc"]).all()
    assert np.isnan(rounding["sensitivity"]).tolist() == [True, False]
    assert np.isnan(rounding["specificity"]).tolist() == [False, True]


def test_decisions_follow_threshold_or_argmax():
    p = np.array([[0.5, 0.5], [0.7, 0.3], [0.2, 0.8]])
    assert decide(p).tolist() == [1, 0, 1]
    assert decide(p, positive=0).tolist() == [0, 0, 1]
    assert decide(p, positive=1, threshold=0.3).tolist() == [1, 1, 1]
    assert decide([[0.4, 0.4, 0.2], [0.1, 0.2, 0.7]]).tolist() == [0, 2]


def test_confusion_matrix_rows_are_true_labels():
    assert confusion_matrix([0, 0, 1, 2], [0, 1, 1, 1], 4).tolist() == [
        [1, 1, 0, 0],
        [0, 1, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 0],
    ]
    labels, p, _ = study(4, 0)
    assert (confusion_matrix(labels, decide(p), 4) == sk.confusion_matrix(labels, p.argmax(axis=1))).all()
    with pytest.raises(ValueError, match=r"decisions in 0\.\.1, found 0\.\.2"):
        confusion_matrix([0, 1], [0, 2], 2)


HALVES = np.full((3, 2), 0.5)


@pytest.mark.parametrize(
    ("labels", "p", "options", "message"),
    [
        ([0, 1], HALVES, {}, r"labels of shape \(3,\), found \(2,\)"),
        ([0, 1, 2], HALVES, {}, r"labels in 0\.\.1, found 0\.\.2"),
        ([0, 1, -1], HALVES, {}, r"labels in 0\.\.1, found -1\.\.1"),
        ([0.0, 1.0, 1.0], HALVES, {}, "integer class indices, found dtype float64"),
        ([0, 1, 1], [0.1, 0.2, 0.3], {}, r"probabilities of shape .* found \(3,\)"),
        ([], np.empty((0, 2)), {}, r"probabilities of shape .* found \(0, 2\)"),
        ([0, 1, 1], [[0.5, 0.5], [np.nan, 0.5], [0.5, 0.5]], {}, "finite probabilities, found 1"),
        ([0, 1, 1], [[0.5, 0.5], [0.5, 0.502], [0.5, 0.5]], {}, "within 0.001, found 1.002 in row 1"),
        ([0, 1, 1], [[0.5, 0.5], [-1.0, 2.0], [0.5, 0.5]], {}, "at least 0, found -1"),
        ([0, 1, 1], HALVES, {"positive": 2}, r"positive in 0\.\.1, found 2"),
        ([0, 1, 1], HALVES, {"threshold": np.nan}, "found NaN"),
        ([0, 1, 1], np.full((3, 4), 0.25), {"threshold": 0.5}, "no threshold for 4 classes"),
        ([0, 1, 1], HALVES, {"weights": [1, 1]}, r"weights of shape \(3,\) or \(B, 3\), found \(2,\)"),
        ([0, 1, 1], HALVES, {"weights": [1, -1, 1]}, "finite weights of at least 0"),
        ([0, 1, 1], HALVES, {"weights": [1, np.nan, 1]}, "finite weights of at least 0"),
    ],
)
def test_invalid_arguments_raise(labels, p, options, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(labels, p, **options)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n_classes", [2, 4])
def test_optional_metrics_equal_scikit_learn(seed, n_classes):
    labels, p, weights = study(n_classes, seed)
    decided = decide(p)
    metrics = classification_metrics(labels, p, weights=weights, names=METRICS)
    expected = {
        "mcc": sk.matthews_corrcoef(labels, decided, sample_weight=weights),
        "kappa": sk.cohen_kappa_score(labels, decided, sample_weight=weights),
        "log_loss": sk.log_loss(labels, p, sample_weight=weights),
    }
    if n_classes == 2:
        expected["lr_positive"], expected["lr_negative"] = sk.class_likelihood_ratios(
            labels, decided, sample_weight=weights
        )
        expected["youden"] = 2 * metrics["balanced_accuracy"] - 1
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert list(metrics) == list(METRICS)
    assert classification_metrics(labels, p, names=["kappa", "brier"]) == pytest.approx(
        {"kappa": sk.cohen_kappa_score(labels, decided), "brier": classification_metrics(labels, p)["brier"]}
    )
    with pytest.raises(ValueError, match="found gini"):
        classification_metrics(labels, p, names=["gini"])
    areas = [sk.roc_auc_score(labels == k, p[:, k]) for k in range(n_classes)]
    assert classification_metrics(labels, p, names=["roc_auc"])["roc_auc"] == pytest.approx(np.mean(areas))
    for k, expected in enumerate(areas):
        one_versus_rest = np.column_stack([1 - p[:, k], p[:, k]])
        metrics = classification_metrics((np.asarray(labels) == k).astype(int), one_versus_rest, names=["roc_auc"])
        assert metrics["roc_auc"] == pytest.approx(expected)


def test_each_undefined_metric_has_a_reason():
    two, three = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]), np.eye(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for labels, p, threshold in [
            ([0, 1, 0], two, None),
            ([0, 0, 0], two, None),
            ([1, 1, 1], two, None),
            ([1, 1, 1], two, 0.0),
            ([0, 0, 1], two, 0.25),
            ([0, 0, 1], two, 0.05),
            ([0, 0, 1], three[[0, 0, 1]], None),
            ([0, 0, 0], three[[0, 0, 0]], None),
            ([0, 1, 2], three[[0, 0, 0]], None),
            ([0, 0, 0], three, None),
        ]:
            values = classification_metrics(labels, p, threshold=threshold, names=METRICS)
            undefined = {name for name, value in values.items() if np.isnan(value)}
            assert set(undefined_reasons(labels, p, threshold=threshold)) == undefined
            assert undefined
    assert undefined_reasons([0, 1, 0], two) == {
        "ppv": "no image is decided positive (class 1)",
        "lr_positive": "no image is a false positive, so the ratio has no upper limit (class 1)",
        "mcc": "no image is decided negative (class 0)",
    }
    assert undefined_reasons([0, 0, 1], three[[0, 0, 1]])["roc_auc"] == "no image is positive (class 2)"
    one_versus_rest = [np.column_stack([1 - score, score]) for score in three[[0, 0, 1]].T]
    undefined = ["roc_auc" in undefined_reasons(np.array([0, 0, 1]) == k, one_versus_rest[k]) for k in range(3)]
    assert undefined == [False, False, True]
    assert not undefined_reasons([0, 1, 0, 1], np.vstack([two, [[0.4, 0.6]]]), threshold=0.15)
