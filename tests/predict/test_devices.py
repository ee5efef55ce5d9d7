"""Devices: one choice for all, and an accelerator without float64."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_medtl import MedtlError, Predictor
from hf_medtl.evaluation.ood import OutOfDistributionScorer
from hf_medtl.explain.attention import attention_head_maps
from hf_medtl.explain.faithfulness import deletion_insertion_curves
from hf_medtl.explain.maps import METHODS, explain, to_pixel_values
from hf_medtl.explain.randomisation import cascading_randomisation
from hf_medtl.explain.segmentation import explain_masks
from hf_medtl.models.device import memory_format, select_device
from hf_medtl.publish.handler import EndpointHandler
from tests.support.no_float64 import refuse_float64
from tests.support.tiny_models import build_tiny, save_foreign_classifier

IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 36, 3), dtype=np.uint8)) for i in range(2)]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(image_size=32, patch_size=8, hidden_dropout_prob=0.1, **shape)
    config.update({"outliers": {"threshold": 1.0}})
    features = np.random.default_rng(0).normal(size=(60, 32)).astype(np.float32)
    scorer = OutOfDistributionScorer.fit(features, np.arange(60) % 2)
    return Predictor(ViTForImageClassification(config), ViTImageProcessor(size={"height": 32, "width": 32}), scorer)


def test_the_fake_refuses_float64_before_the_host():
    x = torch.rand(3)
    with refuse_float64():
        assert x.cpu().double().sum().dtype == torch.float64
        assert torch.from_numpy(np.ones(2)).mean() == 1
        with pytest.raises(TypeError, match="no float64"):
            (x * 2).double()
        with pytest.raises(TypeError, match="no float64"):
            x.to(torch.float64).cpu()
        computed = torch.nn.Linear(3, 1)(x).detach() * 2
        assert computed.cpu().numpy().shape == (1,)
        with pytest.raises(TypeError, match="can't become an array"):
            np.asarray(computed)
    assert (x * 2).double().dtype == torch.float64


def test_predictions_and_maps_need_no_float64_on_the_device(predictor):
    expected = predictor.predict(IMAGES, tta=1, explain="gradcam")
    with refuse_float64():
        found = predictor.predict(IMAGES, tta=1, mc_dropout=0, explain="gradcam")
        predictor.predict(IMAGES, mc_dropout=1, explain="rollout")
        for method in METHODS:
            assert len(explain(predictor.model, predictor.processor, IMAGES, method=method)) == 2
        pixels = to_pixel_values(predictor.processor, IMAGES)
        attention_head_maps(predictor.model, pixels)
        deletion_insertion_curves(predictor.model, pixels, np.array([0, 1]), np.ones((2, 32, 32)), steps=2)
        cascading_randomisation(predictor.model, pixels, np.array([0, 1]), steps=2, repeats=1)
    for one, other in zip(expected, found, strict=True):
        assert one.probabilities == other.probabilities
        assert one.outlier == other.outlier


def test_masks_need_no_float64_on_the_device():
    model, processor = build_tiny()
    predictor = Predictor(model, processor)
    with refuse_float64():
        assert predictor.predict(IMAGES, tta=1, explain="uncertainty")[0].mask.shape == (40, 36)
        assert len(explain_masks(model, processor, IMAGES)) == 2


def test_handler_needs_no_float64_on_the_device(tmp_path, predictor):
    folder = tmp_path
    predictor.model.save_pretrained(folder)
    predictor.processor.save_pretrained(folder)
    predictor.outliers.save(folder)
    handler = EndpointHandler(str(folder))
    with refuse_float64():
        handler.training = {name: tensor.cpu() for name, tensor in handler.training.items()}  # as read from a file
        found = handler({"inputs": IMAGES[0]})
    (expected,) = predictor.predict(IMAGES[0])
    assert found["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    assert ("unlike the training images" in found["reasons"]) == (expected.outlier > 1)


def test_device_is_chosen_in_one_place(tmp_path, monkeypatch):
    folder = save_foreign_classifier(tmp_path, ("a", "b"))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("meta"))
    assert select_device() == torch.device("meta")
    assert select_device("cpu") == torch.device("cpu")
    assert Predictor.from_pretrained(folder, device="cpu").model.device.type == "cpu"
    assert Predictor.from_pretrained(folder).model.device.type == "meta"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert select_device() == torch.device("cpu")
    for wrong in ("gpu", "xpu:7", "cuda:99"):
        with pytest.raises(MedtlError, match=r"can't be used on this machine .* Give cpu, or leave it out"):
            Predictor.from_pretrained("nobody/nothing", device=wrong)


@pytest.mark.parametrize(
    ("device", "layout"),
    [("cpu", torch.channels_last), ("cuda", torch.channels_last), ("mps", torch.contiguous_format)],
)
def test_layout_of_images_follows_the_device(device, layout, predictor, make_trainer, monkeypatch):
    given = memory_format(torch.device(device))
    assert given == layout
    for module in ("hf_medtl.predict", "hf_medtl.training.trainer"):
        monkeypatch.setattr(f"{module}.memory_format", lambda _: given)
    seen = []
    hook = predictor.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    predictor.predict(IMAGES)
    hook.remove()
    batch = {"pixel_values": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "labels": torch.tensor([0, 1])}
    seen.append(make_trainer()._prepare_inputs(batch)["pixel_values"])
    assert [pixels.is_contiguous(memory_format=layout) for pixels in seen] == [True, True]


@pytest.mark.parametrize("command", ["predict", "explain", "evaluate", "space"])
def test_commands_take_a_device(command):
    from typer.main import get_command

    from hf_medtl.cli.app import app

    options = {option for parameter in get_command(app).commands[command].params for option in parameter.opts}
    assert "--device" in options
