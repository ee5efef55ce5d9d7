"""All folds of a recipe: each an ordinary run, and what they say together."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache

from hf_medtl.common.files import write
from hf_medtl.data.loading import Loaded
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import plots
from hf_medtl.evaluation.names import NAMES
from hf_medtl.publish.templates import page
from hf_medtl.runs.console import show_folds, show_folds_plan
from hf_medtl.runs.folder import changes, check_split, is_finished
from hf_medtl.tasks import Task, task_of
from hf_medtl.training.data import read
from hf_medtl.training.recipe import Recipe

logger = logging.getLogger("hf_medtl")

SUMMARY = ("README.md", "figures", "predictions.csv", "recipe.yaml", "results.json")
OF_EACH = ("n", "n_groups", "threshold", "temperature", "metrics", "train_seconds", "splits_sha256")  # fold, in all's


def cross_validate(recipe: Recipe, run: Callable[[Recipe], Path]) -> Path:
    """Run each fold that is not finished in OUTPUT_DIR/fold-K, then write what all say together; return the folder.

    An unfinished fold goes on from its newest whole checkpoint with --resume_from_checkpoint auto, as a single run.

    Args:
        recipe: with `folds` and without `fold`.
        run: makes one run.

    Raises:
        MedtlError: a finished fold is of another recipe or split, the folder holds something else, or as `run`.
    """
    folder = Path(str(recipe.output_dir))
    check_place(folder)
    singles = [recipe.of_fold(fold) for fold in range(recipe.folds)]
    folders = [Path(str(single.output_dir)) for single in singles]
    plan = []
    for single, its in zip(singles, folders, strict=True):
        with recipe.main_process_first(local=True):  # the other processes find its caches
            loaded = read(single)
        if is_finished(its):
            check_fold(its, single, loaded)
        parts = {split: str((loaded.table["split"] == split).sum()) for split in ("train", "validation", "test")}
        plan.append({"fold": str(single.fold), "state": state(its), **parts})
    if recipe.should_save:
        show_folds_plan(plan, folder)
    for single, its in zip(singles, folders, strict=True):
        if not is_finished(its):
            logger.info("Fold %d, the last is %d", single.fold, len(singles) - 1)
            run(single)
            # Trainer, model and callbacks refer to each other: without this, two folds' models are in memory.
            clear_device_cache(garbage_collection=True)
            if recipe.dry_run:
                break
    if recipe.should_save and not recipe.dry_run:
        show_folds(folder, summarise(folder, folders, recipe, task_of(loaded), loaded))
    PartialState().wait_for_everyone()
    return folder


def check_place(folder: Path) -> None:
    """Refuse a folder that is something else than the place of unfinished folds.

    Raises:
        MedtlError: it holds a finished run or cross-validation, or other files, or is a file.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise MedtlError(f"--output_dir {folder} is a file. Give a folder that is new, empty or holds folds.")
    if (folder / "results.json").exists():
        raise MedtlError(f"{folder} holds finished results. Give another --output_dir, or move that one away.")
    others = [p.name for p in folder.iterdir() if not p.name.startswith(("fold-", ".")) and p.name not in SUMMARY]
    if others:
        raise MedtlError(
            f"{folder} holds something else than folds ({', '.join(sorted(others)[:3])}). Give an --output_dir that is "
            "new, empty or holds folds; for a single run give --fold."
        )


def check_fold(folder: Path, recipe: Recipe, loaded: Loaded) -> None:
    """Refuse a finished run that is not just what this recipe would make of this fold.

    Raises:
        MedtlError: another recipe, other pictures or another split.
    """
    for name in ("recipe.yaml", "splits.csv", "predictions.csv"):
        if not (folder / name).is_file():
            raise MedtlError(f"{folder} is finished but has no {name}. Move it away, and it is trained again.")
    # Whether recipe.yaml names fold 0 depends on the version that wrote it; the split tells the fold in any case.
    found = [words for key, words in changes(folder, recipe.to_yaml()).items() if key != "fold"]
    if found:
        raise MedtlError(
            f"{'; '.join(found)}. All folds need one recipe: give what it was, or move {folder} away, and it is "
            "trained again."
        )
    check_split(folder, loaded.table)


def state(folder: Path) -> str:
    """Of a fold, for people."""
    if is_finished(folder):
        return "finished"
    return "begun" if any(folder.glob("checkpoint-*/trainer_state.json")) else "to do"


def summarise(folder: Path, folders: Sequence[Path], recipe: Recipe, task: Task, loaded: Loaded) -> dict[str, Any]:
    """Write predictions.csv, figures/, recipe.yaml, README.md and, last, results.json of all folds; return the results.

    Args:
        folder: where to.
        folders: of the finished folds, in order.
        loaded: the data set, split in any way.
    """
    singles = [json.loads((its / "results.json").read_text("utf-8")) for its in folders]
    table = pd.concat([read_predictions(its).assign(fold=fold) for fold, its in enumerate(folders)], ignore_index=True)
    write(folder / "predictions.csv", table.to_csv(index=False))
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    environments = [single["environment"] for single in singles]
    result = {
        **{key: singles[0][key] for key in ("dataset", "task")},
        "split": "out-of-fold",
        **task.pool(table, singles, figures, "pooled folds"),
        "mean_over_folds": spreads([single["metrics"] for single in singles]),
        "folds": [
            {"fold": fold} | {key: single[key] for key in OF_EACH if key in single}
            for fold, single in enumerate(singles)
        ],
        "train_seconds": round(sum(single["train_seconds"] for single in singles), 1),
        "peak_memory_mb": max(single["peak_memory_mb"] for single in singles),
        **(
            {"energy_kwh": sum(single["energy_kwh"] for single in singles)}
            if all("energy_kwh" in single for single in singles)
            else {}
        ),
        # What is the same in all: folds may have been made on several machines.
        "environment": {k: v for k, v in environments[0].items() if all(its.get(k) == v for its in environments)},
    }
    if "external" in singles[0]:
        result["external_mean_over_folds"] = spreads([single["external"]["metrics"] for single in singles])
    own = sorted(path.name for path in figures.iterdir())
    each = [single["metrics"] for single in singles]
    plots.by_fold(each, result["metrics"], task.watched, NAMES[task.watched], figures / "by_fold.png")
    recipe_yaml = recipe.to_yaml()
    facts = {
        "name": folder.name,
        "results": result,
        "spec": loaded.spec,
        "external": recipe.external_dataset,
        "decided": singles[0]["threshold"] is not None,
        "shown": [name for name in ("roc_auc", "accuracy", "dice", "iou") if name in result["metrics"]],
        "watched": task.watched,
        "figures": [name for name in own if name != "by_fold.png"],
        "recipe_yaml": recipe_yaml,
    }
    write(folder / "recipe.yaml", recipe_yaml)
    write(folder / "README.md", page("folds", facts))
    write(folder / "results.json", result)
    return result


def read_predictions(folder: Path) -> pd.DataFrame:
    """predictions.csv of a run, in which a picture without labels has an empty one."""
    names = {"image_id": str, "label": str, "group": str, "source": str}
    return pd.read_csv(folder / "predictions.csv", dtype=names, keep_default_na=False)


def spreads(metrics: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float | None]]:
    """Metric -> mean, lowest and highest value over the folds; null where one of them has none."""
    found: dict[str, dict[str, float | None]] = {}
    for name in metrics[0]:
        values = [its[name]["value"] for its in metrics]
        known = None not in values
        found[name] = {
            "value": float(np.mean(values)) if known else None,
            "lowest": min(values) if known else None,
            "highest": max(values) if known else None,
        }
    return found
