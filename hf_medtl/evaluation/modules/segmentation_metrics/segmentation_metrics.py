"""Segmentation metrics with intervals over patients, as a module for Hugging Face `evaluate`."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from PIL import Image

from hf_medtl.evaluation.intervals import mean_intervals
from hf_medtl.evaluation.masks import SURFACE_TOLERANCE, mask_metrics

DESCRIPTION = """
Dice, IoU, precision, recall, surface Dice and 95 % Hausdorff distance of predicted masks, as means over images. A class
absent from both masks counts as correct, a class in only one of them as missed, and the numbers of both are reported.
Given the patient of each image, also 95 % limits that count patients, not images.
"""
INPUTS = """
Args:
    predictions: n masks (H, W) of class indices, or bool; sizes may differ between images.
    references: n true masks of the same sizes; pixels of 255 are ignored.
    labels: names of the classes, the background first; ("background", "mask") by default.
    spacing: distance of rows and of columns in mm, for hausdorff95 and tolerance in mm; in pixels if None.
    tolerance: distance between outlines that counts as none in surface_dice, 2 by default.
    groups: n group names, such as the patient of each image, to compute limits.
    sources: n names, such as the hospital of each image, within which groups are resampled.
    level: confidence of the limits, 0.95 by default.

Returns:
    dice, iou, precision, recall, surface_dice and hausdorff95: the mean over images of the mean over classes except the
    background; with two or more such classes also dice_NAME and so on; both_empty and one_empty: the number of (image,
    class) pairs absent from both masks or from one; with groups also METRIC_low and METRIC_high.

Examples:
    >>> metrics = evaluate.load(hf_medtl.evaluation.modules.path("segmentation_metrics"))
    >>> true, predicted = np.array([[0, 1], [0, 1]]), np.array([[0, 0], [0, 1]])
    >>> metrics.compute(predictions=[predicted], references=[true])["recall"]
    0.5
"""
COUNTS = ("both_empty", "one_empty")


class SegmentationMetrics(evaluate.Metric):
    """`mask_metrics` and `mean_intervals`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            # Lossless files: as lists of numbers a radiograph's mask would take a gigabyte of memory.
            features=datasets.Features(predictions=datasets.Image(), references=datasets.Image()),
            license="apache-2.0",
        )

    def _compute(
        self,
        *,
        predictions: Sequence[Image.Image],
        references: Sequence[Image.Image],
        labels: Sequence[str] = ("background", "mask"),
        spacing: tuple[float, float] | None = None,
        tolerance: float = SURFACE_TOLERANCE,
        groups: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
        level: float = 0.95,
    ) -> dict[str, float]:
        rows = [
            mask_metrics(np.asarray(true), np.asarray(predicted), labels, spacing, tolerance)
            for true, predicted in zip(references, predictions, strict=True)
        ]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        results = {name: float((np.sum if name in COUNTS else np.mean)(values)) for name, values in columns.items()}
        if groups is not None:
            metrics = {name: values for name, values in columns.items() if name not in COUNTS}
            for name, interval in mean_intervals(metrics, groups, sources, level=level).items():
                results |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        return results
