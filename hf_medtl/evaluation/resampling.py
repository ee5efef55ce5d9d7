"""Bootstrap and jackknife over groups (patients), and confidence limits from them."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import norm, t

from hf_medtl.evaluation.metrics import BLOCK_CELLS

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

JACKKNIFE_ROWS = 1000  # more groups are left out in blocks: the error of a standard error from 1,000 is 2 %


def group_index(groups: ArrayLike, n: int) -> IntArray:
    """Groups numbered from 0 in order of appearance, (n,).

    Raises:
        ValueError: another length, or a name is missing.
    """
    names = np.asarray(groups, dtype=object)  # as they are: among strings NaN would become the patient "nan"
    if names.shape != (n,):
        raise ValueError(f"expected groups of shape ({n},), found {names.shape}")
    missing = sum(name is None or name != name for name in names)
    if missing:  # else all images without a patient would be one patient
        raise ValueError(f"expected a group for every picture, found {missing} missing")
    number: dict[object, int] = {}
    return np.array([number.setdefault(name, len(number)) for name in names])


def majority_strata(labels: IntArray, groups: IntArray) -> IntArray:
    """The label of most images of each group, (G,), the lowest on a tie."""
    counts = np.zeros((groups.max() + 1, labels.max() + 1), dtype=np.int64)
    np.add.at(counts, (groups, labels), 1)
    return counts.argmax(axis=1)


def bootstrap_group_counts(strata: IntArray, resamples: int, seed: int = 0) -> NDArray[np.uint16]:
    """How often each group comes in each resample, (resamples, G): as many from each stratum as there are."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros((resamples, strata.size), dtype=np.uint16)
    for members in (np.flatnonzero(strata == s) for s in np.unique(strata)):
        size = members.size
        step = max(1, BLOCK_CELLS // size)  # many rows at a time: each call costs more than 50 draws
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            places = rng.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
            counts = np.bincount(places.ravel(), minlength=rows * size).reshape(rows, size)
            drawn[start : start + rows, members] = counts
    return drawn


def bootstrap_weights(labels: IntArray, groups: IntArray, resamples: int, seed: int = 0) -> NDArray[np.uint16]:
    """How often each image comes in each resample, (resamples, n); groups numbered from 0.

    As many groups are drawn from each majority label as there are.
    """
    return bootstrap_group_counts(majority_strata(labels, groups), resamples, seed)[
        :, groups
    ]  # 2,000 x 10,000 in 40 MB


class Jackknife(NamedTuple):
    """Samples with a group left out, or a block of them where a stratum has many.

    weights: (M, n) 0 for the images left out, else 1. stratum: (M,) from which. sizes: (H,) groups of each stratum.
    """

    weights: NDArray[np.uint8]
    stratum: IntArray
    sizes: IntArray

    def variance(self, values: FloatArray) -> tuple[float, float]:
        """Variance of a statistic, of which `values` (M,) are those of the rows, and its degrees of freedom.

        The sum over strata h of (M - 1) / M times the squared deviations (Tukey; Shao & Tu 1995, 2.4). With two strata
        the smaller one gives the degrees of freedom: it does most to the variance of what is measured between them, and
        Satterthwaite's number, which is used for one or more than two, was too high in simulations.
        """
        parts = []
        for h in range(self.sizes.size):
            row = self._defined(values, h)
            parts.append((row.size - 1) / row.size * ((row - row.mean()) ** 2).sum() if row.size else 0.0)
        part, freedom = np.array(parts), self.sizes - 1
        total = float(part.sum())
        if self.sizes.size == 2:
            return total, float(freedom.min())
        spread = np.divide(part**2, freedom, out=np.zeros_like(part), where=freedom > 0).sum()
        return total, float(total**2 / spread) if spread > 0 else 0.0

    def acceleration(self, values: FloatArray) -> float:
        """Of the BCa bootstrap, for several samples (Davison & Hinkley 1997, 5.3.2), as scipy.stats.bootstrap."""
        cubes = squares = 0.0
        for h in range(self.sizes.size):
            row = self._defined(values, h)
            if not row.size:
                continue
            influence = (row.size - 1) * (row.mean() - row)
            cubes += (influence**3).sum() / row.size**3
            squares += (influence**2).sum() / row.size**2
        return cubes / (6 * squares**1.5) if squares > 0 else 0.0

    def _defined(self, values: FloatArray, h: int) -> FloatArray:
        row = values[self.stratum == h]
        return row[~np.isnan(row)]


def jackknife(strata: IntArray, groups: IntArray, seed: int = 0) -> Jackknife:
    """Leave each group out, or, of more than JACKKNIFE_ROWS over all strata, each of as many random blocks.

    Args:
        strata: (G,) of each group.
        groups: (n,) of each image, numbered from 0.
        seed: of the blocks.
    """
    rng = np.random.default_rng(seed)
    kinds, sizes = np.unique(strata, return_counts=True)
    most = max(20, JACKKNIFE_ROWS // kinds.size)
    block = np.zeros(strata.size, np.int64)
    stratum: list[int] = []
    for h, kind in enumerate(kinds):
        members = np.flatnonzero(strata == kind)
        rows = min(members.size, most)
        block[members] = len(stratum) + rng.permutation(members.size) % rows
        stratum += [h] * rows
    weights = np.ones((len(stratum), groups.size), np.uint8)
    weights[block[groups], np.arange(groups.size)] = 0
    return Jackknife(weights, np.array(stratum), sizes)


def transformed_t_interval(
    value: float, variance: float, freedom: float, bounds: tuple[float, float], level: float
) -> tuple[float, float]:
    """t interval on the scale where a number between bounds has none: logit, or log if only the lower one is finite.

    NaN where it can't be: nothing varies, no degree of freedom, a value at its bound.
    """
    low, high = bounds
    if not variance > 0 or freedom < 1 or not low < value < high:
        return math.nan, math.nan
    reach = float(t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)
    if math.isinf(low):
        return value - reach, value + reach
    if math.isinf(high):
        factor = math.exp(min(reach / (value - low), 700))
        return low + (value - low) / factor, low + (value - low) * factor
    share = (value - low) / (high - low)
    reach /= (high - low) * share * (1 - share)
    below, above = expit(logit(share) + np.array([-reach, reach]))
    return low + (high - low) * float(below), low + (high - low) * float(above)


def percentile_limits(draws: FloatArray, level: float) -> tuple[float, float]:
    """Quantiles of the draws that are defined; NaN without any."""
    draws = draws[~np.isnan(draws)]
    if not draws.size:
        return math.nan, math.nan
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bca_limits(value: float, draws: FloatArray, acceleration: float, level: float) -> tuple[float, float]:
    """Bias-corrected and accelerated limits (Efron 1987, J Am Stat Assoc 82:171-185) of draws that are defined."""
    draws = draws[~np.isnan(draws)]
    if not draws.size or math.isnan(acceleration):
        return math.nan, math.nan
    below = ((draws < value).mean() + (draws <= value).mean()) / 2
    bias = norm.ppf(np.clip(below, 0.5 / draws.size, 1 - 0.5 / draws.size))
    z = bias + norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(draws, norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def studentised_means(
    table: FloatArray, groups: IntArray, strata: IntArray, resamples: int, level: float, seed: int
) -> FloatArray:
    """Bootstrap-t limits (M, 2) of the means of the columns of a table (n, M), drawing groups within strata.

    Each resample gives (mean* - mean) / se*, whose quantiles take the place of Student's t (Efron 1979; DiCiccio &
    Efron 1996, Stat Sci 11:189-228): skewness, which makes percentile limits too narrow, is estimated instead of
    ignored. se is that of a ratio, sum over number of images, by groups within strata. On the scale of the logit for
    columns within 0..1 and of the log for those never below 0, so that limits stay there. NaN where nothing varies.

    Args:
        table: (n, M).
        groups: (n,) numbered from 0.
        strata: (G,) of each group.
        resamples, level, seed: as for `metric_intervals`.
    """
    mean = table.mean(axis=0)
    count = np.bincount(groups)
    sums = np.stack([np.bincount(groups, column) for column in (table - mean).T], axis=1)  # (G, M), centred
    shares = [(np.flatnonzero(strata == s)) for s in np.unique(strata)]
    ones = np.ones((1, strata.size))
    draws = bootstrap_group_counts(strata, resamples, seed).astype(np.float64)

    def moments(weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean, less that of the sample, and standard error of each resample, both (B, M)."""
        size = weights @ count
        shift = weights @ sums / size[:, None]
        variance = np.zeros_like(shift)
        for members in shares:
            if (groups_in := members.size) < 2:
                continue
            w, s, c = weights[:, members], sums[members], count[members][:, None]
            squares = w @ s**2 - 2 * shift * (w @ (s * c)) + shift**2 * (w @ c**2)
            total = w @ s - shift * (w @ c)
            variance += groups_in / (groups_in - 1) * np.maximum(squares - total**2 / groups_in, 0)
        return shift, np.sqrt(variance) / size[:, None]

    (shift, error), (_, own) = moments(draws), moments(ones)
    limits = np.full((table.shape[1], 2), math.nan)
    for column, (low, high) in enumerate(zip(table.min(axis=0), table.max(axis=0), strict=True)):
        x, se = mean[column], own[0, column]
        if se <= 1e-12 * max(abs(low), abs(high)) or math.isclose(low, high):
            continue
        drawn = x + shift[:, column]
        if low >= 0 and high <= 1:
            there, slope, back = logit, lambda v: 1 / (v * (1 - v)), expit
        elif low >= 0:
            there, slope, back = np.log, lambda v: 1 / v, np.exp
        else:
            there, slope, back = (lambda v: v), np.ones_like, (lambda v: v)
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample without spread, or all at the bound
            ratio = (there(drawn) - there(x)) / (slope(drawn) * error[:, column])
        ratio = ratio[~np.isnan(ratio)]
        # Whole draws, since between a number and infinity there is none.
        small = np.quantile(ratio, (1 - level) / 2, method="lower")
        large = np.quantile(ratio, (1 + level) / 2, method="higher")
        limits[column] = back(there(x) - np.array([large, small]) * slope(x) * se)
    return limits
