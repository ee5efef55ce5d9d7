"""Model registry of the Space: models loaded once, with the results and explanations of their runs."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.utils.hub import cached_file

from hf_medtl.common.files import read_object
from hf_medtl.common.links import check_link
from hf_medtl.errors import MedtlError
from hf_medtl.explain.attention import attention_head_maps
from hf_medtl.explain.layers import Layer, find_layer
from hf_medtl.explain.maps import METHODS, to_pixel_values
from hf_medtl.predict import Predictor
from hf_medtl.publish.templates import card_sections

ATTENTION_HEAD = "attention head"  # heatmap of a single head, in addition to METHODS
METHOD_NAMES = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "eigencam": "Eigen-CAM",
    "rollout": "attention rollout",
    ATTENTION_HEAD: "attention of one head",
}
SLOW_METHODS = ("scorecam", "integrated_gradients")  # seconds to minutes per image on a CPU: not for a page


@dataclass
class ServedModel:
    """One model of the registry.

    Attributes:
        name: display name.
        source: run folder or Hub id.
        predictor: predictor of the model. Use it under `lock`, one call at a time: it hooks into the model.
        results: results.json, or empty.
        verdicts: label -> verdict on its heatmaps from explanations.json; empty if they were not validated.
        verdict_method: heatmap method of the verdicts.
        card: Markdown sections of the model card about intended use and limits.
        methods: heatmap methods available for this model.
        heads: (layers, heads) of its attention, or None.
        layer: layer that the CAM methods use; None for segmentation models.
    """

    name: str
    source: str
    predictor: Predictor
    results: dict[str, Any]
    verdicts: dict[str, Any]
    verdict_method: str | None
    card: str = ""
    methods: tuple[str, ...] = ()
    heads: tuple[int, int] | None = None
    layer: Layer | None = None
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def is_segmenter(self) -> bool:
        """True for a segmentation model, False for a classifier."""
        return self.predictor.is_segmentation


class ModelRegistry:
    """Models by name, in order.

    Args:
        sources: run folders or Hub ids of image classifiers and segmentation models.
        trust_remote_code: run code from their repositories. Models of hf_medtl need none.
        device: of the models, see `hf_medtl.models.device.select_device`.

    Raises:
        MedtlError: no source is given, or one cannot be loaded.
    """

    def __init__(self, sources: Sequence[str], trust_remote_code: bool = False, device: str | None = None) -> None:
        if not sources:
            raise MedtlError("A Space needs at least one model. Give a run folder or the id of a model on the Hub.")
        names = unique_names(sources)
        self._models = {
            name: _load_model(name, source, trust_remote_code, device)
            for name, source in zip(names, sources, strict=True)
        }

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def __getitem__(self, name: str) -> ServedModel:
        if name not in self._models:
            raise MedtlError(f"There is no model of that name here. Choose one of {', '.join(self._models)}.")
        return self._models[name]

    def names(self, segmentation: bool) -> list[str]:
        """Return the names of the segmentation models, or of the classifiers."""
        return [model.name for model in self if model.is_segmenter == segmentation]


def unique_names(sources: Sequence[str]) -> list[str]:
    """Return the last path component of each source, with as many before it as make the names unique.

    Raises:
        MedtlError: a source is given twice.
    """
    parts = [Path(source).resolve().parts if Path(source).is_dir() else tuple(source.split("/")) for source in sources]
    if len(set(parts)) < len(parts):
        raise MedtlError("A model is given twice. Give each once.")
    length = 1
    while len({path[-length:] for path in parts}) < len(parts):
        length += 1
    return ["/".join(path[-length:]) for path in parts]


def _load_model(name: str, source: str, trust_remote_code: bool, device: str | None) -> ServedModel:
    """Load a model and its run's files, and predict once, so that the first visitor does not wait for the warm-up."""
    predictor = Predictor.from_pretrained(source, device=device, trust_remote_code=trust_remote_code)
    explanations = _read_json(source, "explanations.json")
    model = ServedModel(
        name, source, predictor, _read_json(source, "results.json"),
        explanations.get("verdict", {}), explanations.get("method"), card_sections(_read_text(source, "README.md")),
    )  # fmt: skip
    grey = Image.new("RGB", (256, 256), (96, 96, 96))
    predictor.predict([grey])
    if not model.is_segmenter:
        pixels = to_pixel_values(predictor.processor, [grey])
        model.heads = _attention_shape(predictor, pixels)
        model.methods = tuple(
            method for method in METHODS if method not in SLOW_METHODS and (model.heads or method != "rollout")
        ) + ((ATTENTION_HEAD,) if model.heads else ())
        model.layer = find_layer(predictor.model, pixels)
    return model


def _attention_shape(predictor: Predictor, pixels: Any) -> tuple[int, int] | None:
    """Return (layers, heads) of a model whose class token attends to patches, or None."""
    try:
        return attention_head_maps(predictor.model, pixels).shape[1:3]
    except MedtlError:
        return None


def _read_json(source: str, name: str) -> dict[str, Any]:
    path = _find(source, name)
    return read_object(path) if path else {}


def _read_text(source: str, name: str) -> str:
    path = _find(source, name)
    return path.read_text(encoding="utf-8") if path else ""


def _find(source: str, name: str) -> Path | None:
    """Return a file of a run or repository, None without one; what is shown to visitors must not be from elsewhere."""
    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    if path:
        check_link(Path(path), Path(path).parent)
    return Path(path) if path else None
