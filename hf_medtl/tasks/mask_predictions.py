"""Masks that a saved model predicts, and the true masks that they are compared with."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import Pipeline

from hf_medtl.common.text import printable
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.images import read_class_indices, read_image
from hf_medtl.data.spacing import read_spacing
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.decisions import DecisionRule
from hf_medtl.evaluation.evaluate import load_pipeline, predict_masks
from hf_medtl.evaluation.masks import MASK_METRICS, mask_metrics
from hf_medtl.evaluation.postprocessing import postprocess
from hf_medtl.evaluation.tolerance import Tolerance
from hf_medtl.tasks.base import Reader


def predict_and_measure(
    model: Path | Pipeline, loaded: LoadedDataset, rows: list[int], read: Reader = read_image
) -> Iterator[tuple[dict[str, float], NDArray, NDArray]]:
    """Segment images one at a time through the folder's own pipeline and compare them with their masks.

    Args:
        model: run folder or pipeline.
        loaded: data set.
        rows: rows of its table.
        read: function that reads a file.

    Yields:
        Metrics, true mask and final mask (H, W) of each image.
    """
    segment = load_pipeline(model, "image-segmentation")
    rule = DecisionRule.from_config(segment.model.config)
    options, steps = mask_options(segment.model.config, loaded), rule.postprocessing or {}
    tolerance = config_tolerance(segment.model.config)
    paths = [loaded.root / path for path in loaded.table["path"][rows]]
    for row, path, raw in zip(rows, paths, predict_masks(segment, paths, read), strict=True):
        true, final = true_mask(options, row, raw.shape), postprocess(raw, steps)
        spacing = needed_spacing(tolerance, path)
        metrics = measure_mask(true, final, rule.labels, tolerance, spacing)
        if steps:
            before = measure_mask(true, raw, rule.labels, tolerance, spacing)
            metrics |= {f"raw_{name}": before[name] for name in MASK_METRICS}
        yield metrics, true, final


def measure_mask(
    true: NDArray[Any],
    predicted: NDArray[Any],
    labels: Sequence[str],
    tolerance: Tolerance,
    spacing: tuple[float, float] | None,
) -> dict[str, Any]:
    """Return `mask_metrics`, with distances in pixels, and surface_tolerance, which is in mm if the user chose so.

    Args:
        true: (H, W) class indices.
        predicted: (H, W) likewise.
        labels: (K,) names of the classes, the background first.
        tolerance: of surface_dice.
        spacing: `needed_spacing` of the image.
    """
    metrics = mask_metrics(true, predicted, labels, tolerance=tolerance.value)
    if spacing is not None:
        in_mm = mask_metrics(true, predicted, labels, spacing, tolerance.value)
        metrics |= {name: value for name, value in in_mm.items() if name.startswith("surface_dice")}
    return metrics | {"surface_tolerance": str(tolerance)}


def needed_spacing(tolerance: Tolerance, path: Path) -> tuple[float, float] | None:
    """Return the pixel spacing in the header of an image if a tolerance is in mm, else None."""
    return read_spacing(path) if tolerance.unit == "mm" else None


def config_tolerance(config: Any) -> Tolerance:
    """Return the tolerance of surface_dice in config.json; the default for models without one."""
    return Tolerance.parse(getattr(config, "surface_tolerance", None) or str(Tolerance()))


def check_spacing(tolerance: Tolerance, loaded: LoadedDataset) -> None:
    """Check that the header of each test image has the pixel spacing that a tolerance in mm needs.

    Raises:
        MedtlError: some have none.
    """
    if tolerance.unit != "mm":
        return
    tested = loaded.rows("test")
    unknown = [path for path in tested["path"] if read_spacing(loaded.root / path) is None]
    if unknown:
        raise MedtlError(
            f"--surface_tolerance {tolerance} needs the pixel spacing of each test image, but {len(unknown)} of "
            f"{len(tested)} have none in their header, such as {printable(unknown[0])}. Give the tolerance in pixels."
        )


def mask_options(config: Any, loaded: LoadedDataset) -> dict[str, Any]:
    """Return the mask files of each image, and the class of each gray value."""
    values = getattr(config, "mask_values", None)  # a model trained elsewhere has none
    values = values and {int(value): index for value, index in values.items()}
    files = [[loaded.root / part for part in cell.split("|")] for cell in loaded.table["mask"]]
    return {"masks": files, "values": values}


def true_mask(options: dict[str, Any], row: int, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Return the true class indices (H, W) of an image of that shape, from `mask_options`."""
    height, width = shape
    whole = read_class_indices(options["masks"][row], options["values"])
    return np.asarray(whole.resize((width, height), Image.Resampling.NEAREST))
