"""Display names of metrics."""

METRIC_NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "Positive predictive value",
    "npv": "Negative predictive value",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "average_precision": "Average precision",
    "brier": "Brier score (lower is better)",
    "dice": "Dice",
    "iou": "IoU (Jaccard)",
    "precision": "Precision of pixels",
    "recall": "Recall of pixels",
    "surface_dice": "Surface Dice",
    "hausdorff95": "95 % Hausdorff distance in pixels (lower is better)",
    "ece": "Expected calibration error (lower is better)",
}


def short_name(metric: str) -> str:
    """Return a metric's display name without its direction."""
    return METRIC_NAMES[metric].split(" (")[0]
