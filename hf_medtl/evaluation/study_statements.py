"""Learning-curve studies: paired contrasts between arms, and the statements that they support."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from hf_medtl.evaluation.intervals import Interval
from hf_medtl.evaluation.resampling import percentile_limits
from hf_medtl.evaluation.significance import holm

LEVEL = 0.05  # significance level of the p-values after Holm's correction
MIN_GROUPS = 5  # test groups of a stratum; with fewer a standard error means little


@dataclass(frozen=True)
class LearningCurvePoint:
    """Metric of one arm trained on one fraction of the training groups.

    Attributes:
        arm: name of a backbone with its training strategy.
        backbone: arms with equal backbones are compared as pretrained and from scratch.
        scratch: True if training started from random weights.
        percent: percentage of the training groups.
        groups: their number, the mean over seeds.
        values: seed -> metric on that seed's test images; higher is better.
        draws: seed -> (B,) metric on resampled test groups, with the same resamples for all points.
        limits: seed -> limits of the seed's value.
    """

    arm: str
    backbone: str
    scratch: bool
    percent: float
    groups: float
    values: Mapping[int, float]
    draws: Mapping[int, NDArray[np.float64]]
    limits: Mapping[int, tuple[float, float]]

    @property
    def mean(self) -> Interval:
        """Mean over seeds, with 95 % limits over test groups.

        Where the resamples do not vary, the limits are the means of the seeds' own limits. The limits show how these
        models might do on other test images, not how retrained models would.
        """
        draws = np.mean([*self.draws.values()], axis=0)
        low, high = percentile_limits(draws, 0.95)
        if len(self.limits) == 1 or not high - low > 1e-12:  # no observed error does not mean certainty
            low, high = np.mean([*self.limits.values()], axis=0)
        return Interval(float(np.mean([*self.values.values()])), float(low), float(high))


@dataclass(frozen=True)
class Contrast:
    """Difference of two points on the same test images, one minus other.

    Attributes:
        one: (arm, percent).
        other: (arm, percent).
        value: mean difference over the seeds that both have.
        low: lower 95 % limit over test groups, not corrected for other contrasts.
        high: upper limit likewise.
        p_value: two-sided, after Holm's correction for all contrasts of the study.
        by_seed: seed -> difference.
    """

    one: tuple[str, float]
    other: tuple[str, float]
    value: float
    low: float
    high: float
    p_value: float
    by_seed: Mapping[int, float]

    @property
    def is_reportable(self) -> bool:
        """True if the difference is significant and has the same sign in all seeds."""
        return self.p_value < LEVEL and all(math.copysign(1, self.value) * d > 0 for d in self.by_seed.values())

    def reversed(self) -> "Contrast":
        """Return the contrast with the signs reversed, other minus one."""
        seeds = {seed: -value for seed, value in self.by_seed.items()}
        return Contrast(self.other, self.one, -self.value, -self.high, -self.low, self.p_value, seeds)

    @property
    def p(self) -> str:
        """The p-value as text."""
        return "< 0.001" if self.p_value < 0.001 else f"= {self.p_value:.3f}"

    def __str__(self) -> str:
        note = "" if len({value > 0 for value in self.by_seed.values()}) == 1 else "; the seeds disagree"
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}] (p {self.p}{note})"


def contrast_pairs(arms: Iterable[tuple[str, float]]) -> list[tuple[tuple[str, float], tuple[str, float]]]:
    """Return the pairs of (arm, percent) to compare: arms at equal percent, and each arm's largest with its others."""
    points = list(arms)
    pairs = [(one, other) for one, other in combinations(points, 2) if one[1] == other[1]]
    largest = {arm: max(percent for name, percent in points if name == arm) for arm, _ in points}
    return pairs + [((arm, largest[arm]), (arm, percent)) for arm, percent in points if percent < largest[arm]]


def contrasts(points: Sequence[LearningCurvePoint], fewest: int) -> list[Contrast]:
    """Return the contrasts of `contrast_pairs` over the seeds that both points share; pairs without any are omitted.

    The standard error is that of the draws; p-values and limits use Student's t with `fewest` - 1 degrees of freedom.
    With few groups, quantiles of the draws are too optimistic, most of all in the tails that Holm's correction uses.

    Args:
        points: points with the same resamples.
        fewest: number of test groups of the rarest stratum, over all seeds.
    """
    table = {(point.arm, point.percent): point for point in points}
    student = t(max(fewest - 1, 1))
    results = []
    for one, other in contrast_pairs(table):
        a, b = table[one], table[other]
        if seeds := sorted({*a.values} & {*b.values}):
            by_seed = {seed: a.values[seed] - b.values[seed] for seed in seeds}
            draws = np.mean([a.draws[seed] - b.draws[seed] for seed in seeds], axis=0)
            value = float(np.mean([*by_seed.values()]))
            error = float(np.nanstd(draws)) * math.sqrt(fewest / max(fewest - 1, 1))
            p_value = float(2 * student.sf(abs(value) / error)) if error > 1e-12 else 1.0
            margin = float(student.ppf(0.975)) * error
            results.append(Contrast(one, other, value, value - margin, value + margin, p_value, by_seed))
    adjusted = holm([contrast.p_value for contrast in results])
    return [replace(contrast, p_value=float(p)) for contrast, p in zip(results, adjusted, strict=True)]


def statements(
    points: Sequence[LearningCurvePoint], contrasts: Sequence[Contrast], metric: str, fewest: int
) -> list[str]:
    """Return guidelines in Markdown, each with the differences that support it, or the statement that none does.

    Args:
        points: points of a study.
        contrasts: their `contrasts`.
        metric: display name of the metric.
        fewest: number of test groups of the rarest stratum, over all seeds.
    """
    if fewest < MIN_GROUPS:
        return [
            f"**Too few test groups for conclusions.** The rarest class or source has {fewest} test groups in all "
            f"seeds together; estimating the sampling error takes at least {MIN_GROUPS}. Test on more patients."
        ]
    between = {(c.one, c.other): c for c in contrasts} | {(c.other, c.one): c.reversed() for c in contrasts}
    sizes = {(p.arm, p.percent): f"{p.percent:g} % ({p.groups:.0f} training groups)" for p in points}
    lines = []
    for percent in sorted({point.percent for point in points}):
        arms = {point.arm: point.mean.value for point in points if point.percent == percent}
        best = max(arms, key=lambda arm: arms[arm])
        pairs = [(arm, between.get(((best, percent), (arm, percent)))) for arm in arms if arm != best]
        lines += _choice(sizes[best, percent], best, [(arm, c) for arm, c in pairs if c], metric)
    for pair in combinations(dict.fromkeys((point.arm, point.backbone, point.scratch) for point in points), 2):
        one, other = sorted(pair, key=lambda arm: arm[2])  # the pretrained one first
        if one[1] == other[1] and one[2] < other[2]:
            percents = [point.percent for point in points if point.arm == one[0]]
            lines += _directions(
                f"Pretrained weights, {one[0]} against {other[0]}",
                [(f"with {sizes[one[0], p]}", between.get(((one[0], p), (other[0], p)))) for p in percents],
                metric,
            )
    for arm in dict.fromkeys(point.arm for point in points):
        *smaller, largest = sorted(point.percent for point in points if point.arm == arm)
        lines += _directions(
            f"More training groups, {arm}",
            [(f"{largest:g} % against {sizes[arm, p]}", between.get(((arm, largest), (arm, p)))) for p in smaller],
            metric,
        )
    return lines


def _choice(size: str, best: str, pairs: Sequence[tuple[str, Contrast]], metric: str) -> list[str]:
    """State which arm to choose at one training set size, from the contrasts of the best arm with each other arm."""
    if not pairs:
        return []
    worse = [f"{arm}, {c}" for arm, c in pairs if c.is_reportable]
    similar = {arm: f"{arm}, {c}" for arm, c in pairs if not c.is_reportable}
    listed = "; ".join(similar.values())
    if not worse:
        return [f"**With {size}: no reliable difference.** {best} has the highest mean {metric}, against {listed}."]
    choice = f"**With {size}: choose {' or '.join([best, *similar])}.**"
    text = f"{choice} {best} has a higher {metric} than {'; '.join(worse)}."
    return [f"{text} No reliable difference between {best} and {listed}." if similar else text]


def _directions(title: str, contrasts: Sequence[tuple[str, Contrast | None]], metric: str) -> list[str]:
    """List contrasts of one type by direction: higher, lower, or no reliable difference."""
    parts: dict[str, list[str]] = {f"Higher {metric}": [], f"Lower {metric}": [], "No reliable difference": []}
    higher, lower, unclear = parts.values()
    for condition, c in contrasts:
        if c:
            (unclear if not c.is_reportable else higher if c.value > 0 else lower).append(f"{condition}, {c}")
    listed = [f"{direction}: {'; '.join(texts)}" for direction, texts in parts.items() if texts]
    return [f"**{title}.** {'. '.join(listed)}."] if listed else []
