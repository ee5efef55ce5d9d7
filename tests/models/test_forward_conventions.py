"""Forward arguments, precision and attention of the own model classes, as stock classes of transformers have them."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, ResNetConfig, ViTConfig, ViTImageProcessor, pipeline

from hf_medtl.models.cnn import MedicalCnnConfig, MedicalCnnForImageClassification
from hf_medtl.models.ensemble import EnsembleConfig, EnsembleForImageClassification
from tests.support.tiny_models import build_tiny

PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8}


def make_ensemble(*configs) -> EnsembleForImageClassification:
    for config in configs:
        config.dtype = torch.float32  # as in the configuration of every saved run
    members = [
        {"config": c.to_dict(), "name": str(i), "mean": [0.5] * 3, "std": [0.5] * 3} for i, c in enumerate(configs)
    ]
    return EnsembleForImageClassification(EnsembleConfig(members=members, num_labels=2))


def make(kind: str):
    torch.manual_seed(0)
    if kind == "cnn":
        return MedicalCnnForImageClassification(MedicalCnnConfig(widths=[8, 16])).eval()
    if kind == "unet":
        return build_tiny()[0]
    if kind == "unet-mit":  # whose second stage is empty
        return build_tiny("mit_b0")[0]
    return make_ensemble(ViTConfig(image_size=32, num_labels=2, **VIT), MedicalCnnConfig(widths=[8, 16])).eval()


@pytest.mark.parametrize(("kind", "stages"), [("cnn", 2), ("unet", 5), ("unet-mit", 4), ("ensemble", 4)])
def test_outputs_follow_arguments_and_configuration(kind, stages):
    model = make(kind)
    labels = torch.zeros(2, 32, 32).long() if kind.startswith("unet") else torch.tensor([0, 1])
    with torch.no_grad():
        plain = model(pixel_values=PIXELS, labels=labels)
        more = model(pixel_values=PIXELS, labels=labels, output_hidden_states=True)
        assert plain.hidden_states is None
        assert len(more.hidden_states) == stages
        assert all(x.shape[0] == 2 and x.numel() for x in more.hidden_states)
        assert torch.equal(more.logits, plain.logits)
        as_tuple = model(pixel_values=PIXELS, labels=labels, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert [x.shape for x in as_tuple] == [plain.loss.shape, plain.logits.shape]
        model.config.return_dict = False
        assert isinstance(model(pixel_values=PIXELS), tuple)
        assert model(pixel_values=PIXELS, return_dict=True).logits.shape == plain.logits.shape
        model.config.output_hidden_states = True
        loss, logits, states = model(pixel_values=PIXELS, labels=labels)
        assert torch.equal(loss, plain.loss) and torch.equal(logits, plain.logits) and len(states) == stages
        assert len(model(pixel_values=PIXELS, output_hidden_states=False)) == 1
        ignored = {"output_attentions": False, "interpolate_pos_encoding": False, "num_items_in_batch": None}
        assert torch.equal(model(pixel_values=PIXELS, return_dict=True, **ignored).logits, plain.logits)


def test_hidden_states_are_those_of_the_blocks():
    model = make("cnn")
    with torch.no_grad():
        first, last = model(pixel_values=PIXELS, output_hidden_states=True).hidden_states
        assert torch.equal(first, model.blocks[0](PIXELS))
        assert torch.equal(last, model.blocks(PIXELS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ensemble_is_loaded_in_one_precision(dtype, tmp_path):
    model = make("ensemble")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in loaded.parameters()} == {loaded.dtype} == {loaded.config.dtype} == {dtype}
    with torch.no_grad():
        expected = model(pixel_values=PIXELS).logits.softmax(-1)
        found = loaded(pixel_values=PIXELS.to(dtype)).logits.softmax(-1)
    assert torch.allclose(found, expected, atol=0.02)
    loaded.save_pretrained(tmp_path / "half")
    automatic = AutoModelForImageClassification.from_pretrained(tmp_path / "half", dtype="auto")
    assert {p.dtype for p in automatic.parameters()} == {dtype}
    single = AutoModelForImageClassification.from_pretrained(tmp_path / "half", dtype=torch.float32)
    assert {p.dtype for p in single.parameters()} == {torch.float32}


def test_ensemble_hands_attention_on_to_its_members(tmp_path):
    make("ensemble").save_pretrained(tmp_path)
    for implementation in ("eager", "sdpa"):
        model = AutoModelForImageClassification.from_pretrained(tmp_path, attn_implementation=implementation)
        assert model.config._attn_implementation == implementation
        assert model.members[0].config._attn_implementation == implementation
    default = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert default.members[0].config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert torch.allclose(model(PIXELS).logits, default(PIXELS).logits, atol=1e-5)
    mixed = make_ensemble(
        ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=2), MedicalCnnConfig()
    )
    assert mixed(PIXELS).logits.shape == (2, 2)


def test_pipeline_of_a_half_precision_ensemble(tmp_path):
    make("ensemble").save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    rows = pipeline("image-classification", str(tmp_path), dtype=torch.bfloat16, device="cpu")(
        Image.new("RGB", (40, 40))
    )
    assert sum(row["score"] for row in rows) == pytest.approx(1, abs=1e-2)


def test_ensemble_refuses_another_number_of_labels(tmp_path):
    make("ensemble").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected 3 labels, .* members have \[2\]"):
        AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
