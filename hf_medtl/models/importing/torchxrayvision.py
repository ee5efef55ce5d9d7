"""Classifiers of torchxrayvision (https://github.com/mlmed/torchxrayvision) as timm models with the same logits."""

from dataclasses import dataclass

import torch
from torch import nn

from hf_medtl.common.text import nearest
from hf_medtl.errors import MedtlError
from hf_medtl.models.importing import timm_weights

RELEASE = "https://github.com/mlmed/torchxrayvision/releases/download/v1/"
LICENCE = "apache-2.0"  # of the library and its releases
CITATION = """@inproceedings{Cohen2022xrv,
  title = {TorchXRayVision: A library of chest X-ray datasets and models},
  author = {Cohen, Joseph Paul and Viviano, Joseph D. and Bertin, Paul and Morrison, Paul and Torabian, Parsa and
            Guarrera, Matteo and Lungren, Matthew P and Chaudhari, Akshay and Brooks, Rupert and Hashir, Mohammad and
            Bertrand, Hadrien},
  booktitle = {Medical Imaging with Deep Learning},
  year = {2022},
  url = {https://github.com/mlmed/torchxrayvision}
}"""
RANGE = 1024  # pixels are from -RANGE to RANGE
MEAN = STD = (0.5, 0.5, 0.5)
# Their files hold whole modules, whose tensors are read without these classes.
CLASSES = (
    "torch.nn.backends.thnn._get_thnn_function_backend",  # before PyTorch 1.4
    *(f"torchxrayvision.models.{name}" for name in ("DenseNet", "_DenseBlock", "_DenseLayer", "_Transition")),
    *(
        f"torch.nn.modules.{name}"
        for name in (
            *("activation.ReLU", "batchnorm.BatchNorm2d", "container.Sequential", "conv.Conv2d", "linear.Linear"),
            *("pooling.AvgPool2d", "pooling.MaxPool2d", "pooling.AdaptiveAvgPool2d"),
        )
    ),
)
_LABELS = (
    *("Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema", "Fibrosis", "Effusion"),
    *("Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass", "Hernia", "Lung Lesion", "Fracture"),
    *("Lung Opacity", "Enlarged Cardiomediastinum"),
)
_CHEXPERT = {
    *("Atelectasis", "Consolidation", "Pneumothorax", "Edema", "Effusion", "Pneumonia", "Cardiomegaly"),
    *("Lung Lesion", "Fracture", "Lung Opacity", "Enlarged Cardiomediastinum"),
}


@dataclass(frozen=True)
class Release:
    """Weights that torchxrayvision has published.

    Attributes:
        file: Name of the file of the release.
        labels: Labels that it was trained on, of the 18 outputs.
        architecture: timm's name.
        size: Height and width of its images.
    """

    file: str
    labels: frozenset[str]
    architecture: str = "densenet121"
    size: int = 224


def _densenet(file: str, labels: set[str]) -> Release:
    return Release(f"{file}-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt", frozenset(labels))


RELEASES = {
    "densenet121-res224-all": _densenet("nih-pc-chex-mimic_ch-google-openi-kaggle", {*_LABELS}),
    "densenet121-res224-nih": _densenet("nih", {*_LABELS[:14]}),
    "densenet121-res224-pc": _densenet("pc", {*_LABELS[:14], "Fracture"}),
    "densenet121-res224-chex": _densenet("chex", _CHEXPERT),
    "densenet121-res224-rsna": _densenet("kaggle", {"Pneumonia", "Lung Opacity"}),
    "densenet121-res224-mimic_nb": _densenet("mimic_nb", _CHEXPERT),
    "densenet121-res224-mimic_ch": _densenet("mimic_ch", _CHEXPERT),
    "resnet50-res512-all": Release("pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt", frozenset(_LABELS),
                                   "resnet50", 512),
}  # fmt: skip


def find_release(name: str) -> Release:
    """Return published weights by their name in torchxrayvision, or by its end, such as `all`.

    Raises:
        MedtlError: There are no such weights.
    """
    release = RELEASES.get(name) or RELEASES.get(f"densenet121-res224-{name}")
    if release is None:
        raise MedtlError(
            f"torchxrayvision has no classifier {name!r} that can be imported. These can: {', '.join(RELEASES)}."
            f"{nearest(name, RELEASES)}"
        )
    return release


def convert(tensors: dict[str, torch.Tensor], release: Release) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the timm model with the same logits, and its labels; outputs without a label are left out.

    The library's models see one channel from -1024 to 1024, timm's three from -1 to 1 (mean and std 0.5): the weights
    of the first convolution are multiplied by 1024 and divided among three channels.

    Args:
        tensors: Those of the library's model.
        release: What it is.

    Raises:
        MedtlError: The tensors are not those of the architecture.
    """
    tensors = {key: value for key, value in tensors.items() if key.rpartition(".")[2] != "op_threshs"}
    labels = [label for label in _LABELS if label in release.labels]
    heads = [key for key in tensors if key.endswith(("classifier.weight", "classifier.bias", "fc.weight", "fc.bias"))]
    outputs = torch.tensor([_LABELS.index(label) for label in labels])
    for key in heads:
        if len(tensors[key]) != len(_LABELS):
            raise MedtlError(
                f"{key} has {len(tensors[key])} outputs, but torchxrayvision's models have {len(_LABELS)}."
            )
        tensors[key] = tensors[key][outputs]
    for key, value in tensors.items():
        if value.ndim == 4 and value.shape[1] == 1:  # the first convolution
            tensors[key] = value * RANGE
    model = timm_weights.create(release.architecture)
    timm_weights.load_tensors(model, release.architecture, tensors)
    return model, tuple(labels)
