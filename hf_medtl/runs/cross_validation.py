"""Cross-validation: each fold is an ordinary run, followed by the results of all folds."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import PartialState

from hf_medtl.common.checksums import CHECKSUMS, check_unchanged
from hf_medtl.common.csv_cells import to_csv
from hf_medtl.common.messages import without_repeats
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.splits import SPLITS
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import plots
from hf_medtl.evaluation.names import METRIC_NAMES
from hf_medtl.publish.templates import render
from hf_medtl.runs.console import show_folds, show_folds_plan
from hf_medtl.runs.model_card import repeat_command
from hf_medtl.runs.positive_label import settle_positive_label
from hf_medtl.runs.sweep import Sweep, check_same_run, check_sweep_folder, lock_sweep
from hf_medtl.tasks import task_for_dataset
from hf_medtl.training.recipe import Recipe

logger = logging.getLogger("hf_medtl")

SUMMARY_FILES = ("README.md", CHECKSUMS, "figures", "predictions.csv", "recipe.yaml", "results.json")
FOLD_KEYS = ("n", "n_groups", "threshold", "temperature", "metrics", "fitted", "train_seconds", "splits_sha256")


@dataclass(frozen=True, eq=False)
class Fold:
    """One fold: its recipe and its run folder."""

    recipe: Recipe
    run: RunFolder

    @property
    def is_finished(self) -> bool:
        """True if the run is finished."""
        return self.run.is_finished

    @property
    def status(self) -> str:
        """Human-readable status."""
        begun = any(self.run.path.glob("checkpoint-*/trainer_state.json"))
        return "finished" if self.is_finished else "begun" if begun else "to do"


@without_repeats("hf_medtl.data")
def cross_validate(recipe: Recipe, run: Callable[[Recipe], Path]) -> Path:
    """Run each fold that is not finished in OUTPUT_DIR/fold-K, then summarise all folds.

    An unfinished fold resumes from its newest complete checkpoint with --resume_from_checkpoint auto, as a single run.

    Args:
        recipe: With `folds` and without `fold`.
        run: Makes one run.

    Returns:
        The output folder.

    Raises:
        MedtlError: A finished fold has another recipe or split, the folder holds something else, or as `run`.
    """
    folder = Path(str(recipe.output_dir))
    if (folder / "results.json").exists():
        raise MedtlError(f"{folder} holds finished results. Give another --output_dir, or move that one away.")
    check_sweep_folder(folder, ("fold-*", *SUMMARY_FILES), "folds", "; for a single run give --fold")

    with recipe.main_process_first(local=True):  # the other processes find its caches
        loaded = recipe.load_data()  # of fold 0
    begun = next((path.parent for path in sorted(folder.glob("fold-*/config.json"))), None)
    settle_positive_label(recipe, loaded, str(begun) if begun else None)  # once for all folds
    recipes = [recipe.of_fold(fold) for fold in range(recipe.folds)]
    folds = [Fold(single, RunFolder(str(single.output_dir))) for single in recipes]
    sweep = Sweep(folds, "folds", "the same command with --resume_from_checkpoint auto.")
    plan = []
    for fold in folds:
        if fold.recipe.fold:
            with recipe.main_process_first(local=True):
                loaded = fold.recipe.load_data()
        if fold.is_finished:
            _check_fold(fold, loaded)
        counts = {split: str(len(loaded.rows(split))) for split in SPLITS}
        plan.append({"fold": str(fold.recipe.fold), "state": fold.status, **counts})
    if recipe.should_save:
        show_folds_plan(plan, folder)

    def run_fold(fold: Fold) -> None:
        logger.info("Fold %d, the last is %d", fold.recipe.fold, len(folds) - 1)
        run(fold.recipe)

    if recipe.dry_run:
        for fold in sweep.missing[:1]:
            run_fold(fold)
        return folder
    with lock_sweep(folder, "cross-validation") if recipe.should_save else contextlib.nullcontext():
        sweep.run_missing(run_fold)
        if recipe.should_save:
            runs = [fold.run for fold in folds]
            show_folds(folder, summarise(RunFolder(folder), runs, recipe, loaded))
    PartialState().wait_for_everyone()
    return folder


def _check_fold(fold: Fold, loaded: LoadedDataset) -> None:
    """Refuse a finished run that is not just what the recipe would make of this fold."""
    for name in ("recipe.yaml", "splits.csv", "predictions.csv"):
        if not (fold.run.path / name).is_file():
            raise MedtlError(f"{fold.run.path} is finished but has no {name}. Move it away, and it is trained again.")
    check_unchanged(fold.run.path, "The folds were not summarised.")
    # Whether recipe.yaml names fold 0 depends on the version that wrote it; the split tells the fold in any case.
    check_same_run(fold.run, fold.recipe, loaded, ignored=["fold"])


def summarise(summary: RunFolder, runs: Sequence[RunFolder], recipe: Recipe, loaded: LoadedDataset) -> dict[str, Any]:
    """Write predictions.csv, figures/, recipe.yaml, README.md and, last, results.json of all folds.

    Args:
        summary: The folder to write to.
        runs: The finished folds, in order.
        recipe: The recipe of all folds.
        loaded: The data set, with any split.

    Returns:
        The content of results.json.
    """
    folder, task, singles = summary.path, task_for_dataset(loaded), [run.results for run in runs]
    tables = [run.predictions.assign(fold=fold) for fold, run in enumerate(runs)]
    table = pd.concat(tables, ignore_index=True)
    summary.write("predictions.csv", to_csv(table))
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    environments = [single["environment"] for single in singles]
    result = {
        **{key: singles[0][key] for key in ("dataset", "task")},
        "split": "out-of-fold",
        **task.pool_folds(table, singles, figures, "pooled folds"),
        "mean_over_folds": summarise_metrics([single["metrics"] for single in singles]),
        "folds": [
            {"fold": fold} | {key: single[key] for key in FOLD_KEYS if key in single}
            for fold, single in enumerate(singles)
        ],
        "train_seconds": round(sum(single["train_seconds"] for single in singles), 1),
        "peak_memory_mb": max(single["peak_memory_mb"] for single in singles),
    }
    if all("energy_kwh" in single for single in singles):
        result["energy_kwh"] = sum(single["energy_kwh"] for single in singles)
    # What is the same in all: folds may have been made on different machines.
    result["environment"] = {
        key: value for key, value in environments[0].items() if all(other.get(key) == value for other in environments)
    }
    if "external" in singles[0]:
        external = [single["external"]["metrics"] for single in singles]
        result["external_mean_over_folds"] = summarise_metrics(external)
    figure_names = sorted(path.name for path in figures.glob("*.png") if path.name != "by_fold.png")
    by_fold, metric = [single["metrics"] for single in singles], task.main_metric
    plots.by_fold(by_fold, result["metrics"], metric, METRIC_NAMES[metric], figures / "by_fold.png")
    recipe_yaml = recipe.to_yaml()
    facts = {
        "name": folder.name,
        "results": result,
        "spec": loaded.spec,
        "external": recipe.external_dataset,
        "has_threshold": singles[0]["threshold"] is not None,
        "shown": [name for name in ("roc_auc", "accuracy", "dice", "iou") if name in result["metrics"]],
        "main_metric": metric,
        "figures": figure_names,
        "recipe_yaml": recipe_yaml,
        "repeat": repeat_command(recipe, splits=False),
    }
    summary.write("recipe.yaml", recipe_yaml)
    summary.write("results.json", result)
    summary.write("README.md", render("folds", facts))
    summary.mark_finished()
    return result


def summarise_metrics(folds: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float | None]]:
    """Return mean, lowest and highest value of each metric that all folds have; None if a fold has no value."""
    summary: dict[str, dict[str, float | None]] = {}
    for name in (name for name in folds[0] if all(name in metrics for metrics in folds)):
        values = [metrics[name]["value"] for metrics in folds]
        if None in values:
            summary[name] = dict.fromkeys(("value", "lowest", "highest"))
        else:
            summary[name] = {"value": float(np.mean(values)), "lowest": min(values), "highest": max(values)}
    return summary
