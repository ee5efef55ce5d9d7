"""Public datasets: labels, patients, official splits and masks of drawn copies of their layouts."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hf_medtl import DATASETS, MedtlError, load
from hf_medtl.data.catalog.chest import CHEXPERT_LABELS
from hf_medtl.data.loading import survey
from hf_medtl.data.metadata import read_metadata
from tests.support.dicom_files import make_dicom, save_dicom
from tests.support.image_files import write_noise_image


def draw(root: Path, *patterns: str, number: int = 4, start: int = 0) -> list[Path]:
    """Write `number` images of noise for each pattern, in which {} is a running number; return their paths.

    Images of the same number are copies, which stay in one split: begin a second call at another `start`.
    """
    names = [pattern.replace("{}", str(start + i)) for i, pattern in enumerate(np.repeat(patterns, number).tolist())]
    return [write_noise_image(root / name, start + i) for i, name in enumerate(names)]


def write_masks(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(48, 40, dtype=np.uint8) * 255).save(path)


def write_csv(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)


def counts(table: pd.DataFrame, column: str = "label") -> dict[str, int]:
    return table[column].value_counts().sort_index().to_dict()


@pytest.mark.parametrize("wrapper", ["", "brain-tumor-mri-dataset/"])
def test_four_class_brain_tumours(tmp_path, wrapper):
    labels = ("glioma", "meningioma", "notumor", "pituitary")
    draw(tmp_path, *(f"{wrapper}Training/{label}/Tr-{label[:2]}_{{}}.jpg" for label in labels), number=6)
    draw(tmp_path, *(f"{wrapper}Testing/{label}/Te-{label[:2]}_{{}}.jpg" for label in labels), start=100)
    loaded = load("brain-tumor-mri-4", tmp_path)
    assert loaded.labels == ("no_tumor", "glioma", "meningioma", "pituitary")
    assert loaded.positive is None
    assert counts(loaded.rows("test")) == {"glioma": 4, "meningioma": 4, "no_tumor": 4, "pituitary": 4}
    assert loaded.rows("test")["path"].str.startswith(f"{wrapper}Testing/").all()
    assert len(loaded.table) == 40


def test_br35h_leaves_out_images_without_a_label(tmp_path):
    draw(tmp_path, "yes/y{}.jpg", "no/no{}.jpg", "pred/pred{}.jpg", "Br35H-Mask-RCNN/TRAIN/y{}.jpg", number=8)
    loaded = load("br35h", tmp_path)
    assert counts(loaded.table) == {"no_tumor": 8, "tumor": 8}
    assert (loaded.positive, loaded.spec.positive_source) == ("tumor", "dataset")


def test_busi_masks_are_no_images_and_lesions_are_united(tmp_path):
    root = tmp_path / "Dataset_BUSI_with_GT"
    for path in draw(root, *(f"{label}/{label} ({{}}).png" for label in ("benign", "malignant", "normal")), number=5):
        write_masks(path.with_name(f"{path.stem}_mask.png"))
    write_masks(root / "benign/benign (0)_mask_1.png", root / "benign/benign (0)_mask_2.png")
    write_masks(root / "malignant/malignant (5)_mask_1.png")
    table = survey("busi", tmp_path).table.set_index("image_id")
    assert counts(table) == {"benign": 5, "malignant": 5, "normal": 5}
    assert table["mask"].str.count(r"\|").loc[["benign/benign (0).png", "malignant/malignant (5).png"]].tolist() == [
        2,
        1,
    ]
    assert table["mask"].str.endswith("normal (12)_mask.png").sum() == 1
    assert (table["mask"] != "").all()
    assert len(load("busi", tmp_path, task="image-segmentation").table) == 15


@pytest.mark.parametrize("wrapper", ["OCT2017/", "OCT2017 /", ""])
def test_oct_patients_of_the_test_split_are_not_in_train(tmp_path, wrapper):
    labels = ("CNV", "DME", "DRUSEN", "NORMAL")
    draw(tmp_path, *(f"{wrapper}train/{label}/{label}-10{{}}-1.jpeg" for label in labels), number=6)
    draw(tmp_path, *(f"{wrapper}test/{label}/{label}-50{{}}-1.jpeg" for label in labels), start=40)
    draw(tmp_path, *(f"{wrapper}val/{label}/{label}-90{{}}-1.jpeg" for label in labels), start=60, number=2)
    again = f"{wrapper}train/CNV/CNV-5040-2.jpeg"  # a patient of the test split
    write_noise_image(tmp_path / again, 999)
    loaded = load("kermany-oct", tmp_path)
    assert loaded.labels == ("normal", "cnv", "dme", "drusen")
    assert loaded.excluded["path"].tolist() == [again]
    assert set(loaded.rows("test")["patient"]) == {f"50{i}" for i in range(40, 56)}
    assert len(loaded.rows("train")) + len(loaded.rows("validation")) == 32


@pytest.mark.parametrize("table", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"])
def test_nih_lists_labels_patients_and_official_splits(tmp_path, table, caplog):
    findings = ["No Finding", "Atelectasis", "Effusion|Pleural_Thickening", "Hernia"]
    rows, lists = [], {"train_val_list.txt": [], "test_list.txt": []}
    for i in range(48):
        name = f"{i // 2:08d}_{i % 2:03d}.png"
        write_noise_image(tmp_path / f"images_{1 + i % 3:03d}" / "images" / name, i)
        rows.append({"Image Index": name, "Finding Labels": findings[i // 2 % 4], "Follow-up #": i % 2,
                     "Patient ID": i // 2, "View Position": "PA"})  # fmt: skip
        lists["test_list.txt" if i >= 36 else "train_val_list.txt"].append(name)
    write_csv(tmp_path / table, rows)
    for name, names in lists.items():
        (tmp_path / name).write_text("\n".join(names), encoding="utf-8")
    loaded = load("nih-chestxray14", tmp_path)
    assert loaded.spec.multilabel
    assert loaded.labels == ("atelectasis", "effusion", "pleural_thickening", "hernia")
    assert counts(loaded.table) == {"": 12, "atelectasis": 12, "effusion|pleural_thickening": 12, "hernia": 12}
    assert loaded.table["patient"].nunique() == 24
    assert {Path(path).name for path in loaded.rows("test")["path"]} == set(lists["test_list.txt"])
    assert (loaded.table.groupby("patient")["split"].nunique() == 1).all()
    assert read_metadata(loaded.spec, tmp_path)["View Position"].eq("PA").all()
    shutil.rmtree(tmp_path / "images_003")
    assert len(load("nih-chestxray14", tmp_path).table) == 32  # the part that was downloaded
    assert "16 of 48 files are missing" in caplog.text


@pytest.mark.parametrize("place", ["above", "inside"])
def test_chexpert_reads_both_tables_patients_and_uncertain_labels(tmp_path, place):
    root = tmp_path / "CheXpert-v1.0-small"
    cells = [{"Edema": "1.0"}, {"Pneumonia": "1.0", "Edema": "0.0"}, {"No Finding": "1.0"}, {"Edema": "-1.0"}]
    for split, numbers in {"train": range(1, 41), "valid": range(64541, 64549)}.items():
        rows = []
        for i in numbers:
            for view in ("frontal", "lateral"):
                path = f"{split}/patient{i:05d}/study1/view1_{view}.jpg"
                write_noise_image(root / path, 2 * i + (view == "lateral"))
                row = dict.fromkeys(("No Finding", *CHEXPERT_LABELS), "") | cells[i % 4]
                rows.append({"Path": f"CheXpert-v1.0-small/{path}", "Sex": "Female", "Age": 60,
                             "Frontal/Lateral": view.title(), "AP/PA": "AP", **row})  # fmt: skip
        write_csv(root / f"{split}.csv", rows)
    folder = tmp_path if place == "above" else root
    loaded = load("chexpert", folder)
    assert loaded.labels == ("edema", "pneumonia")
    assert counts(loaded.table) == {"": 24, "edema": 24, "pneumonia": 24}
    assert counts(loaded.excluded, "reason") == {"called uncertain: Edema": 24}
    assert set(loaded.rows("test")["patient"]) == {f"patient{i}" for i in range(64541, 64549) if i % 4 != 3}
    assert loaded.rows("test")["path"].str.contains("valid/").all()
    assert (loaded.table.groupby("patient")["split"].nunique() == 1).all()
    assert counts(loaded.table, "source") == {"Frontal": 36, "Lateral": 36}


def test_rsna_boxes_are_merged_and_dicom_files_found(tmp_path):
    boxes, classes, folder = [], [], tmp_path / "stage_2_train_images"
    kinds = {"Normal": "0", "No Lung Opacity / Not Normal": "0", "Lung Opacity": "1"}
    for i, (kind, target) in enumerate([*kinds.items()] * 4):
        name = f"{i:08x}-14fd-4e49-80ba-63a80b6bddd6"
        pixels = np.random.default_rng(i).integers(0, 256, (6, 6), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        folder.mkdir(exist_ok=True)
        save_dicom(make_dicom(pixels), folder / f"{name}.dcm")
        box = {"x": 10, "y": 20, "width": 5, "height": 5} if target == "1" else dict.fromkeys(("x", "y"), "")
        boxes += [{"patientId": name, **box, "Target": target}] * (2 if target == "1" else 1)
        classes += [{"patientId": name, "class": kind}] * (2 if target == "1" else 1)
    write_csv(tmp_path / "stage_2_train_labels.csv", boxes)
    write_csv(tmp_path / "stage_2_detailed_class_info.csv", classes)
    two, three = survey("rsna-pneumonia", tmp_path), survey("rsna-pneumonia-3", tmp_path)
    assert counts(two.table) == {"no_pneumonia": 8, "pneumonia": 4}
    assert two.spec.positive == "pneumonia"
    assert counts(three.table) == {"lung_opacity": 4, "normal": 4, "not_normal": 4}
    assert not two.table["patient"].any()


def test_ham10000_images_of_a_lesion_stay_together(tmp_path):
    rows = []
    codes = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    for i in range(70):
        name = f"ISIC_{24306 + i:07d}"
        parts = ["HAM10000_images_part_1", "ham10000_images_part_1"] if i % 2 else ["HAM10000_images_part_2"]
        for part in parts:  # Kaggle's archive has a second copy
            write_noise_image(tmp_path / part / f"{name}.jpg", i)
        write_masks(tmp_path / "HAM10000_segmentations_lesion_tschandl" / f"{name}_segmentation.png")
        rows.append({"lesion_id": f"HAM_{i // 2:07d}", "image_id": name, "dx": codes[i // 2 % 7], "dx_type": "histo",
                     "age": 50.0, "sex": "male", "localization": "back"})  # fmt: skip
    write_csv(tmp_path / "HAM10000_metadata.csv", rows)
    loaded = load("ham10000", tmp_path)
    assert loaded.labels == tuple(DATASETS["ham10000"].labels)
    assert len(loaded.table) == 70
    assert loaded.table["patient"].nunique() == 35
    assert (loaded.table.groupby("patient")["split"].nunique() == 1).all()
    assert loaded.table["mask"].str.endswith("_segmentation.png").all()
    assert loaded.table.loc[0, "label"] == "actinic_keratosis"


def test_aptos_grades(tmp_path):
    files = draw(tmp_path, "train_images/{}00c1434d8d7.png", number=25)
    write_csv(tmp_path / "train.csv", [{"id_code": path.stem, "diagnosis": i % 5} for i, path in enumerate(files)])
    loaded = load("aptos2019", tmp_path)
    assert loaded.labels == ("no_dr", "mild", "moderate", "severe", "proliferative")
    assert set(counts(loaded.table).values()) == {5}


def test_wrong_folder_of_a_table_says_what_was_expected(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(
        MedtlError, match=r"does not look like CheXpert: expected train.csv, valid.csv .* found images/"
    ):
        load("chexpert", tmp_path)
    with pytest.raises(MedtlError, match=r"https://www.kaggle.com/competitions/aptos2019-blindness-detection"):
        load("aptos2019")


# Images in the complete dataset, as published.
PUBLISHED = {"brain-tumor-mri-4": 7200, "br35h": 3000, "busi": 780, "kermany-oct": 84484, "nih-chestxray14": 112120,
             "chexpert": 223648, "rsna-pneumonia": 26684, "rsna-pneumonia-3": 26684, "ham10000": 10015,
             "aptos2019": 3662}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_state_origin_size_and_problems(name):
    spec = DATASETS[name]
    assert spec.size == PUBLISHED[name]
    assert spec.url.startswith("https://")
    assert spec.citation
    assert spec.problems
