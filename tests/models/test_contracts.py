"""Contracts of every family of encoders: saved, frozen, merged, resumed, explained and exported alike."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, TimmWrapperConfig, TimmWrapperForImageClassification, pipeline

from hf_medtl.explain.maps import explain
from hf_medtl.export.onnx import load_onnx, write_onnx
from hf_medtl.models.build import build_classifier
from hf_medtl.models.heads import find_head
from hf_medtl.models.strategies import add_lora, head_names, remove_lora, set_trainable
from tests.support.resumed_training import same_weights, train_and_resume

LABELS = ("healthy", "ill")
ATTENTION = ["dinov3_vit", "siglip_vision_model", "clip_vision_model", "aimv2_vision_model", "vit_mae", "ijepa"]
FAMILIES = [*ATTENTION, "dinov3_convnext", "mlcd_vision_model", "pixio", "timm-grey", "dinov3_vit@24", "vit_mae@24",
            "clip_vision_model@24", "timm-vit@80"]  # fmt: skip
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8))


@pytest.fixture(scope="module")
def built(tiny_checkpoint, tmp_path_factory):
    """Return a function that builds a classifier once, and returns a copy and its processor; @ gives the size."""
    made = {}

    def build(family):
        if family not in made:
            name, _, size = family.partition("@")
            folder = save_grey(tmp_path_factory.mktemp("grey")) if name == "timm-grey" else tiny_checkpoint(name)
            torch.manual_seed(0)
            model, processor = build_classifier(str(folder), LABELS, image_size=int(size) if size else None)
            torch.nn.init.normal_(find_head(model).weight)  # logits that differ between images
            made[family] = model.eval(), processor
        model, processor = made[family]
        return copy.deepcopy(model), processor

    return build


def save_grey(folder):
    """Save a network of timm for images of one channel, whose stem is folded into three when it is built."""
    cfg = {"input_size": [1, 64, 64], "mean": [0.5], "std": [0.25], "interpolation": "bicubic", "classifier": "fc"}
    config = TimmWrapperConfig(architecture="test_resnet", pretrained_cfg=cfg, model_args={"in_chans": 1})
    TimmWrapperForImageClassification(config).save_pretrained(folder)
    return folder


def to_pixels(processor):
    return processor(IMAGE, return_tensors="pt")["pixel_values"]


def train_step(model, pixels):
    """Move the weights that are trained by one step of gradient descent."""
    model.train()
    model(pixel_values=pixels.repeat(2, 1, 1, 1), labels=torch.tensor([0, 1])).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.grad is not None], lr=0.5).step()
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_model_answers_the_same_from_stock_classes_and_pipeline(built, family, tmp_path):
    model, processor = built(family)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pixels = to_pixels(processor)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits
        torch.testing.assert_close(again(pixel_values=pixels).logits, expected, rtol=0, atol=1e-6)
    answers = pipeline("image-classification", str(tmp_path), device="cpu")(IMAGE, top_k=None)
    scores = {answer["label"]: answer["score"] for answer in answers}
    assert [scores[label] for label in LABELS] == pytest.approx(expected.softmax(dim=1)[0].tolist(), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_body_stays_as_it_is(built, family):
    model, processor = built(family)
    before = {name: x.clone() for name, x in model.named_parameters()}
    set_trainable(model, 0, None)
    train_step(model, to_pixels(processor))
    changed = {name for name, x in model.named_parameters() if not torch.equal(x, before[name])}
    assert changed == head_names(model)


@pytest.mark.parametrize("family", ATTENTION)
def test_merged_adapters_give_a_plain_model_with_the_same_logits(built, family):
    model, processor = built(family)
    pixels, names = to_pixels(processor), set(model.state_dict())
    before = model(pixel_values=pixels).logits
    adapted = add_lora(model, 2, 4)
    for _ in range(2):  # the first step moves one factor away from zero, the second the other
        train_step(adapted, pixels)
    expected = adapted(pixel_values=pixels).logits
    assert not torch.allclose(expected, before)
    merged = remove_lora(adapted, merge=True)
    torch.testing.assert_close(merged(pixel_values=pixels).logits, expected, rtol=1e-4, atol=1e-4)
    assert set(merged.state_dict()) == names


@pytest.mark.parametrize("family", FAMILIES)
def test_explanation_covers_the_image(built, family):
    model, processor = built(family)
    explanation = explain(model, processor, [IMAGE], classes=1)[0]
    assert explanation.map.shape == (50, 60)
    assert explanation.label == "ill"
    assert np.isfinite(explanation.map).all()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dinov3_vit", "siglip_vision_model"])
def test_export_gives_the_same_logits(built, family, tmp_path):
    model, processor = built(family)
    pixels = to_pixels(processor)
    write_onnx(model, *pixels.shape[-2:], tmp_path / "model.onnx")
    logits = load_onnx(tmp_path / "model.onnx")(pixels.repeat(3, 1, 1, 1).numpy())
    expected = model(pixel_values=pixels.repeat(3, 1, 1, 1)).logits.detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_resumed_training_gives_the_same_weights(make_trainer):
    assert same_weights(*train_and_resume(make_trainer, "dinov3_vit", step=3))
