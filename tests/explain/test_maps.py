"""Heatmaps: all model families, position in the original image, and unchanged model state."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from hf_medtl import MedtlError
from hf_medtl.explain.attention import attention_head_maps, attention_rollout, attention_weights, rollout_maps
from hf_medtl.explain.geometry import find_geometry, restore
from hf_medtl.explain.layers import eval_without_grads, find_layer
from hf_medtl.explain.maps import METHODS, explain, heatmaps, normalise, to_pixel_values
from hf_medtl.explain.segmentation import explain_masks
from hf_medtl.models.processor import MedicalImageProcessor
from tests.support.tiny_models import build_tiny

FAMILIES = (
    "vit", "deit", "dinov2", "swin", "convnext", "cnn", "timm", "timm-vit", "timm-convnext", "timm-efficientnet",
)  # fmt: skip
LAYERS = {
    "vit": "vit.layers.1.layernorm_before",
    "deit": "deit.layers.1.layernorm_before",
    "dinov2": "dinov2.encoder.layer.1.norm1",
    "swin": "swin.layernorm",
    "cnn": "blocks.1.6",  # before the last pooling
    "timm": "timm_model.layer4",
    "timm-vit": "timm_model.blocks.5.norm1",
    "timm-efficientnet": "timm_model.bn2",
}
PACKAGE = ("hf_medtl", "pytorch_grad_cam")
ROLL = ("vit", "deit", "dinov2", "timm-vit")


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    """Return a function that loads the model and image processor of a family."""
    cache = {}

    def load_family(family):
        if family not in cache:
            folder = tiny_checkpoint(family)
            cache[family] = (
                AutoModelForImageClassification.from_pretrained(folder),
                AutoImageProcessor.from_pretrained(folder),
            )
        return cache[family]

    return load_family


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, 91, 3), dtype=np.uint8)) for height in (50, 64, 33)]


def state(model):
    """Return the state that must not change."""
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        # count only our hooks: after attention was requested, transformers leaves inactive ones
        [len([h for h in m._forward_hooks.values() if h.__module__.startswith(PACKAGE)]) for m in model.modules()],
        getattr(model.config, "_attn_implementation", None),
    )


def equal_states(state_a, state_b):
    """Compare two states bit by bit."""
    tensors = all(torch.equal(state_a[0][name], state_b[0][name]) for name in state_a[0])
    grads = all(
        (a is None) == (b is None) and (a is None or torch.equal(a, b))
        for a, b in zip(state_a[3], state_b[3], strict=True)
    )
    return (
        tensors
        and grads
        and state_a[0].keys() == state_b[0].keys()
        and all(state_a[i] == state_b[i] for i in (1, 2, 4, 5))
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_families_have_heatmaps_and_keep_state(family, loaded, images):
    model, processor = loaded(family)
    model.train()
    first = next(model.parameters())
    first.requires_grad_(False)
    last = [*model.parameters()][-1]
    last.grad = torch.ones_like(last)
    before = state(model)
    for name in METHODS:
        if name == "rollout" and family not in ROLL:
            with pytest.raises(MedtlError, match="use gradcam here"):
                explain(model, processor, images, method=name)
            continue
        with torch.no_grad():  # as in a caller's context
            result = explain(model, processor, images, method=name, batch_size=2)
        for image, item in zip(images, result, strict=True):
            assert item.map.shape == (image.height, image.width)
            assert item.map.dtype == np.float32
            assert np.isfinite(item.map).all()
            assert 0 <= item.map.min() <= item.map.max() <= 1
            assert item.label == model.config.id2label[item.index]
    assert equal_states(before, state(model))
    with eval_without_grads(model):
        layer = find_layer(model, to_pixel_values(processor, images))
    assert layer.name == LAYERS.get(family, layer.name)
    assert layer.height * layer.width > 1


def test_class_is_predicted_or_requested(loaded, images):
    model, processor = loaded("cnn")
    chosen = explain(model, processor, images)
    assert all(item.probability >= 1 / 3 for item in chosen)
    requested = explain(model, processor, images, classes="dog")
    assert [item.label for item in requested] == ["dog"] * 3
    per_image = explain(model, processor, images, classes=[0, "dog", 2])
    assert [item.index for item in per_image] == [0, 1, 2]
    np.testing.assert_array_equal(per_image[1].map, requested[1].map)
    assert abs(per_image[0].map - requested[0].map).max() > 0.1
    single = [explain(model, processor, [image], classes="dog")[0].map for image in images]
    for alone, together in zip(single, requested, strict=True):
        np.testing.assert_allclose(alone, together.map, atol=1e-4)
    with pytest.raises(MedtlError, match="of cat, dog, cow"):
        explain(model, processor, images, classes="horse")
    with pytest.raises(MedtlError, match="Known: gradcam,"):
        explain(model, processor, images, method="gradcamm")


def test_constant_map_is_zero_not_nan(loaded, images):
    model, processor = loaded("cnn")
    flat = copy.deepcopy(model)
    nn.init.zeros_(flat.classifier.weight)
    for name in ("gradcam", "gradcam++", "integrated_gradients"):
        assert all((item.map == 0).all() for item in explain(flat, processor, images, method=name))
    assert (normalise(np.full((4, 4), 7.0)) == 0).all()
    assert (normalise(np.array([[np.nan, 1.0], [2.0, 3.0]]))[1] == np.array([2 / 3, 1], np.float32)).all()


def test_gradcam_matches_formula(loaded, images):
    model, processor = loaded("cnn")
    pixels = to_pixel_values(processor, images[:1])
    activations = {}
    hook = model.blocks[1][6].register_forward_hook(lambda _, __, output: activations.update(a=output))
    logit = model.eval()(pixel_values=pixels).logits[0, 1]
    hook.remove()
    gradient = torch.autograd.grad(logit, activations["a"])[0]
    expected = (gradient.mean((2, 3), keepdim=True) * activations["a"]).sum(1).relu()[0].detach()
    expected = torch.nn.functional.interpolate(expected[None, None], (32, 32), mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(heatmaps(model, pixels, np.array([1]))[0], normalise(expected), atol=1e-3)


def test_layer_can_be_named(loaded, images):
    model, processor = loaded("timm")
    fine = explain(model, processor, images[:1], layer="timm_model.layer2")[0].map
    assert abs(fine - explain(model, processor, images[:1])[0].map).max() > 0.1
    with pytest.raises(MedtlError, match=r"no module 'timm_model.layer9'.*timm_model\.layer"):
        explain(model, processor, images, layer="timm_model.layer9")


class BlindConfig(PreTrainedConfig):
    model_type = "blind"


class Blind(PreTrainedModel):
    """Network without spatial features."""

    config_class = BlindConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.hidden, self.classifier = nn.Linear(3, 4), nn.Linear(4, 2)
        self.post_init()

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.classifier(self.hidden(pixel_values.mean((2, 3))).relu()))


def test_model_without_spatial_features_raises(images):
    model = Blind(BlindConfig())
    with pytest.raises(MedtlError, match="Blind has no layer with spatial features"):
        explain(model, MedicalImageProcessor(size={"height": 32, "width": 32}), images)


class SquareConfig(PreTrainedConfig):
    model_type = "square"


class Square(PreTrainedModel):
    """Network that depends on brightness only, so its heatmap is the image."""

    config_class = SquareConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.conv, self.classifier = nn.Conv2d(3, 2, 1), nn.Linear(2, 2)
        self.post_init()
        nn.init.constant_(self.conv.weight, 1 / 3)
        nn.init.zeros_(self.conv.bias)
        nn.init.ones_(self.classifier.weight)

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.classifier(self.conv(pixel_values).relu().mean((2, 3))))


def scene(width, height, box):
    """Draw a dark head on a black background with a bright square."""
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    draw.ellipse((0.15 * width, 0.1 * height, 0.9 * width, 0.95 * height), fill=(60, 60, 60))
    draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=(255, 255, 255))
    return image


STOCK = {"do_normalize": True, "image_mean": [0.4, 0.4, 0.4], "image_std": [0.2, 0.2, 0.2]}


def processors():
    from transformers import BitImageProcessor, ViTImageProcessor
    from transformers.models.timm_wrapper import TimmWrapperImageProcessor

    size, plain = {"height": 96, "width": 96}, {"do_normalize": False}
    yield "squash", MedicalImageProcessor(size=size, **plain)
    yield "pad", MedicalImageProcessor(size=size, fit="pad", **plain)
    yield "brain_crop", MedicalImageProcessor(size=size, steps=["brain_crop"], **plain)
    yield "brain_crop and pad", MedicalImageProcessor(size=size, steps=["brain_crop"], fit="pad", **plain)
    yield "oblong", MedicalImageProcessor(size={"height": 80, "width": 128}, fit="pad", **plain)
    yield "stock squash", ViTImageProcessor(size=size, **STOCK)
    yield "stock centre crop", BitImageProcessor(size={"shortest_edge": 112}, crop_size=size, **STOCK)
    for crop, mode in ((1.0, "squash"), (0.875, "center")):
        cfg = {"input_size": (3, 96, 96), "crop_pct": crop, "crop_mode": mode, "interpolation": "bicubic"}
        yield f"timm {mode}", TimmWrapperImageProcessor(cfg | {"mean": [0.5] * 3, "std": [0.5] * 3}, "resnet18")


@pytest.mark.parametrize(("name", "processor"), [*processors()], ids=[name for name, _ in processors()])
@pytest.mark.parametrize(("width", "height"), [(301, 173), (140, 333)])
def test_heatmap_matches_image_position(name, processor, width, height):
    box = [round(edge) for edge in (0.45 * width, 0.4 * height, 0.6 * width, 0.55 * height)]
    item = explain(Square(SquareConfig()), processor, [scene(width, height, box)])[0]
    assert item.map.shape == (height, width)
    rows, columns = np.nonzero(item.map > 0.7)
    result = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    off = np.abs(np.subtract(result, box)) / (width, height, width, height)
    assert off.max() <= 0.02, (result, box)
    if "crop" in name and "stock" not in name:
        left, top, right, bottom = find_geometry(processor, scene(width, height, box)).crop
        assert (left, top) != (0, 0)
        outside = np.ones(item.map.shape, bool)
        outside[top:bottom, left:right] = False
        assert outside.mean() > 0.1
        assert (item.map[outside] == 0).all()


@pytest.mark.parametrize("size", [(301, 173), (40, 90), (700, 512)])
@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_measured_geometry_equals_reported_geometry(size, fit):
    processor = MedicalImageProcessor(fit=fit)
    reported = find_geometry(processor, Image.new("RGB", size))

    class Mute:
        def __call__(self, *args, **kwargs):
            return processor(*args, **kwargs)

    measured = find_geometry(Mute(), Image.new("RGB", size))
    assert np.abs(np.subtract(reported.inner, measured.inner)).max() <= 1
    assert (np.abs(np.subtract(reported.crop, measured.crop)) / (*size, *size)).max() <= 0.005
    assert not processor.counts


def test_rotating_processor_raises():
    class Turns:
        def __call__(self, images, return_tensors):
            return {"pixel_values": torch.stack([torch.tensor(np.asarray(p)).permute(2, 1, 0) for p in images]).float()}

    with pytest.raises(MedtlError, match="more than resize, crop and pad"):
        find_geometry(Turns(), Image.new("RGB", (64, 64)))


def test_outside_is_fraction_in_margins():
    wide = MedicalImageProcessor(size={"height": 32, "width": 32}, fit="pad")  # normalised: margins are -1

    class Away(Square):
        def forward(self, pixel_values):
            return super().forward(-pixel_values)

    item = explain(Away(SquareConfig()), wide, [Image.new("RGB", (64, 32), (255, 255, 255))])[0]
    assert item.outside == pytest.approx(1)
    assert (restore(np.ones((32, 32)), find_geometry(wide, Image.new("RGB", (64, 32))), (32, 64)) == 1).all()


def test_rollout_matches_abnar_and_zuidema(loaded, images):
    model, processor = loaded("vit")
    pixels = to_pixel_values(processor, images)
    implementation = model.config._attn_implementation
    assert implementation != "eager"
    model.eval().set_attn_implementation("eager")
    with torch.no_grad():
        first, second = (a.numpy() for a in model(pixel_values=pixels, output_attentions=True).attentions)
    model.set_attn_implementation(implementation)
    weights = attention_weights(model, pixels)
    np.testing.assert_array_equal(weights[0].numpy(), first)
    assert model.config._attn_implementation == implementation
    for i in range(len(images)):
        expected = np.zeros((17, 17))
        low, high = (0.5 * a[i].mean(axis=0) + 0.5 * np.eye(17) for a in (first, second))
        for row in range(17):
            for column in range(17):
                expected[row, column] = sum(high[row, k] * low[k, column] for k in range(17))
        np.testing.assert_allclose(attention_rollout(weights)[i].numpy(), expected, atol=1e-6)
        np.testing.assert_allclose(rollout_maps(model, pixels)[i], expected[0, 1:].reshape(4, 4), atol=1e-6)
    heads = attention_head_maps(model, pixels)
    assert heads.shape == (3, 2, 2, 4, 4)
    np.testing.assert_allclose(heads[1, 0, 1], first[1, 1, 0, 1:].reshape(4, 4))


def test_timm_attention_matches_its_blocks(loaded, images):
    model, processor = loaded("timm-vit")
    pixels = to_pixel_values(processor, images)
    result = attention_weights(model, pixels)
    assert len(result) == 6
    assert result[0].sum(-1).numpy() == pytest.approx(np.ones(result[0].shape[:-1]), abs=1e-5)
    assert all(block.attn.fused_attn for block in model.timm_model.blocks)


def test_segmentation_has_class_and_uncertainty_maps(images):
    torch.manual_seed(0)
    model, processor = build_tiny(image_size=64)
    before = state(model)
    for method in ("gradcam", "eigencam"):
        result = explain_masks(model, processor, images, method=method, batch_size=2)
        for image, item in zip(images, result, strict=True):
            assert list(item.classes) == [name for i, name in model.config.id2label.items() if i]
            for values in (*item.classes.values(), item.uncertainty):
                assert values.shape == (image.height, image.width)
                assert np.isfinite(values).all()
                assert 0 <= values.min() <= values.max() <= 1
    assert equal_states(before, state(model))
    assert result[0].uncertainty.max() > 0.5  # the network is untrained
    sure = copy.deepcopy(model)
    with torch.no_grad():
        sure.segmentation_head[0].weight.zero_()
        sure.segmentation_head[0].bias.copy_(torch.tensor([20.0] + [0.0] * (model.config.num_labels - 1)))
    item = explain_masks(sure, processor, images[:1])[0]
    assert item.uncertainty.max() < 1e-3
    assert all((values == 0).all() for values in item.classes.values())  # no pixel is predicted, so there is no map
    with pytest.raises(MedtlError, match="Known: gradcam"):
        explain_masks(model, processor, images, method="rollout")
