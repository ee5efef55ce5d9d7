"""Image classification, as a row of `tasks.py`: what to learn, how it is judged, calibrated and shown."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from transformers import EvalPrediction, PreTrainedModel

from hf_medtl.data.images import read_image
from hf_medtl.data.load import Loaded
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import plots
from hf_medtl.evaluation.calibration import fit_temperature, youden_threshold
from hf_medtl.evaluation.evaluate import predict, results
from hf_medtl.evaluation.metrics import classification_metrics
from hf_medtl.models.build import build as build_classifier
from hf_medtl.models.head import divide_logits
from hf_medtl.training.losses import LOSSES, ClassificationLoss, class_weights
from hf_medtl.training.recipe import Recipe

watched = "roc_auc"
reduce = drop = verify = None
search_space = {"head_dropout": [0.0, 0.5], "mixup": [0.0, 0.4]}


def check(recipe: Recipe) -> None:
    """Raise MedtlError for what a recipe asks and labels do not allow."""
    recipe.refuse(
        ("encoder", "encoder_weights", "image_size", "mask_values", "largest_components", "fill_holes"),
        "only for --task image-segmentation. Leave it out, or give that.",
    )
    if recipe.loss not in LOSSES:
        raise MedtlError(f"--loss is one of {', '.join(LOSSES)} for labels, found {recipe.loss!r}.")


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
        head_dropout=recipe.head_dropout,
    )
    # A backbone may have been made for several labels a picture, and pipeline() believes what it says.
    model.config.problem_type = None
    return model, processor


def start(recipe: Recipe, model: PreTrainedModel) -> str:
    """What the weights were before training, for people."""
    return "random weights" if recipe.from_scratch else recipe.base_model


def base_model(recipe: Recipe) -> str | None:
    """What the Hub calls base model."""
    return None if recipe.from_scratch else recipe.base_model


def masks(config: Any, loaded: Loaded) -> dict[str, Any]:
    """Nothing: masks are not looked at."""
    return {}


def targets(loaded: Loaded, split: str) -> list[int]:
    """(n,) class index of each picture of a split."""
    return indices(loaded, split).tolist()


def indices(loaded: Loaded, split: str) -> NDArray[np.int64]:
    """(n,) the same as an array."""
    return loaded.table.loc[loaded.table["split"] == split, "label"].map(loaded.labels.index).to_numpy(np.int64)


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


def answer(folder: Path, loaded: Loaded, split: str) -> NDArray[np.float64]:
    """Probabilities (n, K) of a split's original files, through the saved folder's own pipeline."""
    paths = loaded.table.loc[loaded.table["split"] == split, "path"]
    return predict(folder, [loaded.root / path for path in paths], read_image, loaded.spec.task)


def calibrate(model: PreTrainedModel, loaded: Loaded, chances: NDArray[np.float64]) -> dict[str, Any]:
    """Fold a temperature into the head; it, the positive label and its threshold are extra keys of config.json.

    Args:
        model: is changed.
        loaded: whose validation split the probabilities belong to.
        chances: (n, K).
    """
    labels, positive = indices(loaded, "validation"), loaded.positive_index
    logits = np.log(chances.clip(1e-12))  # equal to the logits up to a constant that softmax does not see
    temperature = fit_temperature(logits, labels)
    divide_logits(model, temperature)
    threshold = None
    if positive is not None:
        threshold = youden_threshold(softmax(logits / temperature, axis=1)[:, positive], labels == positive)
    # Not "temperature": save_pretrained takes that for a parameter of text generation and refuses.
    return {"positive_label": loaded.positive, "threshold": threshold, "folded_temperature": temperature}


def measure(loaded: Loaded, chances: NDArray[np.float64], config: Any) -> dict[str, Any]:
    """What results.json says of the test split of a data set."""
    groups = loaded.table.loc[loaded.table["split"] == "test", "group"].tolist()
    numbers = results(indices(loaded, "test"), chances, groups, loaded.labels, loaded.positive, config.threshold)
    return {**numbers, "temperature": config.folded_temperature}


def predictions(loaded: Loaded, chances: NDArray[np.float64]) -> pd.DataFrame:
    """Of the test split: image_id, label, group and each label's probability."""
    rows = loaded.table.loc[loaded.table["split"] == "test", ["image_id", "label", "group"]]
    return rows.assign(**{f"p_{label}": chances[:, i] for i, label in enumerate(loaded.labels)})


def draw(figures: Path, loaded: Loaded, chances: NDArray[np.float64], result: dict[str, Any]) -> None:
    """Confusion matrix, ROC and reliability."""
    labels = indices(loaded, "test")
    plots.confusion(result["confusion_matrix"], loaded.labels, figures / "confusion_matrix.png")
    plots.roc(labels, chances, loaded.labels, loaded.positive, result["threshold"], figures / "roc.png")
    plots.reliability(labels, chances, loaded.positive_index, figures / "reliability.png")
