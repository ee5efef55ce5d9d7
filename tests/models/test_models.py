"""One preprocessing everywhere and plain artifacts, for each model family."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

from hf_medtl import MedtlError, read_image
from hf_medtl.models.build import build_classifier
from hf_medtl.models.heads import find_head, fold_temperature
from hf_medtl.models.preprocessing import to_uint8
from tests.support.model_families import FAMILIES, LABELS
from tests.support.processors import train_logits, train_pixels

# User code with stock transformers, in a process where hf_medtl can't be imported.


@pytest.fixture(params=FAMILIES)
def saved(request, tiny_checkpoint, tmp_path):
    """Return model, processor and the folder that they were saved to."""
    torch.manual_seed(1)
    model, processor = build_classifier(str(tiny_checkpoint(request.param)), LABELS)
    torch.nn.init.normal_(find_head(model).weight)  # so that different images give different logits
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return model.eval(), processor, tmp_path


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory):
    """Write grey, palette, RGBA and 16-bit images, with indivisible sizes."""
    folder, rng = tmp_path_factory.mktemp("odd"), np.random.default_rng(0)
    colour = rng.integers(0, 256, (101, 67, 3), dtype=np.uint8)
    images = {
        "grey.png": Image.fromarray(colour[..., 0]),
        "palette.png": Image.fromarray(colour).convert("P"),
        "rgba.png": Image.fromarray(np.dstack([colour, colour[..., 1]])),
        "deep.png": Image.fromarray(rng.integers(0, 4096, (40, 90)).astype(np.uint16)),
        "thin.jpg": Image.fromarray(colour[:3]),
        "square.jpg": Image.fromarray(colour[:64, :64]),
        "one.png": Image.fromarray(colour[:1, :1]),
    }
    for name, image in images.items():
        image.save(folder / name)
    return [folder / name for name in images]


def test_loaded_model_gives_equal_logits(saved):
    model, processor, folder = saved
    pixels = torch.randn(2, 3, 32, 32) if not hasattr(processor, "data_config") else torch.randn(2, 3, 64, 64)
    loaded = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert torch.equal(loaded(pixel_values=pixels).logits, model(pixel_values=pixels).logits)
    assert loaded.config.id2label == dict(enumerate(LABELS))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_pipeline_equals_training_path(saved, odd_files):
    model, processor, folder = saved
    stock = pipeline("image-classification", model=str(folder), device="cpu")
    for path in odd_files:
        logits = train_logits(model, processor, path)
        source = read_image(path) if path.name == "deep.png" else str(path)  # stock loading turns 16 bits white
        scores = {row["label"]: row["score"] for row in stock(source, top_k=None, function_to_apply="none")}
        assert max(abs(scores[name] - logits[i]) for i, name in enumerate(LABELS)) < 1e-4, path.name


def test_processor_crops_nothing(saved):
    """TRAP: stock timm evaluation cuts off the margins (crop_pct 0.875, centre crop)."""
    _, processor, folder = saved
    for used in (processor, AutoImageProcessor.from_pretrained(folder)):
        image = np.zeros((120, 300, 3), np.uint8)
        plain = used([Image.fromarray(image)], return_tensors="pt")["pixel_values"]
        for margin in (np.s_[:6], np.s_[-6:], np.s_[:, :15], np.s_[:, -15:]):
            marked = image.copy()
            marked[margin] = 255
            changed = used([Image.fromarray(marked)], return_tensors="pt")["pixel_values"] - plain
            assert changed.abs().max() > 1


def test_temperature_is_folded_into_head(saved):
    model, processor, folder = saved
    size = 64 if hasattr(processor, "data_config") else 32
    pixels = torch.randn(2, 3, size, size)
    before = model(pixel_values=pixels).logits
    fold_temperature(model, 2.5)
    model.save_pretrained(folder)
    after = AutoModelForImageClassification.from_pretrained(folder).eval()(pixel_values=pixels).logits
    assert torch.allclose(after, before / 2.5, atol=1e-6)


def test_attention_maps_require_eager_attention(tiny_checkpoint):
    """TRAP: with SDPA, output_attentions=True silently returns nothing."""
    model, _ = build_classifier(str(tiny_checkpoint("vit")), LABELS)
    pixels = torch.randn(1, 3, 32, 32)
    logits = model.eval()(pixel_values=pixels).logits
    model.set_attn_implementation("eager")
    out = model(pixel_values=pixels, output_attentions=True)
    assert [a.shape for a in out.attentions] == [(1, 2, 17, 17)] * 2
    assert torch.allclose(out.logits, logits, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_labels_keep_body_and_reset_head(family, tiny_checkpoint):
    torch.manual_seed(0)
    model, _ = build_classifier(str(tiny_checkpoint(family)), LABELS)
    original = AutoModelForImageClassification.from_pretrained(tiny_checkpoint(family))
    own_labels = tuple(original.config.id2label.values())
    head = {id(p) for p in find_head(model).parameters()}
    originals = dict(original.named_parameters())
    for name, parameter in model.named_parameters():
        if id(parameter) not in head:
            assert torch.equal(parameter, originals[name]), name
    # The same number of labels with other names: the old head must not be reused.
    model, _ = build_classifier(str(tiny_checkpoint(family)), ("x", "y", "z")[: len(own_labels)])
    assert not torch.equal(find_head(model).weight, find_head(original).weight)
    if family == "rad-dino":  # has no head to keep
        return
    model, _ = build_classifier(str(tiny_checkpoint(family)), own_labels)
    assert torch.equal(find_head(model).weight, find_head(original).weight)


def test_from_scratch_ignores_weights(tiny_checkpoint):
    torch.manual_seed(5)
    model, _ = build_classifier(str(tiny_checkpoint("vit")), LABELS, from_scratch=True)
    original = AutoModelForImageClassification.from_pretrained(tiny_checkpoint("vit"))
    assert not torch.equal(model.vit.embeddings.cls_token, original.vit.embeddings.cls_token)


def test_incomplete_checkpoint_raises(tiny_checkpoint, tmp_path):
    AutoConfig.from_pretrained(tiny_checkpoint("vit")).save_pretrained(tmp_path)
    weights = load_file(tiny_checkpoint("vit") / "model.safetensors")
    incomplete = {name: t for name, t in weights.items() if "layer.1." not in name}
    assert len(incomplete) < len(weights)
    save_file(incomplete, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MedtlError, match="would be initialised randomly"):
        build_classifier(str(tmp_path), LABELS)


def test_checkpoint_without_head_gets_new_head(tiny_checkpoint, tmp_path, caplog):
    AutoConfig.from_pretrained(tiny_checkpoint("vit")).save_pretrained(tmp_path)
    shutil.copy(tiny_checkpoint("vit") / "preprocessor_config.json", tmp_path)
    weights = load_file(tiny_checkpoint("vit") / "model.safetensors")
    without_head = {name: t for name, t in weights.items() if "classifier" not in name}
    save_file(without_head, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level("INFO", "hf_medtl"):
        build_classifier(str(tmp_path), ("cat", "dog", "cow"))  # its own labels
    assert "New head" in caplog.text


def test_unknown_backbone_raises(tmp_path, tiny_checkpoint, hub):
    with pytest.raises(MedtlError, match="Check the spelling"):
        build_classifier("nobody/absent", LABELS)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MedtlError, match="Check the spelling"):
        build_classifier(str(tmp_path), LABELS)


def test_processor_beyond_resizing_raises(tiny_checkpoint):
    _, processor = build_classifier(str(tiny_checkpoint("vit")), LABELS)
    processor.rescale_factor = 1 / 127.5  # normalisation() follows it, so this one is fine
    assert to_uint8(processor, [Image.new("RGB", (9, 9), (7, 8, 9))])[0, 0, 0].tolist() == [7, 8, 9]

    class Odd(type(processor)):
        def __call__(self, *args, **kwargs):
            out = super().__call__(*args, **kwargs)
            out["pixel_values"] = out["pixel_values"] * 0.77
            return out

    odd = Odd(**{k: v for k, v in processor.to_dict().items() if k != "image_processor_type"})
    with pytest.raises(MedtlError, match="does more than resize"):
        to_uint8(odd, [Image.new("RGB", (9, 9), (7, 8, 9))])


@pytest.mark.real
@pytest.mark.parametrize("name", ["vit-small-patch14-224", "resnet50-in1k", "tf_efficientnet_lite0-in1k"])
def test_real_backbones_and_images(name, shared, real_brain, tmp_path):
    model, processor = build_classifier(str(shared / "weights" / name), LABELS)
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    paths = sorted((real_brain / "no").iterdir())[:8]
    with torch.no_grad():
        logits = model(pixel_values=train_pixels(processor, [read_image(path) for path in paths])).logits
    stock = pipeline("image-classification", model=str(tmp_path), device="cpu")
    for path, row in zip(paths, logits, strict=True):
        scores = {r["label"]: r["score"] for r in stock(str(path), top_k=None, function_to_apply="none")}
        assert max(abs(scores[label] - row[i].item()) for i, label in enumerate(LABELS)) < 1e-4


def test_own_network_of_the_demo_has_its_own_preprocessing_and_typos_get_a_suggestion(monkeypatch):
    model, processor = build_classifier("vit_tiny", ("a", "b"))
    assert (model.config.model_type, model.config.image_size, model.num_labels) == ("vit", 64, 2)
    assert processor.size == {"height": 64, "width": 64}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MedtlError, match="Did you mean 'cnn_baseline'"):
        build_classifier("cnn_basline", ("a", "b"))
