"""Weights and buffers that are NaN or infinite are refused by name when they are loaded, before anything is trained."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ViTConfig

from hf_medtl.errors import MedtlError
from hf_medtl.models.build import build_classifier, check_finite
from hf_medtl.models.encoders import EncoderWeights
from hf_medtl.models.preprocessing import build_processor
from hf_medtl.models.segmenter import build_segmenter
from hf_medtl.predict import Predictor
from hf_medtl.publish.handler import EndpointHandler
from hf_medtl.runs.ensemble import ensemble
from hf_medtl.runs.explain import explain_model
from tests.support.tiny_models import save_segformer, save_tiny


def break_weights(folder, ending: str, value: float) -> str:
    """Set one value of the first tensor whose name ends so; return a pattern of its name in the model."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.endswith(ending))
    tensors[name].view(-1)[0] = value
    save_file(tensors, path, {"format": "pt"})
    return name.rpartition(".")[2]  # transformers renames modules on loading


@pytest.mark.parametrize(
    ("family", "ending", "value"),
    [
        ("timm-resnet", "running_var", torch.inf),
        ("vit", "query.weight", torch.nan),
        ("convnext", "pwconv1.bias", -torch.inf),
    ],
)
def test_classifier_and_predictor_refuse_them_by_name(family, ending, value, tmp_path):
    folder = save_tiny(family, tmp_path / "model")
    build_classifier(str(folder), ("a", "b"))
    name = break_weights(folder, ending, value)
    for load in (
        lambda: build_classifier(str(folder), ("a", "b")),
        lambda: build_classifier(str(folder), ("cat", "dog", "cow")),
        lambda: Predictor.from_pretrained(folder, device="cpu"),
    ):
        with pytest.raises(
            MedtlError, match=rf"model has weights that are not finite in 1 of .*{name} \(1 of"
        ) as caught:
            load()
        assert "save them in float32" in str(caught.value)


def test_segmentation_model_refuses_them(tmp_path):
    folder = save_segformer(tmp_path / "model")
    name = break_weights(folder, "query.weight", torch.nan)
    with pytest.raises(MedtlError, match=f"not finite.*{name}"):
        build_segmenter(str(folder), ("background", "lung"))


def test_all_that_load_trained_weights_refuse_them(finished_run, tmp_path):
    folder = shutil.copytree(finished_run, tmp_path / "run")
    name = break_weights(folder, "classifier.bias", torch.nan)
    (folder / "checksums.json").unlink(missing_ok=True)  # as in older runs: else the change itself is refused
    message = rf"run has weights that are not finite .*{name} \(1 of"
    with pytest.raises(MedtlError, match=message):
        ensemble([finished_run, folder], tmp_path / "ensemble")
    with pytest.raises(MedtlError, match=message):
        explain_model(str(folder))
    with pytest.raises(ValueError, match=f"not finite, such as .*{name}"):
        EndpointHandler(str(folder))


@pytest.mark.parametrize("missing", [False, True])
def test_lung_model_refuses_missing_and_non_finite_weights(missing, tmp_path):
    folder = save_segformer(tmp_path / "model")
    build_processor("", steps=["lung_crop"], lung_model=str(folder), config=ViTConfig(image_size=32))
    name = break_weights(folder, "linear_fuse.weight", torch.nan)
    if missing:
        path = folder / "model.safetensors"
        save_file({k: x for k, x in load_file(path).items() if "linear_fuse" not in k}, path, {"format": "pt"})
    with pytest.raises(MedtlError, match=f"--lung_model .* missing or not finite, such as .*{name}"):
        build_processor("", steps=["lung_crop"], lung_model=str(folder), config=ViTConfig(image_size=32))


def test_encoder_weights_refuse_them_only_if_they_are_used():
    encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    tensors = {name: x.clone() for name, x in encoder.state_dict().items()} | {"fc.weight": torch.tensor([torch.nan])}
    weights = EncoderWeights("folder", ("resnet18",), tensors, [0.5] * 3, [0.5] * 3)
    weights.fill(encoder)
    tensors["1.running_var"][2] = torch.inf
    with pytest.raises(MedtlError, match=r"folder has weights that are not finite .*1\.running_var \(1 of 4 values\)"):
        weights.fill(encoder)


def test_whole_numbers_and_16_bits_are_checked_alike():
    check_finite("x", {"a": torch.ones(3, dtype=torch.float16), "n": torch.tensor(3)})
    with pytest.raises(MedtlError, match="a \\(2 of 3 values\\)"):
        check_finite("x", {"a": torch.tensor([1, torch.nan, -torch.inf], dtype=torch.bfloat16), "n": torch.tensor(3)})
