"""Tests of means over runs and of paired differences."""

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks.comparison import Predictions, average, difference
from benchmarks.coverage import bootstrap_intervals
from hf_medtl import MedtlError
from hf_medtl.evaluation.evaluate import segmentation_results
from hf_medtl.evaluation.intervals import mean_intervals
from hf_medtl.evaluation.masks import MASK_METRICS
from hf_medtl.evaluation.paired import mean_difference, paired_differences, shared_metrics
from hf_medtl.evaluation.run_scores import RunScores


def simulated_run(name: str, seed: int, noise: float, n: int = 60, images: range | None = None) -> Predictions:
    """Simulate a run whose scores are labels plus noise; image i is the same in all runs, two images per group."""
    ids = np.array(images or range(n))
    labels = ids // 2 % 2
    scores = 1 / (1 + np.exp(-(labels - 0.5) * 2 - np.random.default_rng(seed).normal(0, noise, ids.size)))
    table = pd.DataFrame({"image_id": ids.astype(str), "label": labels.astype(str), "group": (ids // 2).astype(str)})
    return Predictions(name, table, labels, np.column_stack([1 - scores, scores]), 1, 0.5)


def test_single_run_equals_its_mean():
    run = simulated_run("a", 0, 1.5)
    usual = bootstrap_intervals(run.labels, run.probabilities, run.table["group"])
    for metric in ("roc_auc", "accuracy", "brier"):
        assert average([run], metric) == pytest.approx(usual[metric], abs=1e-12)


def test_repeated_images_add_no_evidence():
    run, other = simulated_run("a", 0, 1.5), simulated_run("b", 1, 1.5, images=range(100, 160))
    assert average([run, run], "roc_auc") == pytest.approx(average([run], "roc_auc"), abs=1e-12)
    once, twice = average([run], "accuracy"), average([run, other], "accuracy")
    assert twice.high - twice.low < 0.85 * (once.high - once.low)  # but other images are: 1 / sqrt(2)


def test_no_error_gives_interval_of_nonzero_width():
    interval = average([simulated_run("a", 0, 0.01), simulated_run("b", 1, 0.01, images=range(100, 160))], "roc_auc")
    assert interval.value == interval.high == 1
    assert 0.8 < interval.low < 0.99


def test_difference_is_paired():
    good, bad = [simulated_run("good", s, 1.0) for s in (0, 1)], [simulated_run("bad", s, 3.0) for s in (2, 3)]
    interval = difference(good, bad, "roc_auc")
    assert interval.value == pytest.approx(average(good, "roc_auc").value - average(bad, "roc_auc").value)
    assert 0 < interval.low < interval.value < interval.high
    back = difference(bad, good, "roc_auc")
    assert back == pytest.approx((-interval.value, -interval.high, -interval.low), abs=1e-12)
    assert difference(good, good, "roc_auc") == (0, 0, 0)
    # Models that err on the same images: pairing leaves only what differs.
    shared = [Predictions("twin", r.table, r.labels, r.probabilities, 1, 0.5) for r in good]
    assert difference(good, shared, "accuracy").high == 0


def test_rejects_runs_of_other_images():
    run, other = simulated_run("one", 0, 1), simulated_run("two", 0, 1, images=range(2, 62))
    with pytest.raises(MedtlError, match="one and two were not tested on the same images"):
        difference([run], [other], "accuracy")
    with pytest.raises(MedtlError, match="there are 1 and 2"):
        difference([run], [run, run], "accuracy")
    table = run.table.assign(group="g")
    with pytest.raises(MedtlError, match="disagree"):
        average([run, Predictions("x", table, run.labels, run.probabilities, 1, 0.5)], "accuracy")


def test_reads_scores_of_run_folder(tmp_path):
    run = simulated_run("run", 0, 1.0)
    table = run.table.assign(label=np.array(["no", "yes"])[run.labels])
    table.assign(p_no=run.probabilities[:, 0], p_yes=run.probabilities[:, 1]).to_csv(
        tmp_path / "predictions.csv", index=False
    )
    with pytest.raises(MedtlError, match=r"has no results.json"):
        Predictions.read(tmp_path)
    (tmp_path / "results.json").write_text(
        json.dumps({"labels": ["no", "yes"], "positive_label": "yes", "threshold": 0.5})
    )
    assert average([Predictions.read(tmp_path)], "roc_auc") == pytest.approx(average([run], "roc_auc"))


def measured(seed: int, shift: float, n: int = 60) -> pd.DataFrame:
    """Simulate Dice of images, two per patient, some hard for all models, in random order."""
    ids, order = np.arange(n), np.random.default_rng(seed).permutation(n)
    hard = np.random.default_rng(99).uniform(0, 0.3, n)
    dice = 0.9 - hard + shift + np.random.default_rng(seed).normal(0, 0.005, n)
    table = pd.DataFrame({"image_id": [f"{i:03}" for i in ids], "group": [f"p{i // 2}" for i in ids],
                          "source": np.where(ids < 20, "a", "b"), "dice": dice, "iou": dice / (2 - dice)})  # fmt: skip
    return table.iloc[order]


def test_difference_of_means_is_paired():
    good, bad = measured(0, 0.01), measured(1, 0.0)
    intervals = mean_difference(good, bad, ["dice", "iou"])
    assert intervals["dice"].value == pytest.approx(good["dice"].mean() - bad["dice"].mean())
    assert 0.005 < intervals["dice"].low < intervals["dice"].value < intervals["dice"].high < 0.015
    # Without pairing, images that are hard for both would hide the gain.
    alone = mean_intervals({"dice": good["dice"]}, good["group"])["dice"]
    assert alone.high - alone.low > 5 * (intervals["dice"].high - intervals["dice"].low)
    back = mean_difference(bad, good, ["iou"])["iou"]
    assert back == pytest.approx((-intervals["iou"].value, -intervals["iou"].high, -intervals["iou"].low), abs=1e-12)
    assert mean_difference(good, good, ["dice"])["dice"] == (0, 0, 0)
    assert mean_difference(good.drop(columns="source"), bad, ["dice"])["dice"].value == intervals["dice"].value


def test_difference_of_means_rejects_other_images():
    one = measured(0, 0.0)
    for other in (one.iloc[1:], one.assign(group="p"), one.assign(source="c"), one.replace({"image_id": {"003": "x"}})):
        with pytest.raises(MedtlError, match="unet and fpn were not tested on the same images"):
            mean_difference(one, other, ["dice"], ("unet", "fpn"))
    with pytest.raises(MedtlError, match="same images"):
        mean_difference(pd.concat([one, one]), pd.concat([one, one]), ["dice"])
    with pytest.raises(MedtlError, match="fpn has no column iou"):
        mean_difference(one, one.drop(columns="iou"), ["dice", "iou"], ("unet", "fpn"))
    with pytest.raises(MedtlError, match="without a number for dice"):
        mean_difference(one, one.assign(dice=np.nan), ["dice"])


def mask_table(seed: int, tolerance: str | None) -> pd.DataFrame:
    """Return predictions.csv of a segmentation run; without surface Dice, as older versions wrote it, if None."""
    rng, n = np.random.default_rng(seed), 24
    values = {name: rng.uniform(0.5, 1, n) for name in MASK_METRICS}
    facts = {"image_id": [f"{i}" for i in range(n)], "label": "a", "source": "A", "group": np.arange(n) // 2}
    table = pd.DataFrame(facts | values | {"both_empty": 0.0, "one_empty": 0.0, "surface_tolerance": tolerance})
    return table if tolerance else table.drop(columns=["surface_dice", "surface_tolerance"])


def test_surface_dice_has_interval_over_groups_and_a_stated_tolerance():
    table, old = mask_table(0, "1.5 mm"), mask_table(0, None)
    results, without = (segmentation_results(each, ["background", "lung"], {}) for each in (table, old))
    interval = results["metrics"]["surface_dice"]
    expected = mean_intervals({"surface_dice": table["surface_dice"]}, table["group"], table["source"])["surface_dice"]
    assert interval == expected._asdict()
    assert interval["low"] < table["surface_dice"].mean() < interval["high"]
    assert results["surface_tolerance"] == "1.5 mm"
    assert "surface_tolerance" not in without
    folds = pd.concat([table, old.assign(image_id="b" + old["image_id"])], ignore_index=True)
    mixed = segmentation_results(folds, ["background", "lung"], {})  # a fold of before and one of now
    assert set(mixed["metrics"]) == set(without["metrics"])
    assert "surface_tolerance" not in mixed
    assert "surface_dice" not in RunScores.from_masks(folds, ["background", "lung"]).metrics
    assert {**without["metrics"], "surface_dice": interval} == results["metrics"]


def test_only_metrics_measured_alike_are_compared(caplog):
    names = ["background", "lung"]
    new, other, wider, old = (
        RunScores.from_masks(mask_table(seed, tolerance), names)
        for seed, tolerance in enumerate(("2 pixels", "2 pixels", "3 pixels", None))
    )
    assert set(shared_metrics({"new": new, "other": other})["new"].metrics) == set(MASK_METRICS)
    for run in (wider, old):
        shared = shared_metrics({"new": new, "run": run})
        for scores in shared.values():
            assert set(scores.metrics) == set(scores.methods) == {*MASK_METRICS} - {"surface_dice"}
        assert "surface_dice" not in {row.metric for row in paired_differences(shared, "new", ("dice",))}
    assert "tolerances differ: 2 pixels in new, 3 pixels in run." in caplog.text
