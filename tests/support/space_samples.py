"""Sample uploads of each format, and models with malicious label names."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from hf_medtl.data import phantoms
from hf_medtl.models.build import set_labels
from hf_medtl.space import examples
from tests.support import space_fixtures
from tests.support.dicom_files import encode_dicom, make_dicom

HOSTILE = "<img src=x onerror=document.title='run'>"  # as a label and in file names
LONG = "a_label_whose_name_is_as_long_as_those_that_people_give_when_nobody_stops_them"
FINDINGS = [HOSTILE, LONG, *(f"finding_{number}" for number in range(3, 15))]  # 14, as in chest radiographs


def write_browser_models(folder: Path) -> list[str]:
    """Write two brain classifiers, a ViT of 14 labels with malicious names and a lung U-Net; return their folders."""
    model_folders = space_fixtures.write_models(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    multilabel = {"problem_type": "multi_label_classification", "thresholds": dict.fromkeys(FINDINGS, 0.5)}
    config = ViTConfig(image_size=32, patch_size=8, **sizes, **multilabel)
    set_labels(config, FINDINGS)
    space_fixtures.save_model(ViTForImageClassification(config), folder / "many-findings")
    return [
        str(path)
        for path in (model_folders["vit"], model_folders["cnn"], folder / "many-findings", model_folders["lungs"])
    ]


def draw_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a brain slice of a size: the page shows the size and so identifies the image."""
    return Image.fromarray(phantoms.draw_brain(seed, 0, True, seed=3, size=96).image).resize((width, height))


def draw_16_bit_image(width: int, height: int) -> Image.Image:
    """Return an image of 16 bits."""
    grey = np.asarray(draw_image(width, height).convert("L")).astype(np.uint16)
    return Image.fromarray(grey * 200)


def encode_mr(width: int, height: int) -> bytes:
    """Return an MR image as a DICOM file that a DICOM Segmentation can reference."""
    return examples.to_dicom(np.asarray(draw_image(width, height)))


def encode_ct(width: int, height: int, frames: int = 0) -> bytes:
    """Return a CT in HU from -1000 to 400; with `frames`, each frame is shifted."""
    grey = np.asarray(draw_image(width, height).convert("L")).astype(np.int16)
    pixels = -1000 + 5 * grey
    if frames:
        pixels = np.stack([np.roll(pixels, 9 * number, axis=1) for number in range(frames)])
    window = {"WindowCenter": 40, "WindowWidth": 400}
    return encode_dicom(make_dicom(pixels, frames=frames, Modality="CT", RescaleIntercept=0, RescaleSlope=1, **window))


def zip_files(files: dict[str, bytes]) -> bytes:
    """Return a zip archive of files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()
