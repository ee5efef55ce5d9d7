"""The lung crop: found by a segmentation model that is saved, published and loaded with the classifier."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.models.preprocessing import describe_processor, preprocessing_key
from hf_medtl.models.processor import LUNG_MODEL, MedicalImageProcessor
from tests.support.commands import options, script
from tests.support.processors import STRANGER, make, save, train_logits
from tests.support.tiny_models import build_tiny

BOX = (40, 30, 120, 90)  # left, top, right, bottom of what is bright


def chest(box=BOX, size=(160, 200)):
    """A dark picture (height, width) with a bright rectangle."""
    grey = np.full(size, 30, np.uint8)
    left, top, right, bottom = box
    grey[top:bottom, left:right] = 220
    return np.dstack([grey] * 3)


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    """Folder of a tiny U-Net that has learnt to find what is bright."""
    model, processor = build_tiny(image_size=64)
    optimizer = torch.optim.Adam(model.train().parameters(), 3e-3)
    draw = np.random.default_rng(0)
    for _ in range(60):
        pictures, masks = [], []
        for _ in range(4):
            left, top = draw.integers(0, 90, 2)
            pictures.append(chest((left, top, left + draw.integers(30, 110), top + draw.integers(30, 70))))
            masks.append(Image.fromarray(pictures[-1][..., 0]).resize((64, 64), Image.Resampling.NEAREST))
        truth = torch.from_numpy(np.stack(masks) > 128).long()
        logits = model(**processor([*map(Image.fromarray, pictures)], return_tensors="pt")).logits
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, truth).backward()
        optimizer.step()
    return save(model.eval(), processor, tmp_path_factory.mktemp("finder"))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "chest.png"
    Image.fromarray(chest()).save(path)
    return path


def test_the_crop_is_around_the_lungs(finder):
    processor = MedicalImageProcessor(steps=["lung_crop"], lung_model=finder)
    assert np.abs(np.subtract(processor.lungs.box(chest()), BOX)).max() <= 7  # two of the finder's 64 pixels
    assert processor.prepare(chest()).mean() > 160  # of the whole picture: 58
    assert processor.prepare(np.full((90, 70, 3), 30, np.uint8)).mean() == 30  # nothing found: whole
    assert processor.counts == {"pictures": 2, "nothing": 1}
    wide = MedicalImageProcessor(steps=["lung_crop"], lung_model=finder, crop_margin=0.3)
    assert wide.prepare(chest()).mean() < processor.prepare(chest()).mean() - 30


@pytest.mark.parametrize("family", ["vit", "timm"])
def test_it_is_saved_and_loaded_with_the_classifier(family, finder, tiny, picture, tmp_path):
    moved = shutil.copytree(finder, tmp_path / "moved")
    model, processor = make(tiny(family), steps=["lung_crop"], lung_model=str(moved))
    folder = save(model, processor, tmp_path / "classifier")
    expected = train_logits(model, processor, picture)
    shutil.rmtree(moved)
    assert str(tmp_path) not in (folder / "preprocessor_config.json").read_text()
    classify = pipeline("image-classification", str(folder), device="cpu")
    assert isinstance(classify.image_processor, MedicalImageProcessor)
    assert preprocessing_key(classify.image_processor) == preprocessing_key(processor)
    scores = {row["label"]: row["score"] for row in classify(str(picture), top_k=None, function_to_apply="none")}
    assert [scores[name] for name in model.config.label2id] == pytest.approx(expected, abs=1e-4)
    assert "cropped to the lungs" in describe_processor(processor)
    classify.image_processor.save_pretrained(folder)  # onto itself
    again = save(classify.model, classify.image_processor, tmp_path / "again")
    for path in (folder / LUNG_MODEL).iterdir():
        assert path.read_bytes() == (again / LUNG_MODEL / path.name).read_bytes()


def test_strangers_load_it_from_the_hub_without_hf_medtl(hub, finder, tiny, picture, tmp_path):
    model, processor = make(tiny("vit"), steps=["lung_crop"], lung_model=str(finder))
    folder = save(model, processor, tmp_path / "classifier")
    HfApi().create_repo("ci-user/lung-cropped")
    HfApi().upload_folder(repo_id="ci-user/lung-cropped", folder_path=folder)
    done = script(sys.executable, "-I", "-c", STRANGER, picture, folder, "ci-user/lung-cropped")
    assert done.returncode == 0, done.stderr
    for scores in json.loads(done.stdout.splitlines()[-1]):
        found = [scores[name] for name in model.config.label2id]
        assert found == pytest.approx(train_logits(model, processor, picture), abs=1e-4)


def test_a_published_model_is_named_by_its_id(hub, finder, tiny, tmp_path):
    HfApi().create_repo("ci-user/lungs")
    HfApi().upload_folder(repo_id="ci-user/lungs", folder_path=finder)
    _, processor = make(tiny("vit"), steps=["lung_crop"], lung_model="ci-user/lungs")
    assert np.abs(np.subtract(processor.lungs.box(chest()), BOX)).max() <= 7


def test_what_can_not_be_is_refused(hub, finder, tiny, tmp_path):
    with pytest.raises(MedtlError, match="needs --lung_model"):
        Recipe(output_dir=str(tmp_path), preprocessing="lung_crop", use_cpu=True)
    with pytest.raises(MedtlError, match="is for --preprocessing lung_crop"):
        Recipe(output_dir=str(tmp_path), lung_model=str(finder), use_cpu=True)
    with pytest.raises(MedtlError, match="takes one crop"):
        make(tiny("vit"), steps=["lung_crop", "brain_crop"], lung_model=str(finder))
    with pytest.raises(MedtlError, match=r"no segmentation model .*unet_lungs\.py"):
        make(tiny("vit"), steps=["lung_crop"], lung_model=str(tiny("timm")))
    with pytest.raises(MedtlError, match="no segmentation model"):
        make(tiny("vit"), steps=["lung_crop"], lung_model="ci-user/nobody")
    with pytest.raises(ValueError, match="goes with a lung_model"):
        MedicalImageProcessor(steps=["lung_crop"])


def test_another_model_in_its_place_is_refused(finder, tmp_path):
    MedicalImageProcessor(steps=["lung_crop"], lung_model=finder).save_pretrained(tmp_path)
    other, _ = build_tiny(image_size=64)
    other.save_pretrained(tmp_path / LUNG_MODEL)
    with pytest.raises(ValueError, match="not the model that this processor was saved with"):
        AutoImageProcessor.from_pretrained(tmp_path)


def test_a_run_learns_from_cropped_pictures(phantoms, finder, tiny, tmp_path):
    more = {"preprocessing": "lung_crop", "lung_model": str(finder), "num_train_epochs": 1}
    folder = run(Recipe(**options(phantoms, tiny("vit"), tmp_path / "run", **more)))
    assert (folder / LUNG_MODEL / "model.safetensors").exists()
    assert "cropped to the lungs" in (folder / "README.md").read_text()
    for name in ("recipe.yaml", "README.md", "preprocessor_config.json"):
        assert str(finder.parent) not in (folder / name).read_text()
