"""Evaluation of a finished or published model on another data set: `hf-medtl evaluate`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from hf_medtl.common.csv_cells import to_csv
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.images import read_image
from hf_medtl.data.leakage import keep_seen, load_external, shared_images
from hf_medtl.data.metadata import subgroup_columns
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import plots
from hf_medtl.evaluation.decisions import proportion
from hf_medtl.evaluation.robustness import CORRUPTIONS, LEVELS, corrupt, robustness_results
from hf_medtl.evaluation.subgroups import generalization_gap, small_sample_warning
from hf_medtl.publish.card import write_evaluation
from hf_medtl.publish.templates import render
from hf_medtl.runs.evaluated_model import EvaluatedModel
from hf_medtl.runs.model_card import count_excluded
from hf_medtl.runs.output_folder import check_new, filling
from hf_medtl.tasks import Task, task_for_dataset
from hf_medtl.training.runtime import environment

logger = logging.getLogger("hf_medtl")

SHOWN = ("roc_auc", "sensitivity", "specificity", "dice", "iou")  # metrics of subgroups, those that a task has


def evaluate_model(
    model: str | Path,
    dataset: str,
    data_dir: str | Path | None = None,
    *,
    out: str | Path | None = None,
    split: str = "all",
    labels: Mapping[str, str] | None = None,
    by: Sequence[str] = (),
    drop_overlap: bool = False,
    training_data: str | Path | None = None,
    sources: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    positive: str | None = None,
    robust: bool = False,
    baseline: str | Path | None = None,
    dry_run: bool = False,
    revision: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    update_card: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Evaluate a model on a data set, as a recipe does with --external_dataset, and write the results to a folder.

    Args:
        model: run folder, or Hub id of any image classifier or segmentation model.
        dataset: as for `load_external`.
        data_dir: as for `load_external`.
        out: new folder; evaluations/MODEL-on-DATASET by default.
        split: as for `load_external`.
        labels: as for `load_external`.
        by: columns of metadata to report subgroups by, as for `subgroup_columns`.
        drop_overlap: as for `load_external`.
        training_data: the model's training images, so that near-duplicates of them are recognised, too.
        sources: as for `load_external`.
        columns: as for `load_external`.
        positive: the positive one of two labels, if the model does not record it.
        robust: also test on nine corruptions of the images at five levels: 46 times the work.
        baseline: run folder or Hub id of a model that this one's robustness is relative to.
        dry_run: check everything, write nothing.
        revision: as for `Predictor.from_pretrained`.
        device: as for `Predictor.from_pretrained`.
        trust_remote_code: as for `Predictor.from_pretrained`.
        update_card: with `out`, too, add the results to evaluations.json and the card of the run that is evaluated.

    Returns:
        The folder and results.json: the keys of a run's external results, and model, revision, internal (the model's
        own metrics and data set), no_drop (why there is no drop, or ""), overlap (seen, without_thumbnail, unsure),
        slices (column -> value -> n, n_groups, metrics, warning), and robustness if it was measured. The folder and
        card of an evaluated run keep most of it, unless `out` is given without `update_card`.

    Raises:
        MedtlError: As `EvaluatedModel.read`, `load_external`, `subgroup_columns` and `filling`.
    """
    subject = EvaluatedModel.read(model, training_data, positive, revision, device, trust_remote_code)
    predictor = subject.predictor
    folder = Path(out or f"evaluations/{subject.name.replace('/', '--')}-on-{dataset.replace('/', '--')}")
    check_new(folder)
    if subject.unsure:
        logger.warning("Overlap: %s.", subject.unsure)
    external = load_external(
        subject.seen,
        dataset,
        data_dir,
        labels=labels,
        drop_overlap=drop_overlap,
        sources=sources,
        columns=columns,
        split=split,
        option="--labels",
    )
    subgroups = subgroup_columns(external, data_dir, by)
    task = task_for_dataset(external)
    other = None
    if baseline:
        other = EvaluatedModel.read(baseline, training_data, positive, None, device, trust_remote_code)
    _check_robustness(subject, external, robust, other)
    task.check_external(predictor.config, external)
    excluded = "".join(f"; {number} excluded: {kind}" for kind, number in count_excluded(external).items())
    logger.info("%s on %s: %d images in %d groups%s.", subject.name, external.spec.title, len(external.table),
                external.table["group"].nunique(), excluded)  # fmt: skip
    if dry_run:
        logger.info("Dry run: model, data, labels and overlap were checked. Nothing was written.")
        return folder, {}
    with filling(folder, "evaluates a model") as staging:
        pipeline = predictor.pipeline()
        with predictor.collect_features() as features, torch.inference_mode():
            predictions = task.predict(pipeline, external, "test")
        results = {
            "model": subject.name,
            "revision": predictor.revision,
            "dataset": external.spec.name,
            "task": external.spec.task,
            "split": split,
            **task.measure(external, predictions, subject.rule),
            **({"outliers": proportion(predictor.ood_scores(features) > 1)} if features else {}),
            "internal": {
                key: subject.results[key]
                for key in ("dataset", "split", "n", "n_groups", "metrics")
                if key in subject.results
            },
            "slices": {
                name: _subgroup_results(task, external, predictions, subject, column)
                for name, column in subgroups.items()
            },
            "overlap": subject.overlap,
            "excluded": count_excluded(external),
            "environment": environment("float32", 1),
        }
        results["no_drop"] = _why_no_gap(subject, external)
        results["drop"] = {}
        if not results["no_drop"]:
            results["drop"] = generalization_gap(subject.results["metrics"], results["metrics"])
        figures = staging / "figures"
        figures.mkdir()
        if robust:
            results["robustness"] = _measure_robustness(task, external, predictions, subject, other)
            plots.robustness(results["robustness"], figures / "robustness.png", external.spec.name)
        task.draw_figures(pipeline, figures, external, predictions, results, external.spec.name)
        output = RunFolder(staging)
        output.write("predictions.csv", to_csv(task.prediction_table(external, predictions)))
        facts = {
            "results": results,
            "spec": external.spec,
            "figures": sorted(path.name for path in figures.glob("*.png")),
            "shown": [name for name in SHOWN if name in results["metrics"]],
        }
        output.write("README.md", render("evaluation", facts))
        output.write("results.json", results)
        if (Path(model) / "README.md").is_file() and (Path(model) / "results.json").is_file():
            if update_card or out is None:
                write_evaluation(Path(model), results, external.spec.title, SHOWN)
            else:
                logger.info("%s was not changed. --update_card adds the results to it and to its card.", model)
    return folder, results


def _why_no_gap(subject: EvaluatedModel, external: LoadedDataset) -> str:
    """Return why the metrics cannot be compared with the model's own, or ""."""
    if not subject.results.get("metrics"):
        return "the model has no results.json"
    seen = subject.seen.table
    own = external.table["sha256"].isin(seen.loc[seen["split"] == "test", "sha256"]).sum()
    return f"{own} of these are the model's own test images" if own else ""


def _check_robustness(
    subject: EvaluatedModel, external: LoadedDataset, robust: bool, other: EvaluatedModel | None
) -> None:
    """Check that robustness can be measured.

    Raises:
        MedtlError: A segmentation or multilabel model, a label without images, or a baseline without --robustness,
            with other labels, or that was trained on these images.
    """
    if other and not robust:
        raise MedtlError("--baseline needs --robustness, which is measured relative to it. Give both.")
    if robust and not task_for_dataset(external).supports_robustness:
        raise MedtlError("--robustness is only for classifiers with one label per image. Remove it.")
    absent = [label for label in external.labels if label not in set(external.table["label"])]
    if robust and absent:
        raise MedtlError(
            f"--robustness is measured by balanced accuracy, but {external.spec.name} has no images of "
            f"{', '.join(absent)}. Remove it, or test on data with all labels."
        )
    if other and other.predictor.labels != subject.predictor.labels:
        raise MedtlError(
            f"--baseline {other.name} has the labels {', '.join(other.predictor.labels)}, but the model has "
            f"{', '.join(subject.predictor.labels)}. Give a baseline with the same labels in the same order."
        )
    number = len(shared_images(keep_seen(other.seen), external)) if other else 0
    if other and number:
        raise MedtlError(
            f"--baseline {other.name} was trained on {number} of the {len(external.table)} images. Give a model that "
            "was not, such as a run with the same split."
        )


def _read_corrupted(path: Path, name: str, level: int) -> Image.Image:
    return corrupt(read_image(path), name, level)


def _measure_robustness(
    task: Task, external: LoadedDataset, predictions: Any, subject: EvaluatedModel, baseline: EvaluatedModel | None
) -> dict[str, Any]:
    """Return `robustness` of a model, given its predictions on clean images, relative to the baseline if given."""

    def predict_corrupted(model: EvaluatedModel, clean: Any = None) -> dict[str, list[Any]]:
        pipeline = model.predictor.pipeline()
        by_corruption = {"clean": [task.predict(pipeline, external, "test") if clean is None else clean]}
        levels = [(name, level) for name in CORRUPTIONS for level in LEVELS]
        for name, level in tqdm(levels, "Corruptions", unit="level", disable=None):
            read = partial(_read_corrupted, name=name, level=level)
            by_corruption.setdefault(name, []).append(task.predict(pipeline, external, "test", read))
        return by_corruption

    rule = subject.rule
    positive = external.labels.index(rule.positive) if rule.positive else len(external.labels) - 1
    labels = external.table["label"].map(external.labels.index).to_numpy(np.int64)
    relative_to = (predict_corrupted(baseline), baseline.rule.threshold) if baseline else None
    corrupted, groups = predict_corrupted(subject, predictions), external.table["group"].tolist()
    return robustness_results(labels, groups, corrupted, positive, rule.threshold, relative_to)


def _subgroup_results(
    task: Task, external: LoadedDataset, predictions: Any, subject: EvaluatedModel, column: pd.Series
) -> dict[str, dict[str, Any]]:
    """Value of a column -> n, n_groups, metrics with intervals, and a warning if the subgroup is small.

    Each subgroup is measured as if it were the whole data set: overlapping intervals do not mean that subgroups are
    equal, and among many subgroups one is the worst by chance.
    """
    groups, presence = external.table["group"], task.presence(external)
    subgroups = {}
    for value in column.cat.categories:
        rows = (column == value).to_numpy()
        part = replace(external, table=external.table[rows].reset_index(drop=True))
        measured = task.measure(part, predictions[rows], subject.rule)
        counts = {name: groups[rows & present].nunique() for name, present in presence.items() if present.any()}
        subgroups[str(value)] = {key: measured[key] for key in ("n", "n_groups", "metrics")} | {
            "warning": small_sample_warning(counts)
        }
    return subgroups
