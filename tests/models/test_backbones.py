"""Classification backbones: building, training, saving, and loading without hf_medtl."""

import json
import socket
import sys

import pandas as pd
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, DeiTConfig, DeiTForImageClassificationWithTeacher

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.models.build import build_classifier
from hf_medtl.models.cnn import PRESETS, MedicalCnnConfig, MedicalCnnForImageClassification
from hf_medtl.models.heads import find_head
from hf_medtl.models.preprocessing import normalisation
from hf_medtl.publish.hub import UPLOAD_PATTERNS, push
from tests.support.commands import ROOT, WAIVED, options, run_command
from tests.support.model_families import FAMILIES, LABELS, LOADING_SCRIPT

IMAGENET, HALF = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

CLASSIFY = """
import json, sys
sys.modules["hf_medtl"] = None  # as if it were not installed
from transformers import pipeline

classify = pipeline("image-classification", sys.argv[1], trust_remote_code=True, device="cpu")
outputs = classify(sys.argv[2:], top_k=None)
print(json.dumps([next(row["score"] for row in rows if row["label"] == "lesion") for rows in outputs]))
"""


@pytest.mark.slow
def test_fresh_process_reproduces_logits(stock_pool, tiny_checkpoint, tmp_path):
    torch.manual_seed(0)
    pixels, expected = torch.randn(2, 3, 64, 64), {}
    torch.save(pixels, tmp_path / "pixels.pt")
    for family in FAMILIES:
        model, processor = build_classifier(str(tiny_checkpoint(family)), LABELS, head_dropout=0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        size = 64 if family.startswith("timm") else 32
        loss = model.train()(pixel_values=pixels[..., :size, :size], labels=torch.tensor([0, 1])).loss
        loss.backward()
        assert all(p.grad is not None for n, p in model.named_parameters() if "mask_token" not in n), family
        optimizer.step()
        folder = tmp_path / family
        model.eval().save_pretrained(folder)
        processor.save_pretrained(folder)
        expected[str(folder)] = model(pixel_values=pixels[..., :size, :size]).logits
    process = stock_pool.run_code(LOADING_SCRIPT, tmp_path / "pixels.pt", *expected)
    assert process.returncode == 0, process.stderr
    for folder, logits in json.loads(process.stdout.splitlines()[-1]).items():
        assert (torch.tensor(logits) - expected[folder]).abs().max() < 1e-4, folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "statistics"),
    [
        ("resnet50.a1_in1k", 224, IMAGENET),
        ("densenet121", 224, IMAGENET),
        ("efficientnet_b0", 224, IMAGENET),
        ("vgg16.tv_in1k", 224, IMAGENET),
        ("inception_resnet_v2", 299, HALF),
        ("vit_tiny_r_s16_p8_224", 224, HALF),
        ("mobilenetv3_large_100", 224, IMAGENET),
    ],
)
def test_timm_from_scratch_needs_no_network(name, size, statistics, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("looked for a network"))
    with torch.device("meta"):  # shapes without memory: a VGG16 has 134 million parameters
        model, processor = build_classifier(f"timm/{name}", ("a", "b", "c", "d"), from_scratch=True, head_dropout=0.5)
        assert model(pixel_values=torch.empty(2, 3, size, size)).logits.shape == (2, 4)
    assert find_head(model).out_features == 4
    data = processor.data_config
    assert (data["input_size"], data["crop_pct"], data["crop_mode"]) == ((3, size, size), 1.0, "squash")
    for actual, expected in zip(normalisation(processor), statistics, strict=True):
        assert torch.allclose(actual.flatten() / 255, torch.tensor(expected))


def test_timm_from_scratch_uses_timm_initialisation():
    """TRAP: transformers initialises each layer with a deviation of 0.02; in a deep network the signal vanishes."""
    model, _ = build_classifier("timm/test_resnet", LABELS, from_scratch=True)
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    fan_out = stem.out_channels * 9
    assert stem.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)


def test_timm_name_without_tag_lists_available_weights(hub):
    with pytest.raises(MedtlError, match=r"Weights of this architecture: timm/vgg16\.tv_in1k\."):
        build_classifier("timm/vgg16", LABELS)


def test_unknown_timm_name_raises():
    with pytest.raises(MedtlError, match="timm/vgg16"):
        build_classifier("timm/vgg61", LABELS, from_scratch=True)
    with pytest.raises(MedtlError, match="Invalid pretrained tag"):
        build_classifier("timm/vgg16.nonsense", LABELS, from_scratch=True)


def test_distillation_heads_become_one_or_raise(tiny_checkpoint, tmp_path):
    config = DeiTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32)
    taught = DeiTForImageClassificationWithTeacher(config)
    taught.save_pretrained(tmp_path)
    for file in tiny_checkpoint("deit").glob("preprocessor_config.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model, _ = build_classifier(str(tmp_path), LABELS)
    assert type(model).__name__ == "DeiTForImageClassification"
    for name, tensor in taught.deit.state_dict().items():
        assert torch.equal(model.deit.state_dict()[name], tensor), name
    with torch.device("meta"), pytest.raises(MedtlError, match="second head"):
        build_classifier("timm/deit_tiny_distilled_patch16_224", LABELS, from_scratch=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_head_dropout_is_active_in_training_only(family, tiny_checkpoint):
    inputs_of_head: list[torch.Tensor] = []
    model, _ = build_classifier(str(tiny_checkpoint(family)), LABELS, head_dropout=0.75)
    find_head(model).register_forward_pre_hook(lambda _, inputs: inputs_of_head.append(inputs[0]))
    size = 64 if family.startswith("timm") else 32
    for training in (True, False):
        model.train(training)(pixel_values=torch.randn(8, 3, size, size))
    zeros = [(x == 0).float().mean().item() for x in inputs_of_head]
    assert zeros[0] > max(0.6, zeros[1] + 0.1)  # a ReLU also gives zeros
    assert zeros[1] < 0.6
    with pytest.raises(MedtlError, match="dropout rate"):
        build_classifier(str(tiny_checkpoint(family)), LABELS, head_dropout=1.0)


def test_cnn_presets_shapes_and_parameters():
    sizes = {}
    for name in PRESETS:
        model, processor = build_classifier(name, LABELS)
        sizes[name] = model.num_parameters()
        assert (processor.size.height, *processor.image_mean, *processor.image_std) == (128, *[0.5] * 6)
        for side in (1, 33, 128):  # any size
            assert model.eval()(pixel_values=torch.randn(2, 3, side, side + 3)).logits.shape == (2, 2)
    assert sizes == {"cnn": 471_634, "cnn_baseline": 19_522}
    assert "cnn.py" in UPLOAD_PATTERNS


def test_cnn_keeps_weights_and_loss_after_loading(tmp_path):
    """TRAP: a custom _init_weights that uses torch.nn.init reinitialises loaded weights."""
    torch.manual_seed(0)
    model = MedicalCnnForImageClassification(MedicalCnnConfig(widths=(4, 8), num_labels=3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_()
    pixels, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    model(pixel_values=pixels)  # updates the statistics of batch norm
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    out = loaded.eval()(pixel_values=pixels, labels=labels)
    assert out.loss == nn.functional.cross_entropy(out.logits, labels)
    half = loaded(pixel_values=pixels, labels=labels, num_items_in_batch=8).loss  # as one of two batches in a step
    assert half.item() == pytest.approx(out.loss.item() / 2)
    loss, logits = loaded(pixel_values=pixels, labels=labels, return_dict=False)
    assert torch.equal(logits, out.logits)
    assert loss == out.loss


@pytest.mark.slow
def test_cnn_learns_a_bright_square():
    torch.manual_seed(0)
    pixels, labels = torch.randn(8, 3, 16, 16), torch.tensor([0, 1] * 4)
    pixels[labels == 1, :, 4:8, 4:8] += 2
    for preset in PRESETS.values():
        model = MedicalCnnForImageClassification(MedicalCnnConfig(**preset, num_labels=2)).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(40):
            optimizer.zero_grad()
            loss = model(pixel_values=pixels, labels=labels).loss
            loss.backward()
            optimizer.step()
        assert loss < 0.2


@pytest.mark.slow
def test_cnn_run_loads_with_its_own_code(hub, stock_pool, phantoms, tmp_path):
    values = options(phantoms, "cnn_baseline", tmp_path / "run", num_train_epochs=1, head_dropout=0.5)
    folder = run(Recipe(**values))
    assert isinstance(AutoModelForImageClassification.from_pretrained(folder), MedicalCnnForImageClassification)
    text = (folder / "README.md").read_text()
    assert "trust_remote_code=True" in text
    assert "(cnn.py)" in text
    assert "trained from random weights" in text
    assert "head_dropout: 0.5" in (folder / "recipe.yaml").read_text()
    code = (folder / "cnn.py").read_text()
    assert "import hf_medtl" not in code
    assert "from hf_medtl" not in code
    push(folder, "ci-user/small-cnn", waive=WAIVED)
    rows = pd.read_csv(folder / "predictions.csv")
    paths = pd.read_csv(folder / "splits.csv").set_index("image_id")["path"]
    files = [phantoms / paths[name] for name in rows["image_id"]]
    for source in (folder, "ci-user/small-cnn"):
        process = stock_pool.run_code(CLASSIFY, source, *files)
        assert process.returncode == 0, process.stderr
        actual = json.loads(process.stdout.splitlines()[-1])
        assert actual == pytest.approx(rows["p_lesion"].tolist(), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "order",
    [
        "import hf_medtl; from transformers import PreTrainedModel",
        "from transformers import Trainer; import hf_medtl",
    ],
)
def test_auto_classes_load_cnn_in_any_import_order(order, stock_pool, tiny_checkpoint):
    code = f"""import sys; sys.path.insert(0, {str(ROOT)!r})
{order}
from transformers import AutoConfig, AutoModelForImageClassification
assert type(AutoConfig.from_pretrained({str(tiny_checkpoint("cnn"))!r})).__module__ == "hf_medtl.models.cnn"
print(type(AutoModelForImageClassification.from_pretrained({str(tiny_checkpoint("cnn"))!r})).__module__)"""
    # Processes of the pool have imported transformers.
    process = run_command(sys.executable, "-c", code) if order.startswith("import hf") else stock_pool.run_code(code)
    assert process.stdout.strip() == "hf_medtl.models.cnn", process.stderr


def test_rejects_head_dropout_above_1():
    with pytest.raises(MedtlError, match="--head_dropout"):
        Recipe(head_dropout=1.5, use_cpu=True)
