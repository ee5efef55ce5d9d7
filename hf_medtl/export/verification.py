"""Numerical parity of an exported model and its run: logits, decisions and metrics on the run's own test images."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from hf_medtl.data.images import read_image
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.intervals import Interval, to_json
from hf_medtl.evaluation.paired import paired_differences
from hf_medtl.export.onnx import InferenceFn, Pixels
from hf_medtl.models.smp import blend_tiles
from hf_medtl.predict import Prediction, Predictor
from hf_medtl.tasks import task_for_results

BATCH_SIZE = 16  # images that are in memory at a time


class _Preprocessed:
    """Image processor whose results are known."""

    def __init__(self, processor: Any, results: Iterator[Any]) -> None:
        self.processor, self.results = processor, results

    def __call__(self, *_: Any, **__: Any) -> Any:
        return next(self.results)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)


@dataclass(frozen=True)
class ReferenceImages:
    """Images that an export is compared on.

    Attributes:
        tested: Image files.
        calibration: Images that 8-bit quantisation is calibrated with, none of which is tested.
        results: results.json of the run whose test split this is; None for images without labels.
        to_table: (slice of `tested`, its predictions) -> rows of predictions.csv; None for images without labels.
    """

    tested: list[Path]
    calibration: list[Path]
    results: dict[str, Any] | None = None
    to_table: Callable[[slice, Sequence[Prediction]], pd.DataFrame] | None = None


def with_inference_fn(model: PreTrainedModel, infer: InferenceFn) -> PreTrainedModel:
    """Return a copy of a model whose logits come from `infer`.

    Thus decisions and postprocessing of an export are computed by the same code as those of the model.
    """
    twin, tile = copy.copy(model), getattr(model.config, "tile", None)

    def predict(pixels: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(infer(pixels.numpy()))

    def forward(pixel_values: torch.Tensor, **_: Any) -> Any:
        # A graph has a fixed size, that of a tile.
        return SimpleNamespace(logits=blend_tiles(predict, pixel_values, tile) if tile else predict(pixel_values))

    twin.forward = forward
    return twin


def compare_with_model(
    model: PreTrainedModel, processor: Any, infer: InferenceFn, images: ReferenceImages
) -> dict[str, Any]:
    """Compare the outputs of an export with those of its model.

    Args:
        model: The run's model.
        processor: The run's image processor.
        infer: Inference function of the export.
        images: Images to compare on.

    Returns:
        pictures (their number), split ("test" or null), largest_logit_difference, decisions_changed (fraction of
        images; for masks the mean fraction of pixels), and with labels metric (its name), torch and exported (value
        with 95 % limits) and difference (paired, with limits and p-value; limits are null if the two never differ).

    Raises:
        MedtlError: The export returns NaN or infinity.
    """
    logits: dict[str, list[Pixels]] = {"torch": [], "exported": []}  # several of an image that is cut into tiles

    @torch.inference_mode()
    def infer_torch(pixels: Pixels) -> Pixels:
        logits["torch"].append(model(pixel_values=torch.from_numpy(pixels)).logits.numpy())
        return logits["torch"][-1]

    def infer_exported(pixels: Pixels) -> Pixels:
        logits["exported"].append(infer(pixels))
        if not np.isfinite(logits["exported"][-1]).all():
            raise MedtlError(
                "The exported model returned NaN or infinity where the original did not. The export was discarded."
            )
        return logits["exported"][-1]

    sides = {"torch": infer_torch, "exported": infer_exported}
    predictors = {side: Predictor(with_inference_fn(model, function), processor) for side, function in sides.items()}
    tables: dict[str, list[pd.DataFrame]] = {side: [] for side in sides}
    largest, changed = 0.0, []
    size = 1 if getattr(model.config, "tile", None) else BATCH_SIZE  # of tiles, images differ in size
    for start in range(0, len(images.tested), size):
        batch = slice(start, start + size)
        opened = [read_image(path) for path in images.tested[batch]]
        inputs = processor(opened, return_tensors="pt")
        predictions = {}
        for side, predictor in predictors.items():
            rows = iter([{key: values[i : i + 1] for key, values in inputs.items()} for i in range(len(opened))])
            predictor.processor = _Preprocessed(processor, rows)  # once for both
            logits[side].clear()
            predictions[side] = predictor.predict(opened, batch_size=size)
            if images.to_table:
                tables[side].append(images.to_table(batch, predictions[side]))
        for one, other in zip(logits["torch"], logits["exported"], strict=True):
            largest = max(largest, float(np.abs(one - other).max()))
        pairs = zip(predictions["torch"], predictions["exported"], strict=True)
        changed += [float(np.mean(_decision(one) != _decision(other))) for one, other in pairs]
    comparison: dict[str, Any] = {
        "pictures": len(images.tested),
        "split": "test" if images.results else None,
        "largest_logit_difference": largest,
        "decisions_changed": float(np.mean(changed)),
    }
    return comparison | (_compare_metrics(images.results, tables) if images.results else {})


def _compare_metrics(results: dict[str, Any], tables: dict[str, list[pd.DataFrame]]) -> dict[str, Any]:
    task = task_for_results(results)
    scores = {
        side: task.run_scores(pd.concat(parts, ignore_index=True).sort_values("image_id", ignore_index=True), [results])
        for side, parts in tables.items()
    }
    metric = scores["torch"].default_metrics[0]
    (row,) = (row for row in paired_differences(scores, "torch", [metric]) if row.metric == metric)
    value, low, high, p_value = row.difference
    difference = to_json(Interval(value, low, high)) | {"p_value": p_value if np.isfinite(p_value) else None}
    return {"metric": metric, "difference": difference} | {
        side: to_json(scored.metrics[metric]) for side, scored in scores.items()
    }


def _decision(prediction: Prediction) -> np.ndarray:
    """Return the mask (H, W), or the decided label or labels."""
    return np.asarray(prediction.decision if prediction.mask is None else prediction.mask)
