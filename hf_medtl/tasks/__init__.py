"""What differs from task to task: a row of functions each. Nothing else in hf_medtl asks which task it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import EvalPrediction, PreTrainedModel

from hf_medtl.data.loading import Loaded
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.paired import Rival
from hf_medtl.tasks import classification, multilabel, segmentation
from hf_medtl.training.recipe import Recipe


@dataclass(frozen=True)
class Task:
    """One task. "Answers" are what its pipeline says of a split's pictures, in whatever form the row chooses.

    Attributes:
        check: recipe -> nothing; raises MedtlError for options that are not for this task.
        output_labels: recipe, data set -> labels of the model's outputs.
        build: recipe, labels -> model and image processor.
        start: recipe, model -> what its weights are before training, in words.
        base_model: recipe -> folder, or id on the Hub, of the weights to start from, and its revision, None where it is
            not known; None for random weights.
        masks: model's configuration, data set -> the arguments of `prepare` that concern masks.
        verify: model's configuration, external data set -> nothing; raises MedtlError for what could not be measured
            after training. None where there is nothing to look at.
        targets: data set, split -> what each picture is to be learnt as, for `Pictures`.
        loss: recipe, labels, targets of the training split -> (logits, targets, number of targets as Trainer counts
            them) -> loss.
        reduce: logits and targets of a batch -> what `validation_metrics` needs of them; None for all.
        validation_metrics: what each evaluation during training logs.
        watched: the one that is drawn by epoch.
        search_space: what --search tries by itself, beside learning rates, weight decay and the strategy's options.
        answer: run folder (or a pipeline), data set, split -> answers, through the folder's own pipeline. Of
            classifiers, how to read a picture can be given, too.
        calibrate: model, data set, answers on its validation split, rule of the threshold, share of conformal sets that
            may miss -> extra keys of config.json; may change the model. None where nothing is fitted.
        kinds: data set, split -> (n,) kind of each picture, where pictures of a kind have like features, for telling
            outliers; None where there is no head to take features before.
        measure: data set, answers on its test split, configuration -> part of results.json, its metrics in `metrics`.
        predictions: data set, answers -> the rows of predictions.csv.
        rows: model's configuration, data set, some rows of its table, a `Prediction` of each -> their rows of
            predictions.csv, as far as `rival` needs them.
        worst: predictions.csv, results.json, how many -> the test pictures that the model does worst on, worst
            first: the cells of a row of the card's table by column.
        draw: run folder (or a pipeline), folder of figures, data set, answers, results, what the pictures are ->
            figures.
        backbone: recipe, name or folder -> the options that start from it.
        scratch: recipe -> the options that give the same network random weights; none if it has them already.
        score: predictions.csv, results.json -> kind of each picture, within which groups are drawn, and weights (B, n)
            or None -> (B,) or () `watched` on those pictures.
        pool: predictions.csv of all folds with the column fold, results.json of each fold, folder of figures, title of
            the pictures -> part of the folds' common results.json; draws figures.
        rival: predictions.csv, of all folds with the column fold, results.json of each fold or of the only run -> what
            `hf-medtl compare` compares.
    """

    check: Callable[[Recipe], None]
    output_labels: Callable[[Recipe, Loaded], tuple[str, ...]]
    build: Callable[[Recipe, tuple[str, ...]], tuple[PreTrainedModel, Any]]
    start: Callable[[Recipe, PreTrainedModel], str]
    base_model: Callable[[Recipe], tuple[str, str | None] | None]
    masks: Callable[[Any, Loaded], dict[str, Any]]
    verify: Callable[[Any, Loaded], None] | None
    targets: Callable[[Loaded, str], Any]
    loss: Callable[[Recipe, tuple[str, ...], Any], Callable[..., torch.Tensor]]
    reduce: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None
    validation_metrics: Callable[[EvalPrediction], dict[str, float]]
    watched: str
    search_space: dict[str, list[Any]]
    answer: Callable[..., Any]
    calibrate: Callable[[PreTrainedModel, Loaded, Any, str, float], dict[str, Any]] | None
    kinds: Callable[[Loaded, str], NDArray[np.int64]] | None
    measure: Callable[[Loaded, Any, Any], dict[str, Any]]
    predictions: Callable[[Loaded, Any], pd.DataFrame]
    rows: Callable[[Any, Loaded, list[int], Sequence[Any]], pd.DataFrame]
    worst: Callable[[pd.DataFrame, dict[str, Any], int], list[dict[str, str]]]
    draw: Callable[..., None]
    backbone: Callable[[Recipe, str], dict[str, Any]]
    scratch: Callable[[Recipe], dict[str, Any]]
    score: Callable[[pd.DataFrame, dict[str, Any]], tuple[list[str], Callable[[NDArray | None], NDArray[np.float64]]]]
    pool: Callable[[pd.DataFrame, list[dict[str, Any]], Path, str], dict[str, Any]]
    rival: Callable[[pd.DataFrame, list[dict[str, Any]]], Rival]


def _row(module: Any) -> Task:
    return Task(**{name: getattr(module, name) for name in Task.__dataclass_fields__})


TASKS = {"image-classification": _row(classification), "image-segmentation": _row(segmentation)}  # by pipeline's name
SEVERAL = _row(multilabel)


def check(recipe: Recipe) -> None:
    """Refuse what can be refused before data are read.

    Raises:
        MedtlError: an unknown task, or options that are not for it.
    """
    if recipe.task not in TASKS:
        raise MedtlError(f"--task is one of {', '.join(TASKS)}, found {recipe.task!r}.")
    TASKS[recipe.task].check(recipe)


def task_of_results(result: dict[str, Any]) -> Task:
    """The row that wrote a results.json."""
    return SEVERAL if "per_label" in result else TASKS[result["task"]]


def task_of(loaded: Loaded) -> Task:
    """The row for a data set: classification is another one where a picture can have several labels."""
    return SEVERAL if loaded.spec.several and not loaded.spec.of_masks else TASKS[loaded.spec.task]
