"""Evaluation of a saved model on a split with stock `pipeline()`, and results.json from its predictions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax
from transformers import Pipeline
from transformers.utils import logging

from hf_medtl.common.progress import track
from hf_medtl.evaluation.intervals import (
    METHOD_DESCRIPTIONS,
    Interval,
    describe_methods,
    intervals_by_source,
    metric_intervals,
    multilabel_metric_intervals,
    to_json,
)
from hf_medtl.evaluation.masks import measured_metrics
from hf_medtl.evaluation.metrics import classification_metrics, confusion_matrix, decide, undefined_reasons
from hf_medtl.evaluation.paired import mean_difference
from hf_medtl.evaluation.score_intervals import rate_interval
from hf_medtl.evaluation.significance import paired_bootstrap, paired_jackknife

BATCH_SIZE = 16  # images in memory at a time


def load_pipeline(model: str | Path | Pipeline, task: Any) -> Any:
    """Return stock `pipeline(task, model)` of a folder or Hub id; a pipeline is returned unchanged."""
    if isinstance(model, Pipeline):
        return model
    return quiet_pipeline(task, model=str(model), device=PartialState().device)


def quiet_pipeline(task: Any, **options: Any) -> Any:
    """Return stock `pipeline(task, **options)` without the log message that our classes, which work, are not known."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        return transformers.pipeline(task, **options)
    finally:
        logging.set_verbosity(level)


def predict_probabilities(
    model: str | Path | Pipeline,
    paths: Sequence[Path],
    read: Callable[[Path], Image.Image],
    task: Any = "image-classification",
    stage: str = "Predicting",
) -> NDArray[np.float64]:
    """Return probabilities (n, K), in the order of the model's labels, from stock `pipeline(task, model)`.

    Args:
        model: folder, Hub id or pipeline.
        paths: (n,) image files; each process of a distributed run predicts a shard, and all get the whole result.
        read: function from a file to an RGB image.
        task: name of the pipeline.
        stage: what is shown as long as it takes.
    """
    state = PartialState()
    classify = load_pipeline(model, task)
    names = [name for _, name in sorted(classify.model.config.id2label.items())]

    rows = []
    with state.split_between_processes(list(paths)) as shard:
        answers = classify((read(path) for path in shard), top_k=None, batch_size=BATCH_SIZE)
        for answer in track(answers, stage, len(shard)):
            score = {item["label"]: item["score"] for item in answer}
            rows.append([score[name] for name in names])
    return np.array(gather_object(rows) if state.num_processes > 1 else rows).reshape(len(paths), len(names))


def predict_masks(
    model: str | Path | Pipeline,
    paths: Sequence[Path],
    read: Callable[[Path], Image.Image],
    stage: str = "Predicting",
) -> Iterator[NDArray[np.uint8]]:
    """Yield the class indices (H, W) of each image at its own size, from stock `pipeline("image-segmentation", model)`.

    Args:
        model: folder, Hub id or pipeline.
        paths: (n,) image files; one at a time is in memory.
        read: function from a file to an RGB image.
        stage: what is shown as long as it takes.
    """
    segment = load_pipeline(model, "image-segmentation")
    index = segment.model.config.label2id
    answers = segment(read(path) for path in paths)
    for answer in track(answers, stage, len(paths)):
        mask = np.zeros(answer[0]["mask"].size[::-1], np.uint8)
        for part in answer:
            mask[np.asarray(part["mask"]) > 0] = index[part["label"]]
        yield mask


def classification_results(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    groups: Sequence[str],
    names: Sequence[str],
    positive: str | None = None,
    threshold: float | NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """Return the part of results.json that depends on predictions: metrics with 95 % intervals over groups.

    Args:
        labels: (n,) class indices.
        probabilities: (n, K).
        groups: (n,) patient or duplicate group of each image.
        names: (K,) labels in output order.
        positive: positive one of two labels.
        threshold: probability from which `positive` is decided, or (n,) thresholds if images were predicted by
            different models. With more than two labels the decision is the argmax.

    Returns:
        n, n_groups, positive_label, threshold (null if there are n), metrics (name -> value, low, high; null where
        undefined, with a reason), interval_methods (name -> description), confusion_matrix (rows true, columns
        decided), recall (label -> value, low, high), labels.
    """
    index = list(names).index(positive) if positive is not None else len(names) - 1
    decisions = decide(probabilities, index, threshold)
    intervals = metric_intervals(labels, probabilities, groups, index, threshold)
    reasons = undefined_reasons(labels, probabilities, index, threshold)
    group = np.unique(groups, return_inverse=True)[1]
    recall = [rate_interval(decisions == i, labels == i, group) for i in range(len(names))]
    return {
        "n": len(labels),
        "n_groups": len(set(groups)),
        "positive_label": positive,
        "threshold": None if isinstance(threshold, np.ndarray) else threshold,
        "metrics": {
            name: to_json(interval) | ({"reason": reasons[name]} if name in reasons else {})
            for name, interval in intervals.items()
        },
        "interval_methods": describe_methods(False, len(names)),
        "confusion_matrix": confusion_matrix(labels, decisions, len(names)).tolist(),
        "recall": {name: to_json(Interval(*limits)) for name, limits in zip(names, recall, strict=True)},
        "labels": list(names),
    }


def temperature_effect(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], groups: Sequence[str], temperature: float
) -> dict[str, dict[str, Any]]:
    """Return log loss, Brier score and ece before and after temperature scaling.

    Args:
        labels: (n,) class indices.
        probabilities: (n, K) with the temperature.
        groups: (n,) patient or duplicate group of each image.
        temperature: the temperature that was folded into the head.

    Returns:
        metric -> before, after, and difference (after minus before) with 95 % limits over groups, by jackknife; by
        bootstrap for ece, whose bins change with the sample.
    """
    before = softmax(np.log(probabilities.clip(1e-12)) * temperature, axis=1)
    effects = {}
    for name in ("log_loss", "brier", "ece"):

        def value(p: NDArray, weights: NDArray | None = None, name: str = name) -> NDArray:
            return np.asarray(classification_metrics(labels, p, p.shape[1] - 1, None, weights, names=[name])[name])

        def gain(weights: NDArray | None, value: Callable[..., NDArray] = value) -> NDArray:
            return value(probabilities, weights) - value(before, weights)

        interval = (paired_bootstrap if name == "ece" else paired_jackknife)(gain, labels, groups)
        effects[name] = {
            "before": float(value(before)),
            "after": float(value(probabilities)),
            "difference": to_json(Interval(*interval[:3])),
        }
    return effects


def multilabel_results(
    targets: NDArray[np.bool_],
    probabilities: NDArray[np.float64],
    groups: Sequence[str],
    thresholds: Mapping[str, float | NDArray[np.float64]],
) -> dict[str, Any]:
    """Return the part of results.json that depends on predictions, for multilabel classification.

    Args:
        targets: (n, K), True where an image has a label.
        probabilities: (n, K).
        groups: (n,) patient or duplicate group of each image.
        thresholds: label, in output order, -> probability from which it is decided, or (n,) of them.

    Returns:
        n, n_groups, positive_label and threshold (null), labels; metrics: name -> value, low, high of the mean over
        the n_labels labels for which it is defined; per_label: label -> n_positive, threshold, threshold_fitted,
        metrics (null where undefined, with a reason) and confusion_matrix (rows true, columns decided; absent first);
        interval_methods: name -> description of the mean's method.
    """
    means, by_label = multilabel_metric_intervals(targets, probabilities, groups, list(thresholds.values()))
    per_label = {}
    columns = zip(thresholds.items(), targets.T, probabilities.T, by_label, strict=True)
    for (label, threshold), has, p, metrics in columns:
        decided = p >= threshold
        per_label[label] = {
            "n_positive": int(has.sum()),
            "threshold": None if isinstance(threshold, np.ndarray) else threshold,
            "threshold_fitted": True,
            "metrics": {
                name: to_json(interval) | ({} if np.isfinite(interval.value) else {"reason": _reason(has, decided)})
                for name, interval in metrics.items()
            },
            "confusion_matrix": confusion_matrix(has.astype(int), decided.astype(int), 2).tolist(),
        }
    return {
        "n": len(targets),
        "n_groups": len(set(groups)),
        "positive_label": None,
        "threshold": None,
        "metrics": {
            name: to_json(interval) | {"n_labels": sum(bool(np.isfinite(metrics[name].value)) for metrics in by_label)}
            for name, interval in means.items()
        },
        "interval_methods": describe_methods(True, 2),
        "per_label": per_label,
        "labels": list(thresholds),
    }


def segmentation_results(table: pd.DataFrame, names: Sequence[str], steps: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of results.json that depends on predictions, for segmentation.

    Metrics are means over images, with 95 % intervals by bootstrap over groups within each source.

    Args:
        table: a row for each image: image_id, group, source, the metrics of `mask_metrics`, surface_tolerance, and with
            `steps` raw_NAME for each of MASK_METRICS of the mask before them. Tables of older runs have neither
            surface_dice nor its tolerance.
        names: (K,) labels in output order, the background first.
        steps: postprocessing of predicted masks, see `postprocess`.

    Returns:
        n, n_groups, positive_label and threshold (null), labels; metrics: name -> value, low, high; interval_methods:
        name -> description; per_class: class -> metrics, if there are two or more; by_source: source -> n, n_groups
        and metrics; both_empty and one_empty: number of (image, class) pairs; surface_tolerance: such as "2 pixels";
        postprocessing, and with steps postprocessing_gain: metric -> value, low, high of the paired difference.
    """
    measured = measured_metrics(table)
    classes = names[1:] if len(names) > 2 else ()
    class_columns = {name: [f"{metric}_{name}" for metric in measured] for name in classes}
    columns = [*measured, *chain.from_iterable(class_columns.values())]
    parts = intervals_by_source({name: table[name] for name in columns}, table["group"], table["source"])

    def metrics(part: dict[str, Any], columns: Sequence[str] = measured) -> dict[str, Any]:
        return {name: to_json(part["metrics"][column]) for name, column in zip(measured, columns, strict=True)}

    overall = parts["overall"]
    result: dict[str, Any] = {
        "n": overall["n"],
        "n_groups": overall["n_groups"],
        "positive_label": None,
        "threshold": None,
        "metrics": metrics(overall),
        "interval_methods": dict.fromkeys(measured, METHOD_DESCRIPTIONS["studentised"]),
        "by_source": {
            source: {"n": part["n"], "n_groups": part["n_groups"], "metrics": metrics(part)}
            for source, part in parts["sources"].items()
        },
        "both_empty": int(table["both_empty"].sum()),
        "one_empty": int(table["one_empty"].sum()),
        "postprocessing": dict(steps),
        "labels": list(names),
    }
    if "surface_dice" in measured:
        result["surface_tolerance"] = str(table["surface_tolerance"].iloc[0])
    if class_columns:
        result["per_class"] = {name: metrics(overall, columns) for name, columns in class_columns.items()}
    if steps:
        raw = {f"raw_{name}": name for name in measured}
        gains = mean_difference(table, table.drop(columns=measured).rename(columns=raw), measured)
        result["postprocessing_gain"] = {name: to_json(interval) for name, interval in gains.items()}
    return result


def _reason(has: NDArray[np.bool_], decided: NDArray[np.bool_]) -> str:
    """Explain why a metric of a label is undefined."""
    constant = has.all() or not has.any()
    values, verb = (has, "has") if constant else (decided, "is decided to have")
    return f"{'every' if values.any() else 'no'} image {verb} it"
