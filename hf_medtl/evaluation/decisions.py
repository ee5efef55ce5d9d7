"""From calibrated probabilities to decisions: thresholds, sets of labels, abstention. Fitted on validation only."""

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.score_intervals import wilson

logger = logging.getLogger("hf_medtl")

Scores = NDArray[np.floating]


def youden(scores: Scores, positive: NDArray[np.bool_]) -> float:
    """Threshold with the highest sensitivity + specificity - 1 (Youden 1950), by a model of the scores.

    If log-odds are right but for an offset, sensitivity + specificity is highest where the corrected probability is the
    share of positive pictures: below, a picture speaks more for the negative label than a picture does by chance. One
    number, the offset, is fitted then. The cut that is best among a few pictures themselves is a matter of luck: one
    more picture decides between two gaps.

    Args:
        scores: (n,) probabilities of the positive label on validation pictures.
        positive: (n,) whether the picture has that label. Both kinds must be there.
    """
    odds = logit(np.clip(scores, 1e-6, 1 - 1e-6).astype(np.float64))
    chance = (positive.sum() + 0.5) / (len(positive) + 1)  # never 0 or 1
    offset = brentq(lambda c: float(expit(odds + c).mean() - chance), -40, 40)
    return float(expit(logit(chance) - offset))


def at_sensitivity(scores: Scores, positive: NDArray[np.bool_], target: float) -> float:
    """Highest threshold at which new positive pictures are expected to be found with a probability of `target`.

    The k-th lowest of n positive scores, k = (n + 1)(1 - target) rounded down: a new positive picture lies below it
    with a probability of k / (n + 1), whatever the scores are distributed like (as split conformal prediction, Vovk et
    al. 2005). The share that is found in the validation pictures themselves is higher than the target.
    """
    return _at(np.sort(scores[positive]), target, "sensitivity")


def at_specificity(scores: Scores, positive: NDArray[np.bool_], target: float) -> float:
    """Lowest threshold, likewise, at which new negative pictures are left alone with a probability of `target`."""
    return float(np.nextafter(-_at(np.sort(-scores[~positive]), target, "specificity"), 2))


def _at(ascending: Scores, target: float, what: str) -> float:
    rank = math.floor((len(ascending) + 1) * (1 - target) + 1e-9)
    if rank < 1:
        logger.warning("%d validation pictures can't promise a %s of %g: of the next ones %.3f are expected at best.",
                       len(ascending), what, target, len(ascending) / (len(ascending) + 1))  # fmt: skip
    return float(ascending[max(rank, 1) - 1])


def at_cost(scores: Scores, positive: NDArray[np.bool_], ratio: float) -> float:
    """Threshold of least expected cost if missing a positive picture costs as much as `ratio` false alarms.

    1 / (1 + ratio), for calibrated probabilities (Elkan 2001, The foundations of cost-sensitive learning).
    """
    return 1 / (1 + ratio)


def at_prevalence(scores: Scores, positive: NDArray[np.bool_], prevalence: float) -> float:
    """Threshold for use where a share of `prevalence` is positive, other than here, at equal costs (Elkan 2001)."""
    here = positive.mean()
    return float(here * (1 - prevalence) / (here * (1 - prevalence) + (1 - here) * prevalence))


RULES: dict[str, tuple[Callable[..., float], float]] = {  # name -> function, and what its number must be below
    "sensitivity": (at_sensitivity, 1),
    "specificity": (at_specificity, 1),
    "cost": (at_cost, math.inf),
    "prevalence": (at_prevalence, 1),
}
THRESHOLD_RULES = "youden, sensitivity=0.95, specificity=0.95, cost=5, prevalence=0.1, or a probability such as 0.5"


def parse_rule(rule: str) -> tuple[str, float]:
    """Name and number of a rule for thresholds; ("fixed", p) for a probability.

    Raises:
        MedtlError: no such rule, or a number that can't be.
    """
    name, _, number = rule.strip().partition("=")
    if rule.strip() == "youden":
        return "youden", math.nan
    try:
        name, value = (name, float(number)) if number else ("fixed", float(name))
    except ValueError:
        name, value = "", math.nan
    if (name != "fixed" and name not in RULES) or not 0 < value < RULES.get(name, (None, 1))[1]:
        raise MedtlError(f"A threshold is {THRESHOLD_RULES}; found {rule!r}.")
    return name, value


def choose_threshold(rule: str, scores: Scores, positive: NDArray[np.bool_]) -> float:
    """Threshold on the positive label's probability, by one of FORMS.

    Args:
        rule: see `parse_rule`.
        scores, positive: (n,) of validation pictures, as for `youden`.
    """
    name, value = parse_rule(rule)
    if name == "fixed":
        return value
    return youden(scores, positive) if name == "youden" else RULES[name][0](scores, positive, value)


def conformal_quantiles(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer], alpha: float
) -> NDArray[np.float64]:
    """(K,) lowest probability at which each label enters a picture's set, so that 1 - alpha of its pictures have it.

    Split conformal prediction for each label by itself: the k-th lowest probability that validation pictures of a label
    give to it, k = (n + 1) alpha rounded down; 0, which is always in, where there are fewer than 1 / alpha - 1 of them.
    A new picture of the label has it in its set with a probability of at least 1 - alpha, if it is drawn as they were.
    Source: Vovk 2012, Conditional validity of inductive conformal predictors; Sadinle et al. 2019, doi:
    10.1080/01621459.2017.1395341 (least ambiguous sets).

    Args:
        probabilities: (n, K) of validation pictures.
        labels: (n,) class indices.
        alpha: share of pictures whose set may lack their label.
    """
    lowest = np.zeros(probabilities.shape[1])
    for k in range(len(lowest)):
        own = np.sort(probabilities[labels == k, k])
        rank = math.floor((len(own) + 1) * alpha + 1e-9)
        lowest[k] = own[rank - 1] if rank else 0.0
    return lowest


def conformal_sets(probabilities: NDArray[np.floating], lowest: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(n, K) which labels are in each picture's set. One can be empty, where no label fits."""
    return probabilities >= lowest


def conformal_results(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer], lowest: NDArray[np.floating], right: NDArray
) -> dict[str, Any]:
    """How the sets do on test pictures, and how the decision does where it is not abstained from.

    The decision is abstained from where the set has no label or several.

    Args:
        probabilities, labels: (n, K) and (n,).
        lowest: (K,) of `conformal_quantiles`.
        right: (n,) whether the decision is right.

    Returns:
        coverage of the true label, abstained (share of pictures) and accuracy_of_the_rest, each with value, low and
        high (Wilson's 95 % limits, which take pictures as independent); coverage_by_label (K values, null without
        pictures); mean_size of the sets.
    """
    sets = conformal_sets(probabilities, lowest)
    hit, sure = sets[np.arange(len(labels)), labels], sets.sum(axis=1) == 1
    return {
        "coverage": proportion(hit),
        "coverage_by_label": [float(hit[labels == k].mean()) if (labels == k).any() else None
                              for k in range(len(lowest))],
        "mean_size": float(sets.sum(axis=1).mean()),
        "abstained": proportion(~sure),
        "accuracy_of_the_rest": proportion(right[sure]),
    }  # fmt: skip


def proportion(hits: NDArray[np.bool_]) -> dict[str, float | None]:
    """Share of true values with Wilson's 95 % limits; nulls of none."""
    if not len(hits):
        return {"value": None, "low": None, "high": None}
    low, high = wilson(int(hits.sum()), len(hits))
    return {"value": float(hits.mean()), "low": low, "high": high}


def risk_coverage(confidence: Scores, right: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of pictures answered, and share of wrong answers among them, from the most confident picture to all.

    Pictures of equal confidence are answered together. The mean of the errors is the area under the curve (Geifman &
    El-Yaniv 2017, Selective classification for deep neural networks).

    Args:
        confidence: (n,) the higher, the surer.
        right: (n,) whether the decision is right.

    Returns:
        coverage (m,) and error (m,), m of at most n.
    """
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    wrong = (~right[order]).cumsum()
    last = np.append(confidence[order][1:] != confidence[order][:-1], True)
    return answered[last] / len(order), (wrong / answered)[last]
