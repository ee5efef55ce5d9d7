"""Lung crop by a segmentation model that is saved, published and loaded with the classifier."""

import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.models.preprocessing import describe_processor, preprocessing_key
from hf_medtl.models.processor import LUNG_MODEL, MedicalImageProcessor
from tests.support.commands import options
from tests.support.processors import LOADING_SCRIPT, make_model_and_processor, save_model_and_processor, train_logits
from tests.support.tiny_models import build_tiny

BOX = (40, 30, 120, 90)  # left, top, right, bottom of the bright rectangle


def chest(box=BOX, size=(160, 200)):
    """Draw a dark image (height, width) with a bright rectangle."""
    grey = np.full(size, 30, np.uint8)
    left, top, right, bottom = box
    grey[top:bottom, left:right] = 220
    return np.dstack([grey] * 3)


@pytest.fixture(scope="module")
def lung_model(tmp_path_factory):
    """Return the folder of a tiny U-Net trained to segment bright pixels."""
    model, processor = build_tiny(image_size=64)
    optimizer = torch.optim.Adam(model.train().parameters(), 3e-3)
    draw = np.random.default_rng(0)
    for _ in range(60):
        images, masks = [], []
        for _ in range(4):
            left, top = draw.integers(0, 90, 2)
            images.append(chest((left, top, left + draw.integers(30, 110), top + draw.integers(30, 70))))
            masks.append(Image.fromarray(images[-1][..., 0]).resize((64, 64), Image.Resampling.NEAREST))
        truth = torch.from_numpy(np.stack(masks) > 128).long()
        logits = model(**processor([*map(Image.fromarray, images)], return_tensors="pt")).logits
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, truth).backward()
        optimizer.step()
    return save_model_and_processor(model.eval(), processor, tmp_path_factory.mktemp("lung_model"))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "chest.png"
    Image.fromarray(chest()).save(path)
    return path


@pytest.mark.slow
def test_crop_surrounds_lungs(lung_model):
    processor = MedicalImageProcessor(steps=["lung_crop"], lung_model=lung_model)
    assert np.abs(np.subtract(processor.lungs.box(chest()), BOX)).max() <= 7  # two of the lung_model's 64 pixels
    assert processor.prepare(chest()).mean() > 160  # the mean of the whole image is 58
    assert processor.prepare(np.full((90, 70, 3), 30, np.uint8)).mean() == 30  # no lungs: the whole image
    assert processor.counts == {"pictures": 2, "nothing": 1}
    wide = MedicalImageProcessor(steps=["lung_crop"], lung_model=lung_model, crop_margin=0.3)
    assert wide.prepare(chest()).mean() < processor.prepare(chest()).mean() - 30


@pytest.mark.parametrize("family", ["vit", "timm"])
def test_lung_model_is_saved_and_loaded_with_classifier(family, lung_model, tiny_checkpoint, image, tmp_path):
    moved = shutil.copytree(lung_model, tmp_path / "moved")
    model, processor = make_model_and_processor(tiny_checkpoint(family), steps=["lung_crop"], lung_model=str(moved))
    folder = save_model_and_processor(model, processor, tmp_path / "classifier")
    expected = train_logits(model, processor, image)
    shutil.rmtree(moved)
    assert str(tmp_path) not in (folder / "preprocessor_config.json").read_text()
    classify = pipeline("image-classification", str(folder), device="cpu")
    assert isinstance(classify.image_processor, MedicalImageProcessor)
    assert preprocessing_key(classify.image_processor) == preprocessing_key(processor)
    scores = {row["label"]: row["score"] for row in classify(str(image), top_k=None, function_to_apply="none")}
    assert [scores[name] for name in model.config.label2id] == pytest.approx(expected, abs=1e-4)
    assert "cropped to the lungs" in describe_processor(processor)
    classify.image_processor.save_pretrained(folder)  # onto itself
    again = save_model_and_processor(classify.model, classify.image_processor, tmp_path / "again")
    for path in (folder / LUNG_MODEL).iterdir():
        assert path.read_bytes() == (again / LUNG_MODEL / path.name).read_bytes()


@pytest.mark.slow
def test_lung_crop_loads_from_hub_without_hf_medtl(hub, stock_pool, lung_model, tiny_checkpoint, image, tmp_path):
    model, processor = make_model_and_processor(tiny_checkpoint("vit"), steps=["lung_crop"], lung_model=str(lung_model))
    folder = save_model_and_processor(model, processor, tmp_path / "classifier")
    HfApi().create_repo("ci-user/lung-cropped")
    HfApi().upload_folder(repo_id="ci-user/lung-cropped", folder_path=folder)
    process = stock_pool.run_code(LOADING_SCRIPT, image, folder, "ci-user/lung-cropped")
    assert process.returncode == 0, process.stderr
    for scores in json.loads(process.stdout.splitlines()[-1]):
        actual = [scores[name] for name in model.config.label2id]
        assert actual == pytest.approx(train_logits(model, processor, image), abs=1e-4)


def test_published_lung_model_is_referenced_by_id(hub, lung_model, tiny_checkpoint, tmp_path):
    HfApi().create_repo("ci-user/lungs")
    HfApi().upload_folder(repo_id="ci-user/lungs", folder_path=lung_model)
    _, processor = make_model_and_processor(tiny_checkpoint("vit"), steps=["lung_crop"], lung_model="ci-user/lungs")
    assert np.abs(np.subtract(processor.lungs.box(chest()), BOX)).max() <= 7


def test_invalid_lung_crop_arguments_raise(hub, lung_model, tiny_checkpoint, tmp_path):
    with pytest.raises(MedtlError, match="needs --lung_model"):
        Recipe(output_dir=str(tmp_path), preprocessing="lung_crop", use_cpu=True)
    with pytest.raises(MedtlError, match="is for --preprocessing lung_crop"):
        Recipe(output_dir=str(tmp_path), lung_model=str(lung_model), use_cpu=True)
    with pytest.raises(MedtlError, match="takes one crop"):
        make_model_and_processor(tiny_checkpoint("vit"), steps=["lung_crop", "brain_crop"], lung_model=str(lung_model))
    with pytest.raises(MedtlError, match=r"can't be loaded as a segmentation model .*unet_lungs\.py"):
        make_model_and_processor(tiny_checkpoint("vit"), steps=["lung_crop"], lung_model=str(tiny_checkpoint("timm")))
    with pytest.raises(MedtlError, match="can't be loaded as a segmentation model"):
        make_model_and_processor(tiny_checkpoint("vit"), steps=["lung_crop"], lung_model="ci-user/nobody")
    with pytest.raises(ValueError, match="lung_model must be given with lung_crop"):
        MedicalImageProcessor(steps=["lung_crop"])


def test_replaced_lung_model_raises(lung_model, tmp_path):
    MedicalImageProcessor(steps=["lung_crop"], lung_model=lung_model).save_pretrained(tmp_path)
    replacement, _ = build_tiny(image_size=64)
    replacement.save_pretrained(tmp_path / LUNG_MODEL)
    with pytest.raises(ValueError, match="not the model that this processor was saved with"):
        AutoImageProcessor.from_pretrained(tmp_path)


@pytest.mark.slow
def test_run_trains_on_cropped_images(phantoms, lung_model, tiny_checkpoint, tmp_path):
    overrides = {"preprocessing": "lung_crop", "lung_model": str(lung_model), "num_train_epochs": 1}
    folder = run(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", **overrides)))
    assert (folder / LUNG_MODEL / "model.safetensors").exists()
    assert "cropped to the lungs" in (folder / "README.md").read_text()
    for name in ("recipe.yaml", "README.md", "preprocessor_config.json"):
        assert str(lung_model.parent) not in (folder / name).read_text()
