"""Segmentation metrics of a predicted mask against the true one, one image at a time."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

MASK_METRICS = ("dice", "iou", "precision", "recall", "surface_dice", "hausdorff95")
SURFACE_TOLERANCE = 2.0  # pixels, or mm with a spacing
IGNORE_INDEX = 255  # in a true mask: a pixel without annotation


def mask_metrics(
    true: ArrayLike,
    predicted: ArrayLike,
    names: Sequence[str] = ("background", "mask"),
    spacing: tuple[float, float] | None = None,
    tolerance: float = SURFACE_TOLERANCE,
) -> dict[str, float]:
    """Compute MASK_METRICS of one image, and how many of its classes are empty: a row of a per-image table.

    A class that is in neither mask was correctly not predicted: overlaps 1, distance 0. One that is in only one of them
    gets the worst values possible: overlaps (of areas and of surfaces) 0, and for the distance, which is undefined
    then, the image's diagonal. BraTS scores so (its 373.13 mm are the diagonal of 240 × 240 × 155 mm). Leaving such
    images out as NaN would reward a model that predicts nothing where it is unsure, and with zeros for both empty,
    lesion-free images could never be correct. Both conventions change means much where classes are often empty, so
    `both_empty` and `one_empty` count them: report them beside the means.

    With more than two classes a metric's mean over the foreground classes comes first, and each class's value under
    `dice_<name>` and so on. Pixels that are IGNORE_INDEX in the true mask count in no overlap, and as background for
    the distances.

    Args:
        true: (H, W) class indices; bool for two classes.
        predicted: (H, W) likewise, without IGNORE_INDEX.
        names: (K,) of the classes in output order; index 0 is the background.
        spacing: mm between rows and between columns, for `hausdorff95` and `tolerance` in mm; pixels if None.
        tolerance: of `surface_dice`.

    Raises:
        ValueError: shapes that differ or are not (H, W), values that are no class, a spacing that is not above 0, a
            tolerance below 0.
    """
    n_classes = len(names)
    t, p = _checked_mask(true, "true"), _checked_mask(predicted, "predicted")
    if t.shape != p.shape:
        raise ValueError(f"expected two masks of one shape, found {t.shape} and {p.shape}: resize the prediction")
    if n_classes < 2:
        raise ValueError(f"expected at least two classes, the background first, found {tuple(names)}")
    valid = t != IGNORE_INDEX
    for mask, name in ((t[valid], "true"), (p, "predicted")):
        if mask.size and not (mask.min() >= 0 and mask.max() < n_classes):
            raise ValueError(f"expected {name} classes in 0..{n_classes - 1}, found {mask.min()}..{mask.max()}")

    counts = np.bincount(t[valid] * n_classes + p[valid], minlength=n_classes**2).reshape(n_classes, n_classes)
    hits, n_true, n_predicted = np.diag(counts)[1:], counts.sum(axis=1)[1:], counts.sum(axis=0)[1:]
    empty = (n_true + n_predicted) == 0

    def ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.where(empty, 1.0, numerator / np.maximum(denominator, 1))  # hits are 0 wherever one mask is empty

    surfaces = [_Surfaces(valid & (t == k), valid & (p == k), spacing) for k in range(1, n_classes)]
    per_class = {
        "dice": ratio(2 * hits, n_true + n_predicted),
        "iou": ratio(hits, n_true + n_predicted - hits),
        "precision": ratio(hits, n_predicted),
        "recall": ratio(hits, n_true),
        "surface_dice": np.array([surface.dice(tolerance) for surface in surfaces]),
        "hausdorff95": np.array([surface.hausdorff95() for surface in surfaces]),
    }
    row = {name: float(values.mean()) for name, values in per_class.items()}
    row["both_empty"], row["one_empty"] = float(empty.sum()), float(((n_true == 0) ^ (n_predicted == 0)).sum())
    if n_classes > 2:
        row |= {f"{m}_{name}": float(per_class[m][k]) for k, name in enumerate(names[1:]) for m in MASK_METRICS}
    return row


def measured_metrics(table: pd.DataFrame) -> list[str]:
    """Return the MASK_METRICS that a table has for each image: older runs, also among folds, have no surface_dice."""
    return [name for name in MASK_METRICS if name in table and table[name].notna().all()]


def hausdorff95(true: ArrayLike, predicted: ArrayLike, spacing: tuple[float, float] | None = None) -> float:
    """Compute the 95 % Hausdorff distance of two masks: the larger of the two directed 95th percentiles.

    Distances are from the centre of each surface pixel of one mask to the nearest one of the other; a surface pixel is
    in the mask and at the image's edge or beside (not only diagonally) a pixel that is not. Percentiles are linearly
    interpolated. MONAI's compute_hausdorff_distance(percentile=95) has this definition; medpy's hd95 takes one
    percentile of both directions together, which is smaller, and implementations differ much (Podobnik & Vrtovec 2024,
    https://arxiv.org/abs/2410.02630): never compare with another tool's numbers.

    Both masks empty: 0. One empty: the image's diagonal, see `mask_metrics`.

    Args:
        true: (H, W), inside where it is not 0.
        predicted: (H, W) likewise.
        spacing: mm between rows and between columns; pixels if None.

    Raises:
        ValueError: as `mask_metrics`.
    """
    return _Surfaces(np.asarray(true) != 0, np.asarray(predicted) != 0, spacing).hausdorff95()


def surface_dice(
    true: ArrayLike,
    predicted: ArrayLike,
    tolerance: float = SURFACE_TOLERANCE,
    spacing: tuple[float, float] | None = None,
) -> float:
    """Compute the normalised surface Dice: the fraction of both masks' surface pixels that are near the other surface.

    It is the number of surface pixels at most `tolerance` away from the other mask's surface, divided by the number of
    all surface pixels, with surfaces and distances as for `hausdorff95` (Nikolov et al. 2021,
    https://arxiv.org/abs/1809.04430). MONAI's compute_surface_dice(use_subvoxels=False) has this definition; DeepMind's
    surface-distance weighs each surface element by its length. A useful tolerance is how far two experts differ.

    Both masks empty: 1. One empty: 0.

    Args:
        true: (H, W), inside where it is not 0.
        predicted: (H, W) likewise.
        tolerance: largest distance that is as good as none, in mm with `spacing`, else in pixels.
        spacing: mm between rows and between columns; pixels if None.

    Raises:
        ValueError: as `mask_metrics`.
    """
    return _Surfaces(np.asarray(true) != 0, np.asarray(predicted) != 0, spacing).dice(tolerance)


class _Surfaces:
    """Distances between the surfaces of two masks (H, W), from each surface pixel of one to the nearest of the other.

    Attributes:
        directed: (n,) distances of the true surface and (m,) of the predicted one; None if a mask is empty.
    """

    def __init__(self, t: NDArray[np.bool_], p: NDArray[np.bool_], spacing: tuple[float, float] | None) -> None:
        step = np.array((1.0, 1.0) if spacing is None else spacing, np.float64)
        if t.shape != p.shape or t.ndim != 2:
            raise ValueError(f"expected two masks of one shape (H, W), found {t.shape} and {p.shape}")
        if step.shape != (2,) or not (step > 0).all() or not np.isfinite(step).all():
            raise ValueError(f"expected a spacing of two numbers above 0 (rows, columns), found {spacing}")
        self.directed: list[NDArray[np.float64]] | None = None
        self.both_empty = not (t.any() or p.any())
        self.diagonal = float(np.hypot(*(t.shape * step)))
        if t.any() and p.any():
            # Trees of points, not distance maps, which take seconds for a radiograph of 10 million pixels.
            surfaces = boundary_pixels(t) * step, boundary_pixels(p) * step
            self.directed = [KDTree(target).query(source)[0] for source, target in (surfaces, surfaces[::-1])]

    def hausdorff95(self) -> float:
        """Return the larger 95th percentile; the diagonal if one mask is empty, 0 if both are."""
        if self.directed is None:
            return 0.0 if self.both_empty else self.diagonal
        return float(max(np.percentile(distances, 95) for distances in self.directed))

    def dice(self, tolerance: float) -> float:
        """Return the fraction of distances of at most `tolerance`; 0 if one mask is empty, 1 if both are."""
        if not 0 <= tolerance < np.inf:
            raise ValueError(f"expected a tolerance of at least 0, found {tolerance}")
        if self.directed is None:
            return float(self.both_empty)
        limit = tolerance * (1 + 1e-9)  # 20 pixels of 0.1 mm are 2 mm
        return float(np.mean(np.concatenate(self.directed) <= limit))


def boundary_pixels(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return (n, 2) row and column of the pixels of a mask (H, W) that are at its edge or at the image's."""
    return np.argwhere(mask & ~binary_erosion(mask))


def _checked_mask(mask: ArrayLike, name: str) -> NDArray[np.int64]:
    array = np.asarray(mask)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"expected a {name} mask of shape (H, W), found {array.shape}")
    if array.dtype.kind not in "iub":
        raise ValueError(f"expected {name} to be integer class indices, found dtype {array.dtype}")
    return array.astype(np.int64)
