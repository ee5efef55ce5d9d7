"""Dataset audit: planted copies, leaks and shortcuts are reported, and the page is self-contained."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hf_medtl.data import shortcuts
from hf_medtl.data.audit import audit
from hf_medtl.data.audit_page import summary, write_audit
from hf_medtl.data.loading import survey
from hf_medtl.data.shortcuts import group_weights, weighted_auc
from tests.support.image_files import write_noise_image

KEYS = {"n", "labels", "exact_groups", "exact_redundant", "near_distinct", "split_leaks", "shortcuts", "unreadable"}


@pytest.fixture(autouse=True, scope="module")
def few_trees():
    """Use a small forest, which suffices for the planted shortcuts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortcuts, "TREES", 30)
        yield


def write_dataset(root, number=40, **of):
    """Write images of the labels a and b; `of` has further arguments of `write_noise_image` for a label."""
    for offset, label in enumerate("ab"):
        for i in range(number):
            write_noise_image(root / label / f"{i:03d}.png", 1000 * offset + i, **of.get(label, {}))
    return root


def findings(root, dataset="imagefolder", *others):
    return audit(survey(dataset, root), others)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return a dataset without planted faults, and its findings."""
    root = write_dataset(tmp_path_factory.mktemp("plain"))
    return root, findings(root)


@pytest.mark.slow
def test_clean_dataset_has_no_findings(plain):
    reported = plain[1]
    assert set(reported) >= KEYS
    assert reported["labels"] == {"a": 40, "b": 40}
    assert (reported["exact_groups"], reported["near_groups"], reported["near_distinct"]) == (0, 0, 80)
    assert reported["crops"]["redundant"] == 0
    for probe in ("file_size", "compression", "grey", "border"):
        assert reported["shortcuts"][probe]["low"] < 0.5, probe
    for probe in ("dimensions", "mode"):
        assert reported["shortcuts"][probe]["constant"]
    assert "one source" in reported["shortcuts"]["source"]["reason"]
    assert "No image is a copy of another one." in summary(reported)
    assert json.loads(json.dumps(reported, allow_nan=False)) == reported


@pytest.mark.slow
def test_finds_duplicates_within_and_across_labels(tmp_path):
    root = write_dataset(tmp_path, 20)
    shutil.copy(root / "a" / "001.png", root / "a" / "copy.png")
    shutil.copy(root / "a" / "001.png", root / "a" / "again.png")
    Image.open(root / "b" / "002.png").resize((60, 72)).save(root / "b" / "larger.jpg", quality=80)
    shutil.copy(root / "a" / "003.png", root / "b" / "wrong.png")
    reported = findings(root)
    assert (reported["exact_groups"], reported["exact_redundant"]) == (2, 3)
    assert (reported["near_groups"], reported["near_redundant"], reported["near_distinct"]) == (3, 4, 40)
    assert reported["duplicates_across_labels"] == {"groups": 1, "files": ["a/003.png", "b/wrong.png"]}
    assert [group["labels"] for group in reported["duplicates"]] == [2, 1, 1]  # worst first
    assert [group["exact"] for group in reported["duplicates"]] == [True, True, False]
    assert summary(reported)[0] == "1 image has two labels, one of which must be wrong."


@pytest.mark.slow
def test_finds_cropped_duplicates_by_alignment(phantoms, tmp_path):
    root = write_dataset(tmp_path, 20)
    whole = Image.open(phantoms / "lesion" / "brain-0001_0.png")
    cropped = whole.crop((0, 2, 62, 64)).resize((64, 64))
    other = Image.open(phantoms / "lesion" / "brain-0003_0.png")
    whole.save(root / "a" / "whole.png")
    cropped.save(root / "a" / "cropped.png")
    other.save(root / "a" / "other.png")
    reported = findings(root)
    assert reported["near_groups"] == 0
    assert reported["crops"] == {"redundant": 1, "examples": [["a/cropped.png", "a/whole.png"]]}
    assert (reported["n"], reported["near_distinct"], reported["distinct"]) == (43, 43, 42)


@pytest.mark.slow
def test_finds_patients_and_duplicates_across_official_splits(tmp_path):
    root = tmp_path / "chest_xray"
    for i in range(20):
        write_noise_image(root / "train" / "NORMAL" / f"IM-{i:04d}-0001.jpeg", i)
        write_noise_image(root / "train" / "PNEUMONIA" / f"person{i}_virus_{i}.jpeg", 100 + i)
        write_noise_image(root / "test" / "NORMAL" / f"NORMAL2-IM-{i:04d}-0001.jpeg", 200 + i)
        write_noise_image(root / "test" / "PNEUMONIA" / f"person{i + 500}_bacteria_{i}.jpeg", 300 + i)
    for i in range(3):  # patient 3, known from train
        write_noise_image(root / "test" / "PNEUMONIA" / f"person3_bacteria_{i + 70}.jpeg", 400 + i)
    shutil.copy(root / "train" / "NORMAL" / "IM-0007-0001.jpeg", root / "test" / "NORMAL" / "IM-0900-0001.jpeg")
    reported = findings(tmp_path, "chest-xray-pneumonia")
    assert reported["split_leaks"] == {"train/test": {"patients": 1, "exact": 1, "near": 1, "pictures": 4, "of": 44}}
    assert reported["splits"]["test"] == {"normal": 21, "pneumonia": 23}
    assert (reported["patients"]["pictures"], reported["patients"]["most"]) == (84, 4)
    assert summary(reported)[0].startswith("The official train and test splits share 1 patient and 1 image: 4 of 44 ")


@pytest.mark.slow
def test_finds_planted_shortcuts(tmp_path):
    root = write_dataset(tmp_path, a={"border": 20}, b={"border": 235, "size": (44, 48), "pnginfo": PngInfo()})
    for path in (root / "b").iterdir():
        path.write_bytes(path.read_bytes() + b"\0" * 4000)
    reported = findings(root)
    for probe in ("file_size", "dimensions", "compression", "border"):
        assert reported["shortcuts"][probe]["low"] > 0.95, probe
    sentences = summary(findings(root))
    assert any(
        sentence.startswith("A model can predict the label from file size alone: AUC 1.00") for sentence in sentences
    )


@pytest.mark.slow
def test_finds_source_and_colour_mode_that_predict_label(tmp_path):
    root = write_dataset(tmp_path, 30)
    for path in sorted((root / "b").iterdir())[:10]:
        Image.open(path).convert("RGB").save(path)
    rows = [
        {"file_name": f"{label}/{i:03d}.png", "label": label, "source": ("north", "south")[(label == "b") ^ (i == 0)]}
        for label in "ab"
        for i in range(30)
    ]
    pd.DataFrame(rows).to_csv(root / "rows.csv", index=False)
    reported = findings(root / "rows.csv", "table")
    assert reported["sources"] == {"north": {"a": 29, "b": 1}, "south": {"a": 1, "b": 29}}
    assert reported["shortcuts"]["source"]["low"] > 0.8
    assert "All 10 images in PNG RGB format are b." in summary(reported)


def test_reports_too_few_groups_and_unreadable_files(tmp_path):
    root = write_dataset(tmp_path, 20)
    for path in sorted((root / "b").iterdir())[5:]:
        path.unlink()
    (root / "a" / "empty.png").write_bytes(b"")
    reported = findings(root)
    assert reported["unreadable"] == [{"path": "a/empty.png", "reason": "empty file"}]
    assert reported["shortcuts"]["border"] == {
        "reason": "not computable: fewer than 10 independent groups of images (b 5)"
    }


@pytest.mark.slow
def test_audits_three_labels(tmp_path):
    root = write_dataset(tmp_path, 15)
    for i in range(15):
        write_noise_image(root / "c" / f"{i}.png", 3000 + i, size=(80, 80))
    reported = findings(root)["shortcuts"]["dimensions"]
    assert set(reported["by_label"]) == {"a", "b", "c"}
    assert reported["by_label"]["c"] > 0.95 > reported["by_label"]["a"]


@pytest.mark.slow
def test_finds_overlap_of_two_datasets(plain, tmp_path):
    root = write_dataset(tmp_path, 12)
    for label in "ab":
        for path in (root / label).iterdir():
            write_noise_image(path, 5000 + int(path.stem) + 100 * (label == "b"))
    shutil.copy(plain[0] / "a" / "005.png", root / "a" / "same.png")
    Image.open(plain[0] / "b" / "006.png").resize((80, 96)).save(root / "b" / "near.jpg", quality=85)
    reported = findings(root, "imagefolder", survey("imagefolder", plain[0]))
    (name, shared), *_ = reported["overlap"].items()
    assert name == f"imagefolder ({plain[0].name})"
    assert (shared["exact"], shared["near"], shared["of"]) == (1, 2, 26)
    assert shared["examples"] == [["a/same.png", "a/005.png"], ["b/near.jpg", "b/006.png"]]
    assert summary(reported)[0].startswith("2 of 26 images are also in imagefolder")


def test_weighted_auc_equals_auc_of_repeated_images():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
    weights = group_weights(np.array([f"g{i // 2}" for i in range(40)]), 0)
    areas = weighted_auc(score, positive, weights)
    for row in (0, 1, 2, 999):
        index = np.repeat(np.arange(40), weights[row])
        assert areas[row] == pytest.approx(roc_auc_score(positive[index], score[index]))


@pytest.mark.slow
def test_page_is_self_contained_escaped_and_without_metadata(tmp_path):
    root = write_dataset(tmp_path / "data", 20)
    nasty = "<img src=x onerror=alert(1)>&'.png"
    secret = PngInfo()
    secret.add_text("PatientName", "Erika Mustermann")
    write_noise_image(root / "a" / nasty, 77, pnginfo=secret)
    shutil.copy(root / "a" / nasty, root / "b" / nasty)
    (root / "a" / "<b>broken.png").write_bytes(b"x")
    surveyed = survey("imagefolder", root)
    reported = audit(surveyed)
    page = write_audit(surveyed, reported, tmp_path / "out")
    text = page.read_text()
    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == reported
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;&#39;.png" in text
    assert "<b>broken" not in text
    assert "Mustermann" not in text
    assert "Mustermann" not in json.dumps(reported)
    assert str(root) not in text
    assert "<script" not in text
    assert all(target.startswith("data:image/") for target in re.findall(r"\ssrc=\"([^\"]*)\"", text))
    assert not re.search(r"(@import|url\()", text)
    assert all(re.search(r"\salt=\"[^\"]+\"", tag) for tag in re.findall(r"<img [^>]*>", text))
    assert "Not a medical device" in text
    assert page.stat().st_size < 3_000_000


@pytest.mark.real
def test_audits_real_brain_dataset(real_brain, tmp_path):
    surveyed = survey("brain-tumor-mri", real_brain)
    reported = audit(surveyed)
    assert (reported["exact_groups"], reported["exact_redundant"]) == (22, 25)
    assert reported["duplicates_across_labels"]["groups"] == 0
    assert (reported["near_groups"], reported["near_redundant"], reported["near_distinct"]) == (33, 44, 209)
    assert (reported["crops"]["redundant"], reported["distinct"]) == (7, 202)
    assert reported["shortcuts"]["file_size"]["low"] > 0.5
    assert reported["shortcuts"]["dimensions"]["low"] > 0.5
    assert "All 5 images in PNG RGBA format are no_tumor." in summary(reported)
    assert write_audit(surveyed, reported, tmp_path).stat().st_size < 3_000_000


@pytest.mark.real
def test_finds_patient_numbers_across_official_splits(shared):
    folder = shared / "data" / "chest-xray-pneumonia"
    listing = pd.read_csv(folder / "FULL_LISTING.csv")
    listing = listing[listing["filename"].isin({path.name for path in folder.rglob("*.jpeg")})]
    listing["patient"] = listing["filename"].str.extract(r"^(person\d+|(?:NORMAL2-)?IM-\d+)", expand=False)
    test = listing[listing["split"] == "test"]
    leaking = set(test["patient"]) & set(listing.loc[listing["split"] != "test", "patient"])
    reported = audit(survey("chest-xray-pneumonia", folder))
    assert reported["split_leaks"]["train/test"]["patients"] == len(leaking) > 0
    assert reported["split_leaks"]["train/test"]["pictures"] == test["patient"].isin(leaking).sum()
    copies = listing["pixel_md5_of_224px_copy"].value_counts()
    assert (reported["exact_groups"], reported["exact_redundant"]) == ((copies > 1).sum(), (copies - 1).sum())
    assert reported["shortcuts"]["dimensions"]["constant"]  # all are 224 × 224 in this sample


@pytest.mark.real
def test_finds_duplicates_within_and_between_real_covid_datasets(shared):
    radiography = survey("covid19-radiography", shared / "data" / "covid19-radiography-database")
    collection = survey("covid-chestxray", shared / "data" / "covid-chestxray-dataset")
    reported = audit(radiography, [collection])
    # Eight planted files are four pairs; one of them is cropped.
    assert (reported["near_groups"], reported["crops"]["redundant"]) == (3, 1)
    metadata = pd.read_csv(shared / "data" / "covid-chestxray-dataset" / "metadata.csv", dtype=str)
    names = set(radiography.table["path"].str.split("/").str[-1])
    shared_names = {name for cell in metadata["also_in_covid19_radiography"].dropna() for name in cell.split("|")}
    examples = {mine.split("/")[-1] for mine, _ in reported["overlap"]["covid-chestxray"]["examples"]}
    assert shared_names & names <= examples
