"""Images that are cut into overlapping tiles at their own resolution, to learn and to predict masks."""

import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, EvalPrediction, pipeline

from hf_medtl import MedtlError, run
from hf_medtl.data.cache import prepare_images
from hf_medtl.data.prepared import PreparedImages, as_arrays
from hf_medtl.explain.segmentation import explain_masks
from hf_medtl.export.preprocessing_spec import build_preprocessing_spec
from hf_medtl.export.verification import ReferenceImages, compare_with_model
from hf_medtl.models.preprocessing import describe_processor, preprocessing_key, size_of, to_uint8
from hf_medtl.models.segmenter import build_segmenter
from hf_medtl.models.smp import (
    TILES_AT_ONCE,
    SmpConfig,
    SmpForSemanticSegmentation,
    blend_tiles,
    tile_starts,
    tile_windows,
)
from hf_medtl.predict import Predictor
from hf_medtl.tasks.segmentation import Segmentation
from hf_medtl.training.tiles import join_tiles
from tests.support.image_files import save_with_masks
from tests.support.segmentation_runs import segmentation_recipe
from tests.support.tiny_models import LABELS, build_threshold_segmenter, build_tiny, save_segformer

TILE = 64
SIZES = [(200, 90), (64, 64), (30, 150), (20, 20), (65, 64)]  # height, width


def speckled(size: tuple[int, int]) -> Image.Image:
    """Draw single dark and bright pixels, which resizing would blur."""
    grey = np.where(np.random.default_rng(0).random(size) < 0.3, 40, 220).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


@pytest.fixture(scope="module")
def segmenter():
    return build_threshold_segmenter(tile=TILE)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 112, 113, 500, 10_000])
def test_tiles_cover_a_side_and_overlap_by_a_quarter(length):
    starts = tile_starts(length, TILE)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - TILE)
    assert all(TILE // 4 <= one + TILE - other < TILE for one, other in itertools.pairwise(starts))
    assert {(y.stop - y.start, x.stop - x.start) for y, x in tile_windows(length, 100, TILE)} == {
        (min(TILE, length), TILE)
    }


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_blended_tiles_equal_the_whole_where_pixels_decide_alone(size):
    pixels = torch.rand(2, 3, *size)
    shapes = []

    def predict(tiles: torch.Tensor) -> torch.Tensor:
        shapes.append(tiles.shape)
        return tiles[:, :2] * 5 - 1

    torch.testing.assert_close(blend_tiles(predict, pixels, TILE), pixels[:, :2] * 5 - 1)
    assert max(shape[0] for shape in shapes) <= 2 * TILES_AT_ONCE
    assert max(max(shape[2:]) for shape in shapes) <= TILE


def test_edges_of_tiles_count_little():
    first = torch.zeros(1, 1, 1, 112)
    calls = iter([torch.full((2, 1, 1, 64), 1.0)])
    values = next(calls)
    values[1] = 0  # the second tile disagrees
    blended = blend_tiles(lambda tiles: values, first, TILE)[0, 0, 0]
    assert blended[:48].eq(1).all()
    assert blended[64:].eq(0).all()
    assert (blended[48:64].diff() < 0).all()  # a ramp between both


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masks_have_every_pixel_of_the_image(segmenter, size):
    model, processor = segmenter
    image = speckled(size)
    expected = np.asarray(image)[..., 0] < 128
    segment = pipeline("image-segmentation", model=model, image_processor=processor, device="cpu")
    parts = {row["label"]: np.asarray(row["mask"]) > 0 for row in segment(image)}
    assert np.array_equal(parts["lung"], expected)
    prediction, other = Predictor(model, processor).predict([image, speckled((64, 80))], explain="uncertainty", tta=1)
    assert prediction.map.shape == size
    assert (prediction.mask == expected).mean() > 0.6  # of it and a rotated copy
    assert other.mask.shape == (64, 80)
    prediction = Predictor(model, processor).predict(image)[0]
    assert np.array_equal(prediction.mask, expected)


def test_tiles_and_crop_go_together():
    model, processor = build_threshold_segmenter(tile=TILE, steps=["brain_crop"])
    grey = np.zeros((300, 260, 3), np.uint8)
    grey[50:250, 80:220] = 220
    grey[100:150, 100:180] = 60
    left, top, right, bottom = processor.geometry(grey)[0]
    expected = np.zeros(grey.shape[:2], bool)
    expected[top:bottom, left:right] = grey[top:bottom, left:right, 0] < 128
    assert np.array_equal(Predictor(model, processor).predict(grey)[0].mask == 1, expected)


def test_saved_network_tiles_and_sees_few_tiles_at_once(tmp_path):
    model, processor = build_tiny(tile=TILE)
    for saved in (model, processor):
        saved.save_pretrained(tmp_path)
    loaded = SmpForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert (loaded.config.tile, AutoImageProcessor.from_pretrained(tmp_path).tile) == (TILE, TILE)
    shapes = []
    loaded.encoder.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape))
    pixels = torch.rand(1, 3, 200, 260)
    with torch.no_grad():
        output = loaded(pixel_values=pixels, labels=torch.zeros(1, 200, 260, dtype=torch.long))
        corner = loaded(pixel_values=pixels[..., :TILE, :TILE]).logits
    assert output.logits.shape == (1, 2, 200, 260)
    assert output.loss.isfinite()
    assert set(shapes[:-1]) <= {(n, 3, TILE, TILE) for n in range(1, TILES_AT_ONCE + 1)}
    torch.testing.assert_close(output.logits[..., :32, :32], corner[..., :32, :32], atol=1e-4, rtol=1e-4)
    image = speckled((200, 90))
    segment = pipeline("image-segmentation", str(tmp_path), device="cpu")
    mask = sum((np.asarray(row["mask"]) > 0) * loaded.config.label2id[row["label"]] for row in segment(image))
    assert np.array_equal(mask, Predictor.from_pretrained(tmp_path, device="cpu").predict(image)[0].mask)


def test_cache_has_all_tiles_and_masks(segmenter, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MEDTL_CACHE", str(tmp_path / "cache"))
    _, processor = segmenter
    images = [speckled(size) for size in SIZES]
    paths, masks = save_with_masks(tmp_path, images)
    calls = []

    def preprocess(batch):
        calls.append(1)
        return to_uint8(processor, batch)

    def prepare():
        return prepare_images(
            paths,
            [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths],
            preprocess,
            preprocessing_key(processor),
            masks,
            geometry=processor.geometry,
            tiles=lambda height, width: tile_windows(height, width, TILE),
        )

    prepared = prepare()
    pixels, learned = (np.concatenate(as_arrays(prepared, name)) for name in ("pixels", "mask"))
    windows = [tile_windows(max(TILE, height), max(TILE, width), TILE) for height, width in SIZES]
    assert len(pixels) == sum(map(len, windows))
    assert pixels.shape[1:] == (*size_of(processor), 3)
    row = 0
    for image, size, parts in zip(images, SIZES, windows, strict=True):
        whole = processor.prepare(np.asarray(image))
        for window in parts:
            assert np.array_equal(pixels[row], whole[window])
            assert np.array_equal(learned[row] == 1, (whole[window][..., 0] < 128) & (learned[row] < 255))
            row += 1
        assert (learned[row - len(parts) : row] == 255).any() == (min(size) < TILE)
    data = PreparedImages(prepared, [2, 0], [None, None])
    assert data.images.tolist() == [0] * len(windows[2]) + [1] * len(windows[0])
    assert len(data) == len(data.images)
    first = data[len(windows[2])]
    assert np.array_equal(first["pixel_values"].permute(1, 2, 0), np.asarray(images[0])[:TILE, :TILE])
    prepare()
    assert len(calls) == len(paths)  # read from the cache


def test_validation_metrics_are_of_whole_images():
    images = np.array([0, 0, 1])
    counts = EvalPrediction(np.array([[[4, 6]], [[0, 0]], [[0, 2]]]), np.array([[4], [10], [0]]))
    metrics = join_tiles(Segmentation().validation_metrics, images)(counts)
    assert metrics["dice"] == pytest.approx((2 * 4 / (6 + 14) + 0) / 2)


def test_exports_are_compared_tile_by_tile_and_described(segmenter, tmp_path):
    model, processor = segmenter
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, size in zip(files, SIZES, strict=False):
        speckled(size).save(file)

    def infer(pixels: np.ndarray) -> np.ndarray:
        assert pixels.shape[2:] == (TILE, TILE)
        return model(pixel_values=torch.from_numpy(pixels)).logits.detach().numpy() + 1e-3

    compared = compare_with_model(model, processor, infer, ReferenceImages(files, []))
    assert compared["largest_logit_difference"] == pytest.approx(1e-3, rel=0.01)
    assert compared["decisions_changed"] == 0
    spec = build_preprocessing_spec(model, processor, (TILE, TILE), (1, 2, TILE, TILE), "model.onnx")
    assert [step["step"] for step in spec["steps"]] == ["read", "pad", "rescale", "normalise", "tile"]
    assert "tiles of 64 × 64" in describe_processor(processor)


def test_what_cannot_be_tiled_is_refused(segmenter, tmp_path):
    for tile in (8, 100_000, "64"):
        with pytest.raises(ValueError, match="tile must be"):
            SmpConfig(tile=tile)
    with pytest.raises(MedtlError, match="--tile must be from 32"):
        build_tiny(tile=8)
    with pytest.raises(MedtlError, match="--tile works with unet"):
        build_segmenter(str(save_segformer(tmp_path)), LABELS, tile=TILE)
    model, processor = segmenter
    with pytest.raises(MedtlError, match="tiles of 64 pixels"):
        explain_masks(model, processor, [speckled((65, 64))])
    for more, message in (
        ({"tile": 8}, "--tile must be from 32"),
        ({"tile": 64, "fit": "pad"}, "not resized with --tile"),
        ({"tile": 64, "task": "image-classification", "model_name_or_path": "cnn"}, "--tile: only for"),
    ):
        with pytest.raises(MedtlError, match=message):
            run(segmentation_recipe(tmp_path / "absent", tmp_path / "run", **more))


@pytest.mark.slow
def test_run_learns_from_tiles(chest_phantoms, tmp_path):
    folder = run(segmentation_recipe(chest_phantoms, tmp_path / "run", tile=64, num_train_epochs=2))
    assert json.loads((folder / "results.json").read_text())["metrics"]["dice"]["value"] > 0.4
    assert json.loads((folder / "config.json").read_text())["tile"] == 64
