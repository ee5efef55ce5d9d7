"""Segmentation networks: pretrained encoders, exact saving and loading, and loading with stock code."""

import copy
import importlib.metadata
import json
import socket

import numpy as np
import pytest
import torch
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    pipeline,
)

from hf_medtl import MedtlError
from hf_medtl.models.encoders import read_encoder
from hf_medtl.models.preprocessing import describe_processor, normalisation, to_uint8
from hf_medtl.models.segmenter import build_segmenter
from hf_medtl.models.smp import ARCHITECTURES, SmpConfig, SmpForSemanticSegmentation, build_network
from hf_medtl.publish.hub import UPLOAD_PATTERNS
from tests.support.commands import ROOT
from tests.support.tiny_models import LABELS, TINY, build_tiny

ENCODERS = ("tu-test_resnet", "mit_b0")
HAS_MAXVIT = pytest.mark.skipif(
    Version(importlib.metadata.version("timm")) < Version("1.0.31"), reason="this timm has no test_maxvit"
)

# User code with stock transformers, in a process where hf_medtl can't be imported.
USER_CODE = """
import json, sys
sys.modules["hf_medtl"] = None
import torch
from transformers import AutoModelForSemanticSegmentation, pipeline

pixels, outputs = torch.load(sys.argv[1]), {}
for folder in sys.argv[3:]:
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).eval()
    segment = pipeline("image-segmentation", folder, trust_remote_code=True, device="cpu")
    masks = {row["label"]: list(row["mask"].tobytes()) for row in segment(sys.argv[2])}
    outputs[folder] = [model(pixel_values=pixels).logits.tolist(), masks]
print(json.dumps(outputs))
"""


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("looked for a network"))


@pytest.fixture(params=ENCODERS)
def saved(request, tmp_path):
    """Return model, processor and the folder that they were saved to."""
    model, processor = build_tiny(request.param)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return model, processor, tmp_path


def test_loading_is_exact_and_needs_no_network(saved, no_network):
    """TRAP: with encoder weights in the configuration, SMP downloads the encoder whenever the model is loaded."""
    model, _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    assert config["encoder_weights"] is None
    loaded = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    assert type(loaded) is SmpForSemanticSegmentation
    assert loaded.config.id2label == dict(enumerate(LABELS))
    loaded_weights = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded_weights[name], tensor), name
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    pixels = torch.randn(2, 3, 50, 37)
    logits = model(pixel_values=pixels).logits
    # With unaligned, memory-mapped weights kernels sum in another order; copied weights are aligned.
    assert torch.equal(copy.deepcopy(loaded)(pixel_values=pixels).logits, logits)
    assert torch.allclose(loaded(pixel_values=pixels).logits, logits, atol=1e-5)


def test_config_rejects_encoder_weights():
    with pytest.raises(ValueError, match="encoder_weights must be None"):
        SmpConfig(encoder_weights="imagenet")
    with pytest.raises(ValueError, match="architecture must be one of"):
        SmpConfig(architecture="unett")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_new_network_uses_smp_initialisation(encoder):
    """TRAP: transformers initialises every layer with a deviation of 0.02, even those of a pretrained encoder."""
    config = SmpConfig(encoder_name=encoder, model_args=TINY, num_labels=2)
    torch.manual_seed(0)
    network = build_network(config).state_dict()
    torch.manual_seed(0)
    model = SmpForSemanticSegmentation(config)
    assert {*model.state_dict()} == {*network}  # so SMP itself can load the file
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, network[name]), name


@pytest.mark.parametrize("size", [(50, 37), (64, 96), (1, 1), (33, 256)])
def test_logits_have_image_size(size):
    model, _ = build_tiny()
    pixels = torch.randn(2, 3, *size)
    logits = model(pixel_values=pixels).logits
    assert logits.shape == (2, 2, *size)
    if size == (64, 96):  # no padding: equal to SMP's own computation
        assert torch.equal(logits, model.segmentation_head(model.decoder(model.encoder(pixels))))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_save_and_load(architecture, tmp_path, no_network):
    torch.manual_seed(0)
    options = {"encoder": "tu-test_resnet", "encoder_weights": "none", "image_size": 64}
    model, _ = build_segmenter(architecture, ("background", "left", "right"), **options)
    pixels = torch.randn(2, 3, 50, 37)
    loss = model.train()(pixel_values=pixels, labels=torch.randint(0, 3, (2, 50, 37))).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    logits = model.eval()(pixel_values=pixels).logits
    assert logits.shape == (2, 3, 50, 37)
    model.save_pretrained(tmp_path)
    loaded = copy.deepcopy(AutoModelForSemanticSegmentation.from_pretrained(tmp_path)).eval()
    assert torch.equal(loaded(pixel_values=pixels).logits, logits)


@HAS_MAXVIT
@pytest.mark.slow
def test_unsaved_buffers_are_initialised_after_loading(tmp_path):
    """TRAP: unsaved buffers, such as relative positions, are undefined after from_pretrained."""
    model, _ = build_tiny("tu-test_maxvit", model_args={**TINY, "img_size": 64})
    assert [*model.named_non_persistent_buffers()]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    loaded_buffers = dict(loaded.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(loaded_buffers[name], buffer), name


def test_loss_ignores_unlabelled_pixels():
    model, _ = build_tiny()
    pixels, labels = torch.randn(2, 3, 50, 37), torch.randint(0, 2, (2, 50, 37))
    labels[:, :20] = 255
    out = model(pixel_values=pixels, labels=labels)
    assert out.loss.item() == pytest.approx(nn.functional.cross_entropy(out.logits, labels, ignore_index=255).item())
    assert model(pixel_values=pixels, labels=torch.full_like(labels, 255)).loss == 0
    loss, logits = model(pixel_values=pixels, labels=labels, return_dict=False)
    assert torch.equal(logits, out.logits)
    assert loss == out.loss
    with torch.autocast("cpu", torch.bfloat16):
        half = model(pixel_values=pixels, labels=labels)
    assert (half.logits.dtype, half.loss.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.slow
def test_segmenter_learns_a_bright_square():
    model, _ = build_tiny()
    pixels, labels = torch.randn(4, 3, 32, 32), torch.zeros(4, 32, 32, dtype=torch.long)
    pixels[:, :, 8:20, 8:24] += 3
    labels[:, 8:20, 8:24] = 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.train()(pixel_values=pixels, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.15
    assert (model.eval()(pixel_values=pixels).logits.argmax(1) == labels).float().mean() > 0.95


@pytest.mark.slow
def test_fresh_process_reproduces_logits_and_masks(stock_pool, tmp_path):
    torch.manual_seed(0)
    pixels, models = torch.randn(1, 3, 50, 37), {}
    torch.save(pixels, tmp_path / "pixels.pt")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    for encoder in ENCODERS:
        folder = tmp_path / encoder
        models[str(folder)] = build_tiny(encoder)
        for component in models[str(folder)]:
            component.save_pretrained(folder)
        assert "import hf_medtl" not in (folder / "smp.py").read_text()
        assert "from hf_medtl" not in (folder / "smp.py").read_text()
    assert "smp.py" in UPLOAD_PATTERNS
    process = stock_pool.run_code(USER_CODE, tmp_path / "pixels.pt", tmp_path / "image.png", *models)
    assert process.returncode == 0, process.stderr
    for folder, (logits, masks) in json.loads(process.stdout.splitlines()[-1]).items():
        model, processor = models[folder]
        assert (torch.tensor(logits) - model(pixel_values=pixels).logits).abs().max() < 1e-5
        segment = pipeline("image-segmentation", folder, device="cpu")
        rows = {row["label"]: row["mask"] for row in segment(str(tmp_path / "image.png"))}
        assert {label: list(mask.tobytes()) for label, mask in rows.items()} == masks
        assert {*rows} == {*LABELS}
        # The training path gives the same masks: uint8 images, normalised on the device.
        mean, std = normalisation(processor)
        uint8 = torch.from_numpy(to_uint8(processor, [image])).permute(0, 3, 1, 2)
        out = model(pixel_values=(uint8.float() - mean) / std)
        mask = processor.post_process_semantic_segmentation(out, target_sizes=[(70, 90)])[0]
        assert (mask.numpy() == np.asarray(rows["lung"]) // 255).mean() > 0.999


def test_processor_squashes_and_keeps_class_indices(saved):
    _, processor, folder = saved
    loaded = AutoImageProcessor.from_pretrained(folder)
    assert type(loaded) is SegformerImageProcessor
    assert loaded.to_dict() == processor.to_dict()
    mask = np.zeros((30, 90), np.uint8)
    mask[:, 45:] = 1
    batch = loaded([Image.new("RGB", (90, 30))], segmentation_maps=[mask], return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 64, 64)
    assert batch["labels"][0].unique().tolist() == [0, 1]
    assert batch["labels"][0, :, 32:].float().mean() == 1
    assert "64 × 64" in describe_processor(loaded)


@pytest.mark.parametrize("family", ["timm-resnet", "timm-efficientnet", "timm-byobnet", "timm-convnext"])
def test_timm_classifier_weights_fill_encoder(family, tiny_checkpoint, no_network):
    model, processor = build_segmenter("unet", LABELS, encoder_weights=str(tiny_checkpoint(family)), image_size=64)
    name = "tu-test_" + family.removeprefix("timm-")
    assert (model.config.encoder_name, model.config.encoder_weights) == (name, None)
    original = AutoModelForImageClassification.from_pretrained(tiny_checkpoint(family)).timm_model
    originals = {name.replace(".", "_"): tensor for name, tensor in original.state_dict().items()}
    for name, tensor in model.encoder.model.state_dict().items():
        assert torch.equal(tensor, originals[name.replace(".", "_")]), name
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (*processor.image_mean, *processor.image_std) == (0.5, 0.4, 0.3, 0.2, 0.3, 0.25)
    pixels = torch.randn(1, 3, 64, 64)
    if family == "timm-resnet":
        features = original.eval().forward_features(pixels)
        assert torch.allclose(model.eval().encoder(pixels)[-1], features, atol=1e-5)


def test_weights_of_smp_encoders_and_models(tiny_checkpoint, tmp_path):
    """SMP's own encoders name no architecture and may have 16 bits; whole segmentation models are accepted, too."""
    source, _ = build_tiny("resnet18")
    weights = {name: tensor.half() for name, tensor in source.encoder.state_dict().items()}
    (tmp_path / "smp").mkdir()
    save_file(weights, tmp_path / "smp" / "model.safetensors")
    values = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2], "input_space": "RGB", "input_range": [0, 1]}
    (tmp_path / "smp" / "config.json").write_text(json.dumps(values))
    options = {"encoder_weights": str(tmp_path / "smp"), "model_args": TINY}
    with pytest.raises(MedtlError, match="does not name an encoder"):
        build_segmenter("unet", LABELS, **options)
    model, processor = build_segmenter("unet", LABELS, encoder="resnet18", **options)
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, weights[name].to(tensor.dtype)), name
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert list(processor.image_mean) == values["mean"]
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    again, processor = build_segmenter("fpn", LABELS, encoder_weights=str(tmp_path / "ours"))
    assert again.config.encoder_name == "resnet18"
    assert torch.equal(again.encoder.conv1.weight, model.encoder.conv1.weight)
    assert list(processor.image_mean) == values["mean"]


def test_incomplete_encoder_weights_raise(tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint("timm-resnet")
    weights = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file({name: x for name, x in weights.items() if "layer3" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(MedtlError, match=r"lacks \d+ of the \d+ tensors of this encoder"):
        build_segmenter("unet", LABELS, encoder_weights=str(tmp_path))
    with pytest.raises(MedtlError, match="another shape"):  # of another architecture
        build_segmenter("unet", LABELS, encoder="resnet18", encoder_weights=str(folder))
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(MedtlError, match=r"model\.safetensors is damaged"):
        build_segmenter("unet", LABELS, encoder_weights=str(tmp_path))
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(MedtlError, match="mean and standard deviation"):
        read_encoder(tmp_path)


def test_unknown_name_raises_with_suggestions():
    with pytest.raises(MedtlError, match="unet, "):
        build_segmenter("unett", LABELS)
    with pytest.raises(MedtlError, match="resnet34"):
        build_segmenter("unet", LABELS, encoder="resnet43")
    with pytest.raises(MedtlError, match="tu-convnext_tiny"):
        build_segmenter("unet", LABELS, encoder="convnext_tiny")
    with pytest.raises(MedtlError, match="no folder of that name, and SMP has imagenet"):
        build_segmenter("unet", LABELS, encoder="mit_b0", encoder_weights="imagnet")
    with pytest.raises(MedtlError, match="two labels"):
        build_segmenter("unet", ("lung",))


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [
        ("unetplusplus", "mit_b0"),
        ("deeplabv3plus", "vgg11"),
        ("unet", "tu-test_vit"),
        pytest.param("unet", "tu-test_maxvit", marks=HAS_MAXVIT),
    ],
)
def test_incompatible_encoder_raises(architecture, encoder):
    with pytest.raises(MedtlError, match=f"{architecture} with the encoder {encoder} does not work"):
        build_segmenter(architecture, LABELS, encoder=encoder, encoder_weights="none")


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_imagenet_weights_require_network(encoder, hub):
    with pytest.raises(MedtlError, match="can't be downloaded"):
        build_segmenter("unet", LABELS, encoder=encoder, model_args=TINY)


def test_imagenet_weights_come_from_smp(monkeypatch):
    """SMP's download is replaced, so no network is needed."""
    import segmentation_models_pytorch as smp

    pretrained, _ = build_tiny("resnet18")
    requested = []

    def encoder(name, weights=None, **options):
        requested.append(weights)
        return copy.deepcopy(pretrained.encoder) if weights else original(name, weights=weights, **options)

    original = smp.encoders.get_encoder
    monkeypatch.setattr(smp.decoders.unet.model, "get_encoder", encoder)
    values = {"input_space": "RGB", "input_range": [0, 1], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    monkeypatch.setattr(smp.encoders, "get_preprocessing_params", lambda *_: values)
    model, processor = build_segmenter("unet", LABELS, encoder="resnet18", model_args=TINY)
    assert requested.count("imagenet") == 1
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, pretrained.encoder.state_dict()[name]), name
    assert list(processor.image_mean) == values["mean"]
    monkeypatch.setitem(values, "input_space", "BGR")
    with pytest.raises(MedtlError, match="BGR"):
        build_segmenter("unet", LABELS, encoder="resnet18", model_args=TINY)


@pytest.mark.slow
def test_saved_model_keeps_head_only_for_same_labels(saved):
    model, processor, folder = saved
    head = "segmentation_head.0.weight"
    unchanged, processor2 = build_segmenter(str(folder), LABELS)
    assert torch.equal(unchanged.state_dict()[head], model.state_dict()[head])
    assert processor2.to_dict() == processor.to_dict()
    for labels in (("background", "heart"), ("background", "lung", "heart")):
        relabelled, _ = build_segmenter(str(folder), labels, image_size=96)
        assert relabelled.config.id2label == dict(enumerate(labels))
        for name, tensor in relabelled.state_dict().items():
            if name.startswith("segmentation_head"):
                assert (tensor.shape[0], bool(tensor.isfinite().all())) == (len(labels), True)
            else:
                assert torch.equal(tensor, model.state_dict()[name]), name
        old, new = model.state_dict()[head], relabelled.state_dict()[head]
        assert not torch.equal(new[:2], old)  # the same number of labels must not keep the head


def save_segformer(folder, model_class=SegformerForSemanticSegmentation):
    """Save a tiny SegFormer with other labels, like one from the Hub."""
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=3,
    )  # fmt: skip
    model_class(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 48}, do_reduce_labels=True).save_pretrained(folder)


def test_transformers_model_gets_new_head(tmp_path):
    save_segformer(tmp_path)
    original = SegformerForSemanticSegmentation.from_pretrained(tmp_path).state_dict()
    model, processor = build_segmenter(str(tmp_path), LABELS)
    assert type(model) is SegformerForSemanticSegmentation
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, original[name]) != name.startswith("decode_head.classifier"), name
    assert (processor.size.height, processor.size.width, processor.do_reduce_labels) == (64, 48, False)
    assert model(torch.randn(1, 3, 64, 48)).logits.shape[1] == 2


def test_missing_decoder_is_new_and_partial_decoder_raises(tmp_path):
    save_segformer(tmp_path, SegformerForImageClassification)
    original = SegformerForImageClassification.from_pretrained(tmp_path).segformer.state_dict()
    model, _ = build_segmenter(str(tmp_path), LABELS)
    for name, tensor in model.segformer.state_dict().items():
        assert torch.equal(tensor, original[name]), name
    save_segformer(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    incomplete = {name: x for name, x in weights.items() if "decode_head.linear_c.0" not in name}
    assert len(incomplete) == len(weights) - 2
    save_file(incomplete, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MedtlError, match="lacks 2 of"):
        build_segmenter(str(tmp_path), LABELS)
    incomplete = {name: x for name, x in weights.items() if "classifier" not in name}
    save_file(incomplete, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        MedtlError, match=r"lacks 2 of.*decode_head\.classifier"
    ):  # the checkpoint has exactly these labels
        build_segmenter(str(tmp_path), tuple(f"LABEL_{i}" for i in range(3)))


def test_folder_without_segmentation_model_raises(tiny_checkpoint, tmp_path, hub):
    with pytest.raises(MedtlError, match="Can't build a segmentation model"):
        build_segmenter(str(tiny_checkpoint("vit")), LABELS)
    with pytest.raises(MedtlError, match="Can't build a segmentation model"):
        build_segmenter("nobody/nothing", LABELS)
    model, _ = build_tiny()
    model.save_pretrained(tmp_path)  # without its image processor
    with pytest.raises(MedtlError, match=r"preprocessor_config\.json"):
        build_segmenter(str(tmp_path), LABELS)


@pytest.mark.slow
def test_auto_classes_load_smp_and_import_stays_light(stock_pool, tmp_path):
    build_tiny()[0].save_pretrained(tmp_path)
    code = f"""import sys; sys.path.insert(0, {str(ROOT)!r})
import hf_medtl
from transformers import AutoConfig, AutoModelForSemanticSegmentation
assert type(AutoConfig.from_pretrained({str(tmp_path)!r})).__module__ == "hf_medtl.models.smp"
assert "segmentation_models_pytorch" not in sys.modules  # takes seconds
print(type(AutoModelForSemanticSegmentation.from_pretrained({str(tmp_path)!r})).__module__)"""
    process = stock_pool.run_code(code)
    assert process.stdout.strip() == "hf_medtl.models.smp", process.stderr


@pytest.mark.real
@pytest.mark.parametrize("name", ["resnet50", "tf_efficientnet_lite0"])
def test_real_weights_fill_all_tensors(name, shared, tmp_path):
    folder = shared / "weights" / f"{name}-in1k"
    model, processor = build_segmenter("unet", LABELS, encoder_weights=str(folder), image_size=64)
    assert model.config.encoder_name == f"tu-{name}"
    weights = load_file(folder / "model.safetensors")
    for key, tensor in model.encoder.model.state_dict().items():
        assert torch.equal(tensor, weights[f"timm_model.{key}"].to(tensor.dtype)), key
    pretrained = AutoConfig.from_pretrained(folder).pretrained_cfg
    assert (*processor.image_mean, *processor.image_std) == (*pretrained["mean"], *pretrained["std"])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.real
def test_real_weights_fill_smp_encoder(shared):
    folder = shared / "weights" / "resnet50-in1k"
    model, _ = build_segmenter("deeplabv3plus", LABELS, encoder="resnet50", encoder_weights=str(folder), image_size=64)
    weights = load_file(folder / "model.safetensors")
    for key, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, weights[f"timm_model.{key}"].to(tensor.dtype)), key
