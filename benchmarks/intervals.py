"""How long a bootstrap of every metric takes, and how long a loop over scikit-learn's functions would.

    python benchmarks/intervals.py                  # 2,000 resamples of 10,000 images of 5,000 patients

The loop is timed over some resamples (--loop) and scaled up. Both give the same numbers, which is checked.
"""

import argparse
import os
import platform
import time

import numpy as np
from sklearn import metrics as sk

from hf_medtl.evaluation.intervals import metric_intervals
from hf_medtl.evaluation.metrics import METRICS, classification_metrics
from hf_medtl.evaluation.resampling import bootstrap_weights, percentile_limits

FUNCTIONS = {
    "accuracy": sk.accuracy_score,
    "balanced_accuracy": sk.balanced_accuracy_score,
    "sensitivity": sk.recall_score,
    "specificity": lambda y, d, sample_weight: sk.recall_score(y, d, pos_label=0, sample_weight=sample_weight),
    "ppv": sk.precision_score,
    "npv": lambda y, d, sample_weight: sk.precision_score(y, d, pos_label=0, sample_weight=sample_weight),
    "f1": sk.f1_score,
    "mcc": sk.matthews_corrcoef,
    "kappa": sk.cohen_kappa_score,
}
OF_SCORES = {
    "roc_auc": sk.roc_auc_score,
    "average_precision": sk.average_precision_score,
    "brier": sk.brier_score_loss,
    "log_loss": sk.log_loss,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--resamples", type=int, default=2000, help="(default: %(default)s)")
    parser.add_argument("--loop", type=int, default=20, help="resamples the loop does (default: %(default)s)")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    groups = np.arange(options.images) // 2
    labels = groups % 2
    score = 1 / (1 + np.exp(-2 * (labels - 0.5) - rng.normal(size=labels.size)))
    both, decided = np.column_stack([1 - score, score]), score >= 0.5

    def seconds(start: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
        """Of the clock and of the processor, which other jobs on the machine don't lengthen."""
        return time.perf_counter() - start[0], time.process_time() - start[1]

    start = seconds()
    weights = bootstrap_weights(labels, groups, options.resamples)
    draws = classification_metrics(labels, both, weights=weights, names=METRICS)
    {name: percentile_limits(draws[name], 0.95) for name in METRICS}
    ours, start = seconds(start), seconds()
    metric_intervals(labels, both, groups, resamples=options.resamples, names=METRICS)
    default = seconds(start)

    weights = bootstrap_weights(labels, groups, options.loop)
    start = seconds()
    rows = []
    for weight in weights:
        row = {name: function(labels, decided, sample_weight=weight) for name, function in FUNCTIONS.items()}
        rows.append(row | {name: function(labels, score, sample_weight=weight) for name, function in OF_SCORES.items()})
    loop = [number * options.resamples / options.loop for number in seconds(start)]
    same = classification_metrics(labels, both, weights=weights, names=METRICS)
    worst = max(np.abs(same[name] - [row[name] for row in rows]).max() for name in rows[0])

    print(f"{options.images} images, {options.resamples} resamples; {os.cpu_count()} cores, Python "
          f"{platform.python_version()}, numpy {np.__version__}\n")  # fmt: skip
    print("| way | metrics | seconds | of which processor |\n|---|---:|---:|---:|")
    print(f"| bootstrap of all metrics | {len(METRICS)} | {ours[0]:.1f} | {ours[1]:.1f} |")
    print(f"| default methods | {len(METRICS)} | {default[0]:.1f} | {default[1]:.1f} |")
    print(f"| loop over scikit-learn | {len(rows[0])} | {loop[0]:.1f} | {loop[1]:.1f} |")
    print(f"\nThe loop takes {loop[0] / ours[0]:.0f} times as long; largest difference of a metric {worst:.1e}.")


if __name__ == "__main__":
    main()
