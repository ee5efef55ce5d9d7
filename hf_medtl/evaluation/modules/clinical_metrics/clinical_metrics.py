"""Clinical classification metrics with intervals over patients, as a module for Hugging Face `evaluate`."""

from collections.abc import Sequence

import datasets
import evaluate

from hf_medtl.evaluation.intervals import metric_intervals
from hf_medtl.evaluation.metrics import REPORTED, classification_metrics

DESCRIPTION = """
Metrics that a clinical paper reports for a classifier: sensitivity, specificity, predictive values, ROC AUC, average
precision, Brier score, calibration error and more, from probabilities. Given the patient of each image, also 95 %
limits that count patients, not images.
"""
INPUTS = """
Args:
    predictions: n rows of K probabilities, each summing to 1.
    references: n true class indices.
    positive: index of the positive one of two classes; 1 by default.
    threshold: probability from which the positive one of two classes is decided; 0.5 if None.
    names: metrics to compute; accuracy, balanced_accuracy, sensitivity, specificity, ppv, npv, f1, roc_auc,
        average_precision, brier and ece by default; also available: youden, mcc, kappa, lr_positive, lr_negative and
        log_loss.
    groups: n group names, such as the patient of each image, to compute limits.
    level: confidence of the limits, 0.95 by default.

Returns:
    Each metric by name, NaN where it is undefined for these references; with groups also NAME_low and NAME_high.

Examples:
    >>> metrics = evaluate.load(hf_medtl.evaluation.modules.path("clinical_metrics"))
    >>> probabilities = [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]]
    >>> metrics.compute(predictions=probabilities, references=[0, 0, 1, 1], names=["roc_auc", "specificity"])
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
        results = {name: float(value) for name, value in values.items()}
        if groups is not None:
            limits = metric_intervals(references, predictions, groups, positive, threshold, level=level, names=names)
            for name, interval in limits.items():
                results |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        return results
