"""A data set with planted faults -> findings that name each of them, and a page that needs nothing else."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hf_medtl.data import shortcuts
from hf_medtl.data.audit import audit, summary, write_audit
from hf_medtl.data.loading import survey
from hf_medtl.data.shortcuts import bootstrap_weights, weighted_auc

KEYS = {"n", "labels", "exact_groups", "exact_redundant", "near_distinct", "split_leaks", "shortcuts", "unreadable"}


@pytest.fixture(autouse=True, scope="module")
def few_trees():
    """The planted shortcuts are plain enough for a small forest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortcuts, "TREES", 30)
        yield


def picture(path, seed, size=(40, 48), border=None, **options):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 5), dtype=np.uint8))
    pixels = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).copy()
    if border is not None:
        pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:] = (border,) * 4
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def folders(root, number=40, **of):
    """Pictures of labels a and b; `of` gives more arguments of `picture` for each."""
    for offset, label in enumerate("ab"):
        for i in range(number):
            picture(root / label / f"{i:03d}.png", 1000 * offset + i, **of.get(label, {}))
    return root


def findings(root, dataset="imagefolder", *others):
    return audit(survey(dataset, root), others)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A set without faults, with its findings."""
    root = folders(tmp_path_factory.mktemp("plain"))
    return root, findings(root)


@pytest.mark.slow
def test_clean_dataset_has_no_findings(plain):
    found = plain[1]
    assert set(found) >= KEYS
    assert found["labels"] == {"a": 40, "b": 40}
    assert (found["exact_groups"], found["near_groups"], found["near_distinct"]) == (0, 0, 80)
    assert found["crops"]["redundant"] == 0
    for probe in ("file_size", "compression", "grey", "border"):
        assert found["shortcuts"][probe]["low"] < 0.5, probe
    for probe in ("dimensions", "mode"):
        assert found["shortcuts"][probe]["constant"]
    assert "one source" in found["shortcuts"]["source"]["reason"]
    assert "No image is a copy of another one." in summary(found)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.slow
def test_finds_duplicates_within_and_across_labels(tmp_path):
    root = folders(tmp_path, 20)
    shutil.copy(root / "a" / "001.png", root / "a" / "copy.png")
    shutil.copy(root / "a" / "001.png", root / "a" / "again.png")
    Image.open(root / "b" / "002.png").resize((60, 72)).save(root / "b" / "larger.jpg", quality=80)
    shutil.copy(root / "a" / "003.png", root / "b" / "wrong.png")
    found = findings(root)
    assert (found["exact_groups"], found["exact_redundant"]) == (2, 3)
    assert (found["near_groups"], found["near_redundant"], found["near_distinct"]) == (3, 4, 40)
    assert found["duplicates_across_labels"] == {"groups": 1, "files": ["a/003.png", "b/wrong.png"]}
    assert [group["labels"] for group in found["duplicates"]] == [2, 1, 1]  # worst first
    assert [group["exact"] for group in found["duplicates"]] == [True, True, False]
    assert summary(found)[0] == "1 image has two labels, one of which must be wrong."


@pytest.mark.slow
def test_finds_cropped_duplicates_by_alignment(phantoms, tmp_path):
    root = folders(tmp_path, 20)
    whole = Image.open(phantoms / "lesion" / "brain-0001_0.png")
    cropped = whole.crop((0, 2, 62, 64)).resize((64, 64))
    other = Image.open(phantoms / "lesion" / "brain-0003_0.png")
    whole.save(root / "a" / "whole.png")
    cropped.save(root / "a" / "cropped.png")
    other.save(root / "a" / "other.png")
    found = findings(root)
    assert found["near_groups"] == 0
    assert found["crops"] == {"redundant": 1, "examples": [["a/cropped.png", "a/whole.png"]]}
    assert (found["n"], found["near_distinct"], found["distinct"]) == (43, 43, 42)


@pytest.mark.slow
def test_finds_patients_and_duplicates_across_official_splits(tmp_path):
    root = tmp_path / "chest_xray"
    for i in range(20):
        picture(root / "train" / "NORMAL" / f"IM-{i:04d}-0001.jpeg", i)
        picture(root / "train" / "PNEUMONIA" / f"person{i}_virus_{i}.jpeg", 100 + i)
        picture(root / "test" / "NORMAL" / f"NORMAL2-IM-{i:04d}-0001.jpeg", 200 + i)
        picture(root / "test" / "PNEUMONIA" / f"person{i + 500}_bacteria_{i}.jpeg", 300 + i)
    for i in range(3):  # patient 3, known from train
        picture(root / "test" / "PNEUMONIA" / f"person3_bacteria_{i + 70}.jpeg", 400 + i)
    shutil.copy(root / "train" / "NORMAL" / "IM-0007-0001.jpeg", root / "test" / "NORMAL" / "IM-0900-0001.jpeg")
    found = findings(tmp_path, "chest-xray-pneumonia")
    assert found["split_leaks"] == {"train/test": {"patients": 1, "exact": 1, "near": 1, "pictures": 4, "of": 44}}
    assert found["splits"]["test"] == {"normal": 21, "pneumonia": 23}
    assert (found["patients"]["pictures"], found["patients"]["most"]) == (84, 4)
    assert summary(found)[0].startswith("The official train and test splits share 1 patient and 1 image: 4 of 44 ")


@pytest.mark.slow
def test_finds_planted_shortcuts(tmp_path):
    root = folders(tmp_path, a={"border": 20}, b={"border": 235, "size": (44, 48), "pnginfo": PngInfo()})
    for path in (root / "b").iterdir():
        path.write_bytes(path.read_bytes() + b"\0" * 4000)
    found = findings(root)
    for probe in ("file_size", "dimensions", "compression", "border"):
        assert found["shortcuts"][probe]["low"] > 0.95, probe
    sentences = summary(findings(root))
    assert any(
        sentence.startswith("A model can predict the label from file size alone: AUC 1.00") for sentence in sentences
    )


@pytest.mark.slow
def test_finds_source_and_colour_mode_that_predict_label(tmp_path):
    root = folders(tmp_path, 30)
    for path in sorted((root / "b").iterdir())[:10]:
        Image.open(path).convert("RGB").save(path)
    rows = [
        {"file_name": f"{label}/{i:03d}.png", "label": label, "source": ("north", "south")[(label == "b") ^ (i == 0)]}
        for label in "ab"
        for i in range(30)
    ]
    pd.DataFrame(rows).to_csv(root / "rows.csv", index=False)
    found = findings(root / "rows.csv", "table")
    assert found["sources"] == {"north": {"a": 29, "b": 1}, "south": {"a": 1, "b": 29}}
    assert found["shortcuts"]["source"]["low"] > 0.8
    assert "All 10 images in PNG RGB format are b." in summary(found)


def test_reports_too_few_groups_and_unreadable_files(tmp_path):
    root = folders(tmp_path, 20)
    for path in sorted((root / "b").iterdir())[5:]:
        path.unlink()
    (root / "a" / "empty.png").write_bytes(b"")
    found = findings(root)
    assert found["unreadable"] == [{"path": "a/empty.png", "reason": "empty file"}]
    assert found["shortcuts"]["border"] == {
        "reason": "not computable: fewer than 10 independent groups of images (b 5)"
    }


@pytest.mark.slow
def test_audits_three_labels(tmp_path):
    root = folders(tmp_path, 15)
    for i in range(15):
        picture(root / "c" / f"{i}.png", 3000 + i, size=(80, 80))
    found = findings(root)["shortcuts"]["dimensions"]
    assert set(found["by_label"]) == {"a", "b", "c"}
    assert found["by_label"]["c"] > 0.95 > found["by_label"]["a"]


@pytest.mark.slow
def test_finds_overlap_of_two_datasets(plain, tmp_path):
    root = folders(tmp_path, 12)
    for label in "ab":
        for path in (root / label).iterdir():
            picture(path, 5000 + int(path.stem) + 100 * (label == "b"))
    shutil.copy(plain[0] / "a" / "005.png", root / "a" / "same.png")
    Image.open(plain[0] / "b" / "006.png").resize((80, 96)).save(root / "b" / "near.jpg", quality=85)
    found = findings(root, "imagefolder", survey("imagefolder", plain[0]))
    (name, shared), *_ = found["overlap"].items()
    assert name == f"imagefolder ({plain[0].name})"
    assert (shared["exact"], shared["near"], shared["of"]) == (1, 2, 26)
    assert shared["examples"] == [["a/same.png", "a/005.png"], ["b/near.jpg", "b/006.png"]]
    assert summary(found)[0].startswith("2 of 26 images are also in imagefolder")


def test_weighted_auc_equals_auc_of_repeated_images():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
    weights = bootstrap_weights(np.array([f"g{i // 2}" for i in range(40)]), 0)
    areas = weighted_auc(score, positive, weights)
    for row in (0, 1, 2, 999):
        index = np.repeat(np.arange(40), weights[row])
        assert areas[row] == pytest.approx(roc_auc_score(positive[index], score[index]))


@pytest.mark.slow
def test_page_is_self_contained_escaped_and_without_metadata(tmp_path):
    root = folders(tmp_path / "data", 20)
    nasty = "<img src=x onerror=alert(1)>&'.png"
    secret = PngInfo()
    secret.add_text("PatientName", "Erika Mustermann")
    picture(root / "a" / nasty, 77, pnginfo=secret)
    shutil.copy(root / "a" / nasty, root / "b" / nasty)
    (root / "a" / "<b>broken.png").write_bytes(b"x")
    found_survey = survey("imagefolder", root)
    found = audit(found_survey)
    page = write_audit(found_survey, found, tmp_path / "out")
    text = page.read_text()
    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == found
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;&#39;.png" in text
    assert "<b>broken" not in text
    assert "Mustermann" not in text
    assert "Mustermann" not in json.dumps(found)
    assert str(root) not in text
    assert "<script" not in text
    assert all(target.startswith("data:image/") for target in re.findall(r"\ssrc=\"([^\"]*)\"", text))
    assert not re.search(r"(@import|url\()", text)
    assert all(re.search(r"\salt=\"[^\"]+\"", tag) for tag in re.findall(r"<img [^>]*>", text))
    assert "Not a medical device" in text
    assert page.stat().st_size < 3_000_000


@pytest.mark.real
def test_audits_real_brain_dataset(real_brain, tmp_path):
    found_survey = survey("brain-tumor-mri", real_brain)
    found = audit(found_survey)
    assert (found["exact_groups"], found["exact_redundant"]) == (22, 25)
    assert found["duplicates_across_labels"]["groups"] == 0
    assert (found["near_groups"], found["near_redundant"], found["near_distinct"]) == (33, 44, 209)
    assert (found["crops"]["redundant"], found["distinct"]) == (7, 202)
    assert found["shortcuts"]["file_size"]["low"] > 0.5
    assert found["shortcuts"]["dimensions"]["low"] > 0.5
    assert "All 5 images in PNG RGBA format are no_tumor." in summary(found)
    assert write_audit(found_survey, found, tmp_path).stat().st_size < 3_000_000


@pytest.mark.real
def test_finds_patient_numbers_across_official_splits(shared):
    folder = shared / "data" / "chest-xray-pneumonia"
    listing = pd.read_csv(folder / "FULL_LISTING.csv")
    here = {path.name for path in folder.rglob("*.jpeg")}
    listing = listing[listing["filename"].isin(here)]
    listing["patient"] = listing["filename"].str.extract(r"^(person\d+|(?:NORMAL2-)?IM-\d+)", expand=False)
    test = listing[listing["split"] == "test"]
    leaking = set(test["patient"]) & set(listing.loc[listing["split"] != "test", "patient"])
    found = audit(survey("chest-xray-pneumonia", folder))
    assert found["split_leaks"]["train/test"]["patients"] == len(leaking) > 0
    assert found["split_leaks"]["train/test"]["pictures"] == test["patient"].isin(leaking).sum()
    copies = listing["pixel_md5_of_224px_copy"].value_counts()
    assert (found["exact_groups"], found["exact_redundant"]) == ((copies > 1).sum(), (copies - 1).sum())
    assert found["shortcuts"]["dimensions"]["constant"]  # all are 224 × 224 here


@pytest.mark.real
def test_finds_duplicates_within_and_between_real_covid_datasets(shared):
    radiography = survey("covid19-radiography", shared / "data" / "covid19-radiography-database")
    collection = survey("covid-chestxray", shared / "data" / "covid-chestxray-dataset")
    found = audit(radiography, [collection])
    # Eight planted files are four pairs; one of them is cropped.
    assert (found["near_groups"], found["crops"]["redundant"]) == (3, 1)
    metadata = pd.read_csv(shared / "data" / "covid-chestxray-dataset" / "metadata.csv", dtype=str)
    here = set(radiography.table["path"].str.split("/").str[-1])
    known = {name for cell in metadata["also_in_covid19_radiography"].dropna() for name in cell.split("|")} & here
    examples = {mine.split("/")[-1] for mine, _ in found["overlap"]["covid-chestxray"]["examples"]}
    assert known <= examples
