"""Masks beside images and in folders of masks: found by name, never images to train on."""

import logging

import pytest

from hf_medtl import MedtlError, load
from hf_medtl.data.loading import survey
from hf_medtl.data.masks import pair_masks
from tests.support.image_files import write_mask, write_noise_image

# Image -> its masks.
BESIDE = {
    "b/x (1).png": "b/x (1)_mask.png|b/x (1)_mask_1.png",
    "b/y.jpg": "b/y_mask.png",
    "c/z.PNG": "c/z-Mask.png",
    "c/ISIC_01.jpg": "c/ISIC_01_segmentation.png",
    "c/w.tif": "c/mask_w.tif",
    "c/v.nii.gz": "c/v_seg.nii.gz",
    "case1/image.png": "case1/mask.png",
    "d/volume-0.nii": "d/segmentation-0.nii",
}
FOLDERS = [
    {"images/1.jpg": "masks/1.png"},
    {"data/images/train/1.jpg": "data/masks/train/1.png", "data/images/test/1.jpg": "data/masks/test/1.png"},
    {"train/1.jpg": "train_masks/1_mask.gif", "test/1.jpg": "test_masks/1_mask.gif"},
    {"ISIC_Training_Input/a.jpg": "ISIC_Training_GroundTruth/a_segmentation.png"},
    {"imagesTr/a.nii.gz": "labelsTr/a.nii.gz", "imagesTs/b.nii.gz": ""},
    {"a/images/1.png": "a/masks/1.png", "b/images/1.png": "b/masks/1.png"},
    {"a/1.png": "a/masks/1.png", "b/1.png": "masks/b/1.png"},
    {"CXR/1.png": "ManualMask/leftMask/1.png|ManualMask/rightMask/1.png"},
    {"img/1.jpg": "annotations/1.png"},
    {"lgg-mri-segmentation/kaggle_3m/TCGA_1/1.tif": "lgg-mri-segmentation/kaggle_3m/TCGA_1/1_mask.tif"},
    {"Dataset_BUSI_with_GT/benign/b (1).png": "Dataset_BUSI_with_GT/benign/b (1)_mask.png"},
    {"Lung Segmentation/CXR_png/1.png": "Lung Segmentation/masks/1_mask.png"},
]


@pytest.mark.parametrize("pairs", [BESIDE, *FOLDERS], ids=lambda pairs: next(iter(pairs)))
def test_pairs_masks_with_images(pairs):
    masks = {mask for cell in pairs.values() for mask in cell.split("|") if mask}
    images = sorted({*pairs, *masks, "b/other.png"} if pairs is BESIDE else {*pairs, *masks})
    assert pair_masks(images) == ({image: cell for image, cell in pairs.items() if cell}, masks)


@pytest.mark.parametrize(
    "paths",
    ["mask/1.png no_mask/1.png", "with_mask/1.png without_mask/1.png", "label_0/1.png label_1/1.png",
     "a/x_mask.png b/y_mask.png", "a/mask.png b/1.png", "segment/1.png normal/1.png", "a/x.png a/x_masked.png"],
)  # fmt: skip
def test_names_of_other_things_are_no_masks(paths):
    assert pair_masks(paths.split()) == ({}, set())


def test_mask_of_which_it_is_doubtful_whose_it_is_belongs_to_none():
    assert pair_masks(["a/1.png", "b/1.png", "masks/1.png"]) == ({}, {"masks/1.png"})


def test_masks_beside_images_are_not_trained_on_but_learned_for_segmentation(tmp_path, caplog):
    for i in range(16):
        label = ("benign", "malignant")[i % 2]
        write_noise_image(tmp_path / label / f"{label} ({i}).png", i)
        write_mask(tmp_path / label / f"{label} ({i})_mask.png", "left")
    write_mask(tmp_path / "benign" / "benign (0)_mask_1.png", "right")
    with caplog.at_level(logging.INFO):
        loaded = load("imagefolder", tmp_path)
    assert len(loaded.table) == 16
    assert not loaded.table["path"].str.contains("mask").any()
    assert "17 files are masks, not images to train on: benign/benign (0)_mask.png" in caplog.text
    assert "--task image-segmentation" in caplog.text
    masks = survey("imagefolder", tmp_path, task="image-segmentation").table.set_index("path")["mask"]
    assert masks["benign/benign (0).png"] == "benign/benign (0)_mask.png|benign/benign (0)_mask_1.png"
    assert (masks != "").all()


@pytest.mark.parametrize("dataset", ["imagefolder", "brain-tumor-mri", "brain-phantoms"])
def test_masks_of_another_extension(tmp_path, dataset):
    labels = ("no_lesion", "lesion") if dataset == "brain-phantoms" else ("no", "yes")
    for i in range(8):
        label = labels[i % 2]
        write_noise_image(tmp_path / label / f"{i}.jpg", i)
        beside = dataset == "brain-tumor-mri"
        write_mask(tmp_path / (label if beside else "masks") / (f"{i}_mask.png" if beside else f"{i}.png"), "left")
    surveyed = survey(dataset, tmp_path)
    assert len(surveyed.table) == 8
    assert (surveyed.table["mask"] != "").all()
    assert surveyed.table["mask"].str.endswith(".png").all()


def test_no_masks_is_an_error_for_segmentation(tmp_path):
    for i in range(4):
        write_noise_image(tmp_path / "images" / f"{i}.png", i)
    with pytest.raises(MedtlError, match=r"None of the 4 images .* has a mask"):
        survey("imagefolder", tmp_path, task="image-segmentation")


def test_table_without_a_column_of_masks_finds_them_by_name(tmp_path):
    for i in range(6):
        write_noise_image(tmp_path / "images" / f"{i}.jpg", i)
        write_mask(tmp_path / "masks" / f"{i}.png", "left")
    rows = [f"images/{i}.jpg,{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "table.csv").write_text("\n".join(["file_name,label", *rows]), encoding="utf-8")
    masks = survey("table", tmp_path / "table.csv", task="image-segmentation").table["mask"]
    assert masks.tolist() == [f"masks/{i}.png" for i in range(6)]


def test_image_with_an_unreadable_mask_is_excluded(tmp_path, caplog):
    for i in range(24):
        write_noise_image(tmp_path / "images" / f"{i}.png", i)
        write_mask(tmp_path / "masks" / f"{i}.png", "left")
    (tmp_path / "masks" / "7.png").write_bytes(b"")
    surveyed = survey("imagefolder", tmp_path, task="image-segmentation")
    assert len(surveyed.table) == 23
    assert surveyed.excluded[["path", "reason"]].to_dict("records") == [
        {"path": "images/7.png", "reason": "its mask masks/7.png: empty file"}
    ]
    assert len(survey("imagefolder", tmp_path, task="image-segmentation").table) == 23
