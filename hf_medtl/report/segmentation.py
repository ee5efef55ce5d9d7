"""What a report says of a run that outlines."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hf_medtl.data.images import read_image
from hf_medtl.data.loading import Loaded
from hf_medtl.evaluation.curves import share_band
from hf_medtl.evaluation.masks import METRICS
from hf_medtl.publish.templates import interval
from hf_medtl.report.blocks import Axis, Band, Block, Gallery, Line, Picture, Plot, Points, Prose, Section, Table
from hf_medtl.report.images import jpeg, outlined
from hf_medtl.report.plots import BANDS, RESAMPLES
from hf_medtl.report.tables import folds_blocks, metrics_table, name_of, pictures
from hf_medtl.runs.loaded_run import Run
from hf_medtl.tasks.segmentation import judged

logger = logging.getLogger("hf_medtl")

OUTLINED = 4  # best and worst pictures
DRIFT = 0.005  # of Dice, which other hardware may give


def sections(run: Run, loaded: Loaded | None, missing: str) -> list[Section]:
    """Results, distribution, best and worst pictures, and the external test of a run."""
    found = [
        Section("Results", [*results(run.result, "Metrics, means over pictures"),
                            *(folds_blocks(run) if "folds" in run.result else [])]),
        Section("By picture and source", distribution(run.result, run.table)),
        Section("Pictures", gallery(run, loaded, missing)),
    ]  # fmt: skip
    if run.external is not None and "external" in run.result:
        outside = run.result["external"]
        said = [Prose(f"{number:,} of its pictures are left out: {kind}.")
                for kind, number in outside.get("excluded", {}).items()]  # fmt: skip
        blocks = [Prose(f"{outside['dataset']}: no picture of it is a copy of one in training."), *said,
                  *results(outside, "Metrics on the external data"), *distribution(outside, run.external)]  # fmt: skip
        found.append(Section("External test", blocks))
    return found


def results(part: dict[str, Any], title: str) -> list[Block]:
    """Means with intervals, by class and by source."""
    blocks: list[Block] = [metrics_table(part, title)]
    if "per_class" in part:
        rows = [(name, *(interval(its[metric]) for metric in METRICS)) for name, its in part["per_class"].items()]
        blocks.append(
            Table("Each class", ("class", *map(name_of, METRICS)), rows, "Value [95 % interval over groups].")
        )
    if len(part["by_source"]) > 1:
        rows = [
            (source, str(its["n"]), str(its["n_groups"]), *(interval(its["metrics"][name]) for name in METRICS))
            for source, its in part["by_source"].items()
        ]
        columns = ("source", "pictures", "groups", *map(name_of, METRICS))
        blocks.append(Table("By source", columns, rows, "Value [95 % interval over groups]."))
    if part["both_empty"] or part["one_empty"]:
        blocks.append(
            Prose(f"A class was rightly not found {part['both_empty']} times (Dice 1) and was missed or invented as a "
                  f"whole {part['one_empty']} times (Dice 0, distance the picture's diagonal).")
        )  # fmt: skip
    return blocks


def distribution(part: dict[str, Any], table: pd.DataFrame) -> list[Block]:
    """Dice of each picture by source, and the share of pictures with at most a Dice."""
    dice = table["dice"].to_numpy(np.float64)
    rng = np.random.default_rng(0)
    sources = list(part["by_source"])
    marks: list[Points] = []
    place = table["source"].map(sources.index).to_numpy(np.float64) + rng.uniform(-0.18, 0.18, len(table))
    texts = [f"{name}: Dice {value:.3f}" for name, value in zip(table["image_id"], dice, strict=True)]
    marks.append(Points("a picture", place, dice, colour="grey", small=True, texts=texts))
    means = [its["metrics"]["dice"] for its in part["by_source"].values()]
    value, low, high = ([_nan(mean[key]) for mean in means] for key in ("value", "low", "high"))
    marks.append(Points("mean", range(len(sources)), value, low, high, "blue"))
    ticks = [f"{source} ({its['n']})" for source, its in part["by_source"].items()]
    curve = share_band(dice, table["group"], RESAMPLES)
    steps = np.repeat(curve.x, 2)[1:], np.repeat(curve.y, 2)[:-1]
    lowest = max(0.0, float(dice.min()) - 0.05)
    return [
        Plot("Dice by source", marks, Axis("source (pictures)", -0.5, len(sources) - 0.5, ticks),
             Axis("Dice", None, 1.01),
             f"{pictures(part)}; a grey point a picture, moved sideways at random. Blue: mean with its 95 % interval, "
             "studentised bootstrap over groups, from results.json.",
             "Dice by source. Means: " + ", ".join(f"{tick} {x:.3f}" for tick, x in zip(ticks, value, strict=True))),
        Plot("Dice of the pictures", [Band(curve.at, curve.low, curve.high), Line("", *steps)],
             Axis("Dice", lowest, 1.005), Axis("share of pictures with at most this", -0.01, 1.01),
             f"{pictures(part)}. The further right and the steeper, the better. Band: {BANDS}.",
             f"Share of pictures with at most a Dice. Lowest {dice.min():.3f}, median {np.median(dice):.3f}."),
    ]  # fmt: skip


def gallery(run: Run, loaded: Loaded | None, missing: str) -> list[Block]:
    """Worst and best pictures with outlines, predicted anew by the run's own weights."""
    if loaded is None:
        return [Prose(f"No pictures: {missing}", "note")]
    if len(run.folds) < len(run.result.get("folds", [])):
        return [Prose("No outlines: the folders of some folds are not here.", "note")]
    order = run.table["dice"].to_numpy(np.float64).argsort(kind="stable")
    number = min(OUTLINED, -(-len(order) // 2))
    shown = {"Lowest Dice": order[:number].tolist(), "Highest Dice": order[::-1][:number].tolist()}
    try:
        drawn = outlines(run, loaded, [row for rows in shown.values() for row in rows])
    except (OSError, ValueError) as error:
        logger.warning("%s: no outlines, since its weights can't be used: %s", run.name, error)
        return [Prose("No outlines: the run's weights are not here, or can't be loaded.", "note")]
    said = "Outlines: true (blue) and predicted (orange), the latter on top. Predicted anew with the run's weights; "
    said += "pictures are drawn anew from their pixels, without metadata."
    return [Gallery(title, [drawn[row] for row in rows], said, large=True) for title, rows in shown.items()]


def outlines(run: Run, loaded: Loaded, rows: Sequence[int]) -> dict[int, Picture]:
    """Pictures with both outlines, each predicted by the model that was tested on it.

    Args:
        rows: of predictions.csv.
    """
    facts = run.table.iloc[sorted(set(rows))]
    place = pd.Series(loaded.table.index, index=loaded.table["image_id"])
    found = {}
    of_models = [facts[facts["fold"] == fold] for fold in range(len(run.folds))] or [facts]
    for model, its in zip(run.folds or [run], of_models, strict=True):
        if its.empty:
            continue
        places = place[its["image_id"]].tolist()
        answers = judged(model.folder, loaded, places)
        for row, where, (metrics, true, final) in zip(its.index.tolist(), places, answers, strict=True):
            known = its.loc[row]
            caption = f"Dice {known['dice']:.3f}"
            if abs(metrics["dice"] - known["dice"]) > DRIFT:
                caption += f" (now {metrics['dice']:.3f})"
            picture = read_image(loaded.root / loaded.table["path"][where])
            image = outlined(picture, (true.astype(np.uint8), final.astype(np.uint8)))
            name = known["image_id"]
            found[row] = Picture(jpeg(image), f"{caption}\n{name}", f"{name}: {caption}")
    return found


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
