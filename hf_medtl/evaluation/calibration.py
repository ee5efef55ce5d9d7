"""Temperature, fitted on validation data, never on test."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Temperature T that minimises the negative log-likelihood of softmax(logits / T), between 0.05 and 20.

    Targets are smoothed by Laplace's rule, as Platt (1999) does: with few pictures that are all classified rightly the
    unsmoothed optimum is T = 0, a certainty that the data do not give. Source: Guo et al. 2017.

    Args:
        logits: (n, K) of validation pictures.
        labels: (n,) class indices.
    """
    n, classes = logits.shape
    counts = np.bincount(labels, minlength=classes)
    right = ((counts + 1) / (counts + classes))[labels]
    targets = np.repeat(((1 - right) / (classes - 1))[:, None], classes, axis=1)
    targets[np.arange(n), labels] = right

    return _best(lambda temperature: float(-(targets * log_softmax(logits / temperature, axis=1)).sum(axis=1).mean()))


def fit_temperature_of_several(logits: NDArray[np.floating], targets: NDArray[np.bool_]) -> float:
    """One T for all labels that minimises the binary negative log-likelihood of sigmoid(logits / T), as above.

    Targets are smoothed label by label: (positives + 1) / (positives + 2) and 1 / (negatives + 2) (Platt 1999).

    Args:
        logits: (n, K) of validation pictures.
        targets: (n, K) which picture has which label.
    """
    positives, negatives = targets.sum(axis=0), (~targets).sum(axis=0)
    soft = np.where(targets, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(temperature: float) -> float:
        scaled = logits / temperature
        return float(-(soft * log_expit(scaled) + (1 - soft) * log_expit(-scaled)).mean())

    return _best(loss)


def _best(loss: Callable[[float], float]) -> float:
    """The temperature of least loss between 0.05 and 20."""
    bounds = (np.log(0.05), np.log(20))
    return float(np.exp(minimize_scalar(lambda x: loss(float(np.exp(x))), bounds=bounds, method="bounded").x))
