"""What a finished or published model is worth on another data set: `hf-medtl evaluate`."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils.hub import cached_file

from hf_medtl.common.files import write
from hf_medtl.data.images import read_image
from hf_medtl.data.leakage import external, learnt, seen_in_training, shared_pictures
from hf_medtl.data.loading import Loaded
from hf_medtl.data.metadata import slices
from hf_medtl.data.readers import NEGATIVE
from hf_medtl.data.specs import DATASETS
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import plots
from hf_medtl.evaluation.decisions import share
from hf_medtl.evaluation.robustness import CORRUPTIONS, LEVELS, corrupt, robustness
from hf_medtl.evaluation.subgroups import drops, too_few
from hf_medtl.predict import Predictor
from hf_medtl.publish.card import put_evaluation
from hf_medtl.publish.templates import page
from hf_medtl.runs.artifacts import left_out
from hf_medtl.tasks import Task, task_of
from hf_medtl.training.recipe import without_place
from hf_medtl.training.runtime import environment

logger = logging.getLogger("hf_medtl")

SHOWN = ("roc_auc", "sensitivity", "specificity", "dice", "iou")  # of each slice, of those that a task has


@dataclass(frozen=True)
class Subject:
    """A model and what its folder says of where it comes from.

    Attributes:
        name: folder's name or Hub id.
        predictor: the model; its configuration says how to decide, whoever made it.
        internal: its results.json; empty where there is none.
        seen: what it has learnt from, as far as is known.
        unsure: why copies of what it has learnt from may not be recognised, or "".
    """

    name: str
    predictor: Predictor
    internal: dict[str, Any]
    seen: Loaded
    unsure: str

    @classmethod
    def read(
        cls,
        model: str | Path,
        training_data: str | Path | None = None,
        positive: str | None = None,
        revision: str | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> "Subject":
        """From a run folder or a Hub id; arguments as `evaluate_model`.

        Raises:
            MedtlError: as `Predictor.from_pretrained` and `learnt`; a positive label that the model does not have.
        """
        predictor = Predictor.from_pretrained(model, revision, device, trust_remote_code)
        settle(predictor, positive)
        beside = {
            name: cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)
            for name in ("results.json", "recipe.yaml", "splits.csv")
        }
        internal = json.loads(Path(beside["results.json"]).read_text("utf-8")) if beside["results.json"] else {}
        recipe = yaml.safe_load(Path(beside["recipe.yaml"]).read_text("utf-8")) if beside["recipe.yaml"] else {}
        name = without_place(str(model))
        dataset = internal.get("dataset") or recipe.get("dataset") or name
        spec = replace(
            DATASETS.get(dataset, replace(DATASETS["imagefolder"], name=dataset, title=dataset)),
            task="image-segmentation" if predictor.of_masks else "image-classification",
            labels=predictor.labels,
            several=predictor.several,
            positive=predictor.config.positive_label,
        )
        if predictor.of_masks and dataset not in DATASETS and len(predictor.labels) == 2:
            spec = replace(spec, mask_shows=predictor.labels[1])
        splits = Path(beside["splits.csv"]) if beside["splits.csv"] else None
        if training_data and not splits:
            raise MedtlError(f"{name} has no splits.csv, so nobody knows which of these pictures it has learnt from. "
                             "Leave out --training_data.")  # fmt: skip
        seen = learnt(spec, splits, training_data)
        bare = unseen(seen)
        unsure = ""
        if not splits:
            unsure = "the model has no splits.csv, so nobody can tell whether it has learnt from these pictures"
        elif bare:
            unsure = (
                f"of {bare} pictures that the model has learnt from only equal files "
                "can be recognised, no cropped, scaled or otherwise saved ones. Give them with --training_data"
            )
        return cls(name, predictor, internal, seen, unsure)


def unseen(seen: Loaded) -> int:
    """How many of the pictures that a model has learnt from have no thumbnail to recognise them by."""
    return sum(
        split != "test" and not item.thumbnail for split, item in zip(seen.table["split"], seen.prints, strict=True)
    )


def settle(predictor: Predictor, positive: str | None = None) -> None:
    """Fill in what the configuration of a model that was not made here does not say of decisions.

    Of two labels the one that does not sound like absence is positive, from 0.5 on; several labels each from 0.5 on.
    There are no sets, and masks are as they come.

    Raises:
        MedtlError: a positive label that is not one of two.
    """
    config, labels = predictor.config, predictor.labels
    binary = len(labels) == 2 and not predictor.several and not predictor.of_masks
    if positive and not (binary and positive in labels):
        raise MedtlError(f"--positive_label is one of two labels of the model, which has {', '.join(labels)}.")
    guess = next((label for label in reversed(labels) if not re.fullmatch(NEGATIVE, label)), labels[-1])
    known = getattr(config, "positive_label", None)
    if positive and known and positive != known:
        raise MedtlError(f"The model's threshold is one of {known}. Leave out --positive_label {positive}.")
    usual: dict[str, Any] = {
        "positive_label": (positive or guess) if binary else None,
        "threshold": 0.5 if binary else None,
        "threshold_rule": None,
        "thresholds": dict.fromkeys(labels, 0.5),
        "unfitted_thresholds": list(labels),
        "folded_temperature": None,
        "conformal": None,
        "mask_values": None,
        "postprocessing": {},
    }
    if predictor.of_masks and len(labels) > 2 and not getattr(config, "mask_values", None):
        raise MedtlError(
            f"The model outlines {', '.join(labels[1:])}, and its configuration has no mask_values, so nobody knows "
            "which grey value of a mask means which. Give a model of one class beside the background, or one trained "
            "with --mask_values."
        )
    config.update({name: value for name, value in usual.items() if getattr(config, name, None) is None})


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
    positive: str | None = None,
    robust: bool = False,
    baseline: str | Path | None = None,
    dry_run: bool = False,
    revision: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Test a model on a data set, as a recipe does with --external_dataset; write what is found to a folder.

    Args:
        model: run folder, or id on the Hub of any image classifier or segmentation model.
        dataset, data_dir, split, labels, drop_overlap, sources: as for `external`.
        out: new folder; evaluations/MODEL-on-DATASET if not given.
        by: columns of metadata to report slices by, as for `slices`.
        training_data: the pictures that the model has learnt from, so that near copies of them are recognised, too.
        positive: the positive one of two labels, where the model does not say.
        robust: test on nine corruptions of the pictures at five levels, too: 46 times the work.
        baseline: run folder or id of a model that this one's robustness is relative to.
        dry_run: check everything, write nothing.
        revision, device, trust_remote_code: as for `Predictor.from_pretrained`.

    Returns:
        The folder and results.json: what a run's says of its external data set, and model, revision, internal (the
        model's own metrics and data set), no_drop (why there is no drop, or ""), overlap (seen, without_thumbnail,
        unsure), slices (column -> value -> n, n_groups, metrics, warning), perhaps robustness. The folder and the card
        of a run that is evaluated keep the most of it.

    Raises:
        MedtlError: as `Subject.read`, `external` and `slices`; a folder that is not empty.
    """
    subject = Subject.read(model, training_data, positive, revision, device, trust_remote_code)
    predictor = subject.predictor
    folder = Path(out or f"evaluations/{subject.name.replace('/', '--')}-on-{dataset.replace('/', '--')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MedtlError(f"{folder} is not empty. Give another --out, or move it away.")
    if subject.unsure:
        logger.warning("Overlap: %s.", subject.unsure)
    outside = external(
        subject.seen,
        dataset,
        data_dir,
        labels=labels,
        drop_overlap=drop_overlap,
        sources=sources,
        split=split,
        option="--labels",
    )
    columns = slices(outside, data_dir, by)
    task = task_of(outside)
    other = Subject.read(baseline, training_data, positive, None, device, trust_remote_code) if baseline else None
    check_robustness(subject, outside, robust, other)
    if task.verify:
        task.verify(predictor.config, outside)
    aside = "".join(f"; {number} left out: {kind}" for kind, number in left_out(outside).items())
    logger.info("%s on %s: %d pictures in %d groups%s.", subject.name, outside.spec.title, len(outside.table),
                outside.table["group"].nunique(), aside)  # fmt: skip
    if dry_run:
        logger.info("Dry run: model, data, labels and overlap are fine. Nothing was written.")
        return folder, {}
    classify = predictor.pipeline()
    with predictor.watching() as features, torch.inference_mode():
        answers = task.answer(classify, outside, "test")
    result = {
        "model": subject.name,
        "revision": predictor.revision,
        "dataset": outside.spec.name,
        "task": outside.spec.task,
        "split": split,
        **task.measure(outside, answers, predictor.config),
        **({"outliers": share(predictor.outlierness(features) > 1)} if features else {}),
        "internal": {
            key: subject.internal[key]
            for key in ("dataset", "split", "n", "n_groups", "metrics")
            if key in subject.internal
        },
        "slices": {name: sliced(task, outside, answers, predictor, column) for name, column in columns.items()},
        "overlap": {
            "seen": int((subject.seen.table["split"] != "test").sum()),
            "without_thumbnail": unseen(subject.seen),
            "unsure": subject.unsure,
        },
        "excluded": left_out(outside),
        "environment": environment("float32", 1),
    }
    result["no_drop"] = why_no_drop(subject, outside)
    result["drop"] = {} if result["no_drop"] else drops(subject.internal["metrics"], result["metrics"])
    if robust:
        beside = other.predictor if other else None
        result["robustness"] = measure_robustness(task, outside, answers, predictor, beside)
    figures = folder / "figures"
    figures.mkdir(parents=True)
    if robust:
        plots.robustness(result["robustness"], figures / "robustness.png", outside.spec.name)
    task.draw(classify, figures, outside, answers, result, outside.spec.name)
    write(folder / "predictions.csv", task.predictions(outside, answers).to_csv(index=False))
    facts = {
        "results": result,
        "spec": outside.spec,
        "figures": sorted(path.name for path in figures.glob("*.png")),
        "shown": [name for name in SHOWN if name in result["metrics"]],
    }
    write(folder / "README.md", page("evaluation", facts))
    write(folder / "results.json", result)
    if (Path(model) / "README.md").is_file() and (Path(model) / "results.json").is_file():
        put_evaluation(Path(model), result, outside.spec.title, SHOWN)
    return folder, result


def why_no_drop(subject: Subject, outside: Loaded) -> str:
    """Why these metrics can't be set against the model's own, or ""."""
    if not subject.internal.get("metrics"):
        return "the model has no results.json"
    table = subject.seen.table
    own = outside.table["sha256"].isin(table.loc[table["split"] == "test", "sha256"]).sum()
    return f"{own} of these are the model's own test pictures" if own else ""


def check_robustness(subject: Subject, outside: Loaded, robust: bool, other: Subject | None) -> None:
    """Refuse what robustness can't be measured of.

    Raises:
        MedtlError: a model of masks or of several labels a picture, a label without pictures, a baseline without
            --robustness, of other labels, or that has learnt from these pictures.
    """
    if other and not robust:
        raise MedtlError("--baseline is what --robustness is relative to, which is not given. Give both.")
    if robust and (subject.predictor.of_masks or subject.predictor.several):
        raise MedtlError("--robustness is for classifiers of one label a picture. Leave it out.")
    absent = [label for label in outside.labels if label not in set(outside.table["label"])]
    if robust and absent:
        raise MedtlError(
            f"--robustness is measured by the balanced accuracy, and {outside.spec.name} has no pictures of "
            f"{', '.join(absent)}. Leave it out, or test on data with all labels."
        )
    if other and other.predictor.labels != subject.predictor.labels:
        raise MedtlError(
            f"--baseline {other.name} has the labels {', '.join(other.predictor.labels)}, the model "
            f"{', '.join(subject.predictor.labels)}. Give one with the same, in the same order."
        )
    number = len(shared_pictures(seen_in_training(other.seen), outside)) if other else 0
    if other and number:
        raise MedtlError(
            f"--baseline {other.name} has learnt from {number} of the {len(outside.table)} pictures. Give one that "
            "has not, such as a run of the same split."
        )


def read_worse(path: Path, name: str, level: int) -> Image.Image:
    """A picture, made worse by a corruption."""
    return corrupt(read_image(path), name, level)


def measure_robustness(
    task: Task, outside: Loaded, answers: Any, predictor: Predictor, baseline: Predictor | None
) -> dict[str, Any]:
    """`robustness` of a model, with `answers` on the pictures as they are, and perhaps relative to another one."""
    kinds = [(name, level) for name in CORRUPTIONS for level in LEVELS]

    def all_answers(model: Predictor, clean: Any) -> dict[str, list[Any]]:
        classify = model.pipeline()
        found = {"clean": [task.answer(classify, outside, "test") if clean is None else clean]}
        for name, level in tqdm(kinds, "Corruptions", unit="level", disable=None):
            read = partial(read_worse, name=name, level=level)
            found.setdefault(name, []).append(task.answer(classify, outside, "test", read))
        return found

    config = predictor.config
    positive = outside.labels.index(config.positive_label) if config.positive_label else len(outside.labels) - 1
    labels = outside.table["label"].map(outside.labels.index).to_numpy(np.int64)
    other = (all_answers(baseline, None), baseline.config.threshold) if baseline else None
    return robustness(
        labels, outside.table["group"].tolist(), all_answers(predictor, answers), positive, config.threshold, other
    )


def sliced(
    task: Task, outside: Loaded, answers: Any, predictor: Predictor, column: pd.Series
) -> dict[str, dict[str, Any]]:
    """Value of a column -> n, n_groups, metrics with intervals, and a warning where it is too small.

    Each is measured as if it were the whole data set: intervals that overlap don't say that slices are equal, and of
    many one is worst by chance.
    """
    has = np.ones((len(column), 1), bool) if outside.spec.of_masks else outside.has()
    names = ["the masks"] if outside.spec.of_masks else list(outside.labels)
    groups = outside.table["group"]
    found = {}
    for value in column.cat.categories:
        rows = (column == value).to_numpy()
        part = replace(outside, table=outside.table[rows].reset_index(drop=True))
        its = task.measure(part, answers[rows], predictor.config)
        count = {
            name: groups[rows & with_it].nunique() for name, with_it in zip(names, has.T, strict=True) if with_it.any()
        }
        found[str(value)] = {key: its[key] for key in ("n", "n_groups", "metrics")} | {"warning": too_few(count)}
    return found
