"""Ensembles and soups of runs: what they answer, what they carry, and which numbers are honest."""

import json
import shutil
import sys
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
from hf_medtl.evaluation.evaluate import predict
from hf_medtl.runs.ensemble import ensemble
from tests.support.commands import options, script, typed
from tests.support.multilabel_tables import table as table_of_marks

# In a process where hf_medtl can't be imported and nothing can be fetched.
STRANGER = """
import json, os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
sys.modules["hf_medtl"] = None
from transformers import AutoModelForImageClassification, pipeline
model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
classify = pipeline("image-classification", sys.argv[1], trust_remote_code=True)
answers = classify(sys.argv[2:], top_k=None)
print(json.dumps([{a["label"]: a["score"] for a in answer} for answer in answers]))
"""


def small(data: Path, tiny, output: Path, family: str, **more: object) -> Path:
    values = {"num_train_epochs": 1, "learning_rate": 1e-3, "preprocessing": "grayscale", **more}
    return run(Recipe(**options(data, tiny(family), output, **values)))


@pytest.fixture(scope="module")
def runs(phantoms, tiny, tmp_path_factory) -> dict[str, Path]:
    """Runs on one split; the second normalises otherwise, the third is as the first with another seed."""
    place = tmp_path_factory.mktemp("runs")
    other = shutil.copytree(tiny("cnn"), place / "cnn-half")
    settings = json.loads((other / "preprocessor_config.json").read_text())
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (other / "preprocessor_config.json").write_text(json.dumps(settings | half))
    return {
        "vit": small(phantoms, tiny, place / "vit", "vit"),
        "cnn": small(phantoms, lambda _: other, place / "cnn", "cnn", split_seed=1, seed=2),
        "again": small(phantoms, tiny, place / "again", "vit", split_seed=1, seed=3),
    }


@pytest.fixture(scope="module")
def together(runs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ensembles") / "together"
    ensemble(list(runs.values()), folder)
    return folder


def answers(folder: Path, phantoms: Path) -> np.ndarray:
    """Probabilities of the test pictures of `runs`, by the folder's own pipeline."""
    loaded = load("brain-phantoms", phantoms, seed=1)
    paths = loaded.table.loc[loaded.table["split"] == "test", "path"]
    return predict(folder, [loaded.root / path for path in paths], read_image)


def test_the_pipeline_gives_the_mean_of_the_members_pipelines(runs, together, phantoms):
    each = [answers(folder, phantoms) for folder in runs.values()]
    assert np.abs(each[0] - each[1]).max() > 1e-3
    assert np.abs(answers(together, phantoms) - np.mean(each, axis=0)).max() < 1e-5


def test_a_stranger_gets_the_same(together, phantoms):
    loaded = load("brain-phantoms", phantoms, seed=1)
    paths = [loaded.root / path for path in loaded.table.loc[loaded.table["split"] == "test", "path"]]
    done = script(sys.executable, "-I", "-c", STRANGER, together, *paths, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    found = pd.DataFrame(json.loads(done.stdout.splitlines()[-1]))[list(loaded.labels)]
    assert np.abs(found.to_numpy() - answers(together, phantoms)).max() < 1e-6


def test_the_folder_is_whole_and_names_no_place(runs, together, phantoms):
    names = {path.name for path in together.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "ensemble.py",
        "cnn.py",
        "processor.py",
    }
    for name in ("config.json", "README.md", "preprocessor_config.json"):
        text = (together / name).read_text()
        assert str(phantoms.parent) not in text, name
        assert str(runs["vit"].parent) not in text, name
    text = (together / "README.md").read_text()
    assert ModelCard(text).data.tags == ["medical", "hf_medtl", "ensemble"]
    assert "Not a medical device" in text
    assert "the mean of the members', not fitted" in text
    yaml.safe_load(text.split("---")[1])


def test_the_number_is_that_of_the_shared_test_pictures(runs, together, phantoms):
    result = json.loads((together / "results.json").read_text())
    singles = [json.loads((folder / "results.json").read_text()) for folder in runs.values()]
    config = json.loads((together / "config.json").read_text())
    assert result["threshold"] == config["threshold"] == pytest.approx(np.mean([s["threshold"] for s in singles]))
    table = pd.read_csv(together / "predictions.csv")
    score = answers(together, phantoms)[:, 1]
    assert np.abs(table["p_lesion"] - score).max() < 1e-5
    assert result["metrics"]["roc_auc"]["value"] == roc_auc_score(table["label"] == "lesion", table["p_lesion"])
    assert {"n", "n_groups", "metrics", "confusion_matrix", "labels", "split", "dataset", "task"} <= set(result)


def test_folds_have_no_honest_number(phantoms, tiny, tmp_path):
    folds = run(Recipe(**options(phantoms, tiny("cnn"), tmp_path / "all", folds=2, num_train_epochs=1)))
    printed = typed("ensemble", folds, "--output_dir", tmp_path / "both")
    assert "ROC AUC" not in printed
    assert not (tmp_path / "both" / "results.json").exists()
    text = (tmp_path / "both" / "README.md").read_text()
    assert "None: the members were not tested on the same pictures" in text
    assert "all/fold-1" in text
    assert ModelCard(text).data.eval_results is None


def test_a_soup(runs, phantoms, tmp_path):
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
    score = answers(tmp_path / "fitted", phantoms)[:, 1]
    true = pd.read_csv(members[0] / "predictions.csv")["label"] == "lesion"
    assert result["metrics"]["roc_auc"]["value"] == roc_auc_score(true, score)
    head = load_file(tmp_path / "fitted" / "model.safetensors")["classifier.weight"]
    assert torch.allclose(head * config["folded_temperature"], mean["classifier.weight"], atol=1e-6)


def test_several_labels_a_picture(tiny, tmp_path):
    marks = table_of_marks(tmp_path / "marks", 48)
    more = {"dataset": "table", "split_seed": 1}
    members = [small(marks, tiny, tmp_path / f"run{seed}", "cnn", seed=seed, **more) for seed in (1, 2)]
    result = ensemble(members, tmp_path / "both")
    loaded = load("table", marks, seed=1)
    paths = [loaded.root / path for path in loaded.table.loc[loaded.table["split"] == "test", "path"]]
    *each, mean = (predict(folder, paths, read_image) for folder in (*members, tmp_path / "both"))
    assert np.abs(mean - np.mean(each, axis=0)).max() < 1e-5
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    assert config["thresholds"] == {label: its["threshold"] for label, its in result["per_label"].items()}


def test_members_that_do_not_fit_are_refused(runs, phantoms, tiny, tmp_path):
    def refused(words: str, *members: Path, soup: bool = False) -> None:
        with pytest.raises(MedtlError, match=words):
            ensemble(members, tmp_path / "new", soup)
        assert not (tmp_path / "new").exists()

    refused("found 1", runs["vit"])
    refused("not a finished run", runs["vit"], tmp_path)
    refused(r"ViTForImageClassification\) and .*MedicalCnnForImageClassification.* can't be averaged", runs["vit"],
            runs["cnn"], soup=True)  # fmt: skip
    stretched = small(phantoms, tiny, tmp_path / "pad", "vit", fit="pad")
    refused("fit is squash and pad", runs["vit"], stretched)
    turned = shutil.copytree(runs["again"], tmp_path / "turned")
    results = json.loads((turned / "results.json").read_text())
    (turned / "results.json").write_text(json.dumps(results | {"labels": results["labels"][::-1]}))
    refused("differ in labels", runs["vit"], turned)
    (turned / "results.json").write_text(json.dumps(results | {"task": "image-segmentation"}))
    refused("only classifiers", runs["vit"], turned)
    with pytest.raises(MedtlError, match="holds a finished run"):
        ensemble([runs["vit"], runs["again"]], runs["cnn"])


def test_timm_members_get_a_processor_of_the_ensemble(phantoms, tiny, tmp_path):
    """TRAP B: that of a timm model is not saved; the ensemble has one of our own class with the same pixels."""
    members = [small(phantoms, tiny, tmp_path / f"run{seed}", "timm", preprocessing="", seed=seed, split_seed=1)
               for seed in (1, 2)]  # fmt: skip
    ensemble(members, tmp_path / "both")
    *each, mean = (answers(folder, phantoms) for folder in (*members, tmp_path / "both"))
    assert np.abs(mean - np.mean(each, axis=0)).max() < 1e-5
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path / "both", output_loading_info=True)
    assert type(model).__name__ == "EnsembleForImageClassification"
    assert not info["missing_keys"]
