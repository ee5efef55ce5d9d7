"""Tests of ensembles and soups of runs: their predictions, files and results."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForImageClassification

from hf_medtl import MedtlError, Recipe, load, read_image, run
from hf_medtl.evaluation.evaluate import predict_probabilities
from hf_medtl.runs.ensemble import ensemble
from tests.support.commands import options, run_cli
from tests.support.killed import leave_killed
from tests.support.multilabel_tables import write_table

# In a process that cannot import hf_medtl and has no network.
WITHOUT_HF_MEDTL = """
import json, sys
from huggingface_hub import constants
constants.HF_HUB_OFFLINE = True
sys.modules["hf_medtl"] = None
from transformers import AutoModelForImageClassification, pipeline
model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
classify = pipeline("image-classification", sys.argv[1], trust_remote_code=True)
outputs = classify(sys.argv[2:], top_k=None)
print(json.dumps([{row["label"]: row["score"] for row in output} for output in outputs]))
"""


def train(data: Path, tiny_checkpoint, output: Path, family: str, **overrides: object) -> Path:
    values = {"num_train_epochs": 1, "learning_rate": 1e-3, "preprocessing": "grayscale", **overrides}
    return run(Recipe(**options(data, tiny_checkpoint(family), output, **values)))


@pytest.fixture(scope="module")
def runs(phantoms, tiny_checkpoint, tmp_path_factory) -> dict[str, Path]:
    """Train runs on one split: the second with another normalisation, the third as the first with another seed."""
    folder = tmp_path_factory.mktemp("runs")
    renormalised = shutil.copytree(tiny_checkpoint("cnn"), folder / "cnn-half")
    settings = json.loads((renormalised / "preprocessor_config.json").read_text())
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (renormalised / "preprocessor_config.json").write_text(json.dumps(settings | half))
    return {
        "vit": train(phantoms, tiny_checkpoint, folder / "vit", "vit"),
        "cnn": train(phantoms, lambda _: renormalised, folder / "cnn", "cnn", split_seed=1, seed=2),
        "again": train(phantoms, tiny_checkpoint, folder / "again", "vit", split_seed=1, seed=3),
    }


@pytest.fixture(scope="module")
def joined(runs, tmp_path_factory) -> Path:
    folder = leave_killed(tmp_path_factory.mktemp("ensembles") / "joined")
    ensemble(list(runs.values()), folder)
    return folder


def predict(folder: Path, phantoms: Path) -> np.ndarray:
    """Return the probabilities of the test images of `runs` by the folder's own pipeline."""
    loaded = load("brain-phantoms", phantoms, seed=1)
    paths = [loaded.root / path for path in loaded.rows("test")["path"]]
    return predict_probabilities(folder, paths, read_image)


@pytest.mark.slow
def test_pipeline_returns_the_mean_of_the_members(runs, joined, phantoms):
    probabilities = [predict(folder, phantoms) for folder in runs.values()]
    assert np.abs(probabilities[0] - probabilities[1]).max() > 1e-3
    assert np.abs(predict(joined, phantoms) - np.mean(probabilities, axis=0)).max() < 1e-5


@pytest.mark.slow
def test_loads_without_hf_medtl(joined, stock_pool, phantoms):
    loaded = load("brain-phantoms", phantoms, seed=1)
    paths = [loaded.root / path for path in loaded.rows("test")["path"]]
    process = stock_pool.run_code(WITHOUT_HF_MEDTL, joined, *paths)
    assert process.returncode == 0, process.stderr
    probabilities = pd.DataFrame(json.loads(process.stdout.splitlines()[-1]))[list(loaded.labels)]
    assert np.abs(probabilities.to_numpy() - predict(joined, phantoms)).max() < 1e-6


def test_folder_is_complete_and_contains_no_paths(runs, joined, phantoms):
    names = {path.name for path in joined.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "ensemble.py",
        "cnn.py",
        "processor.py",
    }
    for name in ("config.json", "README.md", "preprocessor_config.json"):
        text = (joined / name).read_text()
        assert str(phantoms.parent) not in text, name
        assert str(runs["vit"].parent) not in text, name
    text = (joined / "README.md").read_text()
    assert ModelCard(text).data.tags == ["medical", "hf_medtl", "ensemble"]
    assert "Not a medical device" in text
    assert "the mean of the members' thresholds, not fitted" in text
    yaml.safe_load(text.split("---")[1])


def test_results_are_of_the_shared_test_images(runs, joined, phantoms):
    result = json.loads((joined / "results.json").read_text())
    singles = [json.loads((folder / "results.json").read_text()) for folder in runs.values()]
    config = json.loads((joined / "config.json").read_text())
    assert result["threshold"] == config["threshold"] == pytest.approx(np.mean([s["threshold"] for s in singles]))
    table = pd.read_csv(joined / "predictions.csv")
    score = predict(joined, phantoms)[:, 1]
    assert np.abs(table["p_lesion"] - score).max() < 1e-5
    assert result["metrics"]["roc_auc"]["value"] == roc_auc_score(table["label"] == "lesion", table["p_lesion"])
    assert {"n", "n_groups", "metrics", "confusion_matrix", "labels", "split", "dataset", "task"} <= set(result)


@pytest.mark.slow
def test_ensemble_of_folds_has_no_results(phantoms, tiny_checkpoint, tmp_path):
    folds = run(Recipe(**options(phantoms, tiny_checkpoint("cnn"), tmp_path / "all", folds=2, num_train_epochs=1)))
    printed = run_cli("ensemble", folds, "--output_dir", tmp_path / "both")
    assert "ROC AUC" not in printed
    assert not (tmp_path / "both" / "results.json").exists()
    text = (tmp_path / "both" / "README.md").read_text()
    assert "None: the members were not tested on the same images" in text
    assert "all/fold-1" in text
    assert ModelCard(text).data.eval_results is None


def test_soup_averages_weights(runs, phantoms, tmp_path):
    members = [runs["vit"], runs["again"]]
    result = ensemble(members, tmp_path / "soup", soup=True)
    assert "metrics" not in result
    config = json.loads((tmp_path / "soup" / "config.json").read_text())
    assert config["architectures"] == ["ViTForImageClassification"]
    assert (config["threshold"], config["folded_temperature"]) == (None, None)
    first, second, mean = (load_file(folder / "model.safetensors") for folder in (*members, tmp_path / "soup"))
    assert all(torch.allclose(mean[key], (first[key] + second[key]) / 2, atol=1e-7) for key in first)
    assert "not calibrated" in (tmp_path / "soup" / "README.md").read_text()

    result = ensemble(members, tmp_path / "fitted", soup=True, data_dir=phantoms)
    config = json.loads((tmp_path / "fitted" / "config.json").read_text())
    assert config["threshold"] == result["threshold"] is not None
    score = predict(tmp_path / "fitted", phantoms)[:, 1]
    true = pd.read_csv(members[0] / "predictions.csv")["label"] == "lesion"
    assert result["metrics"]["roc_auc"]["value"] == roc_auc_score(true, score)
    head = load_file(tmp_path / "fitted" / "model.safetensors")["classifier.weight"]
    assert torch.allclose(head * config["folded_temperature"], mean["classifier.weight"], atol=1e-6)


@pytest.mark.slow
def test_multilabel_ensemble_averages_members_and_keeps_thresholds(tiny_checkpoint, tmp_path):
    data = write_table(tmp_path / "marks", 48)
    overrides = {"dataset": "table", "split_seed": 1}
    members = [train(data, tiny_checkpoint, tmp_path / f"run{seed}", "cnn", seed=seed, **overrides) for seed in (1, 2)]
    result = ensemble(members, tmp_path / "both")
    loaded = load("table", data, seed=1)
    paths = [loaded.root / path for path in loaded.rows("test")["path"]]
    *probabilities, mean = (
        predict_probabilities(folder, paths, read_image) for folder in (*members, tmp_path / "both")
    )
    assert np.abs(mean - np.mean(probabilities, axis=0)).max() < 1e-5
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    assert config["thresholds"] == {
        label: label_results["threshold"] for label, label_results in result["per_label"].items()
    }


@pytest.mark.slow
def test_rejects_members_that_differ(runs, phantoms, tiny_checkpoint, tmp_path):
    def assert_rejected(message: str, *members: Path, soup: bool = False) -> None:
        with pytest.raises(MedtlError, match=message):
            ensemble(members, tmp_path / "new", soup)
        assert not (tmp_path / "new").exists()

    assert_rejected("found 1", runs["vit"])
    assert_rejected("not a finished run", runs["vit"], tmp_path)
    message = r"ViTForImageClassification\) and .*MedicalCnnForImageClassification.* cannot be averaged"
    assert_rejected(message, runs["vit"], runs["cnn"], soup=True)
    stretched = train(phantoms, tiny_checkpoint, tmp_path / "pad", "vit", fit="pad")
    assert_rejected("fit is squash and pad", runs["vit"], stretched)
    turned = shutil.copytree(runs["again"], tmp_path / "turned")
    results = json.loads((turned / "results.json").read_text())
    (turned / "results.json").write_text(json.dumps(results | {"labels": results["labels"][::-1]}))
    assert_rejected("differ in labels", runs["vit"], turned)
    (turned / "results.json").write_text(json.dumps(results | {"task": "image-segmentation"}))
    assert_rejected("only classifiers", runs["vit"], turned)
    with pytest.raises(MedtlError, match="holds a finished run"):
        ensemble([runs["vit"], runs["again"]], runs["cnn"])


@pytest.mark.slow
def test_timm_members_get_a_processor_of_the_ensemble(phantoms, tiny_checkpoint, tmp_path):
    """A timm model saves no processor; the ensemble gets a MedicalImageProcessor that gives the same pixels."""
    members = [
        train(phantoms, tiny_checkpoint, tmp_path / f"run{seed}", "timm", preprocessing="", seed=seed, split_seed=1)
        for seed in (1, 2)
    ]
    ensemble(members, tmp_path / "both")
    *probabilities, mean = (predict(folder, phantoms) for folder in (*members, tmp_path / "both"))
    assert np.abs(mean - np.mean(probabilities, axis=0)).max() < 1e-5
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path / "both", output_loading_info=True)
    assert type(model).__name__ == "EnsembleForImageClassification"
    assert not info["missing_keys"]
