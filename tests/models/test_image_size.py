"""Input size of classifiers: interpolated once, saved, and the same as the library's own interpolation."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    BeitForImageClassification,
    CLIPConfig,
    CLIPForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    LevitConfig,
    LevitForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    SwinConfig,
    Swinv2Config,
    Swinv2ForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from hf_medtl import MedtlError, Recipe
from hf_medtl.models.build import build_classifier
from hf_medtl.models.heads import find_head
from hf_medtl.models.image_size import set_image_size
from hf_medtl.models.preprocessing import preprocessing_key, to_uint8
from hf_medtl.models.strategies import head_names

LABELS = ("healthy", "ill")
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8))
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 20}
BOTH = {"vision_config": LAYERS | {"intermediate_size": 64}, "text_config": TEXT}
STAGES = {"patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "image_size": 32}


def save_other(family, folder):
    """Save a tiny checkpoint of a family whose position embeddings have another form than those of a ViT."""
    torch.manual_seed(0)
    beit = {"use_relative_position_bias": True, "use_absolute_position_embeddings": True, "intermediate_size": 64}
    model = {
        "beit": lambda: BeitForImageClassification(BeitConfig(**LAYERS, **beit)),
        "clip": lambda: CLIPForImageClassification(CLIPConfig(**BOTH)),
        "siglip": lambda: SiglipForImageClassification(SiglipConfig(**BOTH)),
        "registers": lambda: Dinov2WithRegistersForImageClassification(
            Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=2, **LAYERS)
        ),
        "swinv2": lambda: Swinv2ForImageClassification(Swinv2Config(**STAGES)),
        "levit": lambda: LevitForImageClassification(
            LevitConfig(
                image_size=64, hidden_sizes=[16] * 3, num_attention_heads=[2] * 3, depths=[1] * 3, key_dim=[8] * 3
            )
        ),
    }[family]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative_position_bias" in name:  # zero in a new model
                parameter.normal_()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """Return a function that makes a tiny checkpoint of a family and returns its folder."""

    def make(family):
        try:
            return str(tiny_checkpoint(family))
        except KeyError:
            return str(save_other(family, tmp_path / family))

    return make


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "swin", "beit", "clip", "siglip", "registers", "swinv2"])
def test_logits_equal_those_of_the_library_at_another_size(checkpoint, family):
    folder, pixels = checkpoint(family), torch.randn(2, 3, 48, 48, generator=torch.manual_seed(0))
    model, processor = build_classifier(folder, LABELS, image_size=48)
    original, _ = build_classifier(folder, LABELS)
    find_head(original).load_state_dict(find_head(model).state_dict())
    with torch.no_grad():
        actual = model.eval()(pixel_values=pixels).logits
        runtime = {} if family in ("dinov2", "registers") else {"interpolate_pos_encoding": True}
        expected = original.eval()(pixel_values=pixels, **runtime).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert (processor.size.height, processor.size.width) == (48, 48)


@pytest.mark.parametrize("family", ["vit", "swin", "clip", "convnext", "timm", "timm-vit", "cnn"])
def test_stock_classes_and_pipeline_take_the_saved_size(checkpoint, family, tmp_path):
    model, processor = build_classifier(checkpoint(family), LABELS, image_size=80)
    model.eval().save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    image = IMAGE
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 80, 80)
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits
        torch.testing.assert_close(again(pixel_values=pixels).logits, expected, rtol=0, atol=1e-5)
    answers = pipeline("image-classification", str(tmp_path / "saved"), device="cpu")(image, top_k=None)
    scores = {answer["label"]: answer["score"] for answer in answers}
    probabilities = expected.softmax(dim=1)[0].tolist()
    assert [scores[label] for label in LABELS] == pytest.approx(probabilities, abs=1e-4)
    rebuilt, its_processor = build_classifier(str(tmp_path / "saved"), LABELS)  # keeps the size without the option
    assert to_uint8(its_processor, [image]).shape == (1, 80, 80, 3)
    assert type(rebuilt) is type(model)


@pytest.mark.parametrize(
    ("family", "size", "sentence"),
    [
        ("vit", 50, r"whole patches of 8 × 8 pixels. The nearest is 48 or 56\."),
        ("vit", 3, r"The nearest is 8\."),
        ("clip", 50, r"The nearest is 48 or 56\."),
        ("timm-vit", 50, r"whole patches of 16 × 16 pixels. The nearest is 48 or 64\."),
        ("swin", 40, r"windows of 4 × 4 patches. The nearest is 32 or 48\."),
        ("levit", 96, r"weights for one image size only \(.*attention_biases\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_nearest(checkpoint, family, size, sentence):
    with pytest.raises(MedtlError, match=sentence) as error:
        build_classifier(checkpoint(family), LABELS, image_size=size)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [50, 33])
@pytest.mark.parametrize("family", ["convnext", "timm", "cnn"])
def test_convolutional_networks_take_any_size(checkpoint, family, size):
    model, processor = build_classifier(checkpoint(family), LABELS, image_size=size)
    pixels = processor(IMAGE, return_tensors="pt")["pixel_values"]
    assert pixels.shape[2:] == (size, size)
    original, _ = build_classifier(checkpoint(family), LABELS)
    weights, head = model.state_dict(), head_names(model)
    assert all(torch.equal(x, weights[name]) for name, x in original.state_dict().items() if name not in head)


@pytest.mark.parametrize(
    ("window", "size", "fits"), [(16, 256, True), (16, 512, True), (16, 384, False), (8, 320, False)]
)
def test_windows_of_swin_v2_shrink_with_its_last_stages(window, size, fits):
    config = Swinv2Config(image_size=64, patch_size=4, depths=[1] * 4, window_size=window)
    if not fits:
        with pytest.raises(MedtlError, match="windows"):
            set_image_size(config, size)
        return
    set_image_size(config, size)
    assert config.image_size == size


def test_smaller_windows_of_swin_are_refused():
    with pytest.raises(MedtlError, match=r"The nearest is 224\."):
        set_image_size(SwinConfig(image_size=224, window_size=7), 112)


def test_size_is_part_of_the_cache_key_and_the_recipe(checkpoint):
    folder = checkpoint("timm")
    keys = {preprocessing_key(build_classifier(folder, LABELS, image_size=size)[1]) for size in (None, 32, 48)}
    assert len(keys) == 3
    recipe = Recipe(dataset="brain-tumor-mri", image_size=48, use_cpu=True)
    assert "image_size: 48" in recipe.to_yaml()
    with pytest.raises(MedtlError, match="--image_size must be 1 to 8192 pixels"):
        Recipe(dataset="brain-tumor-mri", image_size=9000, use_cpu=True)
