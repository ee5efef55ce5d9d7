"""Metrics by subgroup: values, intervals and warnings of each subgroup alone."""

import numpy as np
import pytest

from hf_medtl.evaluation.intervals import metric_intervals
from hf_medtl.evaluation.subgroups import subgroup_metrics


def test_subgroup_metrics_equal_metrics_of_its_images_alone():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 2)
    labels = groups % 2
    score = 1 / (1 + np.exp(-2 * (labels - 0.5) - rng.normal(size=120)))
    p = np.column_stack([1 - score, score])
    sex = np.where(groups < 40, "f", "m").astype(object)
    sex[groups >= 54] = None
    subgroups = subgroup_metrics(labels, p, groups, sex, names=["roc_auc", "sensitivity"])
    assert list(subgroups) == ["(missing)", "f", "m"]
    women = subgroups["f"]
    assert (women.n, women.n_groups, women.groups_of_class, women.warning) == (80, 40, [20, 20], "")
    rows = sex == "f"
    expected = metric_intervals(labels[rows], p[rows], groups[rows], names=["roc_auc", "sensitivity"])
    assert women.metrics == expected
    warning = "too small to draw conclusions: fewer than 10 groups of each class (7 of class 0, 7 of class 1)"
    assert subgroups["m"].warning == warning
    one_class = subgroup_metrics(labels, p, groups, labels)["1"]
    assert np.isnan(one_class.metrics["roc_auc"]).all()
    assert "0 of class 0" in one_class.warning
    with pytest.raises(ValueError, match="column of shape"):
        subgroup_metrics(labels, p, groups, sex[:-1])
