"""Summary of a study: learning curves, paired differences, and the statements that they support."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_medtl.common.console import make_console
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import plots, study_statements
from hf_medtl.evaluation.intervals import to_json
from hf_medtl.evaluation.metrics import BLOCK_CELLS
from hf_medtl.evaluation.names import METRIC_NAMES
from hf_medtl.evaluation.resampling import bootstrap_group_counts, majority_strata
from hf_medtl.evaluation.study_statements import Contrast, LearningCurvePoint
from hf_medtl.publish.templates import render
from hf_medtl.runs.study_cells import StudyCell
from hf_medtl.runs.study_grid import Grid
from hf_medtl.tasks import task_for_results
from hf_medtl.training.options import strip_path
from hf_medtl.training.recipe import Recipe

RESAMPLES = 2000


def summarise(run: RunFolder, recipe: Recipe, grid: Grid, cells: list[StudyCell]) -> dict[str, Any]:
    """Write README.md, figures/learning_curve.png and, last, study.json of the finished cells.

    Args:
        run: The study's folder.
        recipe: What all cells have in common.
        grid: What they differ in.
        cells: All cells.

    Returns:
        The content of study.json.

    Raises:
        MedtlError: No cell is finished.
    """
    folder = run.path
    finished = [cell for cell in cells if cell.is_finished]
    failed = {cell.name: cell.note.get("error", "") for cell in cells if cell not in finished}
    if not finished:
        name, error = next(iter(failed.items()))
        raise MedtlError(f"None of {len(cells)} cells is finished. {name}: {error}. See {folder / 'cells'}.")
    points, n_groups, smallest, metric = learning_curve_points(finished)
    contrasts = study_statements.contrasts(points, smallest)
    statements = study_statements.statements(points, contrasts, METRIC_NAMES[metric], smallest)
    (folder / "figures").mkdir(exist_ok=True)
    plots.learning_curve(points, METRIC_NAMES[metric], folder / "figures" / "learning_curve.png")
    spec = cells[0].loaded.spec
    result = {
        "dataset": spec.name,
        "task": spec.task,
        "metric": metric,
        "budget": grid.budget,
        "test_groups": n_groups,
        "test_groups_of_the_rarest_kind": smallest,
        "statements": statements,
        "curve": [_point_json(point) for point in points],
        "contrasts": [_contrast_json(contrast) for contrast in contrasts],
        "cells": [_cell_json(cell) for cell in finished],
        "failed": failed,
    }
    placeholders = {}  # for paths of this machine
    if any(Path(model).exists() for model in grid.models):
        placeholders["MODELS"] = (
            "models",
            f"the models {', '.join(map(strip_path, grid.models))}, by folder or Hub id",
        )
    if recipe.data_dir:
        placeholders["DATA"] = ("data_dir", "the folder or file of the data")
    facts = {
        "name": folder.name,
        "study": result,
        "spec": spec,
        "metric": METRIC_NAMES[metric],
        "percents": sorted({point.percent for point in points}),
        "rows": {arm: {p.percent: p for p in points if p.arm == arm} for arm in dict.fromkeys(p.arm for p in points)},
        "contrasts": contrasts,
        "recipe_yaml": recipe.to_yaml(),
        "grid_yaml": grid.to_yaml(),
        "command": (
            'python -c "from hf_medtl.cli.study import main; main({}, {})" --config recipe.yaml --grid grid.yaml'
            f"{''.join(f' --{option} {placeholder}' for placeholder, (option, _) in placeholders.items())}"
            " --output_dir runs/again"
        ),
        "placeholders": {placeholder: meaning for placeholder, (_, meaning) in placeholders.items()},
    }
    run.write("README.md", render("study", facts))
    run.write("study.json", result)
    console = make_console()
    for line in statements:
        console.print(f"- {line}", soft_wrap=True)
    console.print(
        f"\nThe study is in {folder}: README.md, study.json, figures/learning_curve.png, cells/.", soft_wrap=True
    )
    return result


def learning_curve_points(cells: list[StudyCell]) -> tuple[list[LearningCurvePoint], int, int, str]:
    """Return the points of the learning curves, all with the same resamples of test groups.

    Args:
        cells: Finished cells.

    Returns:
        The points, the number of test groups over all seeds, that of the smallest stratum, and the metric.

    Raises:
        MedtlError: Cells of a seed were tested on different images.
    """
    scores: dict[StudyCell, Callable[[NDArray | None], NDArray[np.float64]]] = {}
    limits: dict[StudyCell, tuple[float, float]] = {}
    tests: dict[int, pd.DataFrame] = {}  # seed -> test images
    for cell in cells:
        run = cell.run
        task = task_for_results(run.results)
        strata, scores[cell] = task.score(run.predictions, run.results)
        metric = run.results["metrics"][task.main_metric]
        low, high = (np.nan if metric[key] is None else metric[key] for key in ("low", "high"))
        limits[cell] = low, high
        tested = run.predictions[["image_id", "group"]].assign(kind=strata)
        if not tests.setdefault(cell.seed, tested).equals(tested):
            raise MedtlError(f"{run.path} was not tested on the same images as other cells of seed {cell.seed}.")
    union = pd.concat(tests.values()).drop_duplicates()
    kind, group = (pd.factorize(union[name])[0].astype(np.int64) for name in ("kind", "group"))
    column = pd.Series(group, index=union["image_id"])
    group_strata = majority_strata(kind, group)
    draws = bootstrap_group_counts(group_strata, RESAMPLES)

    def resampled_scores(cell: StudyCell) -> NDArray[np.float64]:
        columns = column[tests[cell.seed]["image_id"]].to_numpy()
        step = max(1, BLOCK_CELLS // len(columns))
        return np.concatenate([scores[cell](draws[i : i + step, columns]) for i in range(0, len(draws), step)])

    points = []
    for arm, percent in dict.fromkeys((cell.arm, cell.percent) for cell in cells):
        seeds = [cell for cell in cells if (cell.arm, cell.percent) == (arm, percent)]
        points.append(
            LearningCurvePoint(
                arm.name,
                arm.backbone,
                arm.scratch,
                percent,
                float(np.mean([cell.groups for cell in seeds])),
                {cell.seed: float(scores[cell](None)) for cell in seeds},
                {cell.seed: resampled_scores(cell) for cell in seeds},
                {cell.seed: limits[cell] for cell in seeds},
            )
        )
    return points, len(group_strata), int(np.bincount(group_strata).min()), task.main_metric


def _point_json(point: LearningCurvePoint) -> dict[str, Any]:
    """Return a point in the form of study.json."""
    facts = {"arm": point.arm, "backbone": point.backbone, "scratch": point.scratch, "percent": point.percent}
    facts |= {"groups": point.groups, **to_json(point.mean)}
    return facts | {"by_seed": {str(seed): value for seed, value in point.values.items()}}


def _contrast_json(contrast: Contrast) -> dict[str, Any]:
    """Return a contrast in the form of study.json; the p-value is Holm's."""
    numbers = {key: getattr(contrast, key) for key in ("value", "low", "high", "p_value")}
    return {
        "one": list(contrast.one),
        "other": list(contrast.other),
        **{key: number if np.isfinite(number) else None for key, number in numbers.items()},
        "told": contrast.is_reportable,
        "by_seed": {str(seed): value for seed, value in contrast.by_seed.items()},
    }


def _cell_json(cell: StudyCell) -> dict[str, Any]:
    """Return a finished cell in the form of study.json."""
    results = cell.run.results
    return {
        "arm": cell.arm.name,
        "percent": cell.percent,
        "seed": cell.seed,
        "folder": f"cells/{cell.run.path.name}",
        "groups": cell.groups,
        "pictures": cell.count("train"),
        "epochs": cell.recipe.num_train_epochs,
        **{key: results[key] for key in ("metrics", "train_seconds", "splits_sha256")},
    }
