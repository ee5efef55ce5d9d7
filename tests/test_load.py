"""Folders -> a table split without leaks, or an error that says what was expected and found."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hf_medtl import MedtlError, load
from hf_medtl.data.splits import join_groups, split_groups

FRACTIONS = {"train": 0.65, "validation": 0.15, "test": 0.2}


def picture(path, seed, size=(40, 48)):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def brain(tmp_path):
    """A folder laid out as the Kaggle archive: two identical roots, mixed names."""
    root = tmp_path / "brain"
    for i in range(20):
        picture(root / "yes" / f"Y{i}.{'JPG' if i % 3 else 'png'}", i)
        picture(root / "no" / f"{i} no.jpeg", 100 + i)
    shutil.copytree(root / "yes", root / "brain_tumor_dataset" / "yes")
    shutil.copytree(root / "no", root / "brain_tumor_dataset" / "no")
    (root / "yes" / ".DS_Store").write_bytes(b"x")
    (root / "yes" / "._Y1.JPG").write_bytes(b"x")
    return root


def groups_in_two_splits(table: pd.DataFrame) -> int:
    return int((table.groupby("group")["split"].nunique() > 1).sum())


def test_one_of_two_roots_and_canonical_columns(brain):
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


def test_copies_and_near_copies_stay_on_one_side(brain):
    for i in range(10):
        Image.open(brain / "yes" / "Y1.JPG").resize((60, 66)).save(brain / "yes" / f"copy{i}.jpg", quality=70)
    shutil.copy(brain / "no" / "3 no.jpeg", brain / "no" / "N3.JPG")
    for seed in range(5):
        table = load("brain-tumor-mri", brain, seed=seed).table.set_index("image_id")
        assert table.loc[table.index.str.contains("copy|Y1.JPG"), "group"].nunique() == 1
        assert table.loc["no/N3.JPG", "group"] == table.loc["no/3 no.jpeg", "group"]
        assert groups_in_two_splits(table) == 0


def test_splits_are_reproducible_stratified_and_differ_by_seed(brain):
    first, again, other = (load("brain-tumor-mri", brain, seed=s).table for s in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert (first["split"] != other["split"]).any()
    for _, rows in first.groupby("label"):
        assert rows["split"].value_counts().to_dict() == {"train": 13, "validation": 3, "test": 4}


def test_patients_of_phantoms_stay_together(phantoms):
    table = load("brain-phantoms", phantoms).table
    assert table["patient"].nunique() == 24
    assert table.groupby("patient")["split"].nunique().max() == 1
    assert set(table["split"]) == {"train", "validation", "test"}


def test_groups_join_patients_and_duplicates_transitively():
    patients = ["a", "a", "b", "", "", "b"]
    duplicates = np.array([0, 1, 1, 2, 3, 4])
    assert join_groups(patients, duplicates) == ["g0001"] * 3 + ["g0002", "g0003"] + ["g0001"]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_split_keeps_shares_with_large_groups(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.geometric(0.3, 300)
    groups = np.repeat([f"g{i}" for i in range(300)], sizes)
    labels = np.repeat(rng.choice(["a", "b", "c"], 300, p=[0.6, 0.3, 0.1]), sizes)
    split = split_groups(labels.tolist(), groups.tolist(), FRACTIONS, seed)
    table = pd.DataFrame({"group": groups, "label": labels, "split": split})
    assert groups_in_two_splits(table) == 0
    for label, rows in table.groupby("label"):
        shares = rows["split"].value_counts(normalize=True)
        for name, wanted in FRACTIONS.items():
            assert abs(shares[name] - wanted) < 0.06, (label, name)


def test_too_few_groups_and_bad_fractions():
    with pytest.raises(MedtlError, match="'b' has 2 independent group"):
        split_groups(["a"] * 9 + ["b"] * 2, [f"g{i}" for i in range(11)], FRACTIONS, 0)
    with pytest.raises(MedtlError, match="sum to 1"):
        split_groups(["a"] * 9, [f"g{i}" for i in range(9)], {"train": 0.9, "test": 0.2}, 0)


def test_other_layout_names_expected_and_found(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(MedtlError, match=r"expected files such as yes/Y1.jpg .* found cats/"):
        load("brain-tumor-mri", tmp_path)
    with pytest.raises(MedtlError, match="is not a folder"):
        load("brain-tumor-mri", tmp_path / "absent")
    with pytest.raises(MedtlError, match="Known are: brain-tumor-mri"):
        load("brian", tmp_path)


def test_a_label_without_pictures(brain):
    shutil.rmtree(brain / "no")
    (brain / "no").mkdir()
    with pytest.raises(MedtlError, match="has no pictures of 'no_tumor'"):
        load("brain-tumor-mri", brain)


def test_damaged_files_are_named_and_left_out(brain, caplog):
    (brain / "no" / "text.jpg").write_text("not a picture")
    (brain / "no" / "empty.png").write_bytes(b"")
    loaded = load("brain-tumor-mri", brain)
    assert len(loaded.table) == 40
    assert sorted(loaded.excluded["path"]) == ["no/empty.png", "no/text.jpg"]
    assert "no/empty.png: empty file" in caplog.text
    for i in range(3):
        (brain / "yes" / f"broken{i}.jpg").write_bytes((brain / "yes" / "Y1.JPG").read_bytes()[:200])
    with pytest.raises(MedtlError, match=r"5 of 45 files .* more than 5%"):
        load("brain-tumor-mri", brain)


def test_no_network_and_no_folder(monkeypatch, tmp_path):
    import kagglehub

    def fail(slug):
        raise ConnectionError("no route")

    monkeypatch.setattr(kagglehub, "dataset_download", fail)
    with pytest.raises(MedtlError, match=r"ConnectionError.*--data_dir"):
        load("brain-tumor-mri")


def test_a_changed_file_is_noticed(brain):
    before = load("brain-tumor-mri", brain).table.set_index("image_id")
    picture(brain / "yes" / "Y0.png", 999)
    after = load("brain-tumor-mri", brain).table.set_index("image_id")
    assert before.loc["yes/Y0.png", "sha256"] != after.loc["yes/Y0.png", "sha256"]


@pytest.mark.real
def test_the_real_brain_set(real_brain):
    table = load("brain-tumor-mri", real_brain).table
    assert table["label"].value_counts().to_dict() == {"tumor": 155, "no_tumor": 98}
    copies = table["sha256"].value_counts()
    assert (copies > 1).sum() == 22
    assert (copies - 1).sum() == 25
    assert table["group"].nunique() == 209
    assert groups_in_two_splits(table) == 0
    assert table.groupby("group")["label"].nunique().max() == 1
    for seed in range(3):
        split = load("brain-tumor-mri", real_brain, seed=seed).table
        assert split.groupby(["split", "label"]).size().loc["test"].tolist() == [20, 31]
