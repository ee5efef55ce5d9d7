"""Dataset readers: folders, tables, MedMNIST files and datasets on the Hub give the same table."""

import shutil

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hf_medtl import MedtlError, load
from hf_medtl.data.download import unpack_medmnist
from hf_medtl.data.loading import survey
from tests.support.image_files import write_mask, write_noise_image


@pytest.fixture
def folder(tmp_path):
    """Write 12 images of each of two labels below a wrapping folder, and return its parent."""
    for i in range(12):
        write_noise_image(tmp_path / "download" / "healthy" / f"h{i}.png", i)
        write_noise_image(tmp_path / "download" / "sick" / f"s{i}.png", 100 + i)
    return tmp_path


def make_split_folders(folder):
    """Move the images to the split folders train, Val and test."""
    for split, numbers in {"train": range(6), "Val": range(6, 9), "test": range(9, 12)}.items():
        for label, letter in (("healthy", "h"), ("sick", "s")):
            (folder / "data" / split / label).mkdir(parents=True)
            for i in numbers:
                source = folder / "download" / label / f"{letter}{i}.png"
                source.rename(folder / "data" / split / label / source.name)
    shutil.rmtree(folder / "download")
    return folder


def test_reads_class_folders(folder):
    (folder / "__MACOSX" / "healthy").mkdir(parents=True)
    (folder / "__MACOSX" / "healthy" / "._h1.png").write_bytes(b"x")
    (folder / "download" / "notes.txt").write_text("x")
    loaded = load("imagefolder", folder)
    assert loaded.labels == ("healthy", "sick")
    assert loaded.positive == "sick"
    assert len(loaded.table) == 24
    assert set(loaded.table["split"]) == {"train", "validation", "test"}
    assert "No patient identifiers" in loaded.spec.problems[0]
    assert load("imagefolder", folder, positive="healthy").positive_index == 0
    with pytest.raises(MedtlError, match="'cat' for healthy, sick"):
        load("imagefolder", folder, positive="cat")


def test_split_folders_are_kept_and_unknown_folders_reported(folder, caplog):
    make_split_folders(folder)
    write_noise_image(folder / "data" / "extra" / "sick" / "x.png", 7)
    shutil.copy(folder / "data" / "Val" / "sick" / "s7.png", folder / "data" / "train" / "sick" / "copy.png")
    shutil.copy(folder / "data" / "test" / "sick" / "s9.png", folder / "data" / "Val" / "sick" / "copy.png")
    loaded = load("imagefolder", folder)
    assert loaded.counts() == {
        "train": {"healthy": 6, "sick": 6},
        "validation": {"healthy": 3, "sick": 3},
        "test": {"healthy": 3, "sick": 3},
    }
    assert sorted(loaded.excluded["path"]) == ["data/Val/sick/copy.png", "data/train/sick/copy.png"]
    assert "excluded: extra" in caplog.text


def test_validation_split_without_a_label_is_resampled(folder):
    make_split_folders(folder)
    shutil.rmtree(folder / "data" / "Val" / "sick")
    counts = load("imagefolder", folder).counts()
    assert counts["test"] == {"healthy": 3, "sick": 3}
    assert min(counts["validation"].values()) > 0


def test_metadata_csv_gives_patients_masks_and_splits(folder):
    rows = []
    for label, letter in (("healthy", "h"), ("sick", "s")):
        for i in range(12):
            write_mask(folder / "download" / "lungs" / f"{letter}{i}.png", "left")
            rows.append(
                {
                    "file_name": f"{label}/{letter}{i}.png",
                    "patient": f"{letter}{i // 2}",
                    "mask": f"lungs/{letter}{i}.png",
                    "source": "A" if i < 6 else "B",
                }
            )
    pd.DataFrame(rows).to_csv(folder / "download" / "metadata.csv", index=False)
    loaded = load("imagefolder", folder)
    assert len(loaded.table) == 24
    assert loaded.table["group"].nunique() == 12
    assert (loaded.table.groupby("patient")["split"].nunique() == 1).all()
    assert set(loaded.table["source"]) == {"A", "B"}
    assert all((folder / mask).is_file() for mask in loaded.table["mask"])
    assert loaded.spec.problems == ()
    pd.DataFrame(rows[1:]).to_csv(folder / "download" / "metadata.csv", index=False)
    with pytest.raises(
        MedtlError, match=r"2 of 25 images .* not listed in download/metadata.csv: download/healthy/h0.png"
    ):
        load("imagefolder", folder)


def test_mask_folder_beside_classes_is_no_class(phantoms):
    loaded = load("imagefolder", phantoms)
    assert loaded.labels == ("no_lesion", "lesion")
    assert (loaded.table["mask"] != "").all()


def test_images_without_label_or_class_raise(tmp_path, folder):
    write_noise_image(folder / "download" / "stray.png", 5)
    with pytest.raises(MedtlError, match=r"1 images have no label: download/stray.png"):
        load("imagefolder", folder)
    with pytest.raises(MedtlError, match="12 images have no label"):
        load("imagefolder", folder / "download" / "healthy")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_reads_table(folder, suffix):
    table = pd.DataFrame(
        [
            {"file_name": f"download/{label}/{letter}{i}.png", "label": label, "patient": f"{letter}{i // 2}"}
            for label, letter in (("healthy", "h"), ("sick", "s"))
            for i in range(12)
        ]
    )
    file = folder / f"images.{suffix}"
    (table.to_csv if suffix == "csv" else table.to_parquet)(file, index=False)
    loaded = load("table", file)
    assert loaded.labels == ("healthy", "sick")
    assert loaded.root == folder
    assert loaded.table["group"].nunique() == 12
    missing = table.assign(file_name="x").rename(columns={"file_name": "place"})
    missing.to_csv(folder / "wrong.csv", index=False)
    with pytest.raises(MedtlError, match=r"expected a column 'file_name'.*found the columns place, label, patient"):
        load("table", folder / "wrong.csv")
    (folder / "tables").mkdir()
    table.assign(file_name="../" + table["file_name"]).to_csv(folder / "tables" / "outside.csv", index=False)
    with pytest.raises(MedtlError, match="inside the folder of the file"):
        load("table", folder / "tables" / "outside.csv")


def test_edema_label_comes_from_folder_names(folder):
    (folder / "download" / "sick").rename(folder / "download" / "Pulmonary Oedema")
    (folder / "download" / "healthy").rename(folder / "download" / "Non-Edema")
    loaded = load("pulmonary-edema", folder)
    assert loaded.labels == ("no_edema", "edema")
    edema = loaded.table["path"].str.contains("Oedema")
    assert set(loaded.table.loc[edema, "label"]) == {"edema"}
    (folder / "download" / "Pulmonary Oedema").rename(folder / "download" / "positive")
    with pytest.raises(MedtlError, match="found Non-Edema, positive"):
        load("pulmonary-edema", folder)


@pytest.mark.parametrize("size", [28, 64])
def test_reads_medmnist(tmp_path, size):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in {"train": 30, "val": 8, "test": 10}.items():
        small = rng.integers(0, 256, (n, 4, 4), dtype=np.uint8)
        big = [np.asarray(Image.fromarray(s).resize((size, size), Image.Resampling.BICUBIC)) for s in small]
        arrays |= {f"{split}_images": np.stack(big), f"{split}_labels": np.arange(n)[:, None] % 2}
    file = tmp_path / f"pneumoniamnist_{size}.npz"
    np.savez(file, **arrays)
    loaded = load("medmnist", file)
    assert loaded.labels == ("normal", "pneumonia")
    counts = {split: sum(labels.values()) for split, labels in loaded.counts().items()}
    assert counts == {"train": 30, "validation": 8, "test": 10}
    assert unpack_medmnist(file) == loaded.root
    np.savez(tmp_path / "mixed.npz", **arrays | {"train_labels": np.zeros((30, 14), int)})
    with pytest.raises(MedtlError, match="same number of labels in each split"):
        load("medmnist", tmp_path / "mixed.npz")
    (tmp_path / "no.npz").write_bytes(b"no")
    with pytest.raises(MedtlError, match="is not a MedMNIST file"):
        load("medmnist", tmp_path / "no.npz")


def test_reads_dataset_on_the_hub(hub, folder):
    files = sorted((folder / "download").rglob("*.png"))
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["healthy", "sick"]),
        subjectID=datasets.Value("string"),
        severity=datasets.Value("string"),
    )
    columns = {
        "image": [str(file) for file in files],
        "label": [file.parent.name for file in files],
        "subjectID": [f"{file.stem[0]}{int(file.stem[1:]) // 2}" for file in files],
        "severity": ["mild" if file.stem < "s5" else "grave" for file in files],
    }
    columns = {key: [*values, values[0]] for key, values in columns.items()}
    columns["label"][-1] = -1
    datasets.Dataset.from_dict(columns, features=features).push_to_hub("ci/lungs")
    loaded = load("ci/lungs")
    assert loaded.spec.id == "ci/lungs"
    assert loaded.labels == ("healthy", "sick")
    assert len(loaded.table) == 24
    assert loaded.table["group"].nunique() == 12
    assert sorted(loaded.table["sha256"]) == sorted(survey("imagefolder", folder).table["sha256"])
    assert load("ci/lungs").root == loaded.root
    assert survey("ci/lungs", columns={"label": "severity"}).labels == ("grave", "mild")
    with pytest.raises(MedtlError, match=r"no column 'severe' for label. Its columns are image, label, subjectID"):
        load("ci/lungs", columns={"label": "severe"})
    with pytest.raises(MedtlError, match="--columns is for tables, but brain-tumor-mri is read from folders"):
        load("brain-tumor-mri", folder, columns={"label": "severity"})
    with pytest.raises(MedtlError, match="could not be loaded from the Hub"):
        load("ci/absent")


def test_reads_two_hospitals_and_masks_of_two_lungs(tmp_path):
    china, montgomery = tmp_path / "ChinaSet_AllFiles" / "ChinaSet_AllFiles", tmp_path / "Montgomery" / "MontgomerySet"
    for i in range(12):
        write_noise_image(china / "CXR_png" / f"CHNCXR_{i:04d}_{i % 2}.png", i)
        name = f"MCUCXR_{i:04d}_{i % 2}.png"
        write_noise_image(montgomery / "CXR_png" / name, 100 + i)
        write_mask(montgomery / "ManualMask" / "leftMask" / name, "left")
        write_mask(montgomery / "ManualMask" / "rightMask" / name, "right")
        write_mask(tmp_path / "mask" / "mask" / f"CHNCXR_{i:04d}_{i % 2}_mask.png", "left")
    loaded = load("lung-masks", tmp_path)
    assert loaded.table["source"].value_counts().to_dict() == {"CHNCXR": 12, "MCUCXR": 12}
    assert (loaded.table["mask"] != "").all()
    rows = loaded.splits()["train"].cast_column("mask", datasets.Image())
    for row in rows:
        assert np.count_nonzero(np.asarray(row["mask"].convert("L"))) == (200 if row["source"] == "CHNCXR" else 400)


def test_reads_dicom_files_without_extension(tmp_path):
    from pydicom.data import get_testdata_file

    for i, label in enumerate(["a", "b"]):
        (tmp_path / label).mkdir()
        shutil.copy(get_testdata_file("CT_small.dcm"), tmp_path / label / f"IM{i}")
        shutil.copy(get_testdata_file("MR_small.dcm"), tmp_path / label / f"1.2.840.{i}")
        (tmp_path / label / "README").write_text("x" * 200)
    assert len(survey("imagefolder", tmp_path).table) == 4


# Dataset, folder or file, images by label, excluded images, images with a mask.
REAL = [
    ("pulmonary-edema", "nih-edema-mini", {"no_edema": 46, "edema": 31}, 0, 0),
    ("covid-chestxray", "covid-chestxray-dataset", {"covid19": 100, "pneumonia": 54, "normal": 8}, 3, 100),
    ("medmnist", "medmnist/pneumoniamnist_reassembled.npz", {"normal": 1583, "pneumonia": 4273}, 0, 0),
]


@pytest.mark.real
@pytest.mark.parametrize(("name", "folder", "counts", "others", "masks"), REAL, ids=[row[0] for row in REAL])
def test_reads_real_datasets(name, folder, counts, others, masks, shared):
    surveyed = survey(name, shared / "data" / folder)
    assert surveyed.table["label"].value_counts().to_dict() == counts
    assert len(surveyed.excluded) == others
    assert (surveyed.table["mask"] != "").sum() == masks
    loaded = load(name, shared / "data" / folder)
    assert (loaded.table.groupby("group")["split"].nunique() == 1).all()
    identified = loaded.table[loaded.table["patient"] != ""]
    assert (identified.groupby("patient")["split"].nunique() == 1).all()
    assert set(loaded.table["split"]) == {"train", "validation", "test"}
