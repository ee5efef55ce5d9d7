"""Decision rules: thresholds, conformal prediction sets and abstention, fitted on the validation split only."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.calibration import offset_to_mean
from hf_medtl.evaluation.metrics import decide
from hf_medtl.evaluation.score_intervals import wilson

logger = logging.getLogger("hf_medtl")

Scores = NDArray[np.floating]


@dataclass(frozen=True)
class DecisionRule:
    """How a model's calibrated probabilities become decisions; fitted on validation, saved in config.json.

    Attributes:
        labels: (K,) in output order.
        multilabel: an image can have any number of the labels; also with one label, whose only alternative is none.
        positive: positive one of two labels.
        temperature: by which the logits were divided; it is folded into the weights, so that `decide` ignores it.
        threshold: probability of `positive` from which it is decided; None for the most probable label.
        threshold_rule: how the threshold was chosen, see `parse_rule`.
        thresholds: the same for each label of a multilabel model; 0.5 for labels that are missing.
        unfitted: labels whose threshold is a default, because validation had only positive or negative images.
        conformal: alpha, lowest (label -> probability from which it is in the prediction set) and images (number of
            validation images of each label).
        ood_threshold: out-of-distribution score above which an image is unlike the training images.
        postprocessing: of segmentation masks, see `postprocess`; None for classifiers.
    """

    labels: tuple[str, ...]
    multilabel: bool = False
    positive: str | None = None
    temperature: float | None = None
    threshold: float | None = None
    threshold_rule: str | None = None
    thresholds: Mapping[str, float] | None = None
    unfitted: tuple[str, ...] = ()
    conformal: Mapping[str, Any] | None = None
    ood_threshold: float | None = None
    postprocessing: Mapping[str, Any] | None = None

    @classmethod
    def from_config(cls, config: Any) -> "DecisionRule":
        """Read the rule from a model's configuration, with defaults for what a model trained elsewhere lacks.

        Args:
            config: `PretrainedConfig`, or the content of config.json.

        Raises:
            MedtlError: a value of another type, or out of range.
        """

        def get(key: str) -> Any:
            return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)

        id2label = get("id2label") or dict(enumerate(get("label_names") or ()))  # timm's configuration has a list
        names = {int(index): label for index, label in id2label.items()}
        if not all(isinstance(label, str) for label in names.values()):
            raise MedtlError(f"id2label in config.json must name each label by a text, found {str(id2label)[:200]}.")
        is_segmentation = any(str(name).endswith("ForSemanticSegmentation") for name in get("architectures") or ())
        rule = cls(
            labels=tuple(names[index] for index in sorted(names)),
            multilabel=get("problem_type") == "multi_label_classification" or (len(names) == 1 and not is_segmentation),
            positive=get("positive_label"),
            temperature=get("folded_temperature"),
            threshold=get("threshold"),
            threshold_rule=get("threshold_rule"),
            thresholds=get("thresholds"),
            unfitted=tuple(get("unfitted_thresholds") or ()),
            conformal=get("conformal"),
            ood_threshold=_entry(get("outliers"), "threshold", "outliers"),
            postprocessing=get("postprocessing") or ({} if is_segmentation else None),
        )
        rule._check()
        return rule

    def _check(self) -> None:
        """Raise MedtlError for values that no rule has: a configuration can come from anybody."""
        limits: dict[str, tuple[Any, float]] = {  # name -> value, and the highest that there is
            "folded_temperature": (self.temperature, math.inf),
            "threshold": (self.threshold, 1.0001),  # of a specificity it may be the next number after 1
            "outliers.threshold": (self.ood_threshold, math.inf),
        }
        lowest = _entry(self.conformal, "lowest", "conformal") if self.conformal else {}
        for name, values in {"thresholds": self.thresholds or {}, "conformal.lowest": lowest}.items():
            if not isinstance(values, Mapping):
                raise MedtlError(f"{name} in config.json must give a probability for each label, found {values!r}.")
            limits |= {f"{name} of {label}": (value, 1.0001) for label, value in values.items()}
        for name, (value, highest) in limits.items():
            if value is not None and (
                type(value) not in (int, float) or not 0 <= value <= highest or value == math.inf
            ):
                numbers = "of 0 or more" if highest == math.inf else "from 0 to 1"
                raise MedtlError(f"{name} in config.json must be a number {numbers}, found {value!r}.")
        if self.conformal and (missing := [label for label in self.labels if lowest.get(label) is None]):
            raise MedtlError(f"conformal.lowest in config.json gives no probability for {', '.join(missing)}.")
        if not isinstance(self.positive, str | None) or not isinstance(self.threshold_rule, str | None):
            raise MedtlError("positive_label and threshold_rule in config.json must be texts.")

    def to_config(self) -> dict[str, Any]:
        """Return the keys of config.json that hold the rule."""
        if self.postprocessing is not None:
            return {"postprocessing": dict(self.postprocessing)}
        if self.multilabel:
            config: dict[str, Any] = {"thresholds": self.thresholds, "unfitted_thresholds": list(self.unfitted)}
        else:
            config = {
                "positive_label": self.positive,
                "threshold": self.threshold,
                "threshold_rule": self.threshold_rule,
                "conformal": self.conformal,
            }
        # Not "temperature": save_pretrained takes that for a parameter of text generation and refuses.
        config["folded_temperature"] = self.temperature
        return config if self.ood_threshold is None else config | {"outliers": {"threshold": self.ood_threshold}}

    def decide(self, probabilities: Scores) -> NDArray[np.bool_]:
        """Return which labels are decided, (n, K): exactly one per image, or any number for a multilabel model.

        Args:
            probabilities: (n, K) calibrated probabilities.
        """
        if self.multilabel:
            thresholds = self.thresholds or {}
            return probabilities >= np.array([thresholds.get(label, 0.5) for label in self.labels])
        if self.positive in self.labels and self.threshold is not None and len(self.labels) == 2:
            decided = decide(probabilities, self.labels.index(self.positive), self.threshold)
        else:
            decided = probabilities.argmax(axis=1)
        return decided[:, None] == np.arange(len(self.labels))

    def prediction_sets(self, probabilities: Scores) -> NDArray[np.bool_] | None:
        """Return which labels are in the conformal set of each image, (n, K); None if there are no sets.

        The model abstains where a set has no label or more than one.
        """
        if not self.conformal:
            return None
        # By name: config.json sorts its keys.
        return conformal_sets(probabilities, np.array([self.conformal["lowest"][label] for label in self.labels]))

    def sentence(self) -> str:
        """Return the rule as a sentence for pages and the console."""
        if self.postprocessing is not None:
            steps = ", ".join(f"{name}={value}" for name, value in self.postprocessing.items() if value)
            return f"Each pixel gets its most probable class{f', then: {steps}' if steps else ''}."
        if self.multilabel:
            thresholds = {label: (self.thresholds or {}).get(label, 0.5) for label in self.labels}
            cuts = (f"{name} {cut:.3f}{' (not fitted)' if name in self.unfitted else ''}"
                    for name, cut in thresholds.items())  # fmt: skip
            return f"Each label is decided if its probability is at least its threshold: {', '.join(cuts)}."
        if self.threshold is None:
            return "The decision is the most probable label."
        rule = f" (rule: {self.threshold_rule})" if self.threshold_rule else ""
        return (
            f"The decision is “{self.positive}” if its probability is at least {self.threshold:.3f}{rule}. The "
            "threshold was chosen on the validation split."
        )


def _entry(settings: Any, key: str, name: str) -> Any:
    """Return an entry of a dict of config.json, None without one."""
    if settings is None or isinstance(settings, Mapping):
        return (settings or {}).get(key)
    raise MedtlError(f"{name} in config.json must be an object with {key}, found {settings!r}.")


def youden(scores: Scores, positive: NDArray[np.bool_]) -> float:
    """Return the threshold with the highest sensitivity + specificity - 1 (Youden 1950), from a model of the scores.

    If the log-odds are correct up to an offset, sensitivity + specificity is highest where the corrected probability
    equals the prevalence: below it, an image speaks more for the negative label than an average image does. So only
    one number is fitted, the offset. The best cut among a few images themselves would depend on chance: one more image
    can move it to another gap.

    Args:
        scores: (n,) probabilities of the positive label on validation images.
        positive: (n,) True for images with that label. Both classes must be present.
    """
    log_odds = logit(np.clip(scores, 1e-6, 1 - 1e-6).astype(np.float64))
    prevalence = (positive.sum() + 0.5) / (len(positive) + 1)  # never 0 or 1
    return float(expit(logit(prevalence) - offset_to_mean(log_odds, prevalence)))


def _at_sensitivity(scores: Scores, positive: NDArray[np.bool_], target: float) -> float:
    """Return the highest threshold at which a new positive image is detected with a probability of at least `target`.

    The k-th lowest of n positive scores, k = (n + 1)(1 - target) rounded down: a new positive image lies below it with
    a probability of k / (n + 1), whatever the distribution of scores (split conformal prediction, Vovk et al. 2005).
    The sensitivity on the validation images themselves is higher than the target.
    """
    return _conformal_cut(np.sort(scores[positive]), target, "sensitivity")


def _at_specificity(scores: Scores, positive: NDArray[np.bool_], target: float) -> float:
    """Return the lowest threshold, likewise, at which a new negative image is decided negative."""
    return float(np.nextafter(-_conformal_cut(np.sort(-scores[~positive]), target, "specificity"), 2))


def _conformal_cut(ascending: Scores, target: float, metric: str) -> float:
    rank = math.floor((len(ascending) + 1) * (1 - target) + 1e-9)
    if rank < 1:
        logger.warning(
            "%d validation images are too few for a %s of %g: on new images at most %.3f is expected.",
            len(ascending), metric, target, len(ascending) / (len(ascending) + 1),
        )  # fmt: skip
    return float(ascending[max(rank, 1) - 1])


def _at_cost(scores: Scores, positive: NDArray[np.bool_], ratio: float) -> float:
    """Return the threshold of least expected cost if a missed positive costs as much as `ratio` false positives.

    1 / (1 + ratio), for calibrated probabilities (Elkan 2001, The foundations of cost-sensitive learning).
    """
    return 1 / (1 + ratio)


def _at_prevalence(scores: Scores, positive: NDArray[np.bool_], prevalence: float) -> float:
    """Return the threshold for another prevalence than that of the validation split, at equal costs (Elkan 2001)."""
    own = positive.mean()
    return float(own * (1 - prevalence) / (own * (1 - prevalence) + (1 - own) * prevalence))


RULES: dict[str, tuple[Callable[..., float], float]] = {  # name -> function, and upper limit of its number
    "sensitivity": (_at_sensitivity, 1),
    "specificity": (_at_specificity, 1),
    "cost": (_at_cost, math.inf),
    "prevalence": (_at_prevalence, 1),
}
THRESHOLD_RULES = "youden, sensitivity=0.95, specificity=0.95, cost=5, prevalence=0.1, or a probability such as 0.5"


def parse_rule(rule: str) -> tuple[str, float]:
    """Return name and number of a threshold rule; ("fixed", p) for a probability.

    Raises:
        MedtlError: an unknown rule, or a number out of range.
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
    """Return the threshold on the positive label's probability by one of THRESHOLD_RULES.

    Args:
        rule: see `parse_rule`.
        scores: (n,) probabilities of the positive label on validation images.
        positive: (n,) True for images with that label. Both classes must be present.
    """
    name, value = parse_rule(rule)
    if name == "fixed":
        return value
    return youden(scores, positive) if name == "youden" else RULES[name][0](scores, positive, value)


def conformal_quantiles(probabilities: Scores, labels: NDArray[np.integer], alpha: float) -> NDArray[np.float64]:
    """Return the lowest probability (K,) at which each label enters an image's prediction set.

    Split conformal prediction for each label separately: the k-th lowest probability that validation images of a label
    give to it, k = (n + 1) alpha rounded down; 0, which always includes the label, with fewer than 1 / alpha - 1
    images. A new image of the label has it in its set with a probability of at least 1 - alpha, if it comes from the
    same distribution. Source: Vovk 2012, Conditional validity of inductive conformal predictors; Sadinle et al. 2019,
    doi:10.1080/01621459.2017.1395341 (least ambiguous sets).

    Args:
        probabilities: (n, K) of validation images.
        labels: (n,) class indices.
        alpha: fraction of images whose set may miss their label.
    """
    lowest = np.zeros(probabilities.shape[1])
    for k in range(len(lowest)):
        own = np.sort(probabilities[labels == k, k])
        rank = math.floor((len(own) + 1) * alpha + 1e-9)
        lowest[k] = own[rank - 1] if rank else 0.0
    return lowest


def conformal_sets(probabilities: Scores, lowest: Scores) -> NDArray[np.bool_]:
    """Return which labels are in each image's prediction set, (n, K); a set can be empty."""
    return probabilities >= lowest


def conformal_results(
    probabilities: Scores, labels: NDArray[np.integer], lowest: Scores, correct: NDArray[np.bool_]
) -> dict[str, Any]:
    """Measure prediction sets on test images, and decisions where the model does not abstain.

    The model abstains where a set has no label or more than one.

    Args:
        probabilities: (n, K).
        labels: (n,) class indices.
        lowest: (K,) from `conformal_quantiles`.
        correct: (n,) True where the decision is correct.

    Returns:
        coverage of the true label, abstained (rate) and accuracy_of_the_rest, each with value, low and high (Wilson's
        95 % limits, which treat images as independent); coverage_by_label (K values, null without images); mean_size
        of the sets.
    """
    sets = conformal_sets(probabilities, lowest)
    covered, certain = sets[np.arange(len(labels)), labels], sets.sum(axis=1) == 1
    return {
        "coverage": proportion(covered),
        "coverage_by_label": [float(covered[labels == k].mean()) if (labels == k).any() else None
                              for k in range(len(lowest))],
        "mean_size": float(sets.sum(axis=1).mean()),
        "abstained": proportion(~certain),
        "accuracy_of_the_rest": proportion(correct[certain]),
    }  # fmt: skip


def proportion(hits: NDArray[np.bool_]) -> dict[str, float | None]:
    """Return the proportion of true values with Wilson's 95 % limits; nulls if there are no values."""
    if not len(hits):
        return {"value": None, "low": None, "high": None}
    low, high = wilson(int(hits.sum()), len(hits))
    return {"value": float(hits.mean()), "low": low, "high": high}
