"""Recipes: length, names, and dry runs on data in the layout of the download."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from jinja2 import Environment, StrictUndefined
from PIL import Image

from tests.support.commands import ROOT, flags

RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.py") if path.stem != "study")  # a study makes many runs
BACKBONES = {"vit": "vit", "cnn": "cnn", "inception": "timm", "resnet50": "timm", "densenet121": "timm",
             "efficientnet": "timm-efficientnet", "vgg16": "timm-byobnet", "unet": "unet"}  # fmt: skip
OWN_ARCHITECTURES = ("cnn", "unet")  # their weights are not downloaded, only those of an encoder

# Data set -> patterns of the image files of each label; {} is a number.
LAYOUTS = {
    "brain-tumor-mri": ["yes/Y{}.jpg", "no/{} no.jpeg"],
    "chest-xray-pneumonia": [
        f"chest_xray/{split}/{name}"
        for split in ("train", "test")
        for name in (f"NORMAL/IM-{split[0]}{{}}-0001.jpeg", "PNEUMONIA/person{}_virus_{}.jpeg")
    ],
    "covid19-radiography": [
        f"COVID-19_Radiography_Dataset/{name}/images/{name}-{{}}.png"
        for name in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
    ],
    "chest-xray-covid19-pneumonia": [
        f"Data/{split}/{name}/{name}({{}}).jpg"
        for split in ("train", "test")
        for name in ("COVID19", "NORMAL", "PNEUMONIA")
    ],
    "lung-masks": [f"CXR_png/{hospital}_{{}}_{label}.png" for hospital in ("CHNCXR", "MCUCXR") for label in (0, 1)],
    "pulmonary-edema": ["train/edema/{}.png", "train/normal/{}.png", "test/edema/{}.png", "test/normal/{}.png"],
}


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> dict[str, Path]:
    """Return data set -> folder with 12 images of random blocks for each pattern of its layout."""
    rng, folders = np.random.default_rng(0), {}
    for dataset, patterns in LAYOUTS.items():
        folders[dataset] = tmp_path_factory.mktemp("data") / dataset
        numbers = iter(range(10_000))  # no patient is in two splits
        for pattern in patterns:
            for _ in range(12):
                path = folders[dataset] / pattern.replace("{}", str(next(numbers)))
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (6, 6), np.uint8)).resize((48, 48)).save(path)
    for path in [*folders["lung-masks"].glob("CXR_png/*.png")]:
        mask = path.parents[1] / "masks" / f"{path.stem}_mask.png"
        mask.parent.mkdir(exist_ok=True)
        Image.fromarray((np.array(Image.open(path)) > 127).astype(np.uint8) * 255).save(mask)
    return folders


def offline_options(recipe: Path, tiny_checkpoint) -> dict[str, object]:
    """Return options with which a recipe needs no network."""
    prefix = recipe.stem.split("_")[0]
    assert prefix in BACKBONES, f"add a tiny model of {prefix!r} to BACKBONES"
    family = BACKBONES[prefix]
    values: dict[str, object] = {
        "model_name_or_path": family if family in OWN_ARCHITECTURES else tiny_checkpoint(family)
    }
    return values | ({"encoder": "tu-test_resnet", "encoder_weights": "none"} if family == "unet" else {})


def dry_run(recipe: Path, monkeypatch, **values: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(recipe), "--dry_run", *flags(use_cpu=True, **values)])
    runpy.run_path(str(recipe), run_name="__main__")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_short_and_its_dry_run_passes(recipe, downloads, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    text = recipe.read_text()
    assert text.count("\n") <= 40
    assert f"\naccelerate launch recipes/{recipe.name}\n" in text
    values = runpy.run_path(str(recipe))["RECIPE"]
    assert values["output_dir"] == f"runs/{recipe.stem}"
    assert values["dataset"] in LAYOUTS, f"add the layout of {values['dataset']!r} to LAYOUTS"
    assert values["augmentation"] == ("brain" if "brain" in values["dataset"] else "chest")
    dry_run(recipe, monkeypatch, **offline_options(recipe, tiny_checkpoint), data_dir=downloads[values["dataset"]],
            output_dir=tmp_path / "run")  # fmt: skip
    output = capsys.readouterr().out
    assert f"augmentation {values['augmentation']}" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_dry_run_of_timm_recipe_from_scratch_needs_no_network(downloads, tmp_path, monkeypatch, capsys):
    data = downloads["pulmonary-edema"]
    changes = {"from_scratch": True, "strategy": "full", "data_dir": data, "output_dir": tmp_path}
    dry_run(ROOT / "recipes" / "vgg16_edema.py", monkeypatch, **changes)
    assert "134.3 million parameters, from random weights" in capsys.readouterr().out


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_dry_run_on_real_images_passes(recipe, shared, tiny_checkpoint, tmp_path, monkeypatch):
    folders = {
        "brain-tumor-mri": "brain-mri-images-for-brain-tumor-detection",
        "covid19-radiography": "covid19-radiography-database",
        "lung-masks": "chest-xray-masks-and-labels",
        "pulmonary-edema": "nih-edema-mini",
    }
    dataset = runpy.run_path(str(recipe))["RECIPE"]["dataset"]
    data = shared / "data" / folders.get(dataset, dataset)
    dry_run(recipe, monkeypatch, **offline_options(recipe, tiny_checkpoint), data_dir=data, output_dir=tmp_path / "run")


@pytest.mark.parametrize("card", sorted((ROOT / "model_cards").glob("*.md")), ids=lambda path: path.stem)
def test_model_card_prose_renders(card):
    counts = {split: {"ill": 3, "healthy": 4} for split in ("train", "validation", "test")}
    facts = {"counts": counts, "results": {"n": 7, "positive_label": "ill", "by_source": {"here": {}}}}
    text = Environment(undefined=StrictUndefined).from_string(card.read_text()).render(facts)
    assert "## Intended use" in text
    assert "## Limits" in text
    assert "{" not in text


def test_every_model_card_is_used():
    named = {Path(runpy.run_path(str(recipe))["RECIPE"]["model_card"]).name for recipe in RECIPES}
    assert named == {path.name for path in (ROOT / "model_cards").glob("*.md")} - {"phantoms.md"}
