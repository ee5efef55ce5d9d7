"""Report sections of a segmentation run."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.images import read_image
from hf_medtl.evaluation.curves import ecdf_band
from hf_medtl.evaluation.marks import Axis, Band, Line, Plot
from hf_medtl.evaluation.masks import MASK_METRICS
from hf_medtl.evaluation.metric_charts import dice_plot
from hf_medtl.evaluation.names import short_name
from hf_medtl.evaluation.probability_charts import BAND_METHOD, RESAMPLES
from hf_medtl.publish.templates import format_interval
from hf_medtl.report.blocks import Block, Gallery, GalleryImage, Prose, Section, Table
from hf_medtl.report.images import draw_outlines, to_jpeg
from hf_medtl.report.sections import external_intro, folds_blocks, image_count, metrics_table
from hf_medtl.tasks.mask_predictions import predict_and_measure

logger = logging.getLogger("hf_medtl")

PER_GALLERY = 4  # best and worst images
MAX_DRIFT = 0.005  # of Dice, which other hardware may cause


def sections(run: RunFolder, loaded: LoadedDataset | None, missing: str) -> list[Section]:
    """Return all sections of a segmentation run.

    Args:
        run: finished run or cross-validation.
        loaded: its data set, for images.
        missing: why there is no data set.
    """
    parts = [
        Section("Results", [*_results(run.results, "Metrics, means over images"), *folds_blocks(run)]),
        Section("By image and source", _distributions(run.results, run.predictions)),
        Section("Images", _galleries(run, loaded, missing)),
    ]
    if run.external is not None and "external" in run.results:
        external = run.results["external"]
        results = _results(external, "Metrics on the external data")
        blocks = [*external_intro(external), *results, *_distributions(external, run.external)]
        parts.append(Section("External test", blocks))
    return parts


def _results(results: dict[str, Any], title: str) -> list[Block]:
    """Means with intervals: overall, by class and by source."""
    blocks: list[Block] = [metrics_table(results, title)]
    measured = [name for name in MASK_METRICS if name in results["metrics"]]  # older runs have no surface Dice
    if "surface_tolerance" in results:
        blocks.append(
            Prose(f"Surface Dice: the fraction of both outlines within {results['surface_tolerance']} of the other.")
        )
    note = "Value [95 % interval over groups]."
    if "per_class" in results:
        rows = [
            (name, *(format_interval(part[metric]) for metric in measured))
            for name, part in results["per_class"].items()
        ]
        blocks.append(Table("Each class", ("class", *map(short_name, measured)), rows, note))
    if len(results["by_source"]) > 1:
        rows = [
            (
                source,
                str(part["n"]),
                str(part["n_groups"]),
                *(format_interval(part["metrics"][name]) for name in measured),
            )
            for source, part in results["by_source"].items()
        ]
        blocks.append(Table("By source", ("source", "images", "groups", *map(short_name, measured)), rows, note))
    if results["both_empty"] or results["one_empty"]:
        blocks.append(
            Prose(f"A class was correctly predicted as absent {results['both_empty']} times (Dice 1), and entirely "
                  f"missed or predicted where there is none {results['one_empty']} times (Dice 0, distance: the "
                  "image's diagonal).")
        )  # fmt: skip
    return blocks


def _distributions(results: dict[str, Any], table: pd.DataFrame) -> list[Block]:
    """Dice of each image by source, and its cumulative distribution."""
    dice, count = table["dice"].to_numpy(np.float64), image_count(results)
    texts = [f"{name}: Dice {value:.3f}" for name, value in zip(table["image_id"], dice, strict=True)]
    curve = ecdf_band(dice, table["group"], RESAMPLES)
    steps = np.repeat(curve.x, 2)[1:], np.repeat(curve.y, 2)[:-1]
    lowest = max(0.0, float(dice.min()) - 0.05)
    return [
        dice_plot(dice, table["source"], results["by_source"], texts, count),
        Plot("Cumulative distribution of Dice", [Band(curve.at, curve.low, curve.high), Line("", *steps)],
             Axis("Dice", lowest, 1.005), Axis("fraction with at most this Dice", -0.01, 1.01),
             count, f"The further right and the steeper, the better. Band: {BAND_METHOD}.",
             f"Cumulative distribution of Dice. Lowest {dice.min():.3f}, median {np.median(dice):.3f}."),
    ]  # fmt: skip


def _galleries(run: RunFolder, loaded: LoadedDataset | None, missing: str) -> list[Block]:
    """The worst and best images with outlines, predicted again with the run's own weights."""
    if loaded is None:
        return [Prose(f"No images: {missing}", "note")]
    if not all(fold.is_finished for fold in run.folds):
        return [Prose("No outlines: some folds have no folder here.", "note")]
    order = run.predictions["dice"].to_numpy(np.float64).argsort(kind="stable")
    number = min(PER_GALLERY, -(-len(order) // 2))
    selected = {"Lowest Dice": order[:number].tolist(), "Highest Dice": order[::-1][:number].tolist()}
    try:
        outlined = _outlined_images(run, loaded, [row for rows in selected.values() for row in rows])
    except (OSError, ValueError) as error:
        logger.warning("%s: no outlines, since its weights cannot be used: %s", run.path.name, error)
        return [Prose("No outlines: the run's weights are missing or cannot be loaded.", "note")]
    caption = (
        "Outlines: true (blue) and predicted (orange, on top). Predicted again with the run's weights; images are "
        "re-encoded from their pixels, without metadata."
    )
    return [Gallery(title, [outlined[row] for row in rows], caption, large=True) for title, rows in selected.items()]


def _outlined_images(run: RunFolder, loaded: LoadedDataset, rows: Sequence[int]) -> dict[int, GalleryImage]:
    """Row of predictions.csv -> image with both outlines, predicted by the model that was tested on it."""
    selected = run.predictions.iloc[sorted(set(rows))]
    position = pd.Series(loaded.table.index, index=loaded.table["image_id"])
    by_model = [selected[selected["fold"] == fold] for fold in range(len(run.folds))] or [selected]
    images = {}
    for model, tested in zip(run.models, by_model, strict=True):
        if tested.empty:
            continue
        positions = position[tested["image_id"]].tolist()
        outputs = predict_and_measure(model.path, loaded, positions)
        rows_and_saved = zip(tested.index.tolist(), tested.to_dict("records"), strict=True)
        for (row, saved), at, (metrics, true, predicted) in zip(rows_and_saved, positions, outputs, strict=True):
            caption = f"Dice {saved['dice']:.3f}"
            if abs(metrics["dice"] - saved["dice"]) > MAX_DRIFT:
                caption += f" (now {metrics['dice']:.3f})"
            image = read_image(loaded.root / loaded.table["path"][at])
            outlined = draw_outlines(image, (true.astype(np.uint8), predicted.astype(np.uint8)))
            image_id = saved["image_id"]
            images[row] = GalleryImage(to_jpeg(outlined), f"{caption}\n{image_id}", f"{image_id}: {caption}")
    return images
