"""Linear probe: equal to scikit-learn's pipeline, with a penalty chosen on folds that share no group."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_medtl.training import linear_probe
from hf_medtl.training.linear_probe import PENALTIES, fit_linear_probe
from hf_medtl.training.losses import ClassificationLoss, MultiLabelLoss


def draw(number: int, classes: int, width: int = 6) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return features of very different scales, class indices, and groups of two images."""
    rng = np.random.default_rng(classes)
    targets = np.repeat(rng.permutation(number // 2) % classes, 2)
    centres = rng.normal(size=(classes, width))
    features = (rng.normal(size=(number, width)) + centres[targets]) * np.geomspace(0.01, 100, width) + 7
    return features.astype(np.float32), targets, [f"g{i // 2}" for i in range(number)]


def sklearn_pipeline(penalty: float, features: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))
    return model.fit(features.astype(np.float64), targets, logisticregression__sample_weight=weights)


@pytest.mark.parametrize("classes", [2, 4])
def test_head_gives_the_probabilities_of_scikit_learn(classes):
    features, targets, groups = draw(60, classes)
    probe = fit_linear_probe(features, targets, groups, seed=1)
    losses = probe.facts["cross_validation"]["loss"]
    assert probe.facts["cross_validation"]["folds"] == 5
    assert probe.facts["C"] == min((float(c) for c in losses), key=lambda c: losses[f"{c:g}"])
    assert {*losses} <= {f"{c:g}" for c in PENALTIES}
    expected = sklearn_pipeline(probe.facts["C"], features, targets).predict_proba(features.astype(np.float64))
    assert probe.weight.shape == (classes, 6)
    assert softmax(probe.logits(features), axis=1) == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def few_penalties(monkeypatch):
    """Try two values of C, to save time."""
    monkeypatch.setattr(linear_probe, "PENALTIES", (0.1, 1.0))


def test_labels_have_a_regression_each_with_weights_of_their_positives(few_penalties):
    features, classes, groups = draw(60, 3)
    targets = np.stack([classes == 0, classes > 0, np.zeros(60)], axis=1).astype(np.float32)
    probe = fit_linear_probe(features, targets, groups, [3.0, 1.0, 1.0])
    for k, weight in enumerate((3.0, 1.0)):
        weights = np.where(targets[:, k] > 0, weight, 1.0)
        model = sklearn_pipeline(probe.facts["labels"][k]["C"], features, targets[:, k], weights)
        expected = model.predict_proba(features.astype(np.float64))[:, 1]
        assert expit(probe.logits(features)[:, k]) == pytest.approx(expected, abs=1e-6)
    assert expit(probe.logits(features)[:, 2]) == pytest.approx(1 / 62)  # a label that no training image has
    assert probe.facts["labels"][2] == {"C": None, "cross_validation": None}


def gradient(loss: torch.nn.Module, probe, features: np.ndarray, targets: np.ndarray) -> float:
    """Return the largest derivative of a loss by the biases, which have no penalty."""
    bias = torch.tensor(probe.bias, requires_grad=True)
    logits = torch.tensor(features.astype(np.float64) @ probe.weight.T) + bias
    loss(logits, torch.as_tensor(targets)).backward()
    return float(bias.grad.abs().max())


def test_class_weights_mean_what_they_mean_to_the_loss(few_penalties):
    features, targets, groups = draw(60, 3)
    weights = [0.5, 1.0, 2.0]
    probe = fit_linear_probe(features, targets, groups, weights)
    assert gradient(ClassificationLoss(torch.tensor(weights)), probe, features, targets) < 1e-4
    assert gradient(ClassificationLoss(), probe, features, targets) > 1e-3
    several = np.eye(3, dtype=np.float32)[targets]
    probe = fit_linear_probe(features, several, groups, weights)
    assert gradient(MultiLabelLoss(torch.tensor(weights)), probe, features, several) < 1e-4


def test_folds_share_no_group():
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(20) % 2, 4)  # all images of a patient look alike, and the label is not to be seen
    features = np.repeat(rng.normal(size=(20, 40)), 4, axis=0) + rng.normal(0, 0.01, (80, 40))
    patients = [f"patient {i // 4}" for i in range(80)]
    assert fit_linear_probe(features, targets, patients).facts["C"] <= 0.1
    assert fit_linear_probe(features, targets, [str(i) for i in range(80)]).facts["C"] >= 10


@pytest.mark.parametrize(
    ("targets", "penalty"),
    [([0, 0, 0, 0, 2, 2, 2, 2], None), ([0, 0, 0, 0, 0, 0, 0, 2], 1.0), ([1] * 8, None)],
    ids=["a class is missing", "a class of one image", "one class alone"],
)
def test_rare_and_missing_classes_give_a_finite_head(targets, penalty):
    features = np.random.default_rng(0).normal(size=(8, 3)) + np.array(targets)[:, None]
    probe = fit_linear_probe(features, np.array(targets), list("aabbccdd"), classes=3)
    assert np.isfinite(probe.weight).all() and np.isfinite(probe.bias).all()
    if penalty:
        assert probe.facts["C"] in PENALTIES
    probabilities = softmax(probe.logits(features), axis=1)
    missing = [k for k in range(3) if k not in targets]
    assert probabilities[:, missing].max() < 0.15
    assert (probabilities.argmax(axis=1) == targets).mean() > 0.8


def test_one_group_is_not_cross_validated():
    features, targets, _ = draw(20, 2)
    assert fit_linear_probe(features, targets, ["a"] * 20).facts == {"C": 1.0, "cross_validation": None}


def test_losses_are_finite_where_a_probability_is_0(monkeypatch):
    sure = np.array([-np.inf, 0.0])
    monkeypatch.setattr(LogisticRegression, "predict_log_proba", lambda self, x: np.tile(sure, (len(x), 1)))
    features, targets = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2
    tried = fit_linear_probe(features, targets, [str(i) for i in range(40)]).facts["cross_validation"]
    assert np.isfinite([*tried["loss"].values()]).all()
