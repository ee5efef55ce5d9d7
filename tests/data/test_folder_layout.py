"""Folders of images: which are labels and which are splits, and what is refused."""

import logging
import unicodedata

import pytest

from hf_medtl import MedtlError, load
from hf_medtl.data.folder_layout import read_layout
from hf_medtl.data.loading import survey
from tests.support.image_files import write_mask, write_noise_image


def write(root, counts):
    """Write folder -> number of images, all different."""
    number = 0
    for folder, count in counts.items():
        for _ in range(count):
            number += 1
            write_noise_image(root / folder / f"{number}.png", number)
    return root


@pytest.mark.parametrize(
    ("path", "base", "labels", "split"),
    [
        ("train/a/1.png test/b/2.png", 0, ["a"], "train"),
        ("data/Training/a/1.png data/Testing/b/2.png", 1, ["a"], "train"),
        ("a/train/1.png a/test/2.png b/train/3.png b/test/4.png", 0, ["a"], "train"),
        ("seg_train/seg_train/a/1.png seg_test/seg_test/b/2.png", 0, ["a"], "train"),
        ("train/images/a/1.png test/images/b/2.png", 0, ["a"], "train"),
        ("train/a/p1/1.png test/b/p1/2.png", 0, ["a", "p1"], "train"),
        ("val/a/1.png test/a/2.png test/b/3.png", 0, ["a"], "validation"),
        ("a/1.png b/2.png", 0, ["a"], ""),
        ("a/p1/1.png b/p2/2.png", 0, ["a", "p1"], ""),
    ],
)
def test_finds_labels_and_splits(path, base, labels, split):
    paths = path.split()
    layout = read_layout(paths)
    assert (layout.base, layout.labels[paths[0]], layout.splits[paths[0]]) == (base, labels, split)


def test_folders_of_splits_by_usual_names_are_splits(tmp_path):
    write(tmp_path, {"training_set/a": 12, "training_set/b": 12, "test_set/a": 4, "test_set/b": 4})
    loaded = load("imagefolder", tmp_path)
    assert loaded.labels == ("a", "b")
    assert loaded.counts()["test"] == {"a": 4, "b": 4}


def test_repeated_class_folders_are_refused(tmp_path):
    write(tmp_path, {f"{top}/{label}": 2 for top in ("first", "second") for label in ("benign", "malignant")})
    with pytest.raises(MedtlError, match="first, second all have folders called benign, malignant, so it is doubtful"):
        survey("imagefolder", tmp_path)


@pytest.mark.parametrize(
    ("folders", "repeated"),
    [
        ([f"{part}/{part}/{split}/{label}" for part in ("Lung Data", "Infection Data") for split in ("Train", "Test")
          for label in ("COVID", "Normal")], "test, train"),
        ([f"{data}/{wrapper}/{label}" for data, wrapper in (("a", "x"), ("b", "y"))
          for label in ("benign", "malignant")], "benign, malignant"),
        ([f"{patient}/{label}" for patient in ("10253", "10254", "10255") for label in "01"], "0, 1"),
        (["8863/0", "8863/1", "8864/0", "8865/1"], "0, 1"),
    ],
)  # fmt: skip
def test_class_folders_inside_parts_and_patients_are_not_taken_for_less(tmp_path, folders, repeated):
    write(tmp_path, dict.fromkeys(folders, 1))
    with pytest.raises(MedtlError, match=f"all have folders called {repeated}, so it is doubtful"):
        survey("imagefolder", tmp_path)


def test_copy_of_numbered_folders_is_no_label(tmp_path):
    write(tmp_path, {f"{top}{grade}": 1 for top in ("", "copy/") for grade in ("0", "1", "2")})
    with pytest.raises(MedtlError, match="the folder copy has the folders 0, 1, 2 once more"):
        survey("imagefolder", tmp_path)


def test_unused_folders_inside_labels_are_named(tmp_path):
    write(tmp_path, {f"{label}/patient{i}": 1 for label in ("benign", "malignant") for i in range(3)})
    assert "not used, such as benign/patient0, benign/patient1" in " ".join(survey("imagefolder", tmp_path).spec.notes)
    write(tmp_path / "plain", {f"{label}/images": 2 for label in ("benign", "malignant")})
    assert not survey("imagefolder", tmp_path / "plain").spec.notes


def test_numbered_folders_of_images_with_masks_are_patients(tmp_path):
    """As in the lower-grade glioma set, whose wrapping folder is called lgg-mri-segmentation."""
    for i in range(12):
        write_noise_image(tmp_path / f"lgg-mri-segmentation/TCGA_{i % 6}/{i}.png", i)
        write_mask(tmp_path / f"lgg-mri-segmentation/TCGA_{i % 6}/{i}_mask.png", "left")
    loaded = load("imagefolder", tmp_path, task="image-segmentation")
    assert loaded.labels == ()
    assert loaded.table["path"].map(lambda path: path.split("/")[1]).nunique() == 6
    assert (loaded.table.groupby("patient")["split"].nunique() == 1).all()
    assert "are taken for patients" in " ".join(loaded.spec.notes)


def test_copy_of_all_label_folders_is_no_label(tmp_path):
    write(tmp_path, {"yes": 1, "no": 1, "brain_tumor_dataset/yes": 1, "brain_tumor_dataset/no": 1})
    with pytest.raises(MedtlError, match=r"the folder brain_tumor_dataset has the folders no, yes once more"):
        survey("imagefolder", tmp_path)


def test_repeated_numbered_folders_are_patients(tmp_path):
    write(tmp_path, {f"{label}/patient{i}": 1 for label in ("benign", "malignant") for i in range(3)})
    assert survey("imagefolder", tmp_path).labels == ("benign", "malignant")


def test_names_with_split_and_label_are_refused(tmp_path):
    write(tmp_path, {f"{split}_{label}": 1 for split in ("train", "test") for label in ("benign", "malignant")})
    with pytest.raises(MedtlError, match=r"have both a split and a label.* such as train/benign"):
        survey("imagefolder", tmp_path)


def test_split_without_labels_is_left_out(tmp_path, caplog):
    write(tmp_path, {"train/a": 8, "train/b": 8, "test": 5})
    loaded = load("imagefolder", tmp_path)
    assert len(loaded.table) == 16
    assert "no image of the split test has a label, so 5 images are excluded" in caplog.text


@pytest.mark.parametrize(
    "names",
    [("Benign", "benign"), ("no tumor", "no_tumor"), ("benign_", "benign"), ("no-tumor", "noTumor"),
     ("nor\u00admal", "normal"), ("nävus", unicodedata.normalize("NFD", "nävus"))],
)  # fmt: skip
@pytest.mark.parametrize("as_table", [False, True])
def test_labels_that_differ_in_spelling_are_refused(tmp_path, names, as_table):
    write(tmp_path, {"train/x": 1, f"train/{names[0]}": 1, f"test/{names[1]}": 1, "test/x": 1})
    rows = [f"{path.relative_to(tmp_path).as_posix()},{path.parent.name}" for path in sorted(tmp_path.rglob("*.png"))]
    if len(rows) < 4 or len({row.split(",")[1] for row in rows}) < 3:
        pytest.skip("this file system does not tell these names apart")
    (tmp_path / "table.csv").write_text("\n".join(["file_name,label", *rows]), encoding="utf-8")
    with pytest.raises(MedtlError, match="some labels differ only in case, spaces, - or _"):
        survey(*(("table", tmp_path / "table.csv") if as_table else ("imagefolder", tmp_path)))


@pytest.mark.parametrize("names", [("-1", "1"), ("grade 1", "grade 11"), ("HER2+", "HER2-")])
def test_labels_that_differ_in_more_than_spelling_are_kept(tmp_path, names):
    write(tmp_path, dict.fromkeys(names, 1))
    assert set(survey("imagefolder", tmp_path).labels) == set(names)


@pytest.mark.parametrize("as_table", [False, True])
def test_label_without_training_images_is_refused(tmp_path, as_table):
    write(tmp_path, {"train/a": 8, "train/b": 8, "test/a": 2, "test/b": 2, "test/c": 2})
    paths = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    rows = [f"{path.as_posix()},{path.parts[1]},{path.parts[0]}" for path in paths]
    (tmp_path / "table.csv").write_text("\n".join(["file_name,label,split", *rows]), encoding="utf-8")
    with pytest.raises(MedtlError, match="no training image has the label 'c': they are in"):
        load(*(("table", tmp_path / "table.csv") if as_table else ("imagefolder", tmp_path)))


def test_label_without_test_images_is_reported(tmp_path, caplog):
    write(tmp_path, {"train/a": 8, "train/b": 8, "train/c": 8, "test/a": 2, "test/b": 2})
    with caplog.at_level(logging.WARNING):
        assert load("imagefolder", tmp_path).labels == ("a", "b", "c")
    assert "no test image has the label c" in caplog.text
