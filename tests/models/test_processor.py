"""Medical preprocessing: the same pixels in training and in `pipeline()`, and code that is saved with the weights."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, ViTImageProcessor, pipeline

from hf_medtl import MedtlError, read_image
from hf_medtl.data.phantoms import draw_brain
from hf_medtl.models.build import build_classifier
from hf_medtl.models.preprocessing import (
    build_processor,
    describe_processor,
    normalisation,
    preprocessing_key,
    to_uint8,
)
from hf_medtl.models.processor import STEPS, MedicalImageProcessor, brain_box, clahe
from tests.support.processors import (
    LABELS,
    LOADING_SCRIPT,
    make_model_and_processor,
    save_model_and_processor,
    train_logits,
)

ALONE = tuple(step for step in STEPS if step != "lung_crop")  # steps that need no other model
FAMILIES = ("vit", "dinov2", "convnext", "cnn", "timm")
RNG = np.random.default_rng(0)

# User code with stock transformers alone.


def phantom(patient=0):
    grey = draw_brain(patient, 0, True, size=128).image
    return np.dstack([grey] * 3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, array in {
        "brain.png": phantom()[..., 0],
        "colour.png": RNG.integers(0, 256, (101, 67, 3), dtype=np.uint8),
        "grey.jpg": RNG.integers(0, 256, (40, 90), dtype=np.uint8),
    }.items():
        Image.fromarray(array).save(folder / name)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("steps", [(), ("clahe", "brain_crop"), ALONE], ids=["none", "two", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pipeline_equals_training_path(family, steps, fit, tiny_checkpoint, files, tmp_path, monkeypatch):
    prompts = []
    model, processor = make_model_and_processor(tiny_checkpoint(family), steps=steps, fit=fit)
    save_model_and_processor(model, processor, tmp_path)
    assert isinstance(processor, MedicalImageProcessor) == (bool(steps) or fit == "pad")
    assert (tmp_path / "processor.py").exists() == isinstance(processor, MedicalImageProcessor)
    # TRAP: pipeline() also looks for a video processor and used to ask whether to trust its code, although hf_medtl is
    # installed and nothing needs to be trusted.
    monkeypatch.setattr("builtins.input", lambda *_: prompts.append(1) or "n")
    classify = pipeline("image-classification", str(tmp_path), device="cpu")
    assert not prompts
    assert type(classify.image_processor) is type(processor)
    for path in files:
        scores = {row["label"]: row["score"] for row in classify(str(path), top_k=None, function_to_apply="none")}
        logits = train_logits(model, processor, path)
        assert max(abs(scores[name] - logits[i]) for i, name in enumerate(LABELS)) < 1e-4, path.name


@pytest.mark.slow
def test_processor_loads_without_hf_medtl(hub, stock_pool, tiny_checkpoint, files, tmp_path):
    expected, folders = [], []
    for family in FAMILIES:
        model, processor = make_model_and_processor(tiny_checkpoint(family), steps=["brain_crop", "clahe"], fit="pad")
        folders.append(save_model_and_processor(model, processor, tmp_path / family))
        expected.append(train_logits(model, processor, files[0]))
    # Also from the Hub, where AutoImageProcessor reads a timm model's processor from another file than in a folder.
    HfApi().create_repo("ci-user/medical-timm")
    HfApi().upload_folder(repo_id="ci-user/medical-timm", folder_path=folders[-1])
    process = stock_pool.run_code(LOADING_SCRIPT, files[0], *folders, "ci-user/medical-timm")
    assert process.returncode == 0, process.stderr
    for scores, logits in zip(json.loads(process.stdout.splitlines()[-1]), [*expected, expected[-1]], strict=True):
        assert max(abs(scores[name] - logits[i]) for i, name in enumerate(LABELS)) < 1e-4


def test_saving_keeps_all_settings(tmp_path):
    settings = {
        "size": {"height": 20, "width": 30}, "resample": 2, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6],
        "do_normalize": False, "rescale_factor": 0.5, "steps": ["grayscale", "clahe"], "fit": "pad", "crop_margin": 0.1,
        "blur_sigma": 3.0, "clahe_clip": 4.0, "clahe_grid": 3,
    }  # fmt: skip
    processor = MedicalImageProcessor(**settings)
    processor.counts["pictures"] = 7
    processor.save_pretrained(tmp_path)
    for loaded in (AutoImageProcessor.from_pretrained(tmp_path), MedicalImageProcessor.from_pretrained(tmp_path)):
        assert loaded.to_dict() == processor.to_dict()
        assert {key: loaded.to_dict()[key] for key in settings} == settings
        assert not loaded.counts
    assert "counts" not in json.loads((tmp_path / "preprocessor_config.json").read_text())
    code = (tmp_path / "processor.py").read_text()
    assert "import hf_medtl" not in code
    assert "from hf_medtl" not in code


@pytest.mark.parametrize("family", ["vit", "timm"])
def test_size_and_normalisation_come_from_checkpoint(family, tiny_checkpoint):
    _, stock = build_classifier(str(tiny_checkpoint(family)), LABELS)
    _, medical = build_classifier(str(tiny_checkpoint(family)), LABELS, steps=["grayscale"])
    for a, b in zip(normalisation(stock), normalisation(medical), strict=True):
        assert torch.equal(a, b)
    assert to_uint8(stock, [Image.new("RGB", (9, 9))]).shape == to_uint8(medical, [Image.new("RGB", (9, 9))]).shape
    assert medical.resample == (3 if family == "timm" else 2)  # pretrained_cfg says bicubic


@pytest.mark.parametrize("family", ["vit", "timm"])
def test_model_with_steps_can_be_fine_tuned_without(family, tiny_checkpoint, tmp_path):
    save_model_and_processor(
        *build_classifier(str(tiny_checkpoint(family)), LABELS, steps=["clahe"]), tmp_path / "first"
    )
    model, processor = build_classifier(str(tmp_path / "first"), LABELS)
    assert not isinstance(processor, MedicalImageProcessor)
    save_model_and_processor(model, processor, tmp_path / "second")
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "second")) is type(processor)
    assert not hasattr(AutoConfig.from_pretrained(tmp_path / "second"), "image_processor_type")


def test_unknown_step_or_fit_raises(tiny_checkpoint):
    with pytest.raises(MedtlError, match=r"'clahee'.* brain_crop, lung_crop, grayscale, blur, clahe"):
        build_classifier(str(tiny_checkpoint("vit")), LABELS, steps=["clahee"])
    with pytest.raises(MedtlError, match=r"'crop'.* squash, pad"):
        build_processor(str(tiny_checkpoint("vit")), AutoConfig.from_pretrained(tiny_checkpoint("vit")), fit="crop")
    with pytest.raises(ValueError, match="steps must be some of"):
        MedicalImageProcessor(steps=["skull_strip"])


def test_each_step_has_its_effect():
    rgb = np.asarray(Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)))
    square = {"size": {"height": 64, "width": 64}}
    assert np.array_equal(MedicalImageProcessor(**square).prepare(rgb), rgb)
    grey = MedicalImageProcessor(**square, steps=["grayscale"]).prepare(rgb)
    assert np.array_equal(grey[..., 0], Image.fromarray(rgb).convert("L"))
    assert (grey == grey[..., :1]).all()
    contrast = cv2.createCLAHE(2.0, (8, 8)).apply(np.ascontiguousarray(grey[..., 0]))
    for result in (MedicalImageProcessor(**square, steps=["clahe"]).prepare(grey), clahe(grey)):
        assert np.array_equal(result, np.dstack([contrast] * 3))
    assert not np.array_equal(contrast, grey[..., 0])
    assert np.ptp(clahe(rgb).astype(int), axis=-1).max() > 20  # colours are kept
    blurred = MedicalImageProcessor(**square, steps=["blur"], blur_sigma=2).prepare(rgb)
    assert np.abs(np.diff(blurred.astype(int), axis=0)).mean() < np.abs(np.diff(rgb.astype(int), axis=0)).mean()
    all_steps = MedicalImageProcessor(**square, steps=ALONE[::-1])
    assert all_steps.steps == list(ALONE)
    assert np.ptp(all_steps.prepare(phantom()), axis=-1).max() == 0


def test_clahe_is_robust_to_faint_colours():
    """A colour JPEG and its grey copy must give nearly the same pixels: the file type would be a shortcut."""
    grey = phantom()
    tinted = np.clip(grey + np.array([1, 0, -1]), 0, 255).astype(np.uint8)
    difference = clahe(grey).astype(int) - clahe(tinted)
    assert np.abs(difference).mean() < 2.5


def test_padding_keeps_aspect_ratio():
    processor = MedicalImageProcessor(size={"height": 32, "width": 32}, fit="pad")
    wide = processor.prepare(np.full((50, 100, 3), 200, np.uint8))
    assert (wide[8:24] == 200).all()
    assert not wide[:8].any()
    assert not wide[24:].any()
    tall = processor.prepare(np.full((90, 30, 3), 200, np.uint8))
    assert (tall[:, 10:21] == 200).all()
    assert not tall[:, :10].any()
    assert not tall[:, 21:].any()
    disc = cv2.circle(np.zeros((60, 120, 3), np.uint8), (60, 30), 25, (255, 255, 255), -1)
    rows, columns = np.nonzero(processor.prepare(disc)[..., 0] > 127)
    assert np.ptp(rows) == np.ptp(columns)


@pytest.mark.parametrize("patient", range(3))
def test_brain_box_matches_phantom(patient):
    rgb = phantom(patient)
    head = cv2.blur(rgb[..., 0], (3, 3)) > 40
    rows, columns = np.flatnonzero(head.any(1)), np.flatnonzero(head.any(0))
    canvas = np.zeros((300, 400, 3), np.uint8)
    canvas[150:278, 20:148] = rgb
    actual = brain_box(canvas)
    expected = (20 + columns[0], 150 + rows[0], 21 + columns[-1], 151 + rows[-1])
    assert np.abs(np.subtract(actual, expected)).max() <= 3
    assert np.abs(np.subtract(brain_box(canvas // 4), expected)).max() <= 4  # an underexposed copy
    processor = MedicalImageProcessor(size={"height": 64, "width": 64}, steps=["brain_crop"])
    left, top, right, bottom = actual
    x, y = round((right - left) * 0.02), round((bottom - top) * 0.02)
    cropped = Image.fromarray(canvas[top - y : bottom + y, left - x : right + x]).resize((64, 64), 3)
    assert np.array_equal(processor.prepare(canvas), cropped)
    assert processor.counts == {"pictures": 1, "nothing": 0}


def test_brain_box_covers_split_contours():
    """TRAP: the largest contour alone is half a brain where the threshold splits it."""
    rgb = np.zeros((200, 200, 3), np.uint8)
    rgb[40:160, 30:95] = rgb[40:160, 105:170] = 200
    rgb[5:10, 5:15] = 255  # a burnt-in letter
    left, top, right, bottom = brain_box(rgb)
    assert (left, right) == (pytest.approx(30, abs=3), pytest.approx(170, abs=3))
    assert (top, bottom) == (pytest.approx(40, abs=3), pytest.approx(160, abs=3))


def test_image_without_brain_stays_whole_and_is_counted():
    black, letter = np.zeros((80, 120, 3), np.uint8), np.zeros((80, 120, 3), np.uint8)
    letter[:9, :9] = 255
    assert brain_box(black) is brain_box(letter) is None
    size = {"height": 40, "width": 60}
    processor, plain = MedicalImageProcessor(size=size, steps=["brain_crop"]), MedicalImageProcessor(size=size)
    inputs = [Image.fromarray(p) for p in (black, letter, phantom())]
    values = processor(inputs, return_tensors="pt")["pixel_values"]
    assert torch.equal(values[:2], plain(inputs[:2], return_tensors="pt")["pixel_values"])
    assert processor.counts == {"pictures": 3, "nothing": 2}
    plain(inputs)
    assert not plain.counts
    with ThreadPoolExecutor(4) as pool:  # as the cache does
        list(pool.map(processor.prepare, [black, letter, phantom()] * 20))
    assert processor.counts == {"pictures": 63, "nothing": 42}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 5), (7, 7), (4, 3), (2, 3000)])
def test_degenerate_image_sizes(size, fit):
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    inputs = [np.zeros((*size, 3), np.uint8), np.full((*size, 3), 255, np.uint8), noise]
    for target in ({"height": 32, "width": 32}, {"height": 5, "width": 9}):  # the latter is smaller than CLAHE's grid
        processor = MedicalImageProcessor(size=target, steps=ALONE, fit=fit)
        values = processor(inputs, return_tensors="pt")["pixel_values"]
        assert values.shape == (3, 3, *target.values())
        assert values.isfinite().all()
        assert torch.equal(values, processor(inputs, return_tensors="pt")["pixel_values"])
        assert to_uint8(processor, [Image.fromarray(p) for p in inputs]).shape == (3, *target.values(), 3)


def test_accepts_images_arrays_tensors_and_batches():
    rgb = RNG.integers(0, 256, (50, 40, 3), dtype=np.uint8)
    processor = MedicalImageProcessor(size={"height": 24, "width": 24}, steps=ALONE)
    expected = processor(Image.fromarray(rgb), return_tensors="pt")["pixel_values"]
    assert expected.dtype == torch.float32
    channels_first = rgb.transpose(2, 0, 1)
    for inputs in (rgb, torch.from_numpy(channels_first), channels_first, [rgb], rgb[None], Image.fromarray(rgb)):
        assert torch.equal(processor(inputs, return_tensors="pt")["pixel_values"], expected)
        assert torch.equal(processor.preprocess(inputs, return_tensors="pt")["pixel_values"], expected)
    batch = processor([rgb, rgb[:30], rgb], return_tensors="np")["pixel_values"]
    assert batch.shape == (3, 3, 24, 24)
    assert np.array_equal(batch[2], expected[0])
    assert np.array_equal(batch[1], processor(rgb[:30])["pixel_values"][0])
    grey = Image.fromarray(rgb[..., 0])
    values = processor(grey)["pixel_values"][0]
    for same in (grey.convert("RGB"), rgb[..., :1], torch.from_numpy(rgb[None, ..., 0]), grey.convert("RGBA")):
        assert np.array_equal(processor(same)["pixel_values"][0], values)
    for deep in (Image.fromarray(rgb[..., 0].astype(np.uint16)), rgb / 255, torch.rand(3, 9, 9), grey.convert("F")):
        with pytest.raises(ValueError, match="Expected 8-bit images"):
            processor(deep)


def test_preprocessing_key_depends_on_settings_and_versions(monkeypatch, tmp_path):
    settings = {"steps": ["clahe"], "fit": "squash"}
    processor = MedicalImageProcessor(**settings)
    key = preprocessing_key(processor)
    processor(phantom())
    processor.save_pretrained(tmp_path)
    assert preprocessing_key(processor) == key
    for change in ({"steps": ["blur"]}, {"fit": "pad"}, {"clahe_clip": 3.0}, {"clahe_grid": 4}, {"crop_margin": 0.1},
                   {"blur_sigma": 2.0}, {"resample": 2}, {"size": {"height": 8, "width": 8}}):  # fmt: skip
        assert preprocessing_key(MedicalImageProcessor(**settings | change)) != key, change
    plain = preprocessing_key(ViTImageProcessor())
    monkeypatch.setattr(cv2, "__version__", "0.0")
    assert preprocessing_key(processor) != key
    assert preprocessing_key(ViTImageProcessor()) == plain


def test_description_lists_steps():
    text = describe_processor(MedicalImageProcessor(steps=ALONE, fit="pad"))
    assert text == (
        "RGB, cropped to the brain, or the whole image where none is found, grey values, resized to 224 × 224 "
        "pixels, keeping the aspect ratio with black margins, Gaussian blur (sigma 1 pixels), CLAHE (clip 2, "
        "8 × 8 tiles), normalised with mean (0.500, 0.500, 0.500) and standard deviation (0.500, 0.500, 0.500)"
    )
    assert describe_processor(ViTImageProcessor()).startswith("RGB, the whole image resized to 224 × 224 pixels, nor")


@pytest.mark.real
def test_real_brains_are_inside_crop(real_brain: Path):
    paths = sorted(p for name in ("yes", "no") for p in (real_brain / name).iterdir())
    assert len(paths) == 253
    missing, inside = 0, []
    for path in paths:
        rgb = np.asarray(read_image(path))
        box = brain_box(rgb)
        missing += box is None
        left, top, right, bottom = box or (0, 0, rgb.shape[1], rgb.shape[0])
        bright = rgb[..., 0] > 0.25 * np.percentile(rgb[..., 0], 99)
        inside.append(bright[top:bottom, left:right].sum() / bright.sum())
    print(f"no contour in {missing} of {len(paths)}; bright pixels inside: least {min(inside):.3f}")
    assert missing <= 2
    assert min(inside) > 0.9
    assert np.median(inside) > 0.99
