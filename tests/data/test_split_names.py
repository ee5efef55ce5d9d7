"""Names of splits: usual ones are recognized by their words, labels are not."""

import pytest

from hf_medtl.data.split_names import find_splits, parse_split


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (
            "train",
            "train|TRAIN|Training|training_set|train_data|images_train|train_images|Train Set|trainset|tr|imagesTr",
        ),
        ("validation", "val|valid|validation_set|val-data|Validation Data|dev|ValSet|image_val"),
        ("test", "test|Testing|test_data|test-set|TestImages|ts|imagesTs|hold-out|test_1"),
        (None, "benign|invalid|tested|test positive|control|treated|data|images|trial|contrast|transplant|stents||1"),
    ],
)
def test_parses_usual_names(split, names):
    assert {name: parse_split(name) for name in names.split("|")} == dict.fromkeys(names.split("|"), split)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ("training_set test_set", {"training_set": "train", "test_set": "test"}),
        ("train Val extra", {"train": "train", "Val": "validation"}),
        ("val test", {"val": "validation", "test": "test"}),
        ("seg_train seg_test seg_pred", {"seg_train": "train", "seg_test": "test"}),
        ("ISIC_Task1_Training_Input ISIC_Task1_Test_Input",
         {"ISIC_Task1_Training_Input": "train", "ISIC_Task1_Test_Input": "test"}),
        ("valid invalid", {}),
        ("test control", {}),
        ("pre_test post_test", {}),
        ("train_a train_b test_a test_b", {}),
        ("benign malignant", {}),
    ],
)  # fmt: skip
def test_finds_splits_among_folders(names, splits):
    assert find_splits(names.split()) == splits
