"""Statements of a study of training sets: paired differences, and the sentences that they support."""

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

LEVEL = 0.05  # of the p-values after Holm's correction
MIN_GROUPS = 5  # test groups of a kind, below which a standard error means little


@dataclass(frozen=True)
class LearningCurvePoint:
    """What one arm reached with one share of the training groups.

    Attributes:
        arm: a backbone with its way of training.
        backbone: what arms must share to be compared as pretrained and from scratch.
        scratch: whether it started from random weights.
        percent: share of the training groups.
        groups: their number, the mean over seeds.
        values: seed -> metric on that seed's test images; higher is better.
        draws: seed -> (B,) the same on resampled test groups, the same resamples for all points.
        own: seed -> limits of the seed's value.
    """

    arm: str
    backbone: str
    scratch: bool
    percent: float
    groups: float
    values: Mapping[int, float]
    draws: Mapping[int, NDArray[np.float64]]
    own: Mapping[int, tuple[float, float]]

    @property
    def mean(self) -> Interval:
        """Over seeds, with 95 % limits over test groups; the mean of the seeds' own where resampling finds no spread.

        It says how these very models would do on other test images, not how others would that were trained again.
        """
        draws = np.mean([*self.draws.values()], axis=0)
        low, high = percentile_limits(draws, 0.95)
        if len(self.own) == 1 or not high - low > 1e-12:  # no error anywhere is no certainty
            low, high = np.mean([*self.own.values()], axis=0)
        return Interval(float(np.mean([*self.values.values()])), float(low), float(high))


@dataclass(frozen=True)
class Contrast:
    """One point minus another, on the same test images.

    Attributes:
        one, other: (arm, percent).
        value: mean difference over the seeds that both have.
        low, high: 95 % limits over test groups, of this difference alone.
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
    def told(self) -> bool:
        """Whether the difference may be stated: significant, and of one sign in all seeds."""
        return self.p_value < LEVEL and all(math.copysign(1, self.value) * its > 0 for its in self.by_seed.values())

    def turned(self) -> "Contrast":
        """The other minus the one."""
        seeds = {seed: -its for seed, its in self.by_seed.items()}
        return Contrast(self.other, self.one, -self.value, -self.high, -self.low, self.p_value, seeds)

    @property
    def p(self) -> str:
        """The p-value, for people."""
        return "< 0.001" if self.p_value < 0.001 else f"= {self.p_value:.3f}"

    def __str__(self) -> str:
        apart = "" if len({its > 0 for its in self.by_seed.values()}) == 1 else "; the seeds disagree"
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}] (p {self.p}{apart})"


def contrast_pairs(arms: Iterable[tuple[str, float]]) -> list[tuple[tuple[str, float], tuple[str, float]]]:
    """What is compared of (arm, percent): arms at one share with each other, and an arm's largest share with others."""
    points = list(arms)
    at_once = [(one, other) for one, other in combinations(points, 2) if one[1] == other[1]]
    largest = {arm: max(percent for name, percent in points if name == arm) for arm, _ in points}
    return at_once + [((arm, largest[arm]), (arm, percent)) for arm, percent in points if percent < largest[arm]]


def contrasts(points: Sequence[LearningCurvePoint], fewest: int) -> list[Contrast]:
    """All contrasts of `pairs` over the seeds that both points have, those without a common seed left out.

    The standard error is that of the draws, p-values and limits are of Student's t with the groups of the rarest kind
    less one: of few groups the quantiles of draws promise too much, most of all far out, where Holm's correction looks.

    Args:
        points: with the same resamples.
        fewest: test groups of the rarest kind, over all seeds.
    """
    table = {(point.arm, point.percent): point for point in points}
    law = t(max(fewest - 1, 1))
    found = []
    for one, other in contrast_pairs(table):
        a, b = table[one], table[other]
        if seeds := sorted({*a.values} & {*b.values}):
            by_seed = {seed: a.values[seed] - b.values[seed] for seed in seeds}
            draws = np.mean([a.draws[seed] - b.draws[seed] for seed in seeds], axis=0)
            value = float(np.mean([*by_seed.values()]))
            error = float(np.nanstd(draws)) * math.sqrt(fewest / max(fewest - 1, 1))
            p_value = float(2 * law.sf(abs(value) / error)) if error > 1e-12 else 1.0
            reach = float(law.ppf(0.975)) * error
            found.append(Contrast(one, other, value, value - reach, value + reach, p_value, by_seed))
    raised = holm([contrast.p_value for contrast in found])
    return [replace(contrast, p_value=float(p)) for contrast, p in zip(found, raised, strict=True)]


def statements(
    points: Sequence[LearningCurvePoint], contrasts: Sequence[Contrast], metric: str, fewest: int
) -> list[str]:
    """Guidelines in Markdown, each with the differences that back it; what they do not back is said not to be told.

    Args:
        points, contrasts: of a study, of `compare`.
        metric: its name, for people.
        fewest: test groups of the rarest kind, over all seeds.
    """
    if fewest < MIN_GROUPS:
        return [
            f"**No difference can be told.** Of one kind there are {fewest} test groups in all seeds together, and "
            f"{MIN_GROUPS} are the fewest that say how much is chance. Test on more patients."
        ]
    known = {(c.one, c.other): c for c in contrasts} | {(c.other, c.one): c.turned() for c in contrasts}
    sizes = {
        (point.arm, point.percent): f"{point.percent:g} % ({point.groups:.0f} training groups)" for point in points
    }
    found = []
    for percent in sorted({point.percent for point in points}):
        here = [point for point in points if point.percent == percent]
        best = max(here, key=lambda point: point.mean.value)
        rivals = [(its.arm, known.get(((best.arm, percent), (its.arm, percent)))) for its in here if its is not best]
        found += _choice(sizes[best.arm, percent], best.arm, [(name, c) for name, c in rivals if c], metric)
    for one, other in combinations(dict.fromkeys((point.arm, point.backbone, point.scratch) for point in points), 2):
        one, other = sorted([one, other], key=lambda its: its[2])  # the pretrained one first
        if one[1] == other[1] and one[2] < other[2]:
            shares = [point.percent for point in points if point.arm == one[0]]
            found += _list(
                f"Pretrained weights, {one[0]} against {other[0]}",
                [(f"with {sizes[one[0], share]}", known.get(((one[0], share), (other[0], share)))) for share in shares],
                metric,
            )
    for arm in dict.fromkeys(point.arm for point in points):
        most, *less = sorted((point.percent for point in points if point.arm == arm), reverse=True)
        found += _list(
            f"More training groups, {arm}",
            [
                (f"{most:g} % against {sizes[arm, share]}", known.get(((arm, most), (arm, share))))
                for share in sorted(less)
            ],
            metric,
        )
    return found


def _choice(size: str, best: str, rivals: Sequence[tuple[str, Contrast]], metric: str) -> list[str]:
    """Which arm to take at one share."""
    beaten = [f"{name}, {c}" for name, c in rivals if c.told]
    equal = {name: f"{name}, {c}" for name, c in rivals if not c.told}
    if not rivals:
        return []
    if not beaten:
        text = f"**With {size}: no difference can be told.** {best} has the highest mean {metric}, against "
        return [f"{text}{'; '.join(equal.values())}."]
    text = (
        f"**With {size}: take {' or '.join([best, *equal])}.** {best} has a higher {metric} than {'; '.join(beaten)}."
    )
    return [f"{text} No difference can be told between {best} and {'; '.join(equal.values())}." if equal else text]


def _list(title: str, contrasts: Sequence[tuple[str, Contrast | None]], metric: str) -> list[str]:
    """One kind of contrast over several shares."""
    parts = {
        f"higher {metric}": [f"{where}, {c}" for where, c in contrasts if c and c.told and c.value > 0],
        f"lower {metric}": [f"{where}, {c}" for where, c in contrasts if c and c.told and c.value < 0],
        "no difference can be told": [f"{where}, {c}" for where, c in contrasts if c and not c.told],
    }
    said = [f"{words}: {'; '.join(its)}" for words, its in parts.items() if its]
    return [f"**{title}.** {'. '.join(text[0].upper() + text[1:] for text in said)}."] if said else []
