"""Any number of labels a picture, as a row of `tasks.py`: image classification with a sigmoid for each label."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from transformers import EvalPrediction, Pipeline, PreTrainedModel

from hf_medtl.data.loading import Loaded
from hf_medtl.data.specs import labels_of
from hf_medtl.evaluation import plots
from hf_medtl.evaluation.calibration import fit_temperature_of_several
from hf_medtl.evaluation.decisions import choose_threshold
from hf_medtl.evaluation.evaluate import results_of_several
from hf_medtl.evaluation.metrics import classification_metrics
from hf_medtl.evaluation.paired import Rival, of_several
from hf_medtl.models.heads import divide_logits
from hf_medtl.tasks import classification
from hf_medtl.tasks.classification import (
    answer,
    backbone,
    base_model,
    check,
    masks,
    of_each,
    output_labels,
    reduce,
    scratch,
    search_space,
    start,
    verify,
    watched,
)
from hf_medtl.training.losses import MultiLabelLoss, class_weights
from hf_medtl.training.recipe import Recipe

__all__ = [
    "answer",
    "backbone",
    "base_model",
    "build",
    "calibrate",
    "check",
    "draw",
    "kinds",
    "loss",
    "masks",
    "measure",
    "output_labels",
    "pool",
    "predictions",
    "reduce",
    "rival",
    "score",
    "scratch",
    "search_space",
    "start",
    "targets",
    "validation_metrics",
    "verify",
    "watched",
]

logger = logging.getLogger("hf_medtl")


def build(recipe: Recipe, labels: tuple[str, ...]) -> tuple[PreTrainedModel, Any]:
    """Model and image processor of a recipe; stock `pipeline()` applies a sigmoid to each output."""
    recipe.refuse(("conformal_alpha",), "not where a picture can have several labels. Leave it out.")
    model, processor = classification.build(recipe, labels)
    model.config.problem_type = "multi_label_classification"
    return model, processor


def targets(loaded: Loaded, split: str) -> NDArray[np.float32]:
    """(n, K) 1 for each label that a picture of a split has, else 0."""
    return loaded.has()[loaded.table["split"] == split].astype(np.float32)


def loss(recipe: Recipe, labels: tuple[str, ...], train: NDArray[np.float32]) -> MultiLabelLoss:
    """That of a recipe; class weights are those of each label's positives to its negatives in the training split.

    Raises:
        MedtlError: a label that no picture has, or every one, can't be weighed.
    """
    weights = []
    for label, positives in zip(labels, train.sum(axis=0), strict=True):
        counts, names = (len(train) - int(positives), int(positives)), (f"the absence of {label}", label)
        absence, presence = class_weights(recipe.class_weights, counts, names, recipe.effective_beta)
        weights.append(presence / absence)
    return MultiLabelLoss(
        None if recipe.class_weights == "none" else torch.tensor(weights, dtype=torch.float32),
        recipe.focal_gamma if recipe.loss == "focal" else 0.0,
        recipe.label_smoothing_factor,
    )


def validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Metrics of each epoch with thresholds of 0.5: means over the labels that they are defined for.

    `auc_labels` is the number of labels that validation has pictures with and without, those of roc_auc.
    """
    chances = expit(np.asarray(prediction.predictions, np.float64))
    singles = [
        classification_metrics(has.astype(np.int64), np.column_stack([1 - p, p]))
        for has, p in zip(np.asarray(prediction.label_ids).T, chances.T, strict=True)
    ]
    found = pd.DataFrame(singles, dtype=np.float64)
    return {**{str(name): float(value) for name, value in found.mean().items()},
            "auc_labels": float(found["roc_auc"].notna().sum())}  # fmt: skip


def calibrate(
    model: PreTrainedModel, loaded: Loaded, chances: NDArray[np.float64], rule: str, alpha: float
) -> dict[str, Any]:
    """Fold one temperature for all labels into the head; it and each label's threshold are extra keys of config.json.

    Args:
        model: is changed.
        loaded: whose validation split the probabilities belong to.
        chances: (n, K).
        rule: of the thresholds.
        alpha: not used, as there are no sets.
    """
    has = targets(loaded, "validation") > 0
    logits = logit(chances.clip(1e-7, 1 - 1e-7))  # as near to 1 as float32 can tell
    temperature = fit_temperature_of_several(logits, has)
    divide_logits(model, temperature)
    thresholds = {
        label: choose_threshold(rule, scores, its)
        for label, scores, its in zip(loaded.labels, expit(logits / temperature).T, has.T, strict=True)
        if its.any() and not its.all()
    }
    unfitted = [label for label in loaded.labels if label not in thresholds]
    if unfitted:
        logger.warning("No threshold can be fitted for %s, of which validation has no picture, or no other; it is 0.5.",
                       ", ".join(unfitted))  # fmt: skip
    return {
        "thresholds": {label: thresholds.get(label, 0.5) for label in loaded.labels},
        "unfitted_thresholds": unfitted,
        "folded_temperature": temperature,
    }


def kinds(loaded: Loaded, split: str) -> NDArray[np.int64]:
    """(n,) zeros: combinations of labels are too many to be kinds."""
    return np.zeros(int((loaded.table["split"] == split).sum()), np.int64)


def measure(loaded: Loaded, chances: NDArray[np.float64], config: Any) -> dict[str, Any]:
    """What results.json says of the test split of a data set."""
    groups = loaded.table.loc[loaded.table["split"] == "test", "group"].tolist()
    has = targets(loaded, "test") > 0
    numbers = results_of_several(has, chances, groups, config.thresholds)
    for label in config.unfitted_thresholds:
        numbers["per_label"][label]["threshold_fitted"] = False
    return {**numbers, "temperature": config.folded_temperature}


def predictions(loaded: Loaded, chances: NDArray[np.float64]) -> pd.DataFrame:
    """Of the test split: image_id, label (with | between several), group and each label's probability."""
    return classification.predictions(loaded, chances)


rows = classification.rows


def worst(table: pd.DataFrame, result: dict[str, Any], number: int) -> list[dict[str, str]]:
    """Wrong decisions on single labels whose probability is farthest on the wrong side of the label's threshold."""
    found = []
    for label, its in result["per_label"].items():
        has = np.array([label in labels_of(cell) for cell in table["label"]])
        chances, threshold = table[f"p_{label}"].to_numpy(np.float64), its["threshold"]
        wrong = np.flatnonzero((chances >= threshold) != has)
        found += [(abs(chances[place] - threshold), place, label, has[place], chances[place]) for place in wrong]
    return [
        {
            "picture": table["image_id"].iloc[place],
            "label": label,
            "true": "present" if has else "absent",
            "probability": f"{chance:.3f}",
        }
        for _, place, label, has, chance in sorted(found, key=lambda its: -its[0])[:number]
    ]


def draw(
    folder: Path | Pipeline,
    figures: Path,
    loaded: Loaded,
    chances: NDArray[np.float64],
    result: dict[str, Any],
    where: str = "test split",
) -> None:
    """ROC of each label, and reliability of all together."""
    has = targets(loaded, "test") > 0
    plots.roc_of_several(has, chances, loaded.labels, figures / "roc.png", where)
    plots.reliability_of_several(has, chances, figures / "reliability.png", where)


def score(
    table: pd.DataFrame, result: dict[str, Any]
) -> tuple[list[str], Callable[[NDArray | None], NDArray[np.float64]]]:
    """One kind for all, and the mean ROC AUC over those labels that have pictures with and without."""
    areas = []
    for name in result["labels"]:
        has = np.array([name in labels_of(cell) for cell in table["label"]])
        if has.any() and not has.all():
            chances = table[f"p_{name}"].to_numpy(np.float64)
            areas.append((has.astype(np.int64), np.column_stack([1 - chances, chances])))

    def mean(weights: NDArray | None) -> NDArray[np.float64]:
        each = [classification_metrics(*area, 1, None, weights, names=[watched])[watched] for area in areas]
        return np.mean(np.array(each), axis=0)

    return [""] * len(table), mean


def pool(table: pd.DataFrame, singles: list[dict[str, Any]], figures: Path, where: str) -> dict[str, Any]:
    """What results.json says of all folds' test pictures, each decided with the thresholds of the fold's own model."""
    names = singles[0]["labels"]
    has, own = marked(table, singles)
    chances = table[[f"p_{name}" for name in names]].to_numpy(np.float64)
    found = results_of_several(has, chances, table["group"].tolist(), own)
    for name in names:
        fitted = [single["per_label"][name]["threshold_fitted"] for single in singles]
        found["per_label"][name]["threshold_fitted"] = all(fitted)
    plots.roc_of_several(has, chances, names, figures / "roc.png", where)
    plots.reliability_of_several(has, chances, figures / "reliability.png", where)
    return found


def rival(table: pd.DataFrame, singles: list[dict[str, Any]]) -> Rival:
    """A run, or all folds, each picture decided with the thresholds of the model that was tested on it."""
    return of_several(table, *marked(table, singles))


def marked(
    table: pd.DataFrame, singles: list[dict[str, Any]]
) -> tuple[NDArray[np.bool_], dict[str, float | NDArray[np.float64]]]:
    """(n, K) which picture of predictions.csv has which label, and label -> threshold of each picture's model."""
    names = singles[0]["labels"]
    has = np.array([[name in labels_of(cell) for name in names] for cell in table["label"]])
    return has, {name: of_each([single["per_label"][name]["threshold"] for single in singles], table) for name in names}
