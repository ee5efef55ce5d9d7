"""Masks at the size of the image after a crop and with margins, wherever masks are learned or predicted."""

import base64
import hashlib
import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hf_medtl import MedtlError
from hf_medtl.data.cache import prepare_images
from hf_medtl.data.prepared import as_arrays
from hf_medtl.evaluation.masks import IGNORE_INDEX
from hf_medtl.explain.segmentation import explain_masks
from hf_medtl.export.verification import ReferenceImages, compare_with_model
from hf_medtl.models.preprocessing import preprocessing_key, size_of, to_uint8
from hf_medtl.models.processor import Lungs, MedicalImageProcessor
from hf_medtl.models.segmenter import build_segmenter
from hf_medtl.predict import Predictor
from hf_medtl.publish.handler import EndpointHandler
from hf_medtl.tasks.segmentation import Segmentation
from tests.support.image_files import save_with_masks
from tests.support.tiny_models import LABELS, TINY, build_threshold_segmenter, save_segformer

SIZES = [(200, 90), (90, 200), (64, 64), (31, 50)]  # height, width
GEOMETRIES = [("pad", ()), ("squash", ("brain_crop",)), ("pad", ("brain_crop", "grayscale"))]


def head(size: tuple[int, int]) -> Image.Image:
    """Draw a bright head with a dark rectangle in it, off the centre of a black image (height, width)."""
    height, width = size
    grey = np.zeros(size, np.uint8)
    grey[height // 8 : height // 8 * 6, width // 4 : width // 8 * 7] = 220
    grey[height // 4 : height // 2, width // 2 : width // 4 * 3] = 60
    return Image.fromarray(grey).convert("RGB")


def right_mask(processor, image: Image.Image) -> np.ndarray:
    """Return the dark pixels inside the crop."""
    (left, top, right, bottom), _ = processor.geometry(image)
    mask = np.zeros(image.size[::-1], np.uint8)
    mask[top:bottom, left:right] = np.asarray(image)[top:bottom, left:right, 0] < 128
    return mask


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.sum((one == 1) & (other == 1)) / max(1, np.sum(one == 1) + np.sum(other == 1))


@pytest.fixture(scope="module", params=GEOMETRIES, ids=str)
def segmenter(request):
    fit, steps = request.param
    return build_threshold_segmenter(fit=fit, steps=steps, image_size=96)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pipeline_predictor_and_handler_return_masks_at_the_size_of_the_image(segmenter, size):
    model, processor = segmenter
    image = head(size)
    expected = right_mask(processor, image)
    segment = pipeline("image-segmentation", model=model, image_processor=processor, device="cpu")
    parts = {row["label"]: np.asarray(row["mask"]) > 0 for row in segment(image)}
    batch = [image, head((70, 70))]
    assert [answer[0]["mask"].size[::-1] for answer in segment(batch, batch_size=2)] == [size, (70, 70)]
    prediction = Predictor(model, processor).predict(batch, explain="uncertainty")[0]
    assert prediction.mask.shape == prediction.map.shape == size
    assert np.array_equal(parts["lung"], prediction.mask == 1)
    assert dice(prediction.mask, expected) > 0.93
    handler = EndpointHandler.__new__(EndpointHandler)
    handler.model, handler.processor, handler.config = model, processor, model.config
    handler.labels = list(LABELS)
    with torch.no_grad():
        answer = handler.mask(model(**processor(image, return_tensors="pt")), image)
    assert np.array_equal(Image.open(io.BytesIO(base64.b64decode(answer["mask"]))), prediction.mask)


def test_learned_masks_lie_where_the_model_sees_the_image(segmenter, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MEDTL_CACHE", str(tmp_path / "cache"))
    model, processor = segmenter
    images = [head(size) for size in SIZES]
    paths, masks = save_with_masks(tmp_path, images, scales=(1, 2))
    prepared = prepare_images(
        paths,
        [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths],
        lambda batch: to_uint8(processor, batch),
        preprocessing_key(processor),
        masks,
        geometry=processor.geometry,
    )
    learned = torch.from_numpy(np.concatenate(as_arrays(prepared, "mask")).astype(np.int64))
    assert learned.shape[1:] == size_of(processor)
    for i, image in enumerate(images):
        left, top, right, bottom = processor.geometry(image)[1]
        margin = np.ones(learned[i].shape, bool)
        margin[top:bottom, left:right] = False
        assert np.array_equal(learned[i] == IGNORE_INDEX, margin)
    with torch.no_grad():
        logits = model(pixel_values=processor(images, return_tensors="pt")["pixel_values"]).logits
    counts, true = Segmentation().reduce_logits(logits, learned)
    hits, predicted = counts[:, 0, 0], counts[:, 0, 1]
    assert (2 * hits / (predicted + true[:, 0]) > 0.88).all()


def test_explanations_and_exports_ignore_margins_and_crop(segmenter, tmp_path):
    model, processor = segmenter
    image = head((200, 90))
    file = tmp_path / "image.png"
    image.save(file)
    same = compare_with_model(
        model, processor, lambda pixels: model(pixel_values=torch.from_numpy(pixels)).logits.detach().numpy(),
        ReferenceImages([file], []),
    )  # fmt: skip
    assert same["decisions_changed"] == same["largest_logit_difference"] == 0
    if processor.steps:
        return
    (whole,) = explain_masks(model, processor, [image], layer="segmentation_head")
    assert whole.classes["lung"].shape == (200, 90)
    assert whole.uncertainty.shape == (200, 90)


def test_margins_are_no_region_to_explain():
    from hf_medtl.explain.segmentation import _forget_margins

    region = torch.ones(6, 8, dtype=torch.long)
    _forget_margins(region, (4, 0, 12, 12), (12, 16))
    assert region[:, 2:6].eq(1).all()
    assert region.eq(-1).sum() == 24


def test_lungs_are_found_by_a_model_with_margins_or_a_crop(segmenter, monkeypatch):
    model, processor = segmenter
    lungs = Lungs.__new__(Lungs)
    lungs.model, lungs.processor, lungs.classes = model, processor, [1]
    grey = np.full((200, 90, 3), 220, np.uint8)
    grey[40:140, 20:60] = 30
    assert np.abs(np.subtract(lungs.box(grey), (20, 40, 60, 140))).max() <= 3


def test_smaller_logits_and_other_settings():
    processor = MedicalImageProcessor(size=64, fit="pad")
    logits = torch.zeros(2, 16, 16)  # a quarter, as SegFormer has it
    logits[1, :, 4:12] = 1  # the image; margins are left and right
    restored = processor.restore_logits(logits, (200, 100))
    assert restored.shape == (2, 200, 100)
    assert (restored.argmax(0)[:, 4:96] == 1).all()
    outputs = type("Outputs", (), {"logits": logits[None]})
    assert processor.post_process_semantic_segmentation(outputs)[0].shape == (16, 16)
    scores = processor.post_process_semantic_segmentation(outputs, return_segmentation_scores=True)[0]
    assert torch.equal(scores["segmentation_scores"].argmax(dim=0), scores["segmentation"])
    with pytest.raises(ValueError, match="size for each image"):
        processor.post_process_semantic_segmentation(outputs, [(3, 3), (4, 4)])
    processor.return_crop_boxes = True
    with pytest.raises(ValueError, match="crop_boxes"):
        processor.post_process_semantic_segmentation(outputs, [(3, 3)])


def test_stock_network_takes_margins_and_saved_settings_but_no_crop(tmp_path):
    name = str(save_segformer(tmp_path / "segformer"))
    model, processor = build_segmenter(name, LABELS, fit="pad", steps=["clahe"])
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    image = head((200, 90))
    segment = pipeline("image-segmentation", str(tmp_path / "saved"), device="cpu")
    assert (segment.image_processor.fit, segment.image_processor.steps) == ("pad", ["clahe"])
    predicted = Predictor.from_pretrained(tmp_path / "saved", device="cpu").predict(image)[0].mask
    parts = {row["label"]: np.asarray(row["mask"]) > 0 for row in segment(image)}
    assert predicted.shape == (200, 90)
    assert np.array_equal(parts.get("lung", np.zeros((200, 90), bool)), predicted == 1)
    with pytest.raises(MedtlError, match="brain_crop works with unet"):
        build_segmenter(name, LABELS, steps=["brain_crop"])


def test_crop_of_a_saved_network_is_undone(tmp_path):
    model, processor = build_segmenter(
        "unet", LABELS, encoder="tu-test_resnet", encoder_weights="none", image_size=64, model_args=TINY,
        steps=["brain_crop"],
    )  # fmt: skip
    torch.nn.init.zeros_(model.segmentation_head[0].weight)
    with torch.no_grad():
        model.segmentation_head[0].bias.copy_(torch.tensor([0.0, 1.0]))  # everything is of the structure
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = head((200, 120))
    left, top, right, bottom = processor.geometry(image)[0]
    expected = np.zeros((200, 120), bool)
    expected[top:bottom, left:right] = True
    segment = pipeline("image-segmentation", str(tmp_path), device="cpu")
    parts = {row["label"]: np.asarray(row["mask"]) > 0 for row in segment(image)}
    assert np.array_equal(parts["lung"], expected)
    assert not expected.all()
