"""Linear probe: logistic regression on features of a frozen encoder, its penalty chosen by cross-validation."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

FloatArray = NDArray[np.float64]

# Inverse strengths of the L2 penalty, from strong to weak, as scikit-learn names them: C.
PENALTIES = tuple(float(f"{10 ** (power / 2):.3g}") for power in range(-10, 5))
PATIENCE = 2  # values of C in a row with a higher loss, after which weaker penalties, the slow ones, are not tried
FOLDS = 5
ITERATIONS = 1000
LOWEST = float(np.log(np.finfo(np.float64).tiny))  # logarithm of a probability


class LinearProbe(NamedTuple):
    """A linear layer on features, and how it was fitted.

    Attributes:
        weight: (K, d) float64.
        bias: (K,) float64.
        facts: for results.json: `C`, and `cross_validation`: folds, and loss by C; a list of these, one for each label,
            if labels are independent.
    """

    weight: FloatArray
    bias: FloatArray
    facts: dict[str, Any]

    def logits(self, features: NDArray[Any]) -> FloatArray:
        """Return the logits (n, K) of features (n, d)."""
        return features @ self.weight.T + self.bias


def fit_linear_probe(
    features: NDArray[Any],
    targets: NDArray[Any],
    groups: Sequence[str],
    weights: Sequence[float] | None = None,
    seed: int = 0,
    classes: int | None = None,
) -> LinearProbe:
    """Fit logistic regression on standardised features; the standardisation is part of the layer that is returned.

    The C of the final fit has the lowest log loss in cross-validation, whose folds share no group. It is scikit-learn's
    `LogisticRegression`, multinomial for class indices and one for each label for independent labels.

    Args:
        features: (n, d).
        targets: (n,) class indices, or (n, K) of 0 and 1.
        groups: (n,) group of each image.
        weights: (K,) weights of the classes, or of the positives of each label; None for equal weights.
        seed: random seed of the folds.
        classes: K of class indices; the highest index + 1 by default.
    """
    values = np.asarray(features, np.float64)
    if targets.ndim == 1:
        number = classes or int(targets.max()) + 1
        sample_weights = None if weights is None else np.asarray(weights, np.float64)[targets]
        return _fit_classes(values, targets.astype(np.int64), groups, sample_weights, seed, number)
    rows = []
    for k, has in enumerate(targets.T > 0):
        weighted = None if weights is None else np.where(has, float(weights[k]), 1.0)
        rows.append(_fit_classes(values, has.astype(np.int64), groups, weighted, seed, 2))
    # Of two outputs only the difference counts, and the sigmoid of an output alone is the same.
    weight = np.stack([row.weight[1] - row.weight[0] for row in rows])
    bias = np.array([row.bias[1] - row.bias[0] for row in rows])
    return LinearProbe(weight, bias, {"labels": [row.facts for row in rows]})


def _fit_classes(
    features: FloatArray,
    targets: NDArray[np.int64],
    groups: Sequence[str],
    weights: FloatArray | None,
    seed: int,
    number: int,
) -> LinearProbe:
    """Fit one multinomial or binary regression; a class that no image has gets a probability near 1 / (n + 1)."""
    weight, bias = np.zeros((number, features.shape[1])), np.full(number, -np.log(len(targets) + 1))
    classes = np.unique(targets)
    if len(classes) == 1:
        bias[classes] = 0
        return LinearProbe(weight, bias, {"C": None, "cross_validation": None})
    penalty, tried = _choose_penalty(features, targets, groups, weights, seed)
    scaler = StandardScaler().fit(features)
    model = _fit(LogisticRegression(C=penalty, max_iter=ITERATIONS), scaler.transform(features), targets, weights)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(classes) == 2:  # scikit-learn gives the log-odds of the second class
        coefficients, intercepts = np.vstack([-coefficients, coefficients]) / 2, np.append(-intercepts, intercepts) / 2
    weight[classes] = coefficients / scaler.scale_
    bias[classes] = intercepts - weight[classes] @ scaler.mean_
    return LinearProbe(weight, bias, {"C": penalty, "cross_validation": tried})


def _choose_penalty(
    features: FloatArray, targets: NDArray[np.int64], groups: Sequence[str], weights: FloatArray | None, seed: int
) -> tuple[float, dict[str, Any] | None]:
    """Return the C with the lowest cross-validated log loss, and the folds and losses; 1 if no fold can be tested."""
    parts = []
    for train, held_out in _split(targets, groups, seed):
        learned = np.isin(targets[held_out], targets[train])  # a class of one group is not in both
        if len(np.unique(targets[train])) > 1 and learned.any():
            scaler = StandardScaler().fit(features[train])
            model = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
            parts.append((model, scaler, train, held_out[learned]))
    if not parts:
        return 1.0, None
    losses: dict[float, float] = {}
    for penalty in PENALTIES:
        total = count = 0.0
        for model, scaler, train, tested in parts:
            inputs = scaler.transform(features[train])  # not kept: the folds together are four times the features
            _fit(model.set_params(C=penalty), inputs, targets[train], None if weights is None else weights[train])
            log_probabilities = model.predict_log_proba(scaler.transform(features[tested])).clip(LOWEST)  # not -inf
            true = log_probabilities[np.arange(len(tested)), np.searchsorted(model.classes_, targets[tested])]
            own = np.ones(len(tested)) if weights is None else weights[tested]
            total, count = total - float(own @ true), count + float(own.sum())
        losses[penalty] = total / count
        if len(losses) > PATIENCE and min(losses.values()) < min([*losses.values()][-PATIENCE:]):
            break
    best = min(losses, key=lambda penalty: losses[penalty])  # of equals the strongest
    return best, {"folds": len(parts), "loss": {f"{penalty:g}": loss for penalty, loss in losses.items()}}


def _split(
    targets: NDArray[np.int64], groups: Sequence[str], seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return training and held-out rows of each fold; none if all images are of one group."""
    number = min(FOLDS, len(set(groups)), int(np.bincount(targets).max()))
    if number < 2:
        return []
    folds = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # such classes are not in each fold
        pairs = list(folds.split(np.zeros(len(targets)), targets, np.asarray(groups)))
    return [(train, held_out) for train, held_out in pairs if len(train) and len(held_out)]


def _fit(
    model: LogisticRegression, features: FloatArray, targets: NDArray[np.int64], weights: FloatArray | None
) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # with hardly any penalty; the loss decides on these, too
        return model.fit(features, targets, weights)
