"""Dataset loading: canonical columns, splits without leaks, and errors with what was expected and found."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hf_medtl import DATASETS, MedtlError, load
from hf_medtl.data.dataset import COLUMNS
from hf_medtl.data.fingerprints import Fingerprint
from hf_medtl.data.readers import READERS
from hf_medtl.data.splits import join_groups, split_groups
from tests.support.commands import ROOT
from tests.support.image_files import write_noise_image

FRACTIONS = {"train": 0.65, "validation": 0.15, "test": 0.2}


@pytest.fixture
def brain(tmp_path):
    """Return a folder with the layout of the Kaggle archive: two identical roots, mixed names."""
    root = tmp_path / "brain"
    for i in range(20):
        write_noise_image(root / "yes" / f"Y{i}.{'JPG' if i % 3 else 'png'}", i)
        write_noise_image(root / "no" / f"{i} no.jpeg", 100 + i)
    shutil.copytree(root / "yes", root / "brain_tumor_dataset" / "yes")
    shutil.copytree(root / "no", root / "brain_tumor_dataset" / "no")
    (root / "yes" / ".DS_Store").write_bytes(b"x")
    (root / "yes" / "._Y1.JPG").write_bytes(b"x")
    return root


def test_files_that_need_a_package_are_not_called_damaged(brain, monkeypatch):
    def missing(paths, name):
        reason = "DICOM with JPEG Lossless needs pylibjpeg. Install it with: pip install hf_medtl[jpeg]"
        return [Fingerprint("a" * 64, error=reason) for _ in paths]

    monkeypatch.setattr("hf_medtl.data.loading.compute_fingerprints", missing)
    with pytest.raises(MedtlError, match=r"or install what they need: pip install hf_medtl\[jpeg\]$"):
        load("brain-tumor-mri", brain)


def groups_in_two_splits(table: pd.DataFrame) -> int:
    return int((table.groupby("group")["split"].nunique() > 1).sum())


def test_reads_one_of_two_identical_roots_with_canonical_columns(brain):
    loaded = load("brain-tumor-mri", brain)
    assert len(loaded.table) == 40
    assert list(loaded.table.columns) == [
        "image_id", "path", "label", "patient", "group", "split", "sha256", "source", "mask"
    ]  # fmt: skip
    assert set(loaded.table["label"]) == {"no_tumor", "tumor"}
    assert all((brain / path).is_file() for path in loaded.table["path"])
    splits = loaded.splits()
    assert {name: set(s.column_names) for name, s in splits.items()} == {
        name: {"image", "mask", "label", "patient", "source", "image_id"} for name in ("train", "validation", "test")
    }
    shutil.rmtree(brain / "yes")
    assert set(load("brain-tumor-mri", brain).table["path"].str.split("/").str[0]) == {"brain_tumor_dataset"}


def test_duplicates_and_near_duplicates_stay_in_one_split(brain):
    for i in range(10):
        Image.open(brain / "yes" / "Y1.JPG").resize((60, 66)).save(brain / "yes" / f"copy{i}.jpg", quality=70)
    shutil.copy(brain / "no" / "3 no.jpeg", brain / "no" / "N3.JPG")
    for seed in range(5):
        table = load("brain-tumor-mri", brain, seed=seed).table.set_index("image_id")
        assert table.loc[table.index.str.contains("copy|Y1.JPG"), "group"].nunique() == 1
        assert table.loc["no/N3.JPG", "group"] == table.loc["no/3 no.jpeg", "group"]
        assert groups_in_two_splits(table) == 0


def test_splits_are_stratified_and_depend_only_on_seed(brain):
    first, again, other = (load("brain-tumor-mri", brain, seed=s).table for s in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert (first["split"] != other["split"]).any()
    for _, rows in first.groupby("label"):
        assert rows["split"].value_counts().to_dict() == {"train": 13, "validation": 3, "test": 4}


def test_images_of_one_patient_stay_in_one_split(phantoms):
    table = load("brain-phantoms", phantoms).table
    assert table["patient"].nunique() == 24
    assert table.groupby("patient")["split"].nunique().max() == 1
    assert set(table["split"]) == {"train", "validation", "test"}


def test_groups_join_patients_and_duplicates_transitively():
    patients = ["a", "a", "b", "", "", "b"]
    duplicates = np.array([0, 1, 1, 2, 3, 4])
    assert join_groups(patients, duplicates) == ["g0001"] * 3 + ["g0002", "g0003"] + ["g0001"]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_split_keeps_fractions_with_large_groups(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.geometric(0.3, 300)
    groups = np.repeat([f"g{i}" for i in range(300)], sizes)
    labels = np.repeat(rng.choice(["a", "b", "c"], 300, p=[0.6, 0.3, 0.1]), sizes)
    split = split_groups(labels.tolist(), groups.tolist(), FRACTIONS, seed)
    table = pd.DataFrame({"group": groups, "label": labels, "split": split})
    assert groups_in_two_splits(table) == 0
    for label, rows in table.groupby("label"):
        actual = rows["split"].value_counts(normalize=True)
        for name, fraction in FRACTIONS.items():
            assert abs(actual[name] - fraction) < 0.06, (label, name)


def test_folds_test_each_image_once_and_keep_groups_whole(brain):
    for i in range(6):
        shutil.copy(brain / "yes" / "Y0.png", brain / "yes" / f"copy{i}.png")
    tests = []
    for fold in range(5):
        table = load("brain-tumor-mri", brain, folds=5, fold=fold).table
        assert groups_in_two_splits(table) == 0
        assert set(table["split"]) == {"train", "validation", "test"}
        assert set(table.loc[table["split"] == "validation", "label"]) == {"no_tumor", "tumor"}
        tests += table.loc[table["split"] == "test", "image_id"].tolist()
    assert len(tests) == 46
    assert sorted(tests) == table["image_id"].tolist()
    with pytest.raises(MedtlError, match="found fold 5 of 5"):
        load("brain-tumor-mri", brain, folds=5, fold=5)


def test_saved_split_is_restored(brain, tmp_path):
    first = load("brain-tumor-mri", brain, seed=7).table
    first[COLUMNS].to_csv(tmp_path / "splits.csv", index=False)
    again = load("brain-tumor-mri", brain, splits=tmp_path / "splits.csv")
    pd.testing.assert_frame_equal(first, again.table)
    first.iloc[5:][COLUMNS].to_csv(tmp_path / "fewer.csv", index=False)
    fewer = load("brain-tumor-mri", brain, splits=tmp_path / "fewer.csv")
    assert fewer.table["image_id"].tolist() == first["image_id"].tolist()[5:]
    assert fewer.excluded["path"].tolist() == first["path"].tolist()[:5]

    write_noise_image(brain / "yes" / "Y4.JPG", 999)
    with pytest.raises(MedtlError, match=r"1 have different contents \(yes/Y4.JPG\)"):
        load("brain-tumor-mri", brain, splits=tmp_path / "splits.csv")
    (brain / "yes" / "Y4.JPG").unlink()
    with pytest.raises(MedtlError, match=r"1 are missing \(yes/Y4.JPG\)"):
        load("brain-tumor-mri", brain, splits=tmp_path / "splits.csv")
    with pytest.raises(MedtlError, match=r"absent.csv does not exist"):
        load("brain-tumor-mri", brain, splits=tmp_path / "absent.csv")


def test_images_that_the_run_of_a_split_excluded_are_no_news(brain, tmp_path, caplog):
    table = load("brain-tumor-mri", brain).table
    table.iloc[:-3].to_csv(tmp_path / "splits.csv", index=False)
    table.iloc[-3:-1].assign(kind="unreadable", reason="").to_csv(tmp_path / "excluded.csv", index=False)
    loaded = load("brain-tumor-mri", brain, splits=tmp_path / "splits.csv")
    assert "1 images are excluded: not in the splits.csv" in caplog.text
    assert len(loaded.excluded) == 3
    caplog.clear()
    table.iloc[-3:].to_csv(tmp_path / "excluded.csv", index=False)
    load("brain-tumor-mri", brain, splits=tmp_path / "splits.csv")
    assert "excluded" not in caplog.text


def test_rejects_given_split_that_leaks(brain, tmp_path):
    shutil.copy(brain / "yes" / "Y0.png", brain / "yes" / "copy.png")
    table = load("brain-tumor-mri", brain).table
    table.loc[table["image_id"] == "yes/copy.png", "split"] = "test"
    table.loc[table["image_id"] == "yes/Y0.png", "split"] = "train"
    table[COLUMNS].to_csv(tmp_path / "splits.csv", index=False)
    with pytest.raises(MedtlError, match=r"different splits: 1 groups, such as yes/Y0.png, yes/copy.png"):
        load("brain-tumor-mri", brain, splits=tmp_path / "splits.csv")


@pytest.mark.parametrize("name", DATASETS)
def test_dataset_spec_is_complete(name):
    spec = DATASETS[name]
    assert spec.name == name, "two rows have this name"
    assert {*spec.values.values()} == {*spec.labels}, "each of `labels` must be a value of `values`, and no other name"
    assert {*spec.counts} <= {*spec.labels}, "the keys of `counts` must be of `labels`"
    assert spec.positive is None or spec.positive in spec.labels, "`positive` must be one of `labels`"
    assert spec.positive is None or len(spec.labels) == 2, "only a row with two labels has a `positive` one"
    assert spec.reader in READERS, f"`reader` must be one of {', '.join(READERS)}"
    assert bool(spec.pattern) == (spec.reader == "paths"), "`pattern` is for the reader 'paths', which needs one"
    assert f"`{name}`" in (ROOT / "README.md").read_text(encoding="utf-8"), "add it to the table in README.md, Data"


def test_too_few_groups_and_invalid_fractions_raise():
    with pytest.raises(MedtlError, match="'b' has 2 independent group"):
        split_groups(["a"] * 9 + ["b"] * 2, [f"g{i}" for i in range(11)], FRACTIONS, 0)
    with pytest.raises(MedtlError, match=r"'b' has 2 independent .* too few for the 100 folds\."):
        split_groups(["b"] * 2, ["g0", "g1"], {str(i): 0.01 for i in range(100)}, 0)
    with pytest.raises(MedtlError, match="sum to 1"):
        split_groups(["a"] * 9, [f"g{i}" for i in range(9)], {"train": 0.9, "test": 0.2}, 0)


def test_unexpected_layout_error_lists_expected_and_actual_files(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(MedtlError, match=r"expected files such as yes/Y1.jpg .* found cats/"):
        load("brain-tumor-mri", tmp_path)
    with pytest.raises(MedtlError, match="is not a folder"):
        load("brain-tumor-mri", tmp_path / "absent")
    with pytest.raises(MedtlError, match=r"Known datasets: .*brain-tumor-mri"):
        load("brian", tmp_path)


def test_label_without_images_raises(brain):
    for folder in ("no", "brain_tumor_dataset/no"):
        shutil.rmtree(brain / folder)
        (brain / folder).mkdir()
    with pytest.raises(MedtlError, match="has no images of 'no_tumor'"):
        load("brain-tumor-mri", brain)


def test_damaged_files_are_logged_and_excluded(brain, caplog):
    (brain / "no" / "text.jpg").write_text("not an image")
    (brain / "no" / "empty.png").write_bytes(b"")
    loaded = load("brain-tumor-mri", brain)
    assert len(loaded.table) == 40
    assert sorted(loaded.excluded["path"]) == ["no/empty.png", "no/text.jpg"]
    assert "no/empty.png: empty file" in caplog.text
    for i in range(3):
        (brain / "yes" / f"broken{i}.jpg").write_bytes((brain / "yes" / "Y1.JPG").read_bytes()[:200])
    with pytest.raises(MedtlError, match=r"5 of 45 files .* more than 5%"):
        load("brain-tumor-mri", brain)


def test_missing_network_and_folder_raise(monkeypatch, tmp_path):
    import kagglehub

    def fail(slug):
        raise ConnectionError("no route")

    monkeypatch.setattr(kagglehub, "dataset_download", fail)
    with pytest.raises(MedtlError, match=r"ConnectionError.*--data_dir"):
        load("brain-tumor-mri")


def test_changed_file_gets_new_sha256(brain):
    before = load("brain-tumor-mri", brain).table.set_index("image_id")
    write_noise_image(brain / "yes" / "Y0.png", 999)
    after = load("brain-tumor-mri", brain).table.set_index("image_id")
    assert before.loc["yes/Y0.png", "sha256"] != after.loc["yes/Y0.png", "sha256"]


@pytest.mark.real
def test_loads_real_brain_dataset(real_brain):
    table = load("brain-tumor-mri", real_brain).table
    assert table["label"].value_counts().to_dict() == {"tumor": 155, "no_tumor": 98}
    copies = table["sha256"].value_counts()
    assert (copies > 1).sum() == 22
    assert (copies - 1).sum() == 25
    assert table["group"].nunique() == 202
    assert groups_in_two_splits(table) == 0
    assert table.groupby("group")["label"].nunique().max() == 1
    for seed in range(3):
        split = load("brain-tumor-mri", real_brain, seed=seed).table
        assert split.groupby(["split", "label"]).size().loc["test"].tolist() == [20, 31]


def test_official_test_split_is_kept_and_leaking_images_are_excluded(tmp_path):
    archive = tmp_path / "chest_xray"
    for i in range(30):
        write_noise_image(archive / "train" / "NORMAL" / f"IM-{i:04d}-0001.jpeg", i)
        write_noise_image(archive / "train" / "PNEUMONIA" / f"person{i}_virus_{i}.jpeg", 100 + i)
    write_noise_image(archive / "val" / "NORMAL" / "NORMAL2-IM-0900-0001.jpeg", 300)
    write_noise_image(archive / "val" / "PNEUMONIA" / "person900_bacteria_1.jpeg", 301)
    for i in range(8):
        write_noise_image(archive / "test" / "NORMAL" / f"NORMAL2-IM-{i:04d}-0001.jpeg", 400 + i)
        write_noise_image(archive / "test" / "PNEUMONIA" / f"person{i + 500}_bacteria_{i}.jpeg", 500 + i)
    write_noise_image(archive / "test" / "PNEUMONIA" / "person3_bacteria_77.jpeg", 600)  # patient 3 is in train
    shutil.copytree(archive, archive / "chest_xray")
    junk = archive / "__MACOSX" / "chest_xray" / "train" / "NORMAL"
    junk.mkdir(parents=True)
    (junk / "._IM-0001-0001.jpeg").write_bytes(b"x")
    loaded = load("chest-xray-pneumonia", tmp_path)
    table = loaded.table.set_index("image_id")
    assert loaded.excluded["path"].tolist() == ["chest_xray/train/PNEUMONIA/person3_virus_3.jpeg"]
    assert set(table.index[table["split"] == "test"].str.split("/").str[0]) == {"test"}
    assert table["split"].value_counts()["test"] == 17
    assert set(table["split"]) == {"train", "validation", "test"}
    assert groups_in_two_splits(table) == 0
    assert table.loc["train/NORMAL/IM-0003-0001.jpeg", "patient"] == "IM-0003"
    assert table.loc["test/NORMAL/NORMAL2-IM-0003-0001.jpeg", "patient"] == "NORMAL2-IM-0003"
    anew = load("chest-xray-pneumonia", tmp_path, official_split=False)
    assert len(anew.table) == 79
    assert anew.excluded.empty
    assert groups_in_two_splits(anew.table) == 0
    three = load("chest-xray-pneumonia-3", tmp_path, official_split=False).table
    assert three["label"].value_counts().to_dict() == {"normal": 39, "viral": 30, "bacterial": 10}


# Dataset, folder, images by label (SOURCE.md of each folder), images with a mask.
REAL = [
    ("chest-xray-pneumonia", "chest-xray-pneumonia", {"normal": 348, "pneumonia": 588}, 0),
    ("chest-xray-pneumonia", "chest-xray-pneumonia-native", {"normal": 120, "pneumonia": 158}, 0),
    ("chest-xray-pneumonia-3", "chest-xray-pneumonia", {"normal": 348, "bacterial": 358, "viral": 230}, 0),
    ("covid19-radiography", "covid19-radiography-database",
     {"covid19": 158, "normal": 150, "viral_pneumonia": 150}, 150),
    ("chest-xray-covid19-pneumonia", "chest-xray-covid19-pneumonia",
     {"covid19": 108, "normal": 100, "pneumonia": 100}, 0),
    ("lung-masks", "chest-xray-masks-and-labels", {"normal": 74, "tuberculosis": 70}, 134),
]  # fmt: skip


@pytest.mark.real
@pytest.mark.parametrize(("name", "folder", "counts", "masks"), REAL, ids=[row[1] + row[0][-2:] for row in REAL])
def test_real_datasets_have_published_counts_and_no_leaks(name, folder, counts, masks, shared):
    loaded = load(name, shared / "data" / folder)
    everything = pd.concat([loaded.table, loaded.excluded])
    assert everything["label"].value_counts().to_dict() == counts
    assert groups_in_two_splits(loaded.table) == 0
    identified = loaded.table[loaded.table["patient"] != ""]
    assert (identified.groupby("patient")["split"].nunique() == 1).all()
    assert (loaded.table["mask"] != "").sum() == masks
    assert all((loaded.root / path).is_file() for path in loaded.table["mask"] if path)
    assert set(loaded.table["split"]) == {"train", "validation", "test"}
