"""Tests of our metrics as modules of Hugging Face `evaluate`: loaded offline by path, from a Space, and combined."""

import importlib.util
import json
import shutil
import socket
from pathlib import Path

import evaluate
import numpy as np
import pytest
import yaml
from huggingface_hub import HfApi

from hf_medtl import MedtlError
from hf_medtl.evaluation import modules
from hf_medtl.evaluation.intervals import mean_intervals, metric_intervals
from hf_medtl.evaluation.masks import MASK_METRICS, mask_metrics
from hf_medtl.evaluation.metrics import METRICS as CLINICAL
from hf_medtl.evaluation.metrics import classification_metrics
from tests.support.commands import ROOT

FOLDER = ROOT / "hf_medtl" / "evaluation" / "modules"


@pytest.fixture
def offline(monkeypatch):
    """Make any connection an error."""

    def refuse(*args: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def cases(classes: int, n: int = 40) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return probabilities, labels and patients with two images each."""
    rng = np.random.default_rng(classes)
    labels = np.arange(n) // 2 % classes
    probabilities = rng.dirichlet(np.ones(classes), n) + np.eye(classes)[labels] * 0.4
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels, [f"patient {i // 2}" for i in range(n)]


@pytest.mark.parametrize(("classes", "more"), [(2, {"positive": 0, "threshold": 0.3}), (3, {})])
def test_clinical_metrics_equal_package_metrics(offline, classes, more):
    probabilities, labels, patients = cases(classes)
    metric = evaluate.load(str(FOLDER / "clinical_metrics"))
    results = metric.compute(predictions=probabilities, references=labels, names=CLINICAL, groups=patients, **more)
    expected = classification_metrics(labels, probabilities, **more, names=CLINICAL)
    assert {name: results[name] for name in CLINICAL} == pytest.approx(expected, abs=0, nan_ok=True)
    for name, interval in metric_intervals(labels, probabilities, patients, **more, names=CLINICAL).items():
        limits = results[f"{name}_low"], results[f"{name}_high"]
        assert limits == pytest.approx((interval.low, interval.high), abs=0, nan_ok=True), name
    assert len(results) == 3 * len(CLINICAL)


def test_batches_and_single_additions_agree(offline):
    probabilities, labels, _ = cases(2)
    metric = evaluate.load(modules.path("clinical_metrics"))
    metric.add_batch(predictions=probabilities[:30], references=labels[:30])
    for row, label in zip(probabilities[30:], labels[30:], strict=True):
        metric.add(prediction=row, reference=label)
    assert metric.compute() == pytest.approx(classification_metrics(labels, probabilities), abs=0)


def test_undefined_metric_is_nan_and_invalid_input_raises(offline):
    metric = evaluate.load(modules.path("clinical_metrics"))
    assert np.isnan(metric.compute(predictions=[[0.2, 0.8]], references=[1])["roc_auc"])
    with pytest.raises(ValueError, match="logits"):
        metric.compute(predictions=[[-2.0, 3.0]], references=[1])


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_segmentation_metrics_equal_package_metrics(offline, kind):
    rng, names = np.random.default_rng(0), ("background", "lungs", "heart")
    sizes = [(12, 9), (20, 31), (7, 7), (5, 8)] * 5
    true = [rng.integers(0, 3, size).astype(kind) for size in sizes]
    true[3][:] = 0
    true[1][0, :4] = 255  # left out
    predicted = [np.where(rng.random(mask.shape) < 0.2, 1, mask % 3).astype(kind) for mask in true]
    groups, sources, spacing = [f"patient {i // 2}" for i in range(20)], ["x"] * 12 + ["y"] * 8, (0.5, 2.0)
    rows = [mask_metrics(t, p, names, spacing) for t, p in zip(true, predicted, strict=True)]
    metric = evaluate.load(str(FOLDER / "segmentation_metrics"))
    options = {"labels": names, "spacing": spacing, "groups": groups, "sources": sources}
    results = metric.compute(predictions=predicted, references=true, **options)
    assert sum(row["one_empty"] for row in rows) > 0
    for name in rows[0]:
        column = [row[name] for row in rows]
        if name in ("both_empty", "one_empty"):
            assert results[name] == sum(column)
            continue
        assert results[name] == pytest.approx(np.mean(column), abs=1e-15)
        interval = mean_intervals({name: column}, groups, sources)[name]
        limits = results[f"{name}_low"], results[f"{name}_high"]
        assert limits == pytest.approx((interval.low, interval.high), rel=1e-12, nan_ok=True)
    assert results["dice_low"] < results["dice"] < results["dice_high"]


def test_boolean_masks_are_accepted(offline):
    true, predicted = np.eye(6) > 0, np.ones((6, 6)) > 0
    metric = evaluate.load(modules.path("segmentation_metrics"))
    results = metric.compute(predictions=np.stack([predicted, true]), references=np.stack([true, true]))
    rows = [mask_metrics(true, predicted), mask_metrics(true, true)]
    assert {name: results[name] for name in MASK_METRICS} == {n: (rows[0][n] + rows[1][n]) / 2 for n in MASK_METRICS}
    assert not any(name.endswith("_low") for name in results)


def test_modules_can_be_combined(offline):
    probabilities, labels, patients = cases(2)
    combined = evaluate.combine({"one": modules.path("clinical_metrics"), "two": modules.path("clinical_metrics")})
    results = combined.compute(predictions=probabilities, references=labels, names=["brier"], groups=patients)
    assert results["one_brier"] == results["two_brier"] == classification_metrics(labels, probabilities)["brier"]
    masks = evaluate.combine([modules.path("segmentation_metrics")], force_prefix=True)
    masks.add(prediction=np.ones((4, 4), np.uint8), reference=np.eye(4, dtype=np.uint8))
    assert (
        masks.compute()["segmentation_metrics_dice"] == mask_metrics(np.eye(4, dtype=int), np.ones((4, 4), int))["dice"]
    )


def test_unknown_module_raises():
    with pytest.raises(MedtlError, match="clinical_metrics, segmentation_metrics, found 'accuracy'"):
        modules.path("accuracy")


@pytest.mark.parametrize("name", modules.NAMES)
def test_module_runs_as_space(name, hub, tmp_path):
    """The folder is pushed as it is, then loaded by its id."""
    space = Path(shutil.copytree(modules.path(name), tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__")))
    metadata = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert metadata["sdk"] == "gradio"
    assert {"evaluate", "metric"} <= set(metadata["tags"])
    assert (space / metadata["app_file"]).is_file()
    assert (space / "requirements.txt").read_text().split() == ["hf_medtl[metrics]"]
    api = HfApi()
    repo = f"ci-user/{name}"
    api.create_repo(repo, repo_type="space", space_sdk="gradio", exist_ok=True)
    api.upload_folder(repo_id=repo, repo_type="space", folder_path=space)
    metric = evaluate.load(repo)
    assert metric.name == name
    assert type(metric).__module__.startswith("evaluate_modules.metrics.ci-user--")


@pytest.mark.parametrize("name", modules.NAMES)
def test_space_page_shows_metrics(name, tmp_path):
    """TRAP: the widget of evaluate 0.4.6 needs what Gradio 4 removed. A Space's folder is called app."""
    space = shutil.copytree(modules.path(name), tmp_path / "app")
    spec = importlib.util.spec_from_file_location(f"app_of_{name}", Path(space) / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    if name == "clinical_metrics":
        results = app.compute(*app.EXAMPLE)
        assert results["roc_auc"] == 1
        assert results["specificity"] == 0.5
        with pytest.raises(app.gr.Error, match="summing to 1"):
            app.compute("[[3, 1]]", "[0]", "", 0.5)
    else:
        mask = np.eye(8, dtype=np.uint8) * 255
        assert app.compute(mask, mask)["dice"] == 1
        with pytest.raises(app.gr.Error, match="two masks"):
            app.compute(mask, None)
    json.dumps(app.demo.get_config_file())
