"""Evaluation of a saved folder on a split, through its own `pipeline`, as a user would load it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from tqdm.auto import tqdm
from transformers import Pipeline
from transformers.utils import logging

from hf_medtl.evaluation.intervals import (
    METHOD_DESCRIPTIONS,
    Interval,
    describe_methods,
    intervals_by_source,
    metric_intervals,
    multilabel_metric_intervals,
    to_json,
)
from hf_medtl.evaluation.masks import MASK_METRICS
from hf_medtl.evaluation.metrics import classification_metrics, confusion_matrix, decide, undefined_reasons
from hf_medtl.evaluation.paired import mean_difference
from hf_medtl.evaluation.score_intervals import rate_interval
from hf_medtl.evaluation.significance import paired_bootstrap, paired_jackknife


def load_pipeline(model: str | Path | Pipeline, task: Any) -> Any:
    """Stock `pipeline(task, model)` of a folder or Hub id; one that is there already as it is."""
    if isinstance(model, Pipeline):
        return model
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # else it says that a class of ours is not supported, which then works
    try:
        return transformers.pipeline(task, model=str(model), device=PartialState().device)
    finally:
        logging.set_verbosity(level)


def predict_probabilities(
    model: str | Path | Pipeline,
    paths: Sequence[Path],
    read: Callable[[Path], Image.Image],
    task: Any = "image-classification",
    batch_size: int = 16,
) -> NDArray[np.float64]:
    """Probabilities (n, K), in the order of the model's labels, as stock `pipeline(task, model)` returns them.

    Args:
        model: folder, Hub id or pipeline.
        paths: (n,) image files; each process of a distributed run takes its share, all get the whole result.
        read: file -> RGB image.
        task: name of the pipeline.
        batch_size: images at a time.
    """
    state = PartialState()
    classify = load_pipeline(model, task)
    names = [name for _, name in sorted(classify.model.config.id2label.items())]

    def rows(share: Sequence[Path]) -> Iterator[list[float]]:
        answers = classify((read(path) for path in share), top_k=None, batch_size=batch_size)
        for answer in tqdm(answers, "Evaluating", len(share), unit="picture", leave=False, disable=None):
            score = {item["label"]: item["score"] for item in answer}
            yield [score[name] for name in names]

    with state.split_between_processes(list(paths)) as share:
        found = list(rows(share))
    return np.array(gather_object(found) if state.num_processes > 1 else found).reshape(len(paths), len(names))


def predict_masks(
    model: str | Path | Pipeline, paths: Sequence[Path], read: Callable[[Path], Image.Image]
) -> Iterator[NDArray[np.uint8]]:
    """Class indices (H, W) of each image, at its own size, by stock `pipeline("image-segmentation", model)`.

    Args:
        model: folder, Hub id or pipeline.
        paths: (n,) image files, of which one at a time is in memory.
        read: file -> RGB image.
    """
    segment = load_pipeline(model, "image-segmentation")
    index = segment.model.config.label2id
    answers = segment(read(path) for path in paths)
    for answer in tqdm(answers, "Evaluating", len(paths), unit="picture", leave=False, disable=None):
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
    seed: int = 0,
) -> dict[str, Any]:
    """The part of results.json that comes from predictions: metrics with 95 % intervals over groups.

    Args:
        labels: (n,) class indices.
        probabilities: (n, K).
        groups: (n,) of images that belong together.
        names: (K,) labels in output order.
        positive, threshold: the decision with two labels, (n,) thresholds where images were seen by several models;
            argmax with more.
        seed: of the bootstrap.

    Returns:
        n, n_groups, positive_label, threshold (null if there are n), metrics (name -> value, low, high; null where
        undefined, with a reason), interval_methods (name -> in words), confusion_matrix (rows true, columns decided),
        recall (label -> share of its images that are decided so, with limits), labels.
    """
    index = list(names).index(positive) if positive is not None else len(names) - 1
    decisions = decide(probabilities, index, threshold)
    intervals = metric_intervals(labels, probabilities, groups, index, threshold, seed=seed)
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
        "recall": {name: to_json(Interval(*its)) for name, its in zip(names, recall, strict=True)},
        "labels": list(names),
    }


def temperature_effect(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], groups: Sequence[str], temperature: float
) -> dict[str, dict[str, Any]]:
    """What folding the temperature into the head changed: log loss, Brier score and ece before and after it.

    Args:
        labels: (n,) class indices.
        probabilities: (n, K) after it.
        groups: (n,) of images that belong together.
        temperature: that was folded in.

    Returns:
        metric -> before, after, and difference (after minus before) with 95 % limits over groups: the jackknife's, of
        ece the bootstrap's, since its bins change with the sample.
    """
    before = softmax(np.log(probabilities.clip(1e-12)) * temperature, axis=1)
    found = {}
    for name in ("log_loss", "brier", "ece"):

        def value(p: NDArray, weights: NDArray | None = None, name: str = name) -> NDArray:
            return np.asarray(classification_metrics(labels, p, p.shape[1] - 1, None, weights, names=[name])[name])

        def gain(weights: NDArray | None, value: Callable[..., NDArray] = value) -> NDArray:
            return value(probabilities, weights) - value(before, weights)

        interval = (paired_bootstrap if name == "ece" else paired_jackknife)(gain, labels, groups)
        found[name] = {
            "before": float(value(before)),
            "after": float(value(probabilities)),
            "difference": to_json(Interval(*interval[:3])),
        }
    return found


def multilabel_results(
    targets: NDArray[np.bool_],
    probabilities: NDArray[np.float64],
    groups: Sequence[str],
    thresholds: Mapping[str, float | NDArray[np.float64]],
    seed: int = 0,
) -> dict[str, Any]:
    """The same where an image can have several labels.

    Args:
        targets: (n, K) which image has which label.
        probabilities: (n, K).
        groups: (n,) of images that belong together.
        thresholds: label, in output order, -> probability from which it is decided, or (n,) of them.
        seed: of the bootstrap.

    Returns:
        n, n_groups, positive_label and threshold (null), labels; metrics: name -> value, low, high of the mean over
        those n_labels labels that it is defined for; per_label: label -> n_positive, threshold, threshold_fitted,
        metrics (null where undefined, with a reason) and confusion_matrix (rows true, columns decided; absent first);
        interval_methods: of the means, in words.
    """
    means, each = multilabel_metric_intervals(targets, probabilities, groups, list(thresholds.values()), seed=seed)
    per_label = {}
    for (label, threshold), has, p, metrics in zip(thresholds.items(), targets.T, probabilities.T, each, strict=True):
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
            name: to_json(interval) | {"n_labels": sum(bool(np.isfinite(metrics[name].value)) for metrics in each)}
            for name, interval in means.items()
        },
        "interval_methods": describe_methods(True, 2),
        "per_label": per_label,
        "labels": list(thresholds),
    }


def segmentation_results(
    table: pd.DataFrame, names: Sequence[str], steps: Mapping[str, Any], seed: int = 0
) -> dict[str, Any]:
    """The same of masks: means over images with 95 % intervals by bootstrap over groups, within each source.

    Args:
        table: a row an image: image_id, group, source, what `mask_metrics` gives, and with `steps` raw_NAME for
            METRICS of the mask before them.
        names: (K,) labels in output order, the background first.
        steps: what is done to predicted masks, see `postprocess`.
        seed: of the bootstrap.

    Returns:
        n, n_groups, positive_label and threshold (null), labels; metrics: name -> value, low, high; interval_methods:
        name -> in words; per_class: class -> metrics, with more than one; by_source: source -> n, n_groups and metrics;
        both_empty and one_empty: how many images' classes; postprocessing, and with steps postprocessing_gain:
        metric -> value, low, high of the paired difference that they make.
    """
    many = len(names) > 2
    single = {name: [f"{metric}_{name}" for metric in MASK_METRICS] for name in names[1:]} if many else {}
    columns = [*MASK_METRICS, *(column for its in single.values() for column in its)]
    found = intervals_by_source({name: table[name] for name in columns}, table["group"], table["source"], seed=seed)

    def part(of: dict[str, Any], its: Sequence[str] = MASK_METRICS) -> dict[str, Any]:
        return {name: to_json(of["metrics"][column]) for name, column in zip(MASK_METRICS, its, strict=True)}

    overall = found["overall"]
    result: dict[str, Any] = {
        "n": overall["n"],
        "n_groups": overall["n_groups"],
        "positive_label": None,
        "threshold": None,
        "metrics": part(overall),
        "interval_methods": dict.fromkeys(MASK_METRICS, METHOD_DESCRIPTIONS["studentised"]),
        "by_source": {
            source: {"n": its["n"], "n_groups": its["n_groups"], "metrics": part(its)}
            for source, its in found["sources"].items()
        },
        "both_empty": int(table["both_empty"].sum()),
        "one_empty": int(table["one_empty"].sum()),
        "postprocessing": dict(steps),
        "labels": list(names),
    }
    if many:
        result["per_class"] = {name: part(overall, its) for name, its in single.items()}
    if steps:
        raw = {f"raw_{name}": name for name in MASK_METRICS}
        gains = mean_difference(table, table.drop(columns=[*MASK_METRICS]).rename(columns=raw), MASK_METRICS, seed=seed)
        result["postprocessing_gain"] = {name: to_json(interval) for name, interval in gains.items()}
    return result


def _reason(has: NDArray[np.bool_], decided: NDArray[np.bool_]) -> str:
    """Why a metric of a label is undefined."""
    constant = has.all() or not has.any()
    values, verb = (has, "has") if constant else (decided, "is decided to have")
    return f"{'every' if values.any() else 'no'} picture {verb} it"
