"""Metrics, confidence intervals, calibration and significance tests."""

from hf_medtl.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "DecisionRule": "hf_medtl.evaluation.decisions",
        "auc_difference": "hf_medtl.evaluation.significance",
        "brier_decomposition": "hf_medtl.evaluation.calibration",
        "calibration_error": "hf_medtl.evaluation.calibration",
        "calibration_line": "hf_medtl.evaluation.calibration",
        "choose_threshold": "hf_medtl.evaluation.decisions",
        "classification_metrics": "hf_medtl.evaluation.metrics",
        "conformal_quantiles": "hf_medtl.evaluation.decisions",
        "generalization_gap": "hf_medtl.evaluation.subgroups",
        "holm": "hf_medtl.evaluation.significance",
        "mask_metrics": "hf_medtl.evaluation.masks",
        "mcnemar": "hf_medtl.evaluation.significance",
        "metric_intervals": "hf_medtl.evaluation.intervals",
        "multilabel_metric_intervals": "hf_medtl.evaluation.intervals",
        "paired_bootstrap": "hf_medtl.evaluation.significance",
        "paired_jackknife": "hf_medtl.evaluation.significance",
        "robustness_results": "hf_medtl.evaluation.robustness",
        "subgroup_metrics": "hf_medtl.evaluation.subgroups",
    },
)
