"""Tests of nine corruptions at five levels, and of the drop in performance."""

import json

import numpy as np
import pytest
from PIL import Image

from hf_medtl import MedtlError
from hf_medtl.evaluation.metrics import classification_metrics
from hf_medtl.evaluation.robustness import CORRUPTIONS, LEVELS, corrupt, robustness_results
from hf_medtl.runs.evaluate import evaluate_model
from tests.support.image_files import write_noise_image
from tests.support.tiny_models import save_foreign_classifier


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_changes_image_more(name, tmp_path):
    image = Image.open(write_noise_image(tmp_path / "picture.png", 3, (240, 224))).convert("RGB")
    pixels = np.asarray(image).astype(float)
    levels = [corrupt(image, name, level) for level in LEVELS]
    distance = [np.abs(np.asarray(corrupted).astype(float) - pixels).mean() for corrupted in levels]
    assert distance == sorted(distance)
    assert 0 < distance[0] < distance[-1]
    assert {(corrupted.size, corrupted.mode) for corrupted in levels} == {((240, 224), "RGB")}
    assert corrupt(image, name, 5) == levels[-1]
    assert (np.asarray(image) == pixels).all()
    with pytest.raises(ValueError, match="level of 1 to 5"):
        corrupt(image, name, 6)


def test_corruptions_are_sampled_per_image():
    images = [Image.new("RGB", (40, 40), (grey, grey, grey)) for grey in range(100, 140)]
    brighter = [np.asarray(corrupt(image, "brightness", 3)).mean() > np.asarray(image).mean() for image in images]
    assert 8 < sum(brighter) < 32
    boxes = {tuple(np.argwhere(np.asarray(corrupt(image, "occlusion", 3)) == 0)[0]) for image in images}
    assert len(boxes) > 10


def simulate(labels, right):
    """Return probabilities (n, 2) by which `right` images of each class are decided correctly."""
    p = np.where(labels == 1, 0.9, 0.1)
    for k in (0, 1):
        wrong = np.flatnonzero(labels == k)[right:]
        p[wrong] = 1 - p[wrong]
    return np.column_stack([1 - p, p])


def test_performance_drops_and_corruption_errors_match_definitions():
    labels = np.repeat([0, 1], 20)
    groups = [str(i) for i in range(40)]
    scores = {"clean": [simulate(labels, 18)], "noise": [simulate(labels, n) for n in (16, 14, 12)]}
    scores |= {"blur": [simulate(labels, 18)] * 3}
    baseline = {"clean": [simulate(labels, 19)], "noise": [simulate(labels, n) for n in (15, 10, 5)]}
    baseline |= {"blur": [simulate(labels, 13)] * 3}
    results = robustness_results(labels, groups, scores, 1, 0.5, (baseline, 0.5), resamples=200)
    noise, blur = results["corruptions"]["noise"], results["corruptions"]["blur"]
    assert results["clean"]["balanced_accuracy"]["value"] == pytest.approx(0.9)
    assert [level["balanced_accuracy"]["value"] for level in noise["levels"]] == pytest.approx([0.8, 0.7, 0.6])
    assert noise["relative_drop"]["value"] == pytest.approx(1 - 0.7 / 0.9)
    assert list(blur["relative_drop"].values()) == pytest.approx([0, 0, 0])  # the same decisions: paired
    assert noise["corruption_error"]["value"] == pytest.approx((0.2 + 0.3 + 0.4) / (0.25 + 0.5 + 0.75))
    assert noise["relative_corruption_error"]["value"] == pytest.approx((0.1 + 0.2 + 0.3) / (0.2 + 0.45 + 0.7))
    assert results["mean_relative_drop"]["value"] == pytest.approx((1 - 0.7 / 0.9) / 2)
    assert results["mean_corruption_error"]["value"] == pytest.approx((0.9 / 1.5 + 0.1 / 0.35) / 2)
    drop = noise["relative_drop"]
    assert 0 < drop["low"] < drop["value"] < drop["high"] < 0.5
    lucky = robustness_results(labels, groups, baseline, 1, 0.5, (scores, 0.5), resamples=50)  # a blurproof baseline
    assert lucky["corruptions"]["blur"]["relative_corruption_error"]["value"] is None
    assert lucky["mean_relative_corruption_error"] == {"value": None, "low": None, "high": None}
    assert lucky["mean_corruption_error"]["value"] > 1
    same = robustness_results(labels, groups, scores, 1, 0.5, (scores, 0.5), resamples=50)["corruptions"]["noise"]
    assert same["corruption_error"] == pytest.approx({"value": 1, "low": 1, "high": 1})
    assert same["relative_corruption_error"] == pytest.approx({"value": 1, "low": 1, "high": 1})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for i in range(12):
        write_noise_image(folder / ("ill" if i % 2 else "normal") / f"{i}.png", 600 + i)
    return folder


@pytest.mark.slow
def test_evaluates_robustness_against_baseline(data, tmp_path):
    one, other = (save_foreign_classifier(tmp_path / name, ["normal", "ill"]) for name in ("one", "other"))
    more = {"robust": True, "baseline": other}
    folder, results = evaluate_model(one, "imagefolder", data, out=tmp_path / "out", **more)
    robustness = json.loads((folder / "results.json").read_text())["robustness"]
    assert robustness == results["robustness"]
    assert list(robustness["corruptions"]) == list(CORRUPTIONS) == list(robustness["baseline"])[1:]
    assert robustness["clean"]["balanced_accuracy"]["value"] == results["metrics"]["balanced_accuracy"]["value"]
    # Level 5 of rotation by hand, through the model itself.
    from hf_medtl import Predictor, read_image

    table = [(path, int(path.parent.name == "ill")) for path in sorted(data.glob("*/*.png"))]
    rotated = [corrupt(read_image(path), "rotation", 5) for path, _ in table]
    predictions = Predictor.from_pretrained(one).predict(rotated)
    p = np.array([list(prediction.probabilities.values()) for prediction in predictions])
    expected = classification_metrics([label for _, label in table], p, 1, 0.5, names=["balanced_accuracy", "roc_auc"])
    level = robustness["corruptions"]["rotation"]["levels"][4]
    assert {name: metric["value"] for name, metric in level.items()} == pytest.approx(expected)
    card = (folder / "README.md").read_text()
    assert "Mean corruption error" in card
    assert "| gamma |" in card
    assert (folder / "figures" / "robustness.png").exists()


def test_rejects_invalid_baselines_and_missing_labels(data, finished_run, phantoms, tmp_path):
    model, three = (
        save_foreign_classifier(tmp_path / "two", ["normal", "ill"]),
        save_foreign_classifier(tmp_path / "three", ["normal", "ill", "odd"]),
    )

    def evaluate(model_folder, images=data, **more):
        evaluate_model(model_folder, "imagefolder", images, out=tmp_path / "out", dry_run=True, **more)

    with pytest.raises(MedtlError, match="--baseline needs --robustness"):
        evaluate(model, baseline=three)
    with pytest.raises(MedtlError, match="has no images of odd"):
        evaluate(three, robust=True)
    with pytest.raises(MedtlError, match="--baseline three has the labels normal, ill, odd"):
        evaluate(model, robust=True, baseline=three)
    other = save_foreign_classifier(tmp_path / "other", ["no_lesion", "lesion"])
    with pytest.raises(MedtlError, match="--baseline finished was trained on 36 of the 48 images"):
        evaluate(other, phantoms, robust=True, baseline=finished_run)
