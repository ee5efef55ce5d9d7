"""Tests of statements of a study: planted differences are stated, absent ones are not."""

from dataclasses import replace

import numpy as np
import pytest

from hf_medtl.evaluation.resampling import bootstrap_group_counts
from hf_medtl.evaluation.study_statements import (
    MIN_GROUPS,
    Contrast,
    LearningCurvePoint,
    contrast_pairs,
    contrasts,
    statements,
)

SIZES = {5.0: 8, 25.0: 40, 100.0: 160}
ARMS = {"a, full": ("a", False), "b, full": ("b", False), "a, scratch": ("a", True)}


def study(
    truth: dict[tuple[str, float], float], n: int = 60, seeds: tuple[int, ...] = (1, 2), noise: float = 0.1, of: int = 0
) -> list[LearningCurvePoint]:
    """Simulate means over n test groups, whose values have a part common to all arms and one of each arm."""
    rng = np.random.default_rng(of)
    drawn = {seed: bootstrap_group_counts(np.zeros(n, int), 1000, seed) / n for seed in seeds}
    common = {seed: rng.normal(0, 2 * noise, n) for seed in seeds}
    points = []
    for (arm, percent), mean in truth.items():
        by_seed = {seed: mean + common[seed] + rng.normal(0, noise, n) for seed in seeds}
        points.append(
            LearningCurvePoint(
                arm,
                *ARMS[arm],
                percent,
                SIZES[percent],
                {seed: float(column.mean()) for seed, column in by_seed.items()},
                {seed: drawn[seed] @ column for seed, column in by_seed.items()},
                dict.fromkeys(seeds, (0.0, 1.0)),
            )
        )
    return points


def statement_lines(points: list[LearningCurvePoint], fewest: int = 60) -> list[str]:
    return statements(points, contrasts(points, fewest), "Dice", fewest)


def test_planted_differences_are_stated():
    """Transfer helps with few groups and not with many; b is like a; scratch needs more groups."""
    truth = {("a, full", 5.0): 0.8, ("b, full", 5.0): 0.8, ("a, scratch", 5.0): 0.6}
    truth |= {(arm, 100.0): 0.85 for arm in ARMS}
    lines = statement_lines(study(truth))
    assert len(lines) == 6
    few = next(line for line in lines if line.startswith("**With 5 %"))
    assert few.startswith("**With 5 % (8 training groups): choose ")
    assert "a, full or b, full" in few or "b, full or a, full" in few
    assert " has a higher Dice than a, scratch, +0." in few
    assert "No reliable difference between " in few
    many = next(line for line in lines if line.startswith("**With 100 %"))
    assert many.startswith("**With 100 % (160 training groups): no reliable difference.**")
    transfer = next(line for line in lines if line.startswith("**Pretrained weights"))
    assert transfer.startswith("**Pretrained weights, a, full against a, scratch.** Higher Dice: with 5 % (8 training ")
    assert "No reliable difference: with 100 % (160 training groups), " in transfer
    more = next(line for line in lines if line.startswith("**More training groups, a, scratch.**"))
    assert "Higher Dice: 100 % against 5 % (8 training groups), +0.2" in more


def test_statement_contains_its_interval():
    points = study({("a, full", 5.0): 0.8, ("a, scratch", 5.0): 0.6})
    (contrast,) = contrasts(points, 60)
    assert contrast.is_reportable
    assert contrast.low > 0.1
    gain = points[0].mean.value - points[1].mean.value
    assert contrast.value == pytest.approx(gain)
    numbers = f"{contrast.value:+.3f} [{contrast.low:+.3f}, {contrast.high:+.3f}] (p "
    assert all(numbers in line for line in statement_lines(points))


def test_worse_than_scratch_is_stated():
    lines = statement_lines(study({("a, full", 5.0): 0.6, ("a, scratch", 5.0): 0.8}))
    assert any("against a, scratch.** Lower Dice: with 5 %" in line for line in lines)
    assert any("choose a, scratch.**" in line for line in lines)


@pytest.mark.slow
def test_absent_differences_are_not_stated():
    """At most 5 % of studies without any difference state one, as Holm's correction guarantees."""
    truth = {(arm, percent): 0.8 for arm in ARMS for percent in SIZES}
    for n in (8, 60):
        stated = [any(c.is_reportable for c in contrasts(study(truth, n, of=of), n)) for of in range(200)]
        assert sum(stated) <= 16
    lines = statement_lines(study(truth, of=stated.index(False)))
    assert not any(word in line for line in lines for word in ("choose", "igher", "ower"))
    assert all("o reliable difference" in line for line in lines)


def test_small_difference_of_twelve_patients_is_not_stated():
    lines = statement_lines(study({("a, full", 5.0): 0.82, ("b, full", 5.0): 0.8}, n=12, seeds=(1,)), 12)
    assert [line.split("**")[1] for line in lines] == ["With 5 % (8 training groups): no reliable difference."]


def test_identical_runs_have_no_difference():
    """Only rounding varies."""
    (one,) = study({("a, full", 5.0): 0.8})
    (contrast,) = contrasts(
        [one, replace(one, arm="b, full", values={s: v + 1e-17 for s, v in one.values.items()})], 60
    )
    assert contrast.p_value == 1
    assert not contrast.is_reportable


def test_disagreeing_seeds_give_no_statement():
    by_seed = {1: 0.4, 2: -0.01}
    contrast = Contrast(("a, full", 5.0), ("b, full", 5.0), 0.195, 0.1, 0.3, 0.001, by_seed)
    assert not contrast.is_reportable
    assert str(contrast).endswith("(p = 0.001; the seeds disagree)")
    assert Contrast(*contrast.reversed().__dict__.values()).by_seed == {1: -0.4, 2: 0.01}
    assert contrast.reversed().reversed() == contrast


def test_too_few_test_groups_give_no_statement():
    lines = statement_lines(study({("a, full", 5.0): 0.9, ("a, scratch", 5.0): 0.1}, n=MIN_GROUPS - 1), MIN_GROUPS - 1)
    assert len(lines) == 1
    assert lines[0].startswith(
        f"**Too few test groups for conclusions.** The rarest class or source has {MIN_GROUPS - 1} test groups"
    )


def test_p_values_are_holm_adjusted():
    points = study({(arm, 5.0): mean for arm, mean in zip(ARMS, (0.8, 0.8, 0.77), strict=True)})
    at_once = contrasts(points, 60)
    alone = [contrasts([p for p in points if p.arm in (c.one[0], c.other[0])], 60)[0].p_value for c in at_once]
    assert sorted(c.p_value for c in at_once)[0] == pytest.approx(3 * min(alone))
    arms = {(arm, percent) for arm in ARMS for percent in SIZES}
    assert len(contrast_pairs(arms)) == 9 + 6  # three arms at each of three percentages; two smaller ones of each arm


def test_missing_cells_are_reported():
    """Only seeds that both have are compared; a point without a common seed is left out."""
    one, other = study({("a, full", 5.0): 0.8, ("b, full", 5.0): 0.5})
    only = {name: {2: getattr(other, name)[2]} for name in ("values", "draws", "limits")}
    (contrast,) = contrasts([one, LearningCurvePoint(**vars(other) | only)], 60)
    assert [*contrast.by_seed] == [2]
    assert contrast.value == pytest.approx(one.values[2] - other.values[2])
    gone = {name: {7: getattr(other, name)[2]} for name in ("values", "draws", "limits")}
    points = [one, LearningCurvePoint(**vars(other) | gone)]
    assert contrasts(points, 60) == []
    assert statements(points, [], "Dice", 60) == []


def test_no_error_gives_interval_of_nonzero_width():
    point = LearningCurvePoint(
        "a", "a", False, 5.0, 8, {1: 1.0, 2: 1.0}, {s: np.ones(100) for s in (1, 2)}, {1: (0.8, 1), 2: (0.9, 1)}
    )
    assert point.mean == (1.0, pytest.approx(0.85), 1.0)
