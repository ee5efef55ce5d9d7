"""Tests of decisions: thresholds by rule, conformal sets and abstention, fitted on validation images alone."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit, softmax
from scipy.stats import norm
from sklearn.metrics import log_loss

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.evaluation.calibration import fit_temperature
from hf_medtl.evaluation.curves import risk_coverage
from hf_medtl.evaluation.decisions import (
    choose_threshold,
    conformal_quantiles,
    conformal_results,
    conformal_sets,
    parse_rule,
    proportion,
    youden,
)
from hf_medtl.evaluation.evaluate import temperature_effect
from hf_medtl.evaluation.metrics import classification_metrics
from tests.support.commands import options

RNG = np.random.default_rng(0)


def study(n, prevalence=0.4, distance=2.0, rng=RNG):
    """Simulate calibrated probabilities of the positive label and the true labels, from two normal distributions."""
    positive = rng.random(n) < prevalence
    x = rng.standard_normal(n) + np.where(positive, distance / 2, -distance / 2)
    return expit(distance * x + np.log(prevalence / (1 - prevalence))), positive


def plain_youden(scores, positive):
    """Return the empirically best threshold, by trying all."""
    edges = np.unique(np.concatenate([[0.0], scores, [1.0]]))
    cuts = np.append((edges[1:] + edges[:-1]) / 2, 0.5)
    decided = scores[None] >= cuts[:, None]
    gain = decided[:, positive].mean(axis=1) - decided[:, ~positive].mean(axis=1)
    best = cuts[gain > gain.max() - 1e-12]
    return best[np.argmin(np.abs(best - 0.5))]


def gain(cut, scores, positive):
    return (scores[positive] >= cut).mean() - (scores[~positive] >= cut).mean()


@pytest.mark.parametrize("prevalence", [0.1, 0.4, 0.7])
@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_youden_of_few_images_generalizes_better_than_empirical_maximum(prevalence, offset):
    """Also for scores with an offset, as from class weights."""

    def draw(n, rng):
        scores, positive = study(n, prevalence, rng=rng)
        return expit(logit(scores) + offset), positive

    new = draw(50_000, np.random.default_rng(9))
    best = max(gain(cut, *new) for cut in np.linspace(0.01, 0.99, 99))
    samples = [draw(26, np.random.default_rng(seed)) for seed in range(80)]
    samples = [(scores, positive) for scores, positive in samples if 1 < positive.sum() < 25]
    gains = {rule: np.mean([gain(rule(*sample), *new) for sample in samples]) for rule in (youden, plain_youden)}
    assert gains[youden] > gains[plain_youden] + 0.015
    assert gains[youden] > best - 0.03
    many = draw(5_000, np.random.default_rng(7))
    assert gain(youden(*many), *new) == pytest.approx(best, abs=0.006)


def test_youden_of_perfect_validation_split():
    perfect = np.array([0.0, 0.2, 0.8, 1.0]), np.array([False, False, True, True])
    assert 0.3 < youden(*perfect) < 0.7


@pytest.mark.parametrize(("name", "sign"), [("sensitivity", 1), ("specificity", -1)])
def test_new_images_reach_sensitivity_target(name, sign):
    """The expected rate over studies is the target or slightly more, although validation has few images."""
    rates = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        cut = choose_threshold(f"{name}=0.9", *study(60, rng=rng))
        scores, positive = study(400, rng=rng)
        members = positive if name == "sensitivity" else ~positive
        rates.append((sign * scores[members] >= sign * cut).mean())
    assert 0.895 < np.mean(rates) < 0.935


def test_too_few_images_give_no_guarantee(caplog):
    scores, positive = np.array([0.2, 0.6, 0.7, 0.4]), np.array([False, True, True, True])
    assert choose_threshold("sensitivity=0.95", scores, positive) == 0.4
    assert (
        "3 validation images are too few for a sensitivity of 0.95: on new images at most 0.750 is expected"
        in caplog.text
    )
    assert choose_threshold("specificity=0.95", scores, positive) == pytest.approx(0.2, abs=1e-12)
    assert choose_threshold("specificity=0.95", scores, positive) > 0.2


def test_threshold_depends_on_costs_and_prevalence():
    scores, positive = study(20_000, 0.4)
    cut = choose_threshold("cost=5", scores, positive)
    assert cut == pytest.approx(1 / 6)
    costs = {t: 5 * (positive & (scores < t)).sum() + (~positive & (scores >= t)).sum() for t in (0.05, cut, 0.4)}
    assert min(costs, key=costs.get) == cut
    # At a prevalence of 10 %: the same images with other weights.
    cut = choose_threshold("prevalence=0.1", scores, positive)
    weights = np.where(positive, 0.1 / positive.mean(), 0.9 / (1 - positive.mean()))
    right = {t: (weights * ((scores >= t) == positive)).sum() for t in (0.5, cut, 0.97)}
    assert max(right, key=right.get) == cut
    assert choose_threshold("prevalence=0.4", scores, positive) == pytest.approx(0.5, abs=0.01)
    assert choose_threshold("0.3", scores, positive) == 0.3


@pytest.mark.parametrize("rule", ["Youden", "", "sensitivity", "sensitivity=2", "cost=0", "1.5", "recall=0.9", "nan"])
def test_unknown_rule_raises(rule, tmp_path, phantoms, tiny_checkpoint):
    with pytest.raises(MedtlError, match="A threshold is youden, sensitivity=0"):
        parse_rule(rule)
    if rule == "cost=0":
        with pytest.raises(MedtlError, match="A threshold is"):
            run(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", threshold=rule)))
        assert not (tmp_path / "run").exists()


def test_prediction_sets_reach_nominal_coverage():
    """For each label, although their numbers differ much, over 300 studies."""
    coverages = []
    for seed in range(300):
        rng = np.random.default_rng(seed)

        def draw(n, rng=rng):
            labels = rng.choice(3, n, p=[0.6, 0.3, 0.1])
            logits = 1.5 * rng.standard_normal((n, 3))
            logits[np.arange(n), labels] += 2
            values = np.exp(logits)
            return values / values.sum(axis=1, keepdims=True), labels

        lowest = conformal_quantiles(*draw(300), alpha=0.1)
        probabilities, labels = draw(300)
        covered = conformal_sets(probabilities, lowest)[np.arange(300), labels]
        coverages.append([covered[labels == k].mean() for k in range(3)])
    coverage = np.mean(coverages, axis=0)
    assert (coverage > 0.89).all()
    assert (coverage < 0.93).all()


def test_label_of_few_images_is_in_every_set():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    assert conformal_quantiles(probabilities, np.array([0, 0, 1]), 0.1).tolist() == [0, 0]
    assert conformal_quantiles(probabilities, np.array([0, 0, 1]), 0.4).tolist() == [0.8, 0]


def test_set_metrics_equal_hand_calculation():
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5], [0.35, 0.65], [0.05, 0.95]])
    labels, lowest = np.array([0, 0, 1, 0]), np.array([0.4, 0.5])
    metrics = conformal_results(probabilities, labels, lowest, np.array([True, False, True, False]))
    assert metrics["coverage"]["value"] == 0.75
    assert metrics["coverage_by_label"] == [pytest.approx(2 / 3), 1.0]
    assert metrics["mean_size"] == 1.25
    assert metrics["abstained"]["value"] == 0.25
    assert metrics["accuracy_of_the_rest"]["value"] == pytest.approx(2 / 3)
    assert proportion(np.array([], bool)) == {"value": None, "low": None, "high": None}
    # Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E: 81 of 263
    limits = proportion(np.arange(263) < 81)
    assert (limits["low"], limits["high"]) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


def test_risk_decreases_with_confidence():
    coverage, error = risk_coverage(np.array([0.9, 0.8, 0.8, 0.6]), np.array([True, True, False, False]))
    assert coverage.tolist() == [0.25, 0.75, 1.0]
    assert error.tolist() == [0.0, pytest.approx(1 / 3), 0.5]
    scores, positive = study(4000, 0.5, 2 * norm.ppf(0.9))
    coverage, error = risk_coverage(np.abs(scores - 0.5), (scores >= 0.5) == positive)
    assert error[np.searchsorted(coverage, 0.5)] < 0.3 * error[-1]


@pytest.mark.slow
def test_run_saves_decision_rule(phantoms, tiny_checkpoint, tmp_path):
    more = {"threshold": "sensitivity=0.8", "conformal_alpha": 0.2, "num_train_epochs": 3, "learning_rate": 1e-3}
    folder = run(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", **more)))
    config, result = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "results"))
    table = pd.read_csv(folder / "predictions.csv", float_precision="round_trip")
    assert config["threshold_rule"] == result["threshold_rule"] == "sensitivity=0.8"
    assert config["conformal"]["lowest"] == result["conformal"]["lowest"]
    probabilities = table[[f"p_{label}" for label in result["labels"]]].to_numpy()
    sets = conformal_sets(probabilities, np.array([config["conformal"]["lowest"][label] for label in result["labels"]]))
    truth = table["label"].map(result["labels"].index).to_numpy()
    assert result["conformal"]["coverage"]["value"] == sets[np.arange(len(table)), truth].mean()
    assert result["conformal"]["abstained"]["value"] == (sets.sum(axis=1) != 1).mean()
    card = (folder / "README.md").read_text()
    assert "for a sensitivity of 0.8, from the validation split" in card
    assert "in at most 20 % of each label's images" in card
    assert (folder / "figures" / "risk_coverage.png").exists()


def test_effect_of_temperature_is_reported_with_limits(finished_run, results):
    """Simulated overconfident scores improve significantly; a run reports the effect on its few images."""
    rng = np.random.default_rng(0)
    p, positive = study(2_000, rng=rng)
    labels, groups = positive.astype(np.int64), [str(i) for i in range(2_000)]
    calibrated = np.column_stack([1 - p, p])
    effects = temperature_effect(labels, calibrated, groups, temperature=3.0)  # the logits were three times as large
    overconfident = calibrated**3 / (calibrated**3).sum(axis=1, keepdims=True)
    assert effects["log_loss"]["before"] == pytest.approx(log_loss(labels, overconfident), abs=1e-6)
    assert effects["log_loss"]["after"] == pytest.approx(log_loss(labels, calibrated), abs=1e-6)
    for effect in effects.values():
        assert effect["difference"]["value"] == pytest.approx(effect["after"] - effect["before"])
        assert effect["difference"]["low"] < effect["difference"]["value"] < effect["difference"]["high"] < 0
    same = temperature_effect(labels, calibrated, groups, temperature=1.0)
    assert same["log_loss"]["difference"]["value"] == pytest.approx(0, abs=1e-12)
    calibration = results["calibration"]
    assert calibration["brier"]["after"] == pytest.approx(results["metrics"]["brier"]["value"])
    assert calibration["ece"]["after"] == pytest.approx(results["metrics"]["ece"]["value"])
    card = (finished_run / "README.md").read_text()
    assert f"log loss from {calibration['log_loss']['before']:.3f} to {calibration['log_loss']['after']:.3f} (" in card


@pytest.mark.parametrize("distance", [1.5, 2.5, 4.0])
@pytest.mark.parametrize("overconfident", [0.6, 1.0, 2.0])
def test_temperature_of_few_images_does_little_harm_and_of_many_is_right(distance, overconfident):
    def draw(n, rng):
        p, positive = study(n, 0.6, distance, rng)
        return np.column_stack([np.zeros(n), overconfident * logit(p)]), positive.astype(np.int64)

    logits, labels = draw(20_000, np.random.default_rng(9))
    assert fit_temperature(logits, labels) == pytest.approx(overconfident, rel=0.1)

    def loss(temperature):
        return log_loss(labels, expit(logits[:, 1] / temperature))

    few = [fit_temperature(*draw(26, np.random.default_rng(seed))) for seed in range(60)]
    harm = np.mean([loss(t) for t in few]) - loss(overconfident)
    assert harm < 0.031  # 0.08 with targets smoothed by Platt's rule, where classes are far apart


def test_few_images_do_not_give_extreme_temperature():
    labels = np.arange(20) % 2
    logits = np.where(labels[:, None] == np.arange(2), 3.0, -3.0)
    assert fit_temperature(logits, labels) > 0.3


@pytest.mark.parametrize("overconfident", [0.4, 2.5])
def test_calibration_error_of_many_cases_is_below_two_percent(overconfident):
    rng = np.random.default_rng(0)
    (p, positive), (new, truth) = (study(10_000, rng=rng) for _ in range(2))
    logits, others = (np.column_stack([np.zeros(10_000), overconfident * logit(scores)]) for scores in (p, new))
    rescaled = softmax(others / fit_temperature(logits, positive.astype(np.int64)), axis=1)
    error = [classification_metrics(truth.astype(np.int64), probabilities, 1, 0.5, names=["ece"])["ece"]
             for probabilities in (softmax(others, axis=1), rescaled)]  # fmt: skip
    assert error[0] > 0.04
    assert error[1] < 0.02
