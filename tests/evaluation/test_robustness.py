"""Nine corruptions at five levels, and what a model's fall with them comes to."""

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
    before = Image.open(write_noise_image(tmp_path / "picture.png", 3, (240, 224))).convert("RGB")
    pixels = np.asarray(before).astype(float)
    worse = [corrupt(before, name, level) for level in LEVELS]
    distance = [np.abs(np.asarray(its).astype(float) - pixels).mean() for its in worse]
    assert distance == sorted(distance)
    assert 0 < distance[0] < distance[-1]
    assert {(its.size, its.mode) for its in worse} == {((240, 224), "RGB")}
    assert corrupt(before, name, 5) == worse[-1]
    assert (np.asarray(before) == pixels).all()
    with pytest.raises(ValueError, match="level of 1 to 5"):
        corrupt(before, name, 6)


def test_corruptions_are_sampled_per_image():
    pictures = [Image.new("RGB", (40, 40), (grey, grey, grey)) for grey in range(100, 140)]
    brighter = [np.asarray(corrupt(its, "brightness", 3)).mean() > np.asarray(its).mean() for its in pictures]
    assert 8 < sum(brighter) < 32
    boxes = {tuple(np.argwhere(np.asarray(corrupt(its, "occlusion", 3)) == 0)[0]) for its in pictures}
    assert len(boxes) > 10


def chances(labels, right):
    """(n, 2) of which a number of each class are decided rightly."""
    p = np.where(labels == 1, 0.9, 0.1)
    for k in (0, 1):
        wrong = np.flatnonzero(labels == k)[right:]
        p[wrong] = 1 - p[wrong]
    return np.column_stack([1 - p, p])


def test_performance_drops_and_corruption_errors_match_definitions():
    labels = np.repeat([0, 1], 20)
    groups = [str(i) for i in range(40)]
    own = {"clean": [chances(labels, 18)], "noise": [chances(labels, n) for n in (16, 14, 12)]}
    own |= {"blur": [chances(labels, 18)] * 3}
    other = {"clean": [chances(labels, 19)], "noise": [chances(labels, n) for n in (15, 10, 5)]}
    other |= {"blur": [chances(labels, 13)] * 3}
    found = robustness_results(labels, groups, own, 1, 0.5, (other, 0.5), resamples=200)
    noise, blur = found["corruptions"]["noise"], found["corruptions"]["blur"]
    assert found["clean"]["balanced_accuracy"]["value"] == pytest.approx(0.9)
    assert [level["balanced_accuracy"]["value"] for level in noise["levels"]] == pytest.approx([0.8, 0.7, 0.6])
    assert noise["relative_drop"]["value"] == pytest.approx(1 - 0.7 / 0.9)
    assert list(blur["relative_drop"].values()) == pytest.approx([0, 0, 0])  # the same answers: paired, so no doubt
    assert noise["corruption_error"]["value"] == pytest.approx((0.2 + 0.3 + 0.4) / (0.25 + 0.5 + 0.75))
    assert noise["relative_corruption_error"]["value"] == pytest.approx((0.1 + 0.2 + 0.3) / (0.2 + 0.45 + 0.7))
    assert found["mean_relative_drop"]["value"] == pytest.approx((1 - 0.7 / 0.9) / 2)
    assert found["mean_corruption_error"]["value"] == pytest.approx((0.9 / 1.5 + 0.1 / 0.35) / 2)
    drop = noise["relative_drop"]
    assert 0 < drop["low"] < drop["value"] < drop["high"] < 0.5
    lucky = robustness_results(labels, groups, other, 1, 0.5, (own, 0.5), resamples=50)  # whose baseline bears the blur
    assert lucky["corruptions"]["blur"]["relative_corruption_error"]["value"] is None
    assert lucky["mean_relative_corruption_error"] == {"value": None, "low": None, "high": None}
    assert lucky["mean_corruption_error"]["value"] > 1
    same = robustness_results(labels, groups, own, 1, 0.5, (own, 0.5), resamples=50)["corruptions"]["noise"]
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
    folder, found = evaluate_model(one, "imagefolder", data, out=tmp_path / "out", **more)
    its = json.loads((folder / "results.json").read_text())["robustness"]
    assert its == found["robustness"]
    assert list(its["corruptions"]) == list(CORRUPTIONS) == list(its["baseline"])[1:]
    assert its["clean"]["balanced_accuracy"]["value"] == found["metrics"]["balanced_accuracy"]["value"]
    # Level 5 of rotation by hand, through the model itself.
    from hf_medtl import Predictor, read_image

    table = [(path, int(path.parent.name == "ill")) for path in sorted(data.glob("*/*.png"))]
    worse = Predictor.from_pretrained(one).predict([corrupt(read_image(path), "rotation", 5) for path, _ in table])
    p = np.array([list(prediction.probabilities.values()) for prediction in worse])
    expected = classification_metrics([label for _, label in table], p, 1, 0.5, names=["balanced_accuracy", "roc_auc"])
    level = its["corruptions"]["rotation"]["levels"][4]
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

    def ask(which, what=data, **more):
        evaluate_model(which, "imagefolder", what, out=tmp_path / "out", dry_run=True, **more)

    with pytest.raises(MedtlError, match="--baseline needs --robustness"):
        ask(model, baseline=three)
    with pytest.raises(MedtlError, match="has no images of odd"):
        ask(three, robust=True)
    with pytest.raises(MedtlError, match="--baseline three has the labels normal, ill, odd"):
        ask(model, robust=True, baseline=three)
    other = save_foreign_classifier(tmp_path / "other", ["no_lesion", "lesion"])
    with pytest.raises(MedtlError, match="--baseline finished was trained on 36 of the 48 images"):
        ask(other, phantoms, robust=True, baseline=finished_run)
