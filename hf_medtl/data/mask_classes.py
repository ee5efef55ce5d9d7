"""Classes in masks: the fraction of each mask that each class takes."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hf_medtl.common.progress import track
from hf_medtl.common.system import cores
from hf_medtl.data.images import IGNORE_INDEX, read_class_indices


def class_fractions(
    masks: Sequence[Sequence[Path]], values: Mapping[int, int] | None, classes: int
) -> NDArray[np.float64]:
    """Return the fraction of the pixels of each mask that each class takes.

    Fractions, not numbers of pixels: images of all sizes count the same in a loss.

    Args:
        masks: (n,) files of each image's mask, which are united.
        values: Grey value of the masks -> class index, see `read_class_indices`.
        classes: Number K of classes.

    Returns:
        (n, K) fractions, of the pixels that are annotated; zeros for a mask without any.

    Raises:
        UnreadableImage: As for `read_mask`.
    """
    files = tuple(tuple(map(Path, parts)) for parts in masks)
    return _class_fractions(files, tuple(values.items()) if values else None, classes).copy()


@lru_cache(maxsize=4)  # a search builds the loss for each trial
def _class_fractions(
    files: tuple[tuple[Path, ...], ...], values: tuple[tuple[int, int], ...] | None, classes: int
) -> NDArray[np.float64]:
    def count(parts: tuple[Path, ...]) -> NDArray[np.int64]:
        mask = np.asarray(read_class_indices(parts, dict(values) if values else None))
        return np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1)

    with ThreadPoolExecutor(cores()) as pool:
        counts = np.array(list(track(pool.map(count, files), "Counting the classes of masks", len(files), "mask")))
    annotated = counts[:, :classes]
    return annotated / np.maximum(annotated.sum(axis=1, keepdims=True), 1)
