"""Metrics of predicted masks with intervals over patients: `hf_medtl.evaluation` as a module of `evaluate`."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from PIL import Image

from hf_medtl.evaluation.intervals import mean_intervals
from hf_medtl.evaluation.masks import mask_metrics

DESCRIPTION = """
Dice, IoU, precision, recall and 95 % Hausdorff distance of predicted masks, as means over pictures: a class that is in
neither mask counts as found, one that is in only one of them as missed, and how often either happens is told. With the
patient of each picture, 95 % limits that count patients, not pictures.
"""
INPUTS = """
Args:
    predictions: n masks (H, W) of class indices, or bool; sizes may differ from picture to picture.
    references: n true masks likewise, in which 255 is left out.
    labels: names of the classes, the background first; ("background", "mask") by default.
    spacing: mm from row to row and from column to column, for hausdorff95 in mm; pixels if None.
    groups: n names, such as the patient of each picture; with them there are limits.
    sources: n names, such as the hospital, within which groups are drawn for the limits.
    level: confidence of the limits, 0.95 by default.

Returns:
    dice, iou, precision, recall and hausdorff95, the mean over pictures of the mean over classes without the
    background; with several such classes also dice_NAME and so on; both_empty and one_empty, how many pictures' classes
    were; with groups METRIC_low and METRIC_high.

Examples:
    >>> metrics = evaluate.load(hf_medtl.evaluation.modules.path("segmentation_metrics"))
    >>> true, found = np.array([[0, 1], [0, 1]]), np.array([[0, 0], [0, 1]])
    >>> metrics.compute(predictions=[found], references=[true])["recall"]
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
        groups: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
        level: float = 0.95,
    ) -> dict[str, float]:
        rows = [
            mask_metrics(np.asarray(true), np.asarray(predicted), labels, spacing)
            for true, predicted in zip(references, predictions, strict=True)
        ]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        found = {name: float(np.sum(its) if name in COUNTS else np.mean(its)) for name, its in columns.items()}
        if groups is not None:
            measured = {name: its for name, its in columns.items() if name not in COUNTS}
            for name, interval in mean_intervals(measured, groups, sources, level=level).items():
                found |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        return found
