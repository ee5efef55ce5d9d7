"""What differs from task to task: a row of functions each. Nothing else in hf_medtl asks which task it is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn
from transformers import EvalPrediction, PreTrainedModel

from hf_medtl.data.load import Loaded
from hf_medtl.training import classification, multilabel
from hf_medtl.training.recipe import Recipe


@dataclass(frozen=True)
class Task:
    """One task. "Answers" are what its pipeline says of a split's pictures, in whatever form the row chooses.

    Attributes:
        build: recipe, labels -> model and image processor.
        targets: data set, split -> what each picture is to be learnt as, for `Pictures`.
        loss: recipe, labels, targets of the training split -> (logits, targets, number of targets as Trainer counts
            them) -> loss.
        validation_metrics: what each evaluation during training logs.
        answer: run folder, data set, split -> answers, through the folder's own pipeline.
        calibrate: model, data set, answers on its validation split -> extra keys of config.json; may change the model.
        measure: data set, answers on its test split, configuration -> part of results.json, its metrics in `metrics`.
        predictions: data set, answers -> the rows of predictions.csv.
        draw: folder of figures, data set, answers, results -> figures.
    """

    build: Callable[[Recipe, tuple[str, ...]], tuple[PreTrainedModel, Any]]
    targets: Callable[[Loaded, str], Any]
    loss: Callable[[Recipe, tuple[str, ...], Any], nn.Module]
    validation_metrics: Callable[[EvalPrediction], dict[str, float]]
    answer: Callable[[Path, Loaded, str], Any]
    calibrate: Callable[[PreTrainedModel, Loaded, Any], dict[str, Any]]
    measure: Callable[[Loaded, Any, Any], dict[str, Any]]
    predictions: Callable[[Loaded, Any], pd.DataFrame]
    draw: Callable[[Path, Loaded, Any, dict[str, Any]], None]


def _row(module: Any) -> Task:
    return Task(**{name: getattr(module, name) for name in Task.__dataclass_fields__})


# The pipeline's name, which is also DatasetSpec.task -> row; and the row where a picture can have several labels.
TASKS = {"image-classification": _row(classification), "several labels": _row(multilabel)}


def task_of(loaded: Loaded) -> Task:
    """The row for a data set."""
    return TASKS["several labels" if loaded.spec.several else loaded.spec.task]
