"""Nearest neighbours: the votes of DINO, and a number of neighbours chosen without an image's own group."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from hf_medtl.training import nearest_neighbours
from hf_medtl.training.nearest_neighbours import NearestNeighbours


def draw(number: int, noise: float = 1.0) -> tuple[torch.Tensor, np.ndarray, list[str]]:
    rng = np.random.default_rng(number)
    targets = np.arange(number) % 3
    features = np.eye(3, 8)[targets] + rng.normal(0, noise, (number, 8))
    return torch.tensor(features, dtype=torch.float32), targets, [f"g{i // 3}" for i in range(number)]


def count_votes(query: np.ndarray, references: np.ndarray, votes: np.ndarray, k: int, prior: float) -> np.ndarray:
    """Return the votes for each class by a loop over the neighbours."""
    similarity = [query @ r / np.linalg.norm(query) / np.linalg.norm(r) for r in references]
    nearest = np.argsort(similarity)[::-1][:k]
    weights = [np.exp(similarity[i] / 0.07) for i in nearest]
    proportions = sum(w * votes[i] for w, i in zip(weights, nearest, strict=True)) / sum(weights)
    number = sum(weights) ** 2 / sum(np.square(weights))
    return (number * proportions + prior) / (number + 1)


def test_votes_are_those_of_dino(monkeypatch):
    monkeypatch.setattr(nearest_neighbours, "SIMILARITIES", 4 * 60)  # in several parts
    features, targets, groups = draw(60)
    model = NearestNeighbours(features, targets, groups, 3)
    queries = draw(10)[0]
    expected = [count_votes(q, features.numpy(), np.eye(3)[targets], model.k, 1 / 3) for q in queries.numpy()]
    assert softmax(model.logits(queries), axis=1) == pytest.approx(np.array(expected), abs=1e-4)
    assert model.facts["k"] == model.k
    assert model.facts["loss"][str(model.k)] == min(model.facts["loss"].values())


def test_labels_are_voted_on_independently():
    features, classes, groups = draw(60)
    targets = np.stack([classes == 0, classes > 0, np.ones(60)], axis=1).astype(np.float32)
    model = NearestNeighbours(features, targets, groups, 3)
    queries = draw(10)[0]
    expected = [count_votes(q, features.numpy(), targets, model.k, 1 / 2) for q in queries.numpy()]
    assert expit(model.logits(queries)) == pytest.approx(np.array(expected), abs=1e-4)


def test_votes_have_the_weights_of_their_classes():
    features, targets, groups = draw(61)
    plain, weighted = (NearestNeighbours(features, targets, groups, 3, weights) for weights in (None, [1.0, 1.0, 50.0]))
    queries = draw(10)[0]
    rare = [softmax(model.logits(queries), axis=1)[:, 2].mean() for model in (plain, weighted)]
    assert rare[1] > rare[0] + 0.2


def test_own_group_does_not_choose_the_number_of_neighbours():
    rng = np.random.default_rng(0)
    features = torch.tensor(np.repeat(rng.normal(5, 1, (30, 8)), 2, axis=0), dtype=torch.float32)  # pairs of copies
    targets = np.repeat(rng.permutation(30) % 2, 2)
    patients = [f"patient {i // 2}" for i in range(60)]
    assert NearestNeighbours(features, targets, patients, 2).k >= 20  # there is nothing to see
    assert NearestNeighbours(features, targets, [str(i) for i in range(60)], 2).k == 1  # itself apart, its copy


def test_few_images_are_enough():
    features, targets, _ = draw(2)
    model = NearestNeighbours(features, targets, ["a", "a"], 3)
    assert model.k == 1
    assert np.isfinite(model.logits(features)).all()
