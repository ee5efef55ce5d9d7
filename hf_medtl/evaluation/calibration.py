"""Temperature scaling, fitted on validation data, never on test data."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

SPREAD = 0.5  # standard deviation of log T that is expected before any image is seen


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The most probable temperature T of softmax(logits / T), between 0.05 and 20 (Guo et al. 2017).

    Before any image is seen log T is taken to be normal around 0, so that T stays near 1 unless the images say
    otherwise. Without that, few images that are all classified rightly would give T = 0, a certainty that they do not
    bear out; targets smoothed by Platt's rule (1999) would make probabilities of easy tasks far too cautious.

    Args:
        logits: (n, K) of validation images.
        labels: (n,) class indices.
    """
    picked = np.arange(len(labels)), labels
    return _most_probable(lambda temperature: log_softmax(logits / temperature, axis=1)[picked].sum())


def fit_multilabel_temperature(logits: NDArray[np.floating], targets: NDArray[np.bool_]) -> float:
    """One T for all labels, of sigmoid(logits / T), likewise.

    Args:
        logits: (n, K) of validation images.
        targets: (n, K) which image has which label.
    """
    signed = np.where(targets, logits, -logits)
    return _most_probable(lambda temperature: log_expit(signed / temperature).sum())


def _most_probable(log_likelihood: Callable[[float], float]) -> float:
    """The temperature of the highest posterior density between 0.05 and 20."""

    def loss(x: float) -> float:
        return (x / SPREAD) ** 2 / 2 - float(log_likelihood(float(np.exp(x))))

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))
