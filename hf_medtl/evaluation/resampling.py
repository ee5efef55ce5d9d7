"""Bootstrap and jackknife over groups (patients), and confidence limits from them."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import t

from hf_medtl.evaluation.metrics import BLOCK_CELLS

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

JACKKNIFE_ROWS = 1000  # more groups are left out in blocks: a standard error from 1,000 has an error of 2 %


def group_index(groups: ArrayLike, n: int) -> IntArray:
    """Return the index of each image's group, (n,), from 0 in order of appearance.

    Raises:
        ValueError: another length, or a missing name.
    """
    names = np.asarray(groups, dtype=object)  # not str: NaN would become the patient "nan"
    if names.shape != (n,):
        raise ValueError(f"expected groups of shape ({n},), found {names.shape}")
    missing = sum(name is None or name != name for name in names)
    if missing:  # else all images without a patient would be one patient
        raise ValueError(f"expected a group for every image, found {missing} missing")
    index: dict[object, int] = {}
    return np.array([index.setdefault(name, len(index)) for name in names])


def majority_strata(labels: IntArray, groups: IntArray) -> IntArray:
    """Return each group's most frequent label, (G,), the lowest on a tie."""
    counts = np.zeros((groups.max() + 1, labels.max() + 1), dtype=np.int64)
    np.add.at(counts, (groups, labels), 1)
    return counts.argmax(axis=1)


def bootstrap_group_counts(strata: IntArray, resamples: int, seed: int = 0) -> NDArray[np.uint16]:
    """Draw groups with replacement within strata: counts of each group, (resamples, G)."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros((resamples, strata.size), dtype=np.uint16)
    for members in (np.flatnonzero(strata == s) for s in np.unique(strata)):
        size = members.size
        step = max(1, BLOCK_CELLS // size)  # many rows at a time: a call costs more than 50 draws
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            draws = rng.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
            counts = np.bincount(draws.ravel(), minlength=rows * size).reshape(rows, size)
            drawn[start : start + rows, members] = counts
    return drawn


def bootstrap_weights(labels: IntArray, groups: IntArray, resamples: int, seed: int = 0) -> NDArray[np.uint16]:
    """Draw groups, indexed from 0, within majority labels: counts of each image, (resamples, n)."""
    strata = majority_strata(labels, groups)
    return bootstrap_group_counts(strata, resamples, seed)[:, groups]  # 2,000 x 10,000 in 40 MB


class Jackknife(NamedTuple):
    """Samples that leave out one group, or a block of groups where a stratum has many.

    weights: (M, n) 0 for the images left out, else 1. stratum: (M,) of the groups left out. sizes: (H,) groups per
    stratum.
    """

    weights: NDArray[np.uint8]
    stratum: IntArray
    sizes: IntArray

    def variance(self, values: FloatArray) -> tuple[float, float]:
        """Return the variance of a statistic, given its values (M,) in the rows, and the degrees of freedom.

        The sum over strata h of (M - 1) / M times the squared deviations (Tukey; Shao & Tu 1995, 2.4). With two strata
        the smaller one gives the degrees of freedom: it contributes most to the variance of differences between them,
        and Satterthwaite's number, which is used for one or more than two, was too high in simulations.
        """
        variance, dof = np.zeros(self.sizes.size), self.sizes - 1
        for h in range(self.sizes.size):
            row = values[(self.stratum == h) & ~np.isnan(values)]
            if row.size:
                variance[h] = (row.size - 1) / row.size * ((row - row.mean()) ** 2).sum()
        total = float(variance.sum())
        if self.sizes.size == 2:
            return total, float(dof.min())
        denominator = np.divide(variance**2, dof, out=np.zeros_like(variance), where=dof > 0).sum()
        return total, float(total**2 / denominator) if denominator > 0 else 0.0


def jackknife(strata: IntArray, groups: IntArray, seed: int = 0) -> Jackknife:
    """Leave out each group in turn, or random blocks of groups if there are more than JACKKNIFE_ROWS.

    Args:
        strata: (G,) stratum of each group.
        groups: (n,) group index of each image, from 0.
        seed: of the blocks.
    """
    rng = np.random.default_rng(seed)
    values, sizes = np.unique(strata, return_counts=True)
    max_rows = max(20, JACKKNIFE_ROWS // values.size)
    block = np.zeros(strata.size, np.int64)
    stratum: list[int] = []
    for h, value in enumerate(values):
        members = np.flatnonzero(strata == value)
        rows = min(members.size, max_rows)
        block[members] = len(stratum) + rng.permutation(members.size) % rows
        stratum += [h] * rows
    weights = np.ones((len(stratum), groups.size), np.uint8)
    weights[block[groups], np.arange(groups.size)] = 0
    return Jackknife(weights, np.array(stratum), sizes)


def transformed_t_interval(
    value: float, variance: float, dof: float, bounds: tuple[float, float], level: float
) -> tuple[float, float]:
    """Return a Student's t interval on an unbounded scale: logit between bounds, log with only a lower one.

    NaN where it is undefined: no variance, no degree of freedom, or a value at a bound.
    """
    low, high = bounds
    if not variance > 0 or dof < 1 or not low < value < high:
        return math.nan, math.nan
    margin = float(t.ppf((1 + level) / 2, dof)) * math.sqrt(variance)
    if math.isinf(low):
        return value - margin, value + margin
    if math.isinf(high):
        factor = math.exp(min(margin / (value - low), 700))
        return low + (value - low) / factor, low + (value - low) * factor
    scaled = (value - low) / (high - low)
    margin /= (high - low) * scaled * (1 - scaled)
    below, above = expit(logit(scaled) + np.array([-margin, margin]))
    return low + (high - low) * float(below), low + (high - low) * float(above)


def percentile_limits(draws: FloatArray, level: float) -> tuple[float, float]:
    """Return percentile limits of the draws that are not NaN; NaN without any."""
    draws = draws[~np.isnan(draws)]
    if not draws.size:
        return math.nan, math.nan
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def studentised_means(
    table: FloatArray, groups: IntArray, strata: IntArray, resamples: int, level: float, seed: int
) -> FloatArray:
    """Return bootstrap-t limits (M, 2) of the column means of a table, drawing groups within strata.

    Each resample gives (mean* - mean) / se*, whose quantiles replace those of Student's t (Efron 1979; DiCiccio & Efron
    1996, Stat Sci 11:189-228): skewness, which makes percentile limits too narrow, is estimated instead of ignored. se
    is that of a ratio, sum over number of images, by groups within strata. On the logit scale for columns within 0..1
    and the log scale for columns never below 0, so that limits stay in range. NaN where nothing varies.

    Args:
        table: (n, M).
        groups: (n,) group index of each image, from 0.
        strata: (G,) stratum of each group.
        resamples: number of draws.
        level: two-sided confidence, between 0 and 1.
        seed: of the draws.
    """
    mean = table.mean(axis=0)
    count = np.bincount(groups)
    sums = np.stack([np.bincount(groups, column) for column in (table - mean).T], axis=1)  # (G, M), centred
    stratum_members = [np.flatnonzero(strata == s) for s in np.unique(strata)]
    draws = bootstrap_group_counts(strata, resamples, seed).astype(np.float64)

    def moments(weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return each resample's mean, less that of the sample, and standard error, both (B, M)."""
        size = weights @ count
        shift = weights @ sums / size[:, None]
        variance = np.zeros_like(shift)
        for members in stratum_members:
            if (n_groups := members.size) < 2:
                continue
            w, s, c = weights[:, members], sums[members], count[members][:, None]
            squares = w @ s**2 - 2 * shift * (w @ (s * c)) + shift**2 * (w @ c**2)
            total = w @ s - shift * (w @ c)
            variance += n_groups / (n_groups - 1) * np.maximum(squares - total**2 / n_groups, 0)
        return shift, np.sqrt(variance) / size[:, None]

    (shift, error), (_, sample_error) = moments(draws), moments(np.ones((1, strata.size)))
    limits = np.full((table.shape[1], 2), math.nan)
    for column, (low, high) in enumerate(zip(table.min(axis=0), table.max(axis=0), strict=True)):
        x, se = mean[column], sample_error[0, column]
        if se <= 1e-12 * max(abs(low), abs(high)) or math.isclose(low, high):
            continue
        if low >= 0 and high <= 1:
            transform, slope, inverse = logit, lambda v: 1 / (v * (1 - v)), expit
        elif low >= 0:
            transform, slope, inverse = np.log, lambda v: 1 / v, np.exp
        else:
            transform, slope, inverse = (lambda v: v), np.ones_like, (lambda v: v)
        resampled = x + shift[:, column]
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample without variance, or at a bound
            ratio = (transform(resampled) - transform(x)) / (slope(resampled) * error[:, column])
        ratio = ratio[~np.isnan(ratio)]
        # Actual draws, since interpolating between a number and infinity gives NaN.
        small = np.quantile(ratio, (1 - level) / 2, method="lower")
        large = np.quantile(ratio, (1 + level) / 2, method="higher")
        limits[column] = inverse(transform(x) - np.array([large, small]) * slope(x) * se)
    return limits
