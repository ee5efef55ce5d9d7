"""Metrics of a classifier with intervals over patients: `hf_medtl.evaluation` as a module of `evaluate`."""

from collections.abc import Sequence

import datasets
import evaluate

from hf_medtl.evaluation.intervals import metric_intervals
from hf_medtl.evaluation.metrics import REPORTED, classification_metrics

DESCRIPTION = """
What a clinical paper reports of a classifier: sensitivity, specificity, predictive values, ROC AUC, average precision,
Brier score, calibration error and more, from probabilities. With the patient of each picture, 95 % limits that count
patients, not pictures.
"""
INPUTS = """
Args:
    predictions: n rows of K probabilities, each summing to 1.
    references: n true class indices.
    positive: of two classes, the one that sensitivity and the like are about; 1 by default.
    threshold: of two classes, the probability from which the positive one is decided; 0.5 if None.
    names: metrics wanted; accuracy, balanced_accuracy, sensitivity, specificity, ppv, npv, f1, roc_auc,
        average_precision, brier and ece by default; youden, mcc, kappa, lr_positive, lr_negative and log_loss, too.
    groups: n names, such as the patient of each picture; with them there are limits.
    level: confidence of the limits, 0.95 by default.

Returns:
    Each metric by its name, NaN where it is not defined for these references; with groups NAME_low and NAME_high.

Examples:
    >>> metrics = evaluate.load(hf_medtl.evaluation.modules.path("clinical_metrics"))
    >>> chances = [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]]
    >>> metrics.compute(predictions=chances, references=[0, 0, 1, 1], names=["roc_auc", "specificity"])
    {'roc_auc': 1.0, 'specificity': 0.5}
"""


class ClinicalMetrics(evaluate.Metric):
    """`classification_metrics` and `metric_intervals`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                predictions=datasets.List(datasets.Value("float64")), references=datasets.Value("int64")
            ),
            license="apache-2.0",
        )

    def _compute(
        self,
        *,
        predictions: Sequence[Sequence[float]],
        references: Sequence[int],
        positive: int = 1,
        threshold: float | None = None,
        names: Sequence[str] = REPORTED,
        groups: Sequence[str] | None = None,
        level: float = 0.95,
    ) -> dict[str, float]:
        values = classification_metrics(references, predictions, positive, threshold, names=names)
        found = {name: float(value) for name, value in values.items()}
        if groups is not None:
            limits = metric_intervals(references, predictions, groups, positive, threshold, level=level, names=names)
            for name, interval in limits.items():
                found |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        return found
