"""How often the 95 % intervals hold the truth, in simulated studies whose truth is known.

    python benchmarks/coverage.py                             # the table of benchmarks/README.md
    python benchmarks/coverage.py --studies 100 --patients 50 --compare

A study has patients, 30 % of them positive, with one image each or with 1 to 5 that share a patient effect: of the
variance of the scores half. The score of a positive image is higher by as much as gives the area under the ROC curve
that is named; probabilities are those of Bayes' rule, so calibrated, and decided at 0.5, which finds few positives in
the hard study. Dice is easy: 93 % from Beta(40, 3), else a failure, uniform from 0 to 0.8; or hard: Beta(4, 2). ECE is
that of the probabilities with the logit doubled.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy.special import expit, logit
from scipy.stats import beta, norm

from hf_medtl.evaluation.intervals import mean_intervals, metric_intervals
from hf_medtl.evaluation.metrics import REPORTED, classification_metrics
from hf_medtl.evaluation.resampling import Jackknife, bootstrap_group_counts, group_index, jackknife, majority_strata
from hf_medtl.evaluation.score_intervals import Interval

PREVALENCE, OVERCONFIDENT = 0.3, 2.0
AREAS = {"easy": 0.97, "hard": 0.8}
CLASSIFIERS = ("roc_auc", "sensitivity", "specificity", "accuracy", "ppv", "npv", "balanced_accuracy", "f1",
               "average_precision", "brier", "mcc")  # fmt: skip
COMPARED = ("percentile", "bca")
METRICS_COMPARED = ("roc_auc", "average_precision", "sensitivity", "f1")


def truths(shift: float) -> dict[str, float]:
    """Of the classifier, from the normal distributions of its scores."""
    x = np.linspace(-9, 12, 40001)
    ones, others = PREVALENCE * norm.pdf(x - shift), (1 - PREVALENCE) * norm.pdf(x)
    tp, fp = PREVALENCE * norm.sf(x - shift), (1 - PREVALENCE) * norm.sf(x)
    line = shift * x - shift**2 / 2 + logit(PREVALENCE)
    cut = (shift**2 / 2 - logit(PREVALENCE)) / shift
    sensitivity, specificity = norm.sf(cut - shift), norm.cdf(cut)
    hit, right = PREVALENCE * sensitivity, (1 - PREVALENCE) * specificity
    missed, false = PREVALENCE - hit, 1 - PREVALENCE - right
    cells = (hit + false) * (hit + missed) * (right + false) * (right + missed)
    return {
        "roc_auc": norm.cdf(shift / np.sqrt(2)),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "accuracy": hit + right,
        "ppv": hit / (hit + false),
        "npv": right / (right + missed),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "f1": 2 * hit / (2 * hit + false + missed),
        "average_precision": np.trapezoid(ones * tp / np.maximum(tp + fp, 1e-300), x) / PREVALENCE,
        "brier": np.trapezoid(ones * (1 - expit(line)) ** 2 + others * expit(line) ** 2, x),
        "mcc": (hit * right - false * missed) / np.sqrt(cells),
        "ece": np.trapezoid((ones + others) * np.abs(expit(OVERCONFIDENT * line) - expit(line)), x),
    }


def shared(rng: np.random.Generator, groups: np.ndarray, patients: int, clustered: bool) -> np.ndarray:
    """Standard normal, half of its variance the patient's where there are several images."""
    noise = rng.normal(size=groups.size)
    return (noise + rng.normal(size=patients)[groups]) / np.sqrt(2) if clustered else noise


def bootstrap_intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    method: str = "percentile",
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    names: Sequence[str] = REPORTED,
) -> dict[str, Interval]:
    """Compute intervals by a bootstrap over groups, "percentile" or "bca", which `metric_intervals` does not offer.

    BCa: bias-corrected and accelerated (Efron 1987, J Am Stat Assoc 82:171-185). Arguments as for `metric_intervals`.
    """
    group = group_index(groups, len(labels))
    strata = majority_strata(np.asarray(labels), group)
    weights = bootstrap_group_counts(strata, resamples, seed)[:, group]
    values = classification_metrics(labels, probabilities, names=names)
    draws = classification_metrics(labels, probabilities, weights=weights, names=names)
    quantiles = {name: np.array([(1 - level) / 2, (1 + level) / 2]) for name in names}
    if method == "bca":
        samples = jackknife(strata, group, seed)
        left_out = classification_metrics(labels, probabilities, weights=samples.weights, names=names)
        for name in names:
            defined = draws[name][~np.isnan(draws[name])]
            below = ((defined < values[name]).mean() + (defined <= values[name]).mean()) / 2
            bias = norm.ppf(np.clip(below, 0.5 / defined.size, 1 - 0.5 / defined.size))
            z = bias + norm.ppf(quantiles[name])
            quantiles[name] = norm.cdf(bias + z / (1 - acceleration(samples, left_out[name]) * z))
    return {name: Interval(values[name], *np.nanquantile(draws[name], quantiles[name])) for name in names}


def acceleration(samples: Jackknife, values: np.ndarray) -> float:
    """Return BCa's acceleration for strata (Davison & Hinkley 1997, 5.3.2), as scipy.stats.bootstrap does."""
    cubes = squares = 0.0
    for h in range(samples.sizes.size):
        row = values[(samples.stratum == h) & ~np.isnan(values)]
        if row.size:
            influence = (row.size - 1) * (row.mean() - row)
            cubes += (influence**3).sum() / row.size**3
            squares += (influence**2).sum() / row.size**2
    return cubes / (6 * squares**1.5) if squares > 0 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000, help="a cell of the table (default: %(default)s)")
    parser.add_argument("--patients", type=int, nargs="+", default=[50, 200, 1000], help="(default: %(default)s)")
    parser.add_argument("--resamples", type=int, default=500, help="of each bootstrap (default: %(default)s)")
    parser.add_argument("--slow_up_to", type=int, default=200, help="patients up to which all is simulated, beyond it "
                        "only ROC AUC, rates and Dice (default: %(default)s)")  # fmt: skip
    parser.add_argument("--compare", action="store_true", help="percentile and BCa bootstrap, too; takes twice as long")
    options = parser.parse_args()
    start = time.perf_counter()
    columns = [(n, kind, clustered) for n in options.patients for kind in AREAS for clustered in (False, True)]
    table: dict[str, dict[tuple, str]] = defaultdict(dict)
    for n, kind, clustered in columns:
        shift = np.sqrt(2) * norm.ppf(AREAS[kind])
        truth = truths(shift)
        truth["dice"] = 0.93 * 40 / 43 + 0.07 * 0.4 if kind == "easy" else 4 / 6
        rng = np.random.default_rng([n, clustered, kind == "easy"])
        small = n <= options.slow_up_to
        covered_by = defaultdict(list)
        for study in range(options.studies):
            groups = np.repeat(np.arange(n), rng.integers(1, 6, n) if clustered else 1)
            labels = (rng.permutation(n) < round(PREVALENCE * n)).astype(int)[groups]
            score = shift * labels + shared(rng, groups, n, clustered)
            line = shift * score - shift**2 / 2 + logit(PREVALENCE)
            probabilities = np.column_stack([expit(-line), expit(line)])
            same = {"resamples": options.resamples, "seed": study}
            names = CLASSIFIERS if small else CLASSIFIERS[:6]
            rows = metric_intervals(labels, probabilities, groups, names=names, **same)
            u = norm.cdf(shared(rng, groups, n, clustered))
            dice = np.where(u < 0.07, u / 0.07 * 0.8, beta.ppf((u - 0.07) / 0.93, 40, 3)) if kind == "easy" else None
            rows |= mean_intervals({"dice": beta.ppf(u, 4, 2) if dice is None else dice}, groups, **same)
            if small:
                doubled = np.column_stack([expit(-OVERCONFIDENT * line), expit(OVERCONFIDENT * line)])
                rows |= metric_intervals(labels, doubled, groups, names=["ece"], **same)
                for method in COMPARED if options.compare else ():
                    intervals = bootstrap_intervals(
                        labels, probabilities, groups, method, names=METRICS_COMPARED, **same
                    )
                    rows |= {f"{name}, {method}": interval for name, interval in intervals.items()}
            for name, interval in rows.items():
                covered_by[name].append(interval.low <= truth[name.split(",")[0]] <= interval.high)
        for name, covered in covered_by.items():
            table[name][n, kind, clustered] = f"{100 * np.mean(covered):.1f}"
        shown = ", ".join(
            f"{name} {rows[n, kind, clustered]}" for name, rows in table.items() if (n, kind, clustered) in rows
        )
        images = "1 to 5 images" if clustered else "1 image"
        print(f"{n} patients, {kind}, {images}, {time.perf_counter() - start:.0f} s: {shown}", flush=True)
    heads = [f"{n} {kind}, {'1 to 5' if clustered else '1'}" for n, kind, clustered in columns]
    print(f"\n| metric | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}")
    for name in sorted(table, key=lambda name: "," in name):
        print(f"| {name} | {' | '.join(table[name].get(column, '') for column in columns)} |")


if __name__ == "__main__":
    main()
