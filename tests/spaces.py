"""Small models with random weights and pictures of each format, for the tests of the Space."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from test_dicom import dicom
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_medtl.data import phantoms
from hf_medtl.models.cnn import MedicalCnnConfig, MedicalCnnForImageClassification
from hf_medtl.models.segmenter import build_segmenter
from hf_medtl.space import examples

HOSTILE = "<img src=x onerror=document.title='run'>"  # as a label, and in names of files
LONG = "a_label_whose_name_is_as_long_as_those_that_people_give_when_nobody_stops_them"
MANY = [HOSTILE, LONG, *(f"finding_{number}" for number in range(3, 15))]  # 14, as in chest radiographs
CHOICES = {"threshold": 0.5, "positive_label": "lesion", "folded_temperature": 1.2}
METRIC = {"value": 0.8, "low": 0.7, "high": 0.9}
RESULTS = {
    "dataset": "brain-phantoms", "task": "image-classification", "split": "test", "n": 40, "n_groups": 20,
    "metrics": {"accuracy": METRIC, "sensitivity": METRIC, "specificity": METRIC, "roc_auc": METRIC},
}  # fmt: skip


def write_models(folder: Path) -> list[str]:
    """Folders of a ViT and a CNN of two labels, a ViT of 14 labels with names that do harm, and a U-Net of lungs."""
    torch.manual_seed(0)
    two = vit(
        ["no_lesion", "lesion"], **CHOICES, conformal={"alpha": 0.1, "lowest": {"no_lesion": 0.01, "lesion": 0.01}}
    )
    many = vit(MANY, problem_type="multi_label_classification", thresholds=dict.fromkeys(MANY, 0.5))
    named = {"id2label": {0: "no_lesion", 1: "lesion"}, "label2id": {"no_lesion": 0, "lesion": 1}}
    cnn = MedicalCnnForImageClassification(MedicalCnnConfig(widths=(8, 16), image_size=32, **named, **CHOICES))
    for name, model in {"vit": two, "cnn": cnn, "many-findings": many}.items():
        model.save_pretrained(folder / name)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / name)
    (folder / "vit" / "results.json").write_text(json.dumps(RESULTS))
    more = {"encoder": "tu-test_resnet", "encoder_weights": "none", "image_size": 64}
    unet, processor = build_segmenter(
        "unet", ("background", "lungs"), **more, model_args={"decoder_channels": (16, 16, 8, 8, 8)}
    )
    unet.save_pretrained(folder / "unet")
    processor.save_pretrained(folder / "unet")
    return [str(folder / name) for name in ("vit", "cnn", "many-findings", "unet")]


def vit(labels: list[str], **more: object) -> ViTForImageClassification:
    """A tiny one."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
    return ViTForImageClassification(ViTConfig(intermediate_size=64, **sizes, **names, **more))


def drawn(width: int, height: int, seed: int = 0) -> Image.Image:
    """A brain slice of that size: the page tells the size, and so which picture it answers."""
    return Image.fromarray(phantoms.brain(seed, 0, True, seed=3, size=96).image).resize((width, height))


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The file of a picture."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def deep(width: int, height: int) -> Image.Image:
    """A picture of 16 bits."""
    grey = np.asarray(drawn(width, height).convert("L")).astype(np.uint16)
    return Image.fromarray(grey * 200)


def one_dicom(width: int, height: int) -> bytes:
    """A DICOM file that a DICOM Segmentation can refer to."""
    return examples.dicom(np.asarray(drawn(width, height)))


def ct(width: int, height: int, frames: int = 0) -> bytes:
    """CT in HU from -1000 to 400; with `frames` each is shifted."""
    grey = np.asarray(drawn(width, height).convert("L")).astype(np.int16)
    pixels = -1000 + 5 * grey
    if frames:
        pixels = np.stack([np.roll(pixels, 9 * number, axis=1) for number in range(frames)])
    stream = io.BytesIO()
    made = dicom(pixels, frames=frames, Modality="CT", RescaleIntercept=0, RescaleSlope=1)
    made.WindowCenter, made.WindowWidth = 40, 400
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()
