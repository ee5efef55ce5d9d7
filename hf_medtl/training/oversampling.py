"""Oversampling: how often the training images of rare classes are shown in an epoch."""

import numpy as np
from numpy.typing import NDArray


def repeat_factors(present: NDArray[np.bool_], fraction: float) -> NDArray[np.float64]:
    """Return how often each image is to be shown in an epoch: repeat factor sampling.

    A class that a fraction f of the images shows is repeated max(1, sqrt(fraction / f)) times, and an image as often as
    its rarest class (Gupta et al. 2019, https://arxiv.org/abs/1908.03195).

    Args:
        present: (n, K) True for each class that an image shows.
        fraction: of the images, below which a class is rare.

    Returns:
        (n,) factors of at least 1; 1 for images without any class.
    """
    shown = present.mean(axis=0)
    of_class = np.sqrt(np.maximum(fraction / np.where(shown > 0, shown, 1), 1))
    return np.where(present, of_class, 1.0).max(axis=1, initial=1.0)


def repeated_images(factors: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """Return the images of an epoch, each as often as its factor says; a fraction of a time is drawn once for the run.

    Args:
        factors: (n,) of `repeat_factors`.
        seed: of the draw.

    Returns:
        (m,) sorted indices, m >= n; each index at least once.
    """
    whole = np.floor(factors)
    extra = np.random.default_rng(seed).random(len(factors)) < factors - whole
    return np.repeat(np.arange(len(factors)), (whole + extra).astype(np.int64))
