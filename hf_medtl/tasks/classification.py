"""Image classification, as a row of `tasks.py`: what to learn, how it is judged, calibrated and shown."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax
from transformers import EvalPrediction, Pipeline, PreTrainedModel

from hf_medtl.data.images import read_image
from hf_medtl.data.loading import Loaded
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import plots
from hf_medtl.evaluation.calibration import fit_temperature
from hf_medtl.evaluation.decisions import choose_threshold, conformal_quantiles, parse_rule, set_results
from hf_medtl.evaluation.evaluate import predict, results, temperature_effect
from hf_medtl.evaluation.metrics import classification_metrics, decide
from hf_medtl.evaluation.paired import Rival, of_labels
from hf_medtl.models.build import build as build_classifier
from hf_medtl.models.heads import divide_logits
from hf_medtl.training.losses import LOSSES, ClassificationLoss, class_weights
from hf_medtl.training.recipe import Recipe

watched = "roc_auc"
reduce = verify = None
search_space = {"head_dropout": [0.0, 0.5], "mixup": [0.0, 0.4]}


def check(recipe: Recipe) -> None:
    """Raise MedtlError for what a recipe asks and labels do not allow."""
    recipe.refuse(
        ("encoder", "encoder_weights", "image_size", "mask_values", "largest_components", "fill_holes"),
        "only for --task image-segmentation. Leave it out, or give that.",
    )
    if recipe.loss not in LOSSES:
        raise MedtlError(f"--loss is one of {', '.join(LOSSES)} for labels, found {recipe.loss!r}.")
    parse_rule(recipe.threshold)
    if not 0 < recipe.conformal_alpha < 1:
        raise MedtlError(f"--conformal_alpha is a share between 0 and 1, found {recipe.conformal_alpha:g}.")


def output_labels(recipe: Recipe, loaded: Loaded) -> tuple[str, ...]:
    """(K,) those of the data set."""
    return loaded.labels


def build(recipe: Recipe, labels: tuple[str, ...]) -> tuple[PreTrainedModel, Any]:
    """Model and image processor of a recipe."""
    model, processor = build_classifier(
        recipe.model_name_or_path,
        labels,
        from_scratch=recipe.from_scratch,
        revision=recipe.model_revision,
        steps=recipe.steps,
        fit=recipe.fit,
        lung_model=recipe.lung_model,
        head_dropout=recipe.head_dropout,
    )
    # A backbone may have been made for several labels a picture, and pipeline() believes what it says.
    model.config.problem_type = None
    return model, processor


def start(recipe: Recipe, model: PreTrainedModel) -> str:
    """What the weights were before training, for people."""
    return "random weights" if recipe.from_scratch else recipe.base_model


def base_model(recipe: Recipe) -> tuple[str, str | None] | None:
    """Folder or id of the weights to start from, and the revision that was asked for."""
    return None if recipe.from_scratch else (recipe.model_name_or_path, recipe.model_revision)


def masks(config: Any, loaded: Loaded) -> dict[str, Any]:
    """Nothing: masks are not looked at."""
    return {}


def targets(loaded: Loaded, split: str) -> list[int]:
    """(n,) class index of each picture of a split."""
    return indices(loaded, split).tolist()


def indices(loaded: Loaded, split: str) -> NDArray[np.int64]:
    """(n,) the same as an array."""
    return loaded.table.loc[loaded.table["split"] == split, "label"].map(loaded.labels.index).to_numpy(np.int64)


kinds = indices  # pictures of a label look alike


def loss(recipe: Recipe, labels: tuple[str, ...], train: list[int]) -> ClassificationLoss:
    """That of a recipe, with class weights from the targets of the training split.

    Raises:
        MedtlError: a class without pictures can't be weighed.
    """
    counts = np.bincount(train, minlength=len(labels)).tolist()
    weights = class_weights(recipe.class_weights, counts, labels, recipe.effective_beta)
    return ClassificationLoss(
        None if recipe.class_weights == "none" else torch.tensor(weights, dtype=torch.float32),
        recipe.focal_gamma if recipe.loss == "focal" else 0.0,
        recipe.label_smoothing_factor,
    )


def validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Metrics of each epoch on the validation split, with the plain threshold 0.5 or argmax."""
    logits = torch.as_tensor(np.asarray(prediction.predictions))
    probabilities = logits.double().softmax(dim=1).numpy()
    values = classification_metrics(np.asarray(prediction.label_ids), probabilities, positive=logits.shape[1] - 1)
    return {name: float(value) for name, value in values.items()}


def answer(
    folder: Path | Pipeline, loaded: Loaded, split: str, read: Callable[[Path], Image.Image] = read_image
) -> NDArray[np.float64]:
    """Probabilities (n, K) of a split's original files, read by `read`, through the saved folder's own pipeline."""
    paths = loaded.table.loc[loaded.table["split"] == split, "path"]
    return predict(folder, [loaded.root / path for path in paths], read, loaded.spec.task)


def calibrate(
    model: PreTrainedModel, loaded: Loaded, chances: NDArray[np.float64], rule: str, alpha: float
) -> dict[str, Any]:
    """Fold a temperature into the head; it, threshold and conformal sets are extra keys of config.json.

    Args:
        model: is changed.
        loaded: whose validation split the probabilities belong to.
        chances: (n, K).
        rule: of the threshold.
        alpha: share of sets that may miss.
    """
    labels, positive = indices(loaded, "validation"), loaded.positive_index
    logits = np.log(chances.clip(1e-12))  # equal to the logits up to a constant that softmax does not see
    temperature = fit_temperature(logits, labels)
    divide_logits(model, temperature)
    calibrated = softmax(logits / temperature, axis=1)
    threshold = None
    if positive is not None:
        threshold = choose_threshold(rule, calibrated[:, positive], labels == positive)
    lowest = conformal_quantiles(calibrated, labels, alpha)
    return {
        "positive_label": loaded.positive,
        "threshold": threshold,
        "threshold_rule": None if threshold is None else rule,
        # Not "temperature": save_pretrained takes that for a parameter of text generation and refuses.
        "folded_temperature": temperature,
        "conformal": {
            "alpha": alpha,
            "lowest": dict(zip(loaded.labels, lowest.tolist(), strict=True)),
            "pictures": np.bincount(labels, minlength=len(loaded.labels)).tolist(),
        },
    }


def measure(loaded: Loaded, chances: NDArray[np.float64], config: Any) -> dict[str, Any]:
    """What results.json says of the test split of a data set."""
    labels = indices(loaded, "test")
    groups = loaded.table.loc[loaded.table["split"] == "test", "group"].tolist()
    numbers = results(labels, chances, groups, loaded.labels, loaded.positive, config.threshold)
    numbers |= {"threshold_rule": config.threshold_rule, "temperature": config.folded_temperature}
    if config.folded_temperature is not None:
        numbers["calibration"] = temperature_effect(labels, chances, groups, config.folded_temperature)
    if config.conformal is None:  # of a model that was not made here
        return numbers
    lowest = np.array([config.conformal["lowest"][label] for label in loaded.labels])  # config.json sorts them
    right = decide(chances, positive_output(loaded), config.threshold) == labels
    return {**numbers, "conformal": {**config.conformal, **set_results(chances, labels, lowest, right)}}


def positive_output(loaded: Loaded) -> int:
    """Output of the positive label, or the last where there is none, as `decide` takes it."""
    return len(loaded.labels) - 1 if loaded.positive_index is None else loaded.positive_index


def predictions(loaded: Loaded, chances: NDArray[np.float64]) -> pd.DataFrame:
    """Of the test split: image_id, label, group and each label's probability."""
    rows = loaded.table.loc[loaded.table["split"] == "test", ["image_id", "label", "group"]]
    return rows.assign(**{f"p_{label}": chances[:, i] for i, label in enumerate(loaded.labels)})


def rows(config: Any, loaded: Loaded, places: list[int], predictions: Sequence[Any]) -> pd.DataFrame:
    """Of some rows of the table: image_id, label, group and each label's probability by a `Prediction`."""
    chances = {f"p_{label}": [its.probabilities[label] for its in predictions] for label in loaded.labels}
    return loaded.table.loc[places, ["image_id", "label", "group"]].assign(**chances)


def worst(table: pd.DataFrame, result: dict[str, Any], number: int) -> list[dict[str, str]]:
    """Wrong decisions on the pictures whose true label has the lowest probability."""
    names, positive = result["labels"], result["positive_label"]
    true = table["label"].map(names.index).to_numpy(np.int64)
    chances = table[[f"p_{name}" for name in names]].to_numpy(np.float64)
    decided = decide(chances, names.index(positive) if positive else len(names) - 1, result["threshold"])
    of_true = chances[np.arange(len(true)), true]
    wrong = np.flatnonzero(decided != true)
    return [
        {
            "picture": table["image_id"].iloc[place],
            "true": names[true[place]],
            "decided": names[decided[place]],
            "probability of the true label": f"{of_true[place]:.3f}",
        }
        for place in wrong[of_true[wrong].argsort(kind="stable")][:number]
    ]


def draw(
    folder: Path | Pipeline,
    figures: Path,
    loaded: Loaded,
    chances: NDArray[np.float64],
    result: dict[str, Any],
    where: str = "test split",
) -> None:
    """Confusion matrix, ROC, reliability, and what abstaining would give."""
    labels = indices(loaded, "test")
    plots.confusion(result["confusion_matrix"], loaded.labels, figures / "confusion_matrix.png", where)
    plots.roc(labels, chances, loaded.labels, loaded.positive, result["threshold"], figures / "roc.png", where)
    plots.reliability(labels, chances, loaded.positive_index, figures / "reliability.png", where)
    if "conformal" in result:
        right = decide(chances, positive_output(loaded), result["threshold"]) == labels
        abstained = result["conformal"]["abstained"]["value"]
        plots.risk(chances.max(axis=1), right, abstained, figures / "risk_coverage.png", where)


def backbone(recipe: Recipe, name: str) -> dict[str, Any]:
    """Options that start from a backbone."""
    return {"model_name_or_path": name}


def scratch(recipe: Recipe) -> dict[str, Any]:
    """Options that give the same network random weights; none if it has them already."""
    return {} if recipe.from_scratch else {"from_scratch": True, "strategy": "full"}


def score(
    table: pd.DataFrame, result: dict[str, Any]
) -> tuple[list[str], Callable[[NDArray | None], NDArray[np.float64]]]:
    """Labels, within which groups are drawn, and the ROC AUC of a run's test pictures under weights (B, n)."""
    names, positive = result["labels"], result["positive_label"]
    labels = table["label"].map(names.index).to_numpy(np.int64)
    chances = table[[f"p_{name}" for name in names]].to_numpy(np.float64)
    index = names.index(positive) if positive else len(names) - 1

    def area(weights: NDArray | None) -> NDArray[np.float64]:
        return np.asarray(classification_metrics(labels, chances, index, None, weights, names=[watched])[watched])

    return table["label"].tolist(), area


def pool(table: pd.DataFrame, singles: list[dict[str, Any]], figures: Path, where: str) -> dict[str, Any]:
    """What results.json says of all folds' test pictures, each decided with the threshold of the fold's own model."""
    names, positive = singles[0]["labels"], singles[0]["positive_label"]
    labels = table["label"].map(names.index).to_numpy(np.int64)
    chances = table[[f"p_{name}" for name in names]].to_numpy(np.float64)
    own = None if positive is None else of_each([single["threshold"] for single in singles], table)
    found = results(labels, chances, table["group"].tolist(), names, positive, own)
    index = None if positive is None else names.index(positive)
    plots.confusion(found["confusion_matrix"], names, figures / "confusion_matrix.png", where)
    plots.roc(labels, chances, names, positive, own, figures / "roc.png", where)
    plots.reliability(labels, chances, index, figures / "reliability.png", where)
    return found


def rival(table: pd.DataFrame, singles: list[dict[str, Any]]) -> Rival:
    """A run, or all folds, each picture decided with the threshold of the model that was tested on it."""
    names, positive = singles[0]["labels"], singles[0]["positive_label"]
    own = None if positive is None else of_each([single["threshold"] for single in singles], table)
    return of_labels(table, names, positive, own)


def of_each(values: list[float], table: pd.DataFrame) -> float | NDArray[np.float64]:
    """The value of each picture's fold (n,), or the only one."""
    return values[0] if len(values) == 1 else np.array(values)[table["fold"]]
