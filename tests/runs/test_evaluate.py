"""Tests of `hf-medtl evaluate`: results on other data, overlap with training data, and foreign models."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from transformers import ViTModel

from hf_medtl import MedtlError, load
from hf_medtl.data.dataset import COLUMNS
from hf_medtl.data.metadata import to_categories
from hf_medtl.evaluation.score_intervals import wilson
from hf_medtl.evaluation.subgroups import generalization_gap
from hf_medtl.publish.card_fields import missing_fields
from hf_medtl.publish.hub import push
from hf_medtl.publish.templates import format_interval
from hf_medtl.runs.evaluate import evaluate_model
from hf_medtl.runs.evaluated_model import EvaluatedModel
from hf_medtl.runs.lock import RUN_LOCK, lock_folder
from tests.support.commands import run_cli
from tests.support.image_files import write_noise_image
from tests.support.killed import leave_killed
from tests.support.tiny_models import save_foreign_classifier


@pytest.fixture(scope="module")
def finished_run(finished_run, tmp_path_factory):
    """Return a copy of the run, since the command writes to its card."""
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("copy") / "finished")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Write 30 images of two labels with sex and age; the sex of a tenth is missing."""
    folder = tmp_path_factory.mktemp("hospital")
    rows = []
    for i in range(30):
        label = "ill" if i % 2 else "normal"
        write_noise_image(folder / label / f"{i}.png", 500 + i)
        rows.append({"file_name": f"{label}/{i}.png", "sex": "FM"[i % 4 // 2] if i % 10 else "", "age": 10 + 2 * i})
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return folder


def test_own_data_give_the_results_of_the_run(finished_run, phantoms, tmp_path):
    split = pd.read_csv(finished_run / "splits.csv")["split"]
    with pytest.raises(MedtlError, match=f"{(split != 'test').sum()} of its 48 images are among .*--drop_overlap"):
        evaluate_model(finished_run, "brain-phantoms", phantoms, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    out = leave_killed(tmp_path / "out")
    folder, results = evaluate_model(finished_run, "brain-phantoms", phantoms, out=out, drop_overlap=True)
    assert {path.name for path in folder.iterdir()} == {"README.md", "figures", "predictions.csv", "results.json"}
    assert not (finished_run / "evaluations.json").exists()  # elsewhere, and not asked for
    asked = {"out": tmp_path / "asked", "drop_overlap": True, "update_card": True}
    assert evaluate_model(finished_run, "brain-phantoms", phantoms, **asked)[1]["metrics"] == results["metrics"]
    run_results = json.loads((finished_run / "results.json").read_text())
    assert results == json.loads((folder / "results.json").read_text())
    assert results["n"] == (split == "test").sum()
    assert results["drop"] == {}
    assert results["no_drop"] == f"{results['n']} of these are the model's own test images"
    card = (finished_run / "README.md").read_text()
    assert "- Its own test images: Synthetic brain slices" in card
    assert f"ROC AUC {format_interval(results['metrics']['roc_auc'])}" in card
    evaluations = json.loads((finished_run / "evaluations.json").read_text())
    assert evaluations["brain-phantoms, all"]["metrics"] == results["metrics"]
    assert {"external", "robustness", "subgroups"} <= set(missing_fields(card, run_results))
    for name, metric in run_results["metrics"].items():
        assert results["metrics"][name]["value"] == pytest.approx(metric["value"], abs=1e-5)
    assert (results["threshold"], results["threshold_rule"]) == (
        run_results["threshold"],
        run_results["threshold_rule"],
    )
    assert results["conformal"] == run_results["conformal"]
    assert results["outliers"] == run_results["outliers"]["test"]
    assert results["overlap"] == {"seen": (split != "test").sum(), "without_thumbnail": 0, "unsure": ""}
    assert results["excluded"] == {"seen in training": (split != "test").sum()}
    evaluated, original = (pd.read_csv(path / "predictions.csv") for path in (folder, finished_run))
    assert evaluated["p_lesion"].to_numpy() == pytest.approx(original["p_lesion"].to_numpy(), abs=1e-5)
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert figures == {"confusion_matrix.png", "roc.png", "reliability.png", "risk_coverage.png"}
    card = (folder / "README.md").read_text()
    assert f"one of the {(split != 'test').sum()} training images of the model" in card
    assert "contained it in" in card
    with pytest.raises(MedtlError, match="is not empty"):
        evaluate_model(finished_run, "brain-phantoms", phantoms, out=folder)
    with (
        lock_folder(tmp_path / "busy", RUN_LOCK, "works"),
        pytest.raises(MedtlError, match="Another process evaluates a model in"),
    ):
        evaluate_model(finished_run, "brain-phantoms", phantoms, out=tmp_path / "busy", drop_overlap=True)


def test_near_duplicates_are_detected_given_the_training_images(finished_run, phantoms, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_MEDTL_CACHE", str(tmp_path / "empty"))
    training = pd.read_csv(finished_run / "splits.csv").query("split == 'train'")
    for label in ("lesion", "no_lesion"):
        for i in range(4):
            write_noise_image(tmp_path / "other" / label / f"{i}.png", 900 + i + 10 * (label == "lesion"))
    shutil.copy(phantoms / training["path"].iloc[0], tmp_path / "other" / "lesion" / "same.png")
    Image.open(phantoms / training["path"].iloc[-1]).resize((90, 90)).save(tmp_path / "other" / "lesion" / "near.jpg")
    options = {"dry_run": True, "out": tmp_path / "out"}
    with pytest.raises(MedtlError, match=r"not external to brain-phantoms: 1 of its 10 images .*same\.png"):
        evaluate_model(finished_run, "imagefolder", tmp_path / "other", **options)
    assert "only identical files can be recognised" in caplog.text
    with pytest.raises(MedtlError, match="2 of its 10 images"):
        evaluate_model(finished_run, "imagefolder", tmp_path / "other", training_data=phantoms, **options)
    caplog.clear()
    with pytest.raises(MedtlError, match="2 of its 10 images"):  # now their fingerprints are in the cache
        evaluate_model(finished_run, "imagefolder", tmp_path / "other", **options)
    assert "only identical files" not in caplog.text


def test_copies_exclude_all_images_of_the_patient(tmp_path):
    from hf_medtl.data.leakage import load_external

    rows = []
    for i in range(30):
        write_noise_image(tmp_path / "one" / ("sick" if i % 2 else "healthy") / f"{i}.png", i)
        label = "sick" if i % 2 else "healthy"
        write_noise_image(tmp_path / "two" / label / f"{i}.png", 400 + i)
        rows.append({"file_name": f"{label}/{i}.png", "patient": f"p{i // 3}"})
    loaded = load("imagefolder", tmp_path / "one")
    path = loaded.table.query("split == 'train'")["path"].iloc[0]
    shutil.copy(tmp_path / "one" / path, tmp_path / "two" / "healthy" / "0.png")  # of p0, as 1 and 2
    pd.DataFrame(rows).to_csv(tmp_path / "two" / "metadata.csv", index=False)
    external = load_external(loaded, "imagefolder", tmp_path / "two", drop_overlap=True)
    reasons = external.excluded.set_index("path")["reason"]
    assert dict(reasons.str.partition(" as ")[0]) == {
        "healthy/0.png": "same file", "healthy/2.png": "same patient", "sick/1.png": "same patient",
    }  # fmt: skip


def test_positive_label_of_a_foreign_model_is_never_guessed_in_silence(tmp_path, caplog):
    def read(*labels, positive=None):
        model = EvaluatedModel.read(save_foreign_classifier(tmp_path / "".join(labels), list(labels)), None, positive)
        return model.rule.positive, model.seen.spec.positive_source

    assert read("Parasitized", "Uninfected") == ("Parasitized", "names")
    assert "--positive_label" not in caplog.text
    assert read("right", "left") == ("right", "order")
    assert "--positive_label right or --positive_label left" in caplog.text
    assert read("right", "left", positive="left") == ("left", "option")
    with pytest.raises(MedtlError, match="Did you mean 'left'"):
        read("right", "left", positive="Left")


def test_foreign_classifier_gets_default_decisions(hospital, tmp_path, caplog):
    model = save_foreign_classifier(tmp_path / "model", ["PNEUMONIA", "NORMAL"])
    with pytest.raises(
        MedtlError, match=r"labels normal, ill, the model PNEUMONIA, NORMAL: .*--labels normal=NORMAL,ill=PNEUMONIA"
    ):
        evaluate_model(model, "imagefolder", hospital, out=tmp_path / "out")
    labels = {"normal": "NORMAL", "ill": "PNEUMONIA"}
    folder, results = evaluate_model(model, "imagefolder", hospital, out=tmp_path / "out", labels=labels)
    assert "has no splits.csv" in caplog.text
    assert (results["positive_label"], results["threshold"], results["drop"]) == ("PNEUMONIA", 0.5, {})
    assert results["positive_label_source"] == "names"
    assert "conformal" not in results
    assert "outliers" not in results
    table = pd.read_csv(folder / "predictions.csv")
    correct = np.where(table["p_PNEUMONIA"] >= 0.5, "PNEUMONIA", "NORMAL") == table["label"]
    assert results["metrics"]["accuracy"]["value"] == pytest.approx(correct.mean())
    card = (folder / "README.md").read_text()
    assert "is not given: the model has no results.json" in card
    assert "The positive label is PNEUMONIA, because the other name means its absence." in card
    assert "**Overlap.** These images may include duplicates of training images" in card
    with pytest.raises(MedtlError, match=r"has no splits.csv.*Remove --training_data"):
        evaluate_model(model, "imagefolder", hospital, out=tmp_path / "new", training_data=hospital)


def test_rejects_model_without_head(hospital, tmp_path):
    model = save_foreign_classifier(tmp_path / "model", ["normal", "ill"], ViTModel)
    with pytest.raises(MedtlError, match=r"no weights for .*classifier"):
        evaluate_model(model, "imagefolder", hospital, out=tmp_path / "out")


def test_unknown_labels_must_be_mapped_or_excluded(tmp_path):
    for label, start in (("normal", 0), ("ill", 20), ("odd", 40)):
        for i in range(5):
            write_noise_image(tmp_path / "data" / label / f"{i}.png", 700 + start + i)
    model = save_foreign_classifier(tmp_path / "model", ["normal", "ill"])
    with pytest.raises(MedtlError, match=r"5 images .* are odd, .*such as --labels odd=ill, .* --labels odd="):
        evaluate_model(model, "imagefolder", tmp_path / "data", out=tmp_path / "out")
    for number, meaning in ((15, "ill"), (10, "")):
        out = tmp_path / str(number)
        assert (
            evaluate_model(model, "imagefolder", tmp_path / "data", out=out, labels={"odd": meaning})[1]["n"] == number
        )


def test_multilabel_model_gets_results_per_label(tmp_path):
    cells = ["", "edema", "edema|mass", "mass"] * 6
    for i in range(24):
        write_noise_image(tmp_path / "pictures" / f"{i}.png", 1000 + i)
    rows = pd.DataFrame(
        {"file_name": [f"pictures/{i}.png" for i in range(24)], "label": cells, "source": list("AB") * 12}
    )
    rows.to_csv(tmp_path / "table.csv", index=False)
    model = save_foreign_classifier(tmp_path / "model", ["mass", "edema"])
    config = json.loads((model / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
    (model / "config.json").write_text(json.dumps(config))
    folder, results = evaluate_model(model, "table", tmp_path / "table.csv", out=tmp_path / "out")
    assert {name: metrics["n_positive"] for name, metrics in results["per_label"].items()} == {"mass": 12, "edema": 12}
    assert {value: metrics["n"] for value, metrics in results["slices"]["source"].items()} == {"A": 12, "B": 12}
    table = pd.read_csv(folder / "predictions.csv", keep_default_na=False)
    correct = (table["p_mass"] >= 0.5) == table["label"].str.contains("mass")
    assert results["per_label"]["mass"]["metrics"]["accuracy"]["value"] == pytest.approx(correct.mean())
    assert "| edema | 12 | 0.500 |" in (folder / "README.md").read_text()
    save_foreign_classifier(tmp_path / "single", ["mass", "edema"])
    with pytest.raises(MedtlError, match="One of single and table is multilabel, the other is not"):
        evaluate_model(tmp_path / "single", "table", tmp_path / "table.csv", out=tmp_path / "new")


@pytest.mark.slow
def test_published_run_is_compared_with_its_own_results(finished_run, phantoms, hub, tmp_path):
    push(finished_run, "someone/published")
    options = {"out": tmp_path / "out", "drop_overlap": True}
    results = evaluate_model("someone/published", "brain-phantoms", phantoms, **options)[1]
    run_results = json.loads((finished_run / "results.json").read_text())
    assert results["model"] == "someone/published"
    assert results["n"] == run_results["n"]
    assert results["internal"]["metrics"] == run_results["metrics"]


def test_subgroups_by_metadata(hospital, tmp_path):
    model = save_foreign_classifier(tmp_path / "model", ["normal", "ill"])
    folder, results = evaluate_model(model, "imagefolder", hospital, out=tmp_path / "out", by=["sex", "age"])
    sex = pd.read_csv(hospital / "metadata.csv", keep_default_na=False)["sex"]
    sizes = {value: part["n"] for value, part in results["slices"]["sex"].items()}
    assert sizes == {"F": (sex == "F").sum(), "M": (sex == "M").sum(), "(missing)": 3}
    assert {value: part["n"] for value, part in results["slices"]["age"].items()} == {
        "0 to 17": 4, "18 to 39": 11, "40 to 64": 13, "65 or more": 2,
    }  # fmt: skip
    women = set("/" + pd.read_csv(hospital / "metadata.csv").query("sex == 'F'")["file_name"])
    table = pd.read_csv(folder / "predictions.csv")
    table = table[("/" + table["image_id"]).isin(women)]
    correct = np.where(table["p_ill"] >= 0.5, "ill", "normal") == table["label"]
    part = results["slices"]["sex"]["F"]
    assert part["metrics"]["accuracy"]["value"] == pytest.approx(correct.mean())
    assert "fewer than 10 groups of each class" in part["warning"]
    assert "| 18 to 39 | 11 |" in (folder / "README.md").read_text()
    with pytest.raises(MedtlError, match=r"--by view: .* It has file_name, sex, age, source"):
        evaluate_model(model, "imagefolder", hospital, out=tmp_path / "new", by=["view"])


def test_numbers_are_binned_and_too_many_categories_rejected():
    categories = to_categories("dose", pd.Series([str(i) for i in range(16)] + [""]))
    assert list(categories.cat.categories) == ["0 to 3.75", "3.75 to 7.5", "7.5 to 11.25", "11.25 to 15", "(missing)"]
    assert categories.value_counts().to_dict() == dict.fromkeys(categories.cat.categories[:4], 4) | {"(missing)": 1}
    assert list(to_categories("grade", pd.Series(["2", "1", "2"])).cat.categories) == ["1", "2"]
    with pytest.raises(MedtlError, match="--by day: 25 different values"):
        to_categories("day", pd.Series([f"day {i}" for i in range(25)]))


def test_generalization_gap_has_newcombes_interval():
    # 56 of 70 and 48 of 80: Newcombe 1998, Stat Med 17:873-890, table II (a), method 10.
    proportions = [
        {"x": {"value": hits / n, "low": low, "high": high}} for hits, n in ((56, 70), (48, 80))
        for low, high in [wilson(hits, n)]
    ]  # fmt: skip
    assert list(generalization_gap(*proportions)["x"].values()) == pytest.approx([0.2, 0.0524, 0.3339], abs=5e-5)
    bare = {"x": {"value": 0.5, "low": None, "high": None}, "y": {"value": 1.0, "low": 0.9, "high": 1.0}}
    assert generalization_gap(proportions[0], bare) == {"x": {"value": pytest.approx(0.3), "low": None, "high": None}}
    means = [{"x": {"value": 0.5, "low": 0.4, "high": 0.6, "n_labels": n}} for n in (3, 2)]
    assert generalization_gap(*means)["x"]["value"] is None


def test_evaluates_a_split_of_the_archive(tmp_path):
    for split, start in (("train", 0), ("test", 50)):
        for i in range(6):
            write_noise_image(tmp_path / "data" / split / ("ill" if i % 2 else "normal") / f"{i}.png", 800 + start + i)
    model = save_foreign_classifier(tmp_path / "model", ["normal", "ill"])
    results = evaluate_model(model, "imagefolder", tmp_path / "data", out=tmp_path / "out", split="test")[1]
    assert (results["n"], results["split"]) == (6, "test")
    with pytest.raises(MedtlError, match=r"no official split 'validation'. Use --split all or train or test"):
        evaluate_model(model, "imagefolder", tmp_path / "data", out=tmp_path / "new", split="validation")


def test_command_prints_results_and_rejects_invalid_options(hospital, tmp_path, monkeypatch, caplog):
    save_foreign_classifier(tmp_path / "model", ["normal", "ill"])
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "hf_medtl")
    run_cli("evaluate", "model", "--data_dir", hospital, "--dry_run")
    assert "30 images in" in caplog.text
    assert "Nothing was written" in caplog.text
    assert not (tmp_path / "evaluations").exists()
    printed = run_cli("evaluate", "model", "--data_dir", hospital, "--by", "sex")
    assert "ROC AUC" in printed
    assert "sex F: too small" in printed
    assert "No difference from the model's own test split" in printed
    assert (tmp_path / "evaluations" / "model-on-imagefolder" / "results.json").exists()
    for arguments, message in (
        (["--data_dir", hospital, "--labels", "ill"], "pairs such as a=b"),
        ([], "--dataset NAME"),
    ):
        with pytest.raises(MedtlError, match=message):
            run_cli("evaluate", "model", *arguments)


@pytest.mark.real
def test_rejects_real_chest_images_seen_in_training(shared, tmp_path):
    data = shared / "data"
    loaded = load("covid19-radiography", data / "covid19-radiography-database")
    model = save_foreign_classifier(tmp_path / "model", loaded.labels)
    loaded.table[COLUMNS].to_csv(model / "splits.csv", index=False)
    (model / "recipe.yaml").write_text("dataset: covid19-radiography\n")
    options = {"labels": {"pneumonia": "viral_pneumonia"}, "by": ["view", "sex", "age"]}
    data_dir = data / "covid-chestxray-dataset"
    with pytest.raises(MedtlError, match=r"not external to covid19-radiography: \d+ of its 162 .*--drop_overlap"):
        evaluate_model(model, "covid-chestxray", data_dir, out=tmp_path / "out", **options)
    folder, results = evaluate_model(
        model, "covid-chestxray", data_dir, out=tmp_path / "out", drop_overlap=True, **options
    )
    assert results["n"] == 162 - results["excluded"]["seen in training"]
    facts = pd.read_csv(data_dir / "metadata.csv", dtype=str, keep_default_na=False)
    trained_on = set(loaded.table.query("split != 'test'")["path"].str.rpartition("/")[2])
    overlapping = facts[facts["also_in_covid19_radiography"].isin(trained_on)]
    assert len(overlapping) > 0
    tested = facts[("images/" + facts["filename"]).isin(pd.read_csv(folder / "predictions.csv")["image_id"])]
    assert not {*tested["patientid"]} & {*overlapping["patientid"]}
    assert sum(part["n"] for part in results["slices"]["view"].values()) == results["n"]
    assert set(results["slices"]["view"]) == {"PA", "AP", "AP Supine"}
