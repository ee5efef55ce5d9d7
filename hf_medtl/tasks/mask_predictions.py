"""Masks that a saved model predicts, and the true masks that they are compared with."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import Pipeline

from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.images import read_image, read_mask
from hf_medtl.evaluation.decisions import DecisionRule
from hf_medtl.evaluation.evaluate import load_pipeline, predict_masks
from hf_medtl.evaluation.masks import MASK_METRICS, mask_metrics
from hf_medtl.evaluation.postprocessing import postprocess
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
    paths = [loaded.root / path for path in loaded.table["path"][rows]]
    for row, raw in zip(rows, predict_masks(segment, paths, read), strict=True):
        true, final = true_mask(options, row, raw.shape), postprocess(raw, steps)
        metrics = mask_metrics(true, final, rule.labels)
        if steps:
            before = mask_metrics(true, raw, rule.labels)
            metrics |= {f"raw_{name}": before[name] for name in MASK_METRICS}
        yield metrics, true, final


def mask_options(config: Any, loaded: LoadedDataset) -> dict[str, Any]:
    """Return the mask files of each image, and the class of each gray value."""
    values = getattr(config, "mask_values", None)  # a model trained elsewhere has none
    values = values and {int(value): index for value, index in values.items()}
    files = [[loaded.root / part for part in cell.split("|")] for cell in loaded.table["mask"]]
    return {"masks": files, "values": values}


def true_mask(options: dict[str, Any], row: int, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Return the true class indices (H, W) of an image of that shape, from `mask_options`."""
    height, width = shape
    whole = read_mask(options["masks"][row], options["values"])
    true = np.asarray(whole.resize((width, height), Image.Resampling.NEAREST))
    return true if options["values"] else (true > 0).astype(np.uint8)
