"""Tests of DecisionRule: stable keys of config.json, and equal decisions wherever it is read."""

import json

import numpy as np
import pytest
from transformers import PretrainedConfig

from hf_medtl.evaluation.decisions import DecisionRule
from hf_medtl.publish.handler import EndpointHandler

CONFORMAL = {"alpha": 0.1, "lowest": {"sick": 0.3, "healthy": 0.6}, "pictures": [20, 30]}
BINARY = DecisionRule(
    ("sick", "healthy"), positive="sick", temperature=1.5, threshold=0.2, threshold_rule="youden", conformal=CONFORMAL
)
THREE = DecisionRule(("b", "a", "c"), temperature=0.9)
MULTILABEL = DecisionRule(
    ("b", "a"), multilabel=True, temperature=2.0, thresholds={"b": 0.3, "a": 0.5}, unfitted=("a",)
)


def config_of(rule, **more):
    """Return the configuration of a saved and loaded model."""
    config = PretrainedConfig(
        id2label=dict(enumerate(rule.labels)),
        label2id={label: i for i, label in enumerate(rule.labels)},
        problem_type="multi_label_classification" if rule.multilabel else None,
        architectures=["ViTForImageClassification"],
    )
    config.update(rule.to_config() | more)
    return config


def test_to_config_has_the_keys_of_config_json():
    assert BINARY.to_config() == {
        "positive_label": "sick",
        "threshold": 0.2,
        "threshold_rule": "youden",
        "conformal": CONFORMAL,
        "folded_temperature": 1.5,
    }
    assert THREE.to_config() == {
        "positive_label": None,
        "threshold": None,
        "threshold_rule": None,
        "conformal": None,
        "folded_temperature": 0.9,
    }
    assert MULTILABEL.to_config() == {
        "thresholds": {"b": 0.3, "a": 0.5},
        "unfitted_thresholds": ["a"],
        "folded_temperature": 2.0,
    }
    assert DecisionRule(("a", "b"), ood_threshold=1.2).to_config()["outliers"] == {"threshold": 1.2}
    masks = DecisionRule(("background", "lung"), postprocessing={"fill_holes": True})
    assert masks.to_config() == {"postprocessing": {"fill_holes": True}}


@pytest.mark.parametrize("rule", [BINARY, THREE, MULTILABEL])
def test_from_config_restores_saved_rule(rule, tmp_path):
    config = config_of(rule)
    assert DecisionRule.from_config(config) == rule
    config.save_pretrained(tmp_path)
    assert DecisionRule.from_config(PretrainedConfig.from_pretrained(tmp_path)) == rule
    assert DecisionRule.from_config(json.loads((tmp_path / "config.json").read_text("utf-8"))) == rule


def test_from_config_accepts_foreign_model():
    rule = DecisionRule.from_config({"id2label": {"0": "no", "1": "yes"}})
    assert rule == DecisionRule(("no", "yes"))
    assert rule.decide(np.array([[0.4, 0.6]])).tolist() == [[False, True]]
    assert rule.prediction_sets(np.array([[0.4, 0.6]])) is None


def test_decides_by_threshold_argmax_or_each_label():
    assert BINARY.decide(np.array([[0.2, 0.8], [0.19, 0.81]])).tolist() == [[True, False], [False, True]]
    assert THREE.decide(np.array([[0.2, 0.5, 0.3]])).tolist() == [[False, True, False]]
    assert MULTILABEL.decide(np.array([[0.3, 0.4], [0.9, 0.5], [0.1, 0.1]])).tolist() == [
        [True, False],
        [True, True],
        [False, False],
    ]


def test_prediction_sets_match_labels_by_name():
    sets = BINARY.prediction_sets(np.array([[0.3, 0.7], [0.5, 0.5], [0.2, 0.59]]))
    assert sets is not None
    assert sets.tolist() == [[True, True], [True, False], [False, False]]


@pytest.mark.parametrize("rule", [BINARY, THREE, MULTILABEL])
def test_decides_as_the_published_handler(rule):
    """handler.py imports nothing of hf_medtl, so it implements the rule a second time."""
    import torch

    handler = EndpointHandler.__new__(EndpointHandler)
    handler.config, handler.labels, handler.training = config_of(rule), list(rule.labels), None
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (50, len(rule.labels))))
    probabilities = (logits.sigmoid() if rule.multilabel else logits.softmax(1)).numpy()
    sets = rule.prediction_sets(probabilities)
    for i, decided in enumerate(rule.decide(probabilities)):
        output = handler.decide(logits[i])
        assert output["decision"] == "|".join(np.array(rule.labels)[decided])
        assert output["candidates"] == (None if sets is None else list(np.array(rule.labels)[sets[i]]))


def test_sentence_describes_decision_rule():
    assert BINARY.sentence() == (
        "The decision is “sick” if its probability is at least 0.200 (rule: youden). The threshold was chosen on the "
        "validation split."
    )
    assert THREE.sentence() == "The decision is the most probable label."
    assert MULTILABEL.sentence() == (
        "Each label is decided if its probability is at least its threshold: b 0.300, a 0.500 (not fitted)."
    )
    assert DecisionRule(("background", "lung"), postprocessing={}).sentence() == (
        "Each pixel gets its most probable class."
    )
    assert "largest_components=2" in DecisionRule(("a", "b"), postprocessing={"largest_components": 2}).sentence()
