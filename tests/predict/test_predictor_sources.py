"""Sources of a Predictor: every kind of image, and one bad source as one error."""

import io
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import (
    CLIPImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from hf_medtl import MedtlError, Predictor
from hf_medtl.explain.geometry import find_geometry
from hf_medtl.explain.maps import METHODS, explain
from hf_medtl.models.cnn import MedicalCnnConfig, MedicalCnnForImageClassification
from tests.support.tiny_models import build_tiny

GOOD = (np.arange(48 * 64) % 251).astype(np.uint8).reshape(48, 64)
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def vision_transformer(**config) -> Predictor:
    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(image_size=32, patch_size=8, hidden_dropout_prob=0.1, **SHAPE, **config)
    )
    return Predictor(model, ViTImageProcessor(size={"height": 32, "width": 32}))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return vision_transformer()


@pytest.fixture(scope="module")
def convolutional() -> Predictor:
    """A network for any size, with a processor that keeps the size."""
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return Predictor(ResNetForImageClassification(config).eval(), ViTImageProcessor(do_resize=False))


def cut_short() -> Image.Image:
    stream = io.BytesIO()
    Image.fromarray(GOOD).save(stream, "JPEG")
    return Image.open(io.BytesIO(stream.getvalue()[: len(stream.getvalue()) // 2]))


def closed() -> Image.Image:
    stream = io.BytesIO()
    Image.fromarray(GOOD).save(stream, "PNG")
    image = Image.open(stream)
    stream.close()
    return image


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (cut_short(), "truncated"),
        (closed(), "closed"),
        (GOOD[:0], "no pixels"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (GOOD.astype(np.float32) / 255, "float32"),
        (torch.rand(3, 8, 8), "float32"),
        (torch.rand(3, 8, 8).bfloat16(), "expected 8-bit pixels, found bfloat16"),
        (GOOD.astype(">u2"), ">u2"),
        ("", "expected a path, found an empty one"),
        (Path("s3://bucket/a.png"), "No such file"),
        ("s3://bucket/a.png", "addresses are not downloaded"),
        (np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\)"),
        (np.zeros((8, 8, 8, 3), np.uint8), r"\(8, 8, 8, 3\)"),
        (np.zeros(8, np.uint8), r"\(8,\)"),
        (None, "NoneType"),
        ([GOOD, GOOD], "list"),
        (b"no image at all", "not an image"),
        ("https://example.org/scan.png", "not downloaded"),
        ("nothing\0.png", "can't be read .*null"),
    ],
)
def test_one_bad_source_is_one_error(predictor, source, text):
    first, bad, last = predictor.predict([GOOD, source, GOOD])
    assert first.probabilities and first.probabilities == pytest.approx(last.probabilities)
    assert bad.error and not bad.probabilities and bad.label is None
    assert re.search(text, bad.error), bad.error


def test_folder_without_images_is_one_error(predictor, tmp_path):
    (tmp_path / "empty").mkdir()
    results = predictor.predict([GOOD, tmp_path / "empty", tmp_path / "missing.png", GOOD])
    assert [bool(result.error) for result in results] == [False, True, True, False]
    assert "empty" in results[1].error


def test_arrays_and_tensors_of_any_layout_are_one_image(predictor):
    colour = np.stack([GOOD, GOOD[::-1], 255 - GOOD], axis=2)
    alpha = np.dstack([colour, GOOD])
    sources = [
        colour,
        colour.transpose(2, 0, 1),
        torch.from_numpy(colour.transpose(2, 0, 1).copy()),
        torch.from_numpy(colour.copy()),
        alpha,
        Image.fromarray(colour),
        Image.fromarray(alpha),
    ]
    rgb = [result.probabilities for result in predictor.predict(sources)]
    assert all(probabilities == pytest.approx(rgb[0], abs=1e-6) for probabilities in rgb)
    grey = [GOOD, GOOD[..., None], GOOD[None], torch.from_numpy(GOOD), Image.fromarray(GOOD)]
    grey = [result.probabilities for result in predictor.predict(grey)]
    assert all(probabilities == pytest.approx(grey[0], abs=1e-6) for probabilities in grey)
    assert grey[0] != pytest.approx(rgb[0], abs=1e-6)
    single, batch = predictor.predict(torch.from_numpy(GOOD)), predictor.predict(np.stack([colour, colour]))
    assert [result.probabilities for result in single] == [pytest.approx(grey[0], abs=1e-6)]
    assert [result.probabilities for result in batch] == [pytest.approx(rgb[0], abs=1e-6)] * 2


def test_pillow_images_are_read_like_files(predictor, tmp_path):
    """Upright by EXIF, and RGB as `read_image` converts each mode."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(GOOD).convert("RGB")
    image.save(tmp_path / "turned.png", exif=exif)
    files = {"turned.png": Image.open(tmp_path / "turned.png")}
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK"):
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        image.convert(mode).save(path)
        files[path.name] = Image.open(path)
    deep = GOOD.astype(np.uint16) * 16  # 12 bits in 16
    for name, pixels in {
        "deep.png": deep,
        "colour.png": np.dstack([deep] * 3),
        "colour.tif": np.dstack([deep] * 3),
    }.items():
        (tmp_path / name).write_bytes(cv2.imencode(Path(name).suffix, pixels)[1].tobytes())
        files[name] = Image.open(tmp_path / name)
    for name, opened in files.items():
        from_file, from_image = predictor.predict([tmp_path / name, opened])
        assert not from_image.error
        assert from_image.probabilities == pytest.approx(from_file.probabilities, abs=1e-6), name
    upright = predictor.predict(ImageOps.exif_transpose(Image.open(tmp_path / "turned.png")))[0]
    assert predictor.predict(Image.open(tmp_path / "turned.png"))[0].probabilities == upright.probabilities
    assert upright.probabilities != predictor.predict(image)[0].probabilities
    binary = np.asarray(image.convert("1"))
    assert predictor.predict(binary)[0].probabilities == predictor.predict(image.convert("1"))[0].probabilities


def test_same_open_file_twice(predictor, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400), dtype=np.uint8)).save(tmp_path / "a.png")
    results = predictor.predict([Image.open(tmp_path / "a.png")] * 8)
    assert {tuple(result.probabilities.values()) for result in results} == {tuple(results[0].probabilities.values())}
    assert not any(result.error for result in results)


def test_batch_size_below_one_is_an_error_of_each_image(predictor):
    for size in (0, -1):
        results = predictor.predict([GOOD] * 3, batch_size=size)
        assert [f"found {size}" in result.error for result in results] == [True] * 3
    with pytest.raises(MedtlError, match="found -1"):
        predictor.predict(GOOD, mc_dropout=-1)


def test_batches_of_several_sizes_equal_pipeline(convolutional):
    images = [
        Image.fromarray(np.resize(GOOD, size)).convert("RGB") for size in ((50, 70), (90, 40), (50, 70), (41, 40))
    ]
    keep_aspect = CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
    for processor in (convolutional.processor, keep_aspect):
        predictor = Predictor(convolutional.model, processor)
        stock = pipeline("image-classification", model=convolutional.model, image_processor=processor, device="cpu")
        for result, rows in zip(predictor.predict(images, explain="gradcam"), stock(images), strict=True):
            assert result.probabilities == pytest.approx({row["label"]: row["score"] for row in rows}, abs=1e-5)
            assert not result.error
        maps = [result.map for result in predictor.predict(images, explain="gradcam")]
        assert [values.shape for values in maps] == [(image.height, image.width) for image in images]
        plain, turned = (predictor.predict(images, tta=number) for number in (0, 1))
        assert all(result.spread is not None for result in turned)
        assert [result.label for result in plain] == [predictor.predict(image)[0].label for image in images]
    model, processor = build_tiny()
    processor.do_resize = False
    masks = [result.mask for result in Predictor(model, processor).predict(images, explain="uncertainty")]
    assert [mask.shape for mask in masks] == [(image.height, image.width) for image in images]


def test_size_that_a_model_refuses_is_an_error_of_these_images(predictor):
    fixed = Predictor(predictor.model, ViTImageProcessor(do_resize=False))
    right = np.resize(GOOD, (32, 32))
    results = fixed.predict([right, GOOD, right])
    assert [bool(result.error) for result in results] == [False, True, False]
    assert "64 × 48 pixels" in results[1].error


@pytest.mark.parametrize("size", [(16, 16), (500, 9), (3, 3), (1, 1), (1, 40), (33, 3)])
def test_map_of_a_small_image(predictor, size):
    large, small = predictor.predict([GOOD, np.resize(GOOD, size)], explain="eigencam")
    assert large.map.shape == GOOD.shape
    assert small.map.shape == size
    assert not small.error
    assert np.ptp(small.map) > 0.2 or max(size) < 4


def test_geometry_of_a_small_image_is_that_of_a_large_one():
    cropping = CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    for width, height in ((12, 12), (20, 10), (3, 9)):
        small = find_geometry(cropping, Image.new("RGB", (width, height)))
        side = 32 / 40 * min(width, height)
        expected = (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2
        assert small.crop == pytest.approx(expected, abs=0.04 * min(width, height))
        assert small.inner == (0, 0, 32, 32)


def test_image_without_a_map_keeps_its_prediction(convolutional):
    """Of one pixel nothing is left that has positions; the other images are not affected."""
    large, small = convolutional.predict([GOOD, GOOD[:1, :1]], explain="gradcam")
    assert large.map is not None and not large.error
    assert small.map is None and "no heatmap" in small.error
    assert sum(small.probabilities.values()) == pytest.approx(1)
    with pytest.raises(MedtlError, match="use gradcam here"):  # none of its images can have one
        convolutional.predict(GOOD, explain="rollout")


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification", "single_label_classification"])
def test_one_output_has_two_sides(problem_type):
    predictor = vision_transformer(id2label={0: "pneumonia"}, label2id={"pneumonia": 0})
    predictor.config.problem_type = problem_type
    predictor = Predictor(predictor.model, predictor.processor)
    image, head = Image.fromarray(GOOD), predictor.model.classifier
    for bias, decision in ((-2.0, ""), (2.0, "pneumonia")):
        torch.nn.init.constant_(head.bias, bias)
        (row,) = pipeline("image-classification", model=predictor.model, image_processor=predictor.processor)(image)
        (result,) = predictor.predict(image, explain="gradcam")
        assert result.probabilities == pytest.approx({"pneumonia": row["score"]}, abs=1e-5)
        assert result.decision == decision
        assert np.ptp(result.map) > 0
        (explanation,) = explain(predictor.model, predictor.processor, [image])
        assert explanation.probability == pytest.approx(row["score"], abs=1e-5)
    predictor.config.thresholds = {"pneumonia": 0.99}
    assert predictor.predict(image)[0].decision == ""


def test_segmentation_needs_a_background():
    model, processor = build_tiny(labels=("background", "lung"))
    model.config.id2label = {0: "lung"}
    with pytest.raises(MedtlError, match="background"):
        Predictor(model, processor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_answer_nearly_the_same(dtype):
    images = [Image.fromarray(np.resize(GOOD, size)).convert("RGB") for size in ((50, 70), (33, 40))]
    cnn = MedicalCnnForImageClassification(MedicalCnnConfig(widths=[8, 16]))
    predictors = [vision_transformer(), Predictor(cnn, ViTImageProcessor(size={"height": 32, "width": 32}))]
    predictors += [Predictor(*build_tiny())] * (dtype == torch.bfloat16)
    for predictor in predictors:
        method = "uncertainty" if predictor.is_segmentation else "gradcam"
        drops = 2 * isinstance(predictor.model, ViTForImageClassification)
        full = predictor.predict(images, explain=method, tta=1)
        half = Predictor(predictor.model.to(dtype), predictor.processor)
        for one, other in zip(full, half.predict(images, explain=method, tta=1, mc_dropout=drops), strict=True):
            assert other.probabilities == pytest.approx(one.probabilities, abs=0.05)
            assert other.map.dtype == np.float32
            if predictor.is_segmentation:
                assert (one.mask == other.mask).mean() > 0.9
    for name in METHODS:
        if name not in ("rollout", "gradcam"):
            assert explain(cnn, predictor.processor, images, method=name)[0].map.dtype == np.float32


def test_a_misspelt_and_an_unfinished_run_are_named(tmp_path):
    (tmp_path / "first").mkdir()
    with pytest.raises(MedtlError, match=r"Did you mean '.*first'\? Use a run folder"):
        Predictor.from_pretrained(tmp_path / "frist")  # codespell:ignore frist
    (tmp_path / "first" / "UNFINISHED").touch()
    with pytest.raises(MedtlError, match="first is an unfinished run"):
        Predictor.from_pretrained(tmp_path / "first")
