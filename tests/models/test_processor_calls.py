"""Calls of MedicalImageProcessor: the settings that stock processors take for one call, with stock results."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import InterpolationMode
from transformers import AutoImageProcessor, ViTImageProcessorPil

from hf_medtl.models.processor import MedicalImageProcessor

RGB = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
SETTINGS = {
    "size": {"height": 32, "width": 32},
    "resample": 3,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.25],
}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": 0.5, "image_std": 0.25},
        {"image_mean": (0.1, 0.2, 0.3), "image_std": [1.0, 1.0, 1.0]},
        {"size": {"height": 20, "width": 24}},
        {"size": 16},
        {"size": (16, 20)},
        {"do_resize": False},
        {"resample": 0},
        {"resample": Image.Resampling.BILINEAR},
        {"resample": InterpolationMode.BILINEAR},
        {"do_center_crop": True, "crop_size": {"height": 20, "width": 24}},
        {"do_pad": True, "pad_size": {"height": 40, "width": 36}},
        {"do_convert_rgb": True},
        {"input_data_format": "channels_last"},
        {"data_format": "channels_first"},
        {"device": "cpu", "disable_grouping": True, "default_to_square": True},
        {"do_normalize": None, "size": None},
    ],
    ids=str,
)
def test_settings_of_a_call_have_stock_results(given):
    ours, stock = MedicalImageProcessor(**SETTINGS), ViTImageProcessorPil(**SETTINGS)
    before = ours.to_dict()
    image = Image.fromarray(RGB)
    given_to_stock = {name: value for name, value in given.items() if value is not None}
    expected = stock(image, return_tensors="pt", **given_to_stock)["pixel_values"].float()
    found = ours(image, return_tensors="pt", **given)["pixel_values"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)
    assert ours.to_dict() == before


def test_layouts_of_arrays_are_taken_from_the_call():
    processor = MedicalImageProcessor(**SETTINGS)
    expected = processor(RGB)["pixel_values"][0]
    narrow = RGB[:, :3].transpose(2, 0, 1)  # (3, 40, 3) could be either
    first = processor(narrow, input_data_format="channels_first")["pixel_values"][0]
    assert np.array_equal(first, processor(Image.fromarray(RGB[:, :3]))["pixel_values"][0])
    last = processor(RGB, data_format="channels_last", return_tensors="np")["pixel_values"]
    assert np.array_equal(last[0], expected.transpose(1, 2, 0))


def test_steps_follow_the_settings_of_a_call():
    processor = MedicalImageProcessor(**SETTINGS, fit="pad", steps=["grayscale"])
    values = processor(Image.fromarray(RGB), size={"height": 64, "width": 64}, do_normalize=False)["pixel_values"][0]
    twin = MedicalImageProcessor(**SETTINGS | {"size": {"height": 64, "width": 64}}, fit="pad", steps=["grayscale"])
    assert np.array_equal(np.rint(values * 255).transpose(1, 2, 0), twin.prepare(RGB))
    cropping = MedicalImageProcessor(**SETTINGS, steps=["brain_crop"])
    cropping(RGB, do_normalize=False)
    assert cropping.counts["pictures"] == 1


def test_unknown_or_unsupported_settings_raise():
    processor = MedicalImageProcessor(**SETTINGS)
    with pytest.raises(TypeError, match="no settings windw"):
        processor(RGB, windw=3)
    with pytest.raises(ValueError, match="height and width"):
        processor(RGB, size={"shortest_edge": 20})
    with pytest.raises(ValueError, match="crop_size must be given"):
        processor(RGB, do_center_crop=True)
    with pytest.raises(ValueError, match="8-bit"):
        processor(RGB / 255, do_rescale=False)
    with pytest.raises(ValueError, match=r"pad_size must be at least 32 × 32 pixels .*; found 40 × 30"):
        processor(RGB, do_pad=True, pad_size={"height": 40, "width": 30})
    two = [RGB, RGB[:30]]
    assert [values.shape for values in processor(two, do_resize=False)["pixel_values"]] == [(3, 40, 50), (3, 30, 50)]


def test_sizes_are_read_alike_by_the_constructor_loading_and_a_call(tmp_path):
    MedicalImageProcessor(size=48, do_center_crop=True, crop_size=(20, 24)).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert loaded(RGB)["pixel_values"][0].shape == (3, 20, 24)
    assert dict(loaded.size) == {"height": 48, "width": 48}
    larger = AutoImageProcessor.from_pretrained(tmp_path, size=[64, 52], crop_size={"width": 50, "height": 60})
    assert larger(RGB)["pixel_values"][0].shape == (3, 60, 50)
    for wrong in (0, "big", {"shortest_edge": 32}, {"height": 32}):
        with pytest.raises(ValueError, match="size"):
            MedicalImageProcessor(size=wrong)
    with pytest.raises(ValueError, match="crop_size must have height and width"):
        MedicalImageProcessor(crop_size={"shortest_edge": 32})


def test_settings_of_loading_are_kept(tmp_path):
    MedicalImageProcessor(**SETTINGS).save_pretrained(tmp_path)
    assert "do_resize" not in (tmp_path / "preprocessor_config.json").read_text(encoding="utf-8")
    loaded = AutoImageProcessor.from_pretrained(tmp_path, do_resize=False)
    assert loaded(RGB)["pixel_values"][0].shape == (3, 40, 50)
    loaded.save_pretrained(tmp_path / "again")
    assert AutoImageProcessor.from_pretrained(tmp_path / "again").do_resize is False
    assert (
        MedicalImageProcessor(**SETTINGS)(RGB, return_tensors="pt").to(torch.bfloat16).pixel_values.dtype
        == torch.bfloat16
    )


def test_a_fourth_mean_is_that_of_the_dropped_alpha():
    rgba = np.random.default_rng(0).integers(0, 256, (20, 24, 4)).astype(np.uint8)
    processor = MedicalImageProcessor(size={"height": 16, "width": 16})
    expected = processor(rgba[..., :3], return_tensors="np", image_mean=(0.1, 0.2, 0.3), image_std=1.0)
    found = processor(rgba, return_tensors="np", image_mean=(0.1, 0.2, 0.3, 0.9), image_std=(1.0,) * 4)
    assert np.array_equal(found["pixel_values"], expected["pixel_values"])
