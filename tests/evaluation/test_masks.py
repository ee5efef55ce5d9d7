"""Tests of mask metrics: by hand, against brute force, and for empty masks."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from scipy.spatial.distance import cdist, directed_hausdorff
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from hf_medtl.evaluation.masks import (
    IGNORE_INDEX,
    MASK_METRICS,
    boundary_pixels,
    hausdorff95,
    mask_metrics,
    surface_dice,
)

EMPTY = np.zeros((30, 40), np.uint8)


def box(top: int, left: int, height: int, width: int, value: int = 1, on: np.ndarray = EMPTY) -> np.ndarray:
    mask = on.copy()
    mask[top : top + height, left : left + width] = value
    return mask


def drawn(seed: int, classes: int = 2, size: tuple[int, int] = (23, 31)) -> np.ndarray:
    """Draw boxes at random positions, some at the image's edge."""
    rng, mask = np.random.default_rng(seed), np.zeros(size, np.uint8)
    for _ in range(6):
        top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
        mask[top : top + rng.integers(2, 9), left : left + rng.integers(2, 9)] = rng.integers(0, classes)
    return mask


def test_mask_metrics_equal_hand_calculation():
    # 4 × 10 true, 4 × 10 predicted, 6 columns to the right: 4 × 4 in common.
    metrics = mask_metrics(box(5, 5, 4, 10), box(5, 11, 4, 10))
    assert list(metrics) == [*MASK_METRICS, "both_empty", "one_empty"]
    assert metrics["dice"] == pytest.approx(32 / 80)
    assert metrics["iou"] == pytest.approx(16 / 64)
    assert metrics["precision"] == metrics["recall"] == pytest.approx(0.4)
    # 24 surface pixels of the true box lie 6, 5, 4, ... columns outside the other; the farthest are 4 of 24.
    assert metrics["hausdorff95"] == 6
    assert metrics["both_empty"] == metrics["one_empty"] == 0
    assert mask_metrics(box(5, 5, 4, 10), box(5, 5, 4, 5))["recall"] == 0.5
    assert mask_metrics(box(5, 5, 4, 5), box(5, 5, 4, 10))["precision"] == 0.5
    perfect = mask_metrics(box(5, 5, 4, 10), box(5, 5, 4, 10))
    assert [perfect[name] for name in MASK_METRICS] == [1, 1, 1, 1, 1, 0]
    assert mask_metrics(box(5, 5, 4, 10) > 0, box(5, 5, 4, 10) > 0) == perfect  # bool


def test_spacing_is_rows_then_columns():
    one, down, right = box(5, 5, 8, 8), box(8, 5, 8, 8), box(5, 9, 8, 8)
    assert hausdorff95(one, down) == 3
    assert hausdorff95(one, down, (0.5, 2.0)) == 1.5
    assert hausdorff95(one, right, (0.5, 2.0)) == 8


def test_one_or_both_masks_empty():
    lesion = box(5, 5, 4, 10)
    both, missed, invented = mask_metrics(EMPTY, EMPTY), mask_metrics(lesion, EMPTY), mask_metrics(EMPTY, lesion)
    assert [both[name] for name in MASK_METRICS] == [1, 1, 1, 1, 1, 0]
    assert (both["both_empty"], both["one_empty"]) == (1, 0)
    for metrics in (missed, invented):
        assert [metrics[name] for name in MASK_METRICS] == [0, 0, 0, 0, 0, 50]  # the diagonal of 30 × 40
        assert (metrics["both_empty"], metrics["one_empty"]) == (0, 1)
    assert mask_metrics(lesion, EMPTY, spacing=(2.0, 2.0))["hausdorff95"] == 100
    assert mask_metrics(lesion, box(20, 20, 2, 2))["dice"] == 0  # separate: no overlap, but a distance
    assert mask_metrics(lesion, box(20, 20, 2, 2))["hausdorff95"] < 50


@pytest.mark.parametrize("seed", range(20))
def test_overlap_equals_scikit_learn(seed):
    true, predicted = drawn(seed, 4), drawn(seed + 100, 4)
    names = ("background", "a", "b", "c")
    metrics = mask_metrics(true, predicted, names)
    labels = [k for k in (1, 2, 3) if (true == k).any() or (predicted == k).any()]
    for metric, score in (("dice", f1_score), ("iou", jaccard_score), ("precision", precision_score),
                          ("recall", recall_score)):  # fmt: skip
        expected = np.ones(3)
        expected[np.array(labels) - 1] = score(
            true.ravel(), predicted.ravel(), labels=labels, average=None, zero_division=0
        )
        assert [metrics[f"{metric}_{name}"] for name in "abc"] == pytest.approx(expected)
        assert metrics[metric] == pytest.approx(expected.mean())
    for k, name in enumerate("abc", start=1):
        alone = mask_metrics(true == k, predicted == k)
        assert metrics[f"hausdorff95_{name}"] == alone["hausdorff95"]
        assert metrics[f"surface_dice_{name}"] == alone["surface_dice"]
        assert metrics[f"dice_{name}"] == pytest.approx(alone["dice"])


@pytest.mark.parametrize("spacing", [None, (0.7, 1.9)])
def test_distance_equals_brute_force(spacing):
    step = np.array(spacing or (1, 1))
    compared = 0
    for seed in range(40):
        true, predicted = drawn(seed) > 0, drawn(seed + 100) > 0
        if not true.any() or not predicted.any():
            continue
        one, other = boundary_pixels(true) * step, boundary_pixels(predicted) * step
        between = cdist(one, other)
        expected = max(np.percentile(between.min(axis=1), 95), np.percentile(between.min(axis=0), 95))
        # And by distance maps, as MONAI computes it.
        edges = np.zeros((2, *true.shape), bool)
        for edge, mask in zip(edges, (true, predicted), strict=True):
            edge[tuple(boundary_pixels(mask).T)] = True
        maps = [distance_transform_edt(~edge, sampling=step) for edge in edges]
        by_maps = max(np.percentile(maps[1][edges[0]], 95), np.percentile(maps[0][edges[1]], 95))
        distance = hausdorff95(true, predicted, spacing)
        assert distance == pytest.approx(expected) == pytest.approx(by_maps)
        assert distance == hausdorff95(predicted, true, spacing)
        assert distance <= max(directed_hausdorff(one, other)[0], directed_hausdorff(other, one)[0]) + 1e-9
        compared += 1
    assert compared > 30


@pytest.mark.parametrize("spacing", [None, (0.7, 1.9)])
def test_surface_dice_equals_that_of_distance_maps(spacing):
    """As MONAI defines compute_surface_dice(use_subvoxels=False): from the maps of distances to the other surface."""
    step, compared = spacing or (1, 1), 0
    for seed in range(30):
        masks = [drawn(seed) > 0, drawn(seed + 100) > 0]
        if not all(mask.any() for mask in masks):
            continue
        padded = [np.pad(mask, 1) for mask in masks]
        surfaces = [
            mask & ~(pad[:-2, 1:-1] & pad[2:, 1:-1] & pad[1:-1, :-2] & pad[1:-1, 2:])
            for mask, pad in zip(masks, padded, strict=True)
        ]
        maps = [distance_transform_edt(~surface, sampling=step) for surface in surfaces]
        for tolerance in (0, 1, 1.4, 3):
            near = (maps[1][surfaces[0]] <= tolerance).sum() + (maps[0][surfaces[1]] <= tolerance).sum()
            expected = near / (surfaces[0].sum() + surfaces[1].sum())
            assert surface_dice(*masks, tolerance, spacing) == pytest.approx(expected)
            assert surface_dice(*masks[::-1], tolerance, spacing) == pytest.approx(expected)
            compared += 0 < expected < 1
    assert compared > 60


def test_surface_dice_by_hand():
    # A square of 10 × 10 has 36 surface pixels. Two rows lower, 2 × 7 of them are on the sides of both ...
    one, lower = box(5, 5, 10, 10), box(7, 5, 10, 10)
    assert surface_dice(one, lower, 2) == 1
    assert surface_dice(one, lower, 0) == pytest.approx(2 * (8 + 8) / 72)  # ... with the ends of the rows 7 and 14
    assert surface_dice(one, lower, 3.9, (2.0, 1.0)) < 1 == surface_dice(one, lower, 4, (2.0, 1.0))
    assert surface_dice(one, box(5, 25, 10, 10), 2.0, (0.1, 0.1)) == 1  # 20 columns of 0.1 mm, not a rounding more
    assert mask_metrics(one, lower)["surface_dice"] == 1 > mask_metrics(one, lower, tolerance=1)["surface_dice"]
    for tolerance in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tolerance of at least 0"):
            surface_dice(one, lower, tolerance)


def test_surface_equals_hand_calculation():
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
    inner = [[1, 1], [1, 2], [2, 1], [2, 2]]  # (2, 1) touches a pixel outside only at a corner
    assert sorted(map(tuple, boundary_pixels(mask))) == sorted(
        tuple(point) for point in np.argwhere(mask).tolist() if point not in inner
    )


def test_ignored_pixels_do_not_count():
    true, predicted = box(5, 5, 4, 10), box(5, 5, 4, 20)
    ignored = box(5, 15, 4, 10, IGNORE_INDEX, on=true)
    metrics = mask_metrics(ignored, predicted)
    assert [metrics[name] for name in MASK_METRICS] == [1, 1, 1, 1, 1, 0]
    assert mask_metrics(true, predicted)["dice"] < 1
    nothing = mask_metrics(np.full_like(true, IGNORE_INDEX), predicted)
    assert (nothing["dice"], nothing["both_empty"]) == (1, 1)


def test_invalid_masks_raise():
    with pytest.raises(ValueError, match=r"one shape, found \(30, 40\) and \(3, 4\)"):
        mask_metrics(EMPTY, np.zeros((3, 4), int))
    with pytest.raises(ValueError, match=r"true classes in 0..1, found 0..2"):
        mask_metrics(box(1, 1, 2, 2, 2), EMPTY)
    with pytest.raises(ValueError, match=r"predicted classes in 0..1, found 0..255"):
        mask_metrics(EMPTY, box(1, 1, 2, 2, 255))
    with pytest.raises(ValueError, match="integer class indices, found dtype float"):
        mask_metrics(EMPTY, EMPTY * 0.5)
    with pytest.raises(ValueError, match=r"\(H, W\), found \(1, 30, 40\)"):
        mask_metrics(EMPTY[None], EMPTY[None])
    with pytest.raises(ValueError, match="at least two classes"):
        mask_metrics(EMPTY, EMPTY, ("lung",))
    for spacing in ((1.0, 0.0), (1.0,), (1.0, float("nan"))):
        with pytest.raises(ValueError, match="two numbers above 0"):
            hausdorff95(EMPTY, EMPTY, spacing)
