"""What visitors give to a Space: images of each format; and models with names that do harm."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from hf_medtl.data import phantoms
from hf_medtl.space import examples
from tests.support import space_fixtures
from tests.support.dicom_files import make_dicom

HOSTILE = "<img src=x onerror=document.title='run'>"  # as a label, and in names of files
LONG = "a_label_whose_name_is_as_long_as_those_that_people_give_when_nobody_stops_them"
FINDINGS = [HOSTILE, LONG, *(f"finding_{number}" for number in range(3, 15))]  # 14, as in chest radiographs


def write_browser_models(folder: Path) -> list[str]:
    """Folders of a ViT and a CNN of brains, a ViT of 14 labels whose names do harm, and a U-Net of lungs."""
    made = space_fixtures.write_models(folder)
    named = {"id2label": dict(enumerate(FINDINGS)), "label2id": {name: index for index, name in enumerate(FINDINGS)}}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    several = {"problem_type": "multi_label_classification", "thresholds": dict.fromkeys(FINDINGS, 0.5)}
    config = ViTConfig(image_size=32, patch_size=8, **sizes, **named, **several)
    space_fixtures.save_model(ViTForImageClassification(config), folder / "many-findings")
    return [str(its) for its in (made["vit"], made["cnn"], folder / "many-findings", made["lungs"])]


def draw_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """A brain slice of that size: the page tells the size, and so which image it answers."""
    return Image.fromarray(phantoms.draw_brain(seed, 0, True, seed=3, size=96).image).resize((width, height))


def encode_image(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The file of an image."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def draw_16_bit_image(width: int, height: int) -> Image.Image:
    """An image of 16 bits."""
    grey = np.asarray(draw_image(width, height).convert("L")).astype(np.uint16)
    return Image.fromarray(grey * 200)


def encode_dicom(width: int, height: int) -> bytes:
    """A DICOM file that a DICOM Segmentation can refer to."""
    return examples.to_dicom(np.asarray(draw_image(width, height)))


def encode_ct(width: int, height: int, frames: int = 0) -> bytes:
    """CT in HU from -1000 to 400; with `frames` each is shifted."""
    grey = np.asarray(draw_image(width, height).convert("L")).astype(np.int16)
    pixels = -1000 + 5 * grey
    if frames:
        pixels = np.stack([np.roll(pixels, 9 * number, axis=1) for number in range(frames)])
    stream = io.BytesIO()
    made = make_dicom(pixels, frames=frames, Modality="CT", RescaleIntercept=0, RescaleSlope=1)
    made.WindowCenter, made.WindowWidth = 40, 400
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def zip_files(files: dict[str, bytes]) -> bytes:
    """A zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()
