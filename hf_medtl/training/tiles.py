"""Metrics of whole images from those of their tiles."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from transformers import EvalPrediction

Metrics = Callable[[EvalPrediction], dict[str, float]]


def join_tiles(metrics: Metrics, images: NDArray[np.int64]) -> Metrics:
    """Return a function that adds up the pixel counts of each image's tiles, then computes the metrics of the images.

    Args:
        metrics: function of predictions (n, ...) and labels (n, ...) that count pixels of n images.
        images: (m,) index of the image of each tile, ascending.
    """
    starts = np.flatnonzero(np.diff(images, prepend=-1))

    def of_images(prediction: EvalPrediction) -> dict[str, float]:
        counts = (np.add.reduceat(np.asarray(part), starts) for part in (prediction.predictions, prediction.label_ids))
        return metrics(EvalPrediction(*counts))

    return of_images
