"""Tests of out-of-distribution detection: scores equal plain formulas and separate unlike images."""

import json

import numpy as np
import pytest
import torch

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.data.phantoms import write_phantoms
from hf_medtl.evaluation.ood import OOD_FILE, OutOfDistributionScorer, ood_threshold
from hf_medtl.models.heads import find_head
from tests.support.commands import options

RNG = np.random.default_rng(0)


def sample_features(n, d=60, shift=0.0, directions=None):
    """Sample features of two classes that vary along a few directions, with a little noise along all others."""
    directions = np.linalg.qr(np.random.default_rng(5).standard_normal((d, 4)))[0] if directions is None else directions
    classes = RNG.integers(0, 2, n)
    centres = np.zeros((2, d))
    centres[1] = 3
    return centres[classes] + 2 * RNG.standard_normal((n, 4)) @ directions.T + 0.1 * RNG.standard_normal(
        (n, d)
    ) + shift, classes


def test_score_is_mahalanobis_distance_with_shared_covariance():
    """With as many directions as features it equals the plain formula."""
    features, classes = sample_features(4000, d=6, directions=np.linalg.qr(RNG.standard_normal((6, 4)))[0])
    scorer = OutOfDistributionScorer.fit(features, classes)
    whitened = np.concatenate([features[classes == k] - features[classes == k].mean(axis=0) for k in (0, 1)])
    values, vectors = np.linalg.eigh(whitened.T @ whitened / (len(features) - 2))
    order = values.argsort()[::-1]
    values[order[3:]] = values[order[3:]].mean()  # half of the directions are kept, the others share one variance
    precision = vectors @ np.diag(1 / values) @ vectors.T
    new = features[:50] + RNG.standard_normal((50, 6))
    gaps = [new - features[classes == k].mean(axis=0) for k in (0, 1)]
    expected = np.min([np.einsum("ni,ij,nj->n", gap, precision, gap) for gap in gaps], axis=0) / 6
    assert scorer.score(new) == pytest.approx(expected, rel=1e-3)


def test_out_of_distribution_scores_exceed_in_distribution_scores():
    scorer = OutOfDistributionScorer.fit(*sample_features(150))
    threshold = ood_threshold(scorer.score(sample_features(400)[0]))
    assert 0.02 < (scorer.score(sample_features(4000)[0]) > threshold).mean() < 0.09
    assert (scorer.score(sample_features(200, shift=0.5)[0]) > threshold).mean() > 0.95
    # Another direction with the same spread in all.
    others = np.linalg.qr(np.random.default_rng(6).standard_normal((60, 4)))[0]
    assert (scorer.score(sample_features(200, directions=others)[0]) > threshold).mean() > 0.95


def test_threshold_of_few_images():
    assert ood_threshold(np.arange(1.0, 40.0), 0.05) == 38
    assert ood_threshold(np.arange(1.0, 11.0), 0.05) == 11
    with pytest.raises(MedtlError, match="too few for a covariance"):
        OutOfDistributionScorer.fit(np.zeros((5, 3)), np.array([0, 1, 0, 1, 0]))


def test_save_and_load_round_trip(tmp_path):
    features, classes = sample_features(60)
    scorer = OutOfDistributionScorer.fit(features, classes)
    scorer.save(tmp_path)
    assert np.array_equal(OutOfDistributionScorer.load(tmp_path).score(features), scorer.score(features))
    assert (tmp_path / OOD_FILE).stat().st_size < 20_000


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "timm"])
def test_run_separates_chests_from_brains(family, phantoms, tiny_checkpoint, tmp_path):
    """The weights are nearly random, and yet the features of chests are far from those of brains."""
    chests = write_phantoms(tmp_path / "chests", "chest", patients=12, images=2, size=64)
    labels = {"external_labels": "normal=no_lesion,opacity=lesion"}
    more = {"external_dataset": "chest-phantoms", "external_data_dir": str(chests), "num_train_epochs": 1, **labels}
    folder = run(Recipe(**options(phantoms, tiny_checkpoint(family), tmp_path / "run", **more)))
    result, config = (json.loads((folder / f"{name}.json").read_text()) for name in ("results", "config"))
    assert result["outliers"]["external"]["value"] > 0.9
    assert result["outliers"]["test"]["value"] < 0.4
    assert config["outliers"]["threshold"] > 0
    assert f"of the test images, {result['outliers']['external']['value']:.3f}" in (folder / "README.md").read_text()


def test_features_are_inputs_of_the_head(make_trainer):
    trainer = make_trainer("vit")
    inputs = []
    hook = find_head(trainer.model).register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    trainer.predict(trainer.eval_dataset)
    hook.remove()
    features = trainer.head_inputs(trainer.eval_dataset)
    assert torch.allclose(features, torch.cat(inputs), atol=1e-6)
    assert trainer.eval_dataset.augment is None
    assert trainer.head_inputs(trainer.train_dataset).shape == (len(trainer.train_dataset), features.shape[1])
    assert trainer.train_dataset.augment is not None
