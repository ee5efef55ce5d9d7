"""External datasets: shared images and patients are found, refused or excluded."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from PIL import Image

from hf_medtl import DATASETS, MedtlError, Recipe, load, run
from hf_medtl.data.leakage import load_external, shared_images
from hf_medtl.data.loading import survey
from hf_medtl.runs.evaluate import evaluate_model
from tests.support.commands import options
from tests.support.image_files import write_noise_image


@pytest.fixture
def two(tmp_path):
    """Write a dataset of 24 images with two labels, and one of 16 other images with other label names."""
    for i in range(12):
        write_noise_image(tmp_path / "one" / "healthy" / f"{i}.png", i)
        write_noise_image(tmp_path / "one" / "sick" / f"{i}.png", 100 + i)
    for i in range(8):
        write_noise_image(tmp_path / "two" / "normal" / f"{i}.png", 200 + i)
        write_noise_image(tmp_path / "two" / "ill" / f"{i}.png", 300 + i)
    return tmp_path


NAMES = {"normal": "healthy", "ill": "sick"}


def test_unseen_images_are_external(two):
    loaded = load("imagefolder", two / "one")
    outside = load_external(loaded, "imagefolder", two / "two", labels=NAMES)
    assert outside.counts()["test"] == {"healthy": 8, "sick": 8}
    assert outside.labels == loaded.labels
    assert outside.positive == "sick"
    with pytest.raises(MedtlError, match="fewer than two in common"):
        load_external(loaded, "imagefolder", two / "two")
    with pytest.raises(MedtlError, match="cat: no such label"):
        load_external(loaded, "imagefolder", two / "two", labels={"cat": "sick"})


def test_training_images_are_refused_or_dropped(two, caplog):
    table = load("imagefolder", two / "one").table.set_index("path")
    seen = [path for path in table.index if table.at[path, "split"] != "test"]
    unseen = [path for path in table.index if table.at[path, "split"] == "test"]
    shutil.copy(two / "one" / seen[0], two / "two" / "ill" / "copy.png")
    Image.open(two / "one" / seen[1]).resize((60, 70)).save(two / "two" / "ill" / "near.jpg", quality=80)
    shutil.copy(two / "one" / unseen[0], two / "two" / "ill" / "unseen.png")
    loaded = load("imagefolder", two / "one")
    with pytest.raises(MedtlError, match=rf"2 of its 19 images .* ill/copy.png is {seen[0]} \(same file\)"):
        load_external(loaded, "imagefolder", two / "two", labels=NAMES)
    outside = load_external(loaded, "imagefolder", two / "two", labels=NAMES, drop_overlap=True)
    assert outside.counts()["test"] == {"healthy": 8, "sick": 9}
    assert sorted(outside.excluded["path"]) == ["ill/copy.png", "ill/near.jpg"]
    assert "2 of 19 images were seen in training" in caplog.text


def test_images_of_training_patients_are_shared(phantoms):
    loaded = load("brain-phantoms", phantoms)
    assert set(shared_images(loaded, survey("brain-phantoms", phantoms))["reason"]) == {"same file"}
    whole = survey("brain-phantoms", phantoms)
    first = whole.table["path"].str.endswith("_0.png").to_numpy()
    both = shared_images(whole.select(first), whole.select(~first))
    assert len(both) == 24
    assert "same patient" in set(both["reason"])  # the others are near copies of their patient's other image


@pytest.mark.slow
def test_run_reports_internal_and_external_results(tmp_path, phantoms, tiny_checkpoint):
    from hf_medtl.data.phantoms import write_phantoms

    second = write_phantoms(tmp_path / "second", "brain", patients=10, images=2, size=64, seed=9)
    more = {"external_dataset": "imagefolder", "external_data_dir": str(second), "num_train_epochs": 1}
    folder = run(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", **more)))
    results = json.loads((folder / "results.json").read_text())
    assert results["external"]["n"] == 20
    assert 10 <= results["external"]["n_groups"] <= 20  # a patient's two images can be near copies
    assert results["external"]["threshold"] == results["threshold"]
    assert (folder / "external.csv").read_text().count("\n") == 21
    assert "On another data set" in (folder / "README.md").read_text()
    assert "lower than above by" in (folder / "README.md").read_text()
    assert results["splits_sha256"] in (folder / "README.md").read_text()
    again = evaluate_model(folder, "imagefolder", second, out=tmp_path / "again")[1]
    for name, metric in results["external"]["metrics"].items():
        assert again["metrics"][name]["value"] == pytest.approx(metric["value"], abs=1e-5)
        assert again["drop"][name]["value"] == pytest.approx(results["external"]["drop"][name]["value"], abs=1e-5)
    assert again["outliers"] == results["outliers"]["external"]
    with pytest.raises(MedtlError, match="is not external to brain-phantoms: 36 of its 48"):
        more["external_data_dir"] = str(phantoms)
        run(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "never", **more)))
    assert not (tmp_path / "never").exists()


@pytest.mark.real
def test_real_datasets_share_images(shared):
    data = shared / "data"
    loaded = load("covid19-radiography", data / "covid19-radiography-database")
    labels = {"pneumonia": "viral_pneumonia"}
    with pytest.raises(MedtlError, match="is not external to covid19-radiography"):
        load_external(loaded, "chest-xray-pneumonia", data / "chest-xray-pneumonia", labels=labels)
    outside = load_external(
        loaded, "chest-xray-pneumonia", data / "chest-xray-pneumonia", labels=labels, drop_overlap=True
    )
    assert shared_images(loaded, outside).empty or set(
        loaded.table.set_index("path").loc[shared_images(loaded, outside)["copy_of"], "split"]
    ) == {"test"}


@pytest.mark.parametrize("names", [("chest-xray-pneumonia", "medmnist"), ("medmnist", "chest-xray-pneumonia")])
def test_downscaled_copies_are_never_external(names, phantoms, tmp_path):
    own, other = names
    loaded = replace(load("brain-phantoms", phantoms), spec=DATASETS[own])
    with pytest.raises(MedtlError, match=f"{other} is never external to {own}"):  # before it is read
        load_external(loaded, other, tmp_path / "absent", drop_overlap=True)


def test_trains_on_one_source_and_tests_on_another(tmp_path):
    rows = []
    for i in range(40):
        write_noise_image(tmp_path / f"{i}.png", i)
        rows.append({"file_name": f"{i}.png", "label": "sick" if i % 2 else "healthy", "source": "AB"[i % 4 // 2]})
    rows[0]["source"] = rows[2]["source"] = rows[4]["source"] = "C"
    table = tmp_path / "table.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    loaded = load("table", table, sources=["A"])
    assert set(loaded.table["source"]) == {"A"}
    assert loaded.excluded["kind"].value_counts().to_dict() == {"of another source": 40 - len(loaded.table)}
    with pytest.raises(MedtlError, match="not external"):
        load_external(loaded, "table", table)
    outside = load_external(loaded, "table", table, sources=["B", "C"])
    assert set(outside.table["source"]) == {"B", "C"}
    assert len(outside.table) + len(loaded.table) == 40
    with pytest.raises(MedtlError, match=r"has no source D\. Its sources are A, B, C"):
        load("table", table, sources=["D", "A"])
    with pytest.raises(MedtlError, match="All 3 images of C are healthy"):
        load("table", table, sources=["C"])
