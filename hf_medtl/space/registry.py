"""The models that a Space offers, loaded once, with what their runs say of them."""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from hf_medtl.errors import MedtlError
from hf_medtl.explain.layers import Layer, find_layer
from hf_medtl.explain.maps import METHODS, to_pixels
from hf_medtl.predict import Predictor

HEAD = "attention head"  # of a layer, beside those of METHODS
METHOD_NAMES = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "eigencam": "Eigen-CAM",
    "rollout": "attention rollout",
    HEAD: "attention of one head",
}
SLOW = ("scorecam", "integrated_gradients")  # seconds to minutes a picture on a CPU: not for a page


@dataclass
class Model:
    """One model of the shelf.

    Attributes:
        name: that the page shows.
        source: run folder or Hub id.
        predictor: answers; one call at a time, under `lock`, since its hooks are the model's.
        results: results.json, empty where there is none.
        verdicts: label -> verdict on its maps, of explanations.json; empty where nobody looked.
        verdict_method: that the verdicts are about.
        prose: Markdown of its card: what it is for, and its limits.
        methods: of maps that this model has.
        heads: (layers, heads) of its attention, or None.
    """

    name: str
    source: str
    predictor: Predictor
    results: dict[str, Any]
    verdicts: dict[str, Any]
    verdict_method: str | None
    prose: str = ""
    methods: tuple[str, ...] = ()
    heads: tuple[int, int] | None = None
    layer: Layer | None = None
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def of_masks(self) -> bool:
        """Whether it outlines instead of giving labels."""
        return self.predictor.of_masks


class Shelf:
    """Models by name, in order.

    Args:
        sources: run folders or ids of image classifiers and segmentation models on the Hub.
        trust_remote_code: run code of their repositories; those of hf_medtl need none.

    Raises:
        MedtlError: none is given, or one can't be loaded.
    """

    def __init__(self, sources: Sequence[str], trust_remote_code: bool = False) -> None:
        if not sources:
            raise MedtlError("A Space needs at least one model. Give a run folder or the id of a model on the Hub.")
        names = names_of(sources)
        self._models = {
            name: open_model(name, source, trust_remote_code) for name, source in zip(names, sources, strict=True)
        }

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def __getitem__(self, name: str) -> Model:
        if name not in self._models:
            raise MedtlError(f"There is no model of that name here. Choose one of {', '.join(self._models)}.")
        return self._models[name]

    def of(self, masks: bool) -> list[str]:
        """Names of the segmentation models, or of the classifiers."""
        return [model.name for model in self if model.of_masks == masks]


def names_of(sources: Sequence[str]) -> list[str]:
    """The last part of each, with as many before it as tell them apart."""
    parts = [Path(source).resolve().parts if Path(source).is_dir() else tuple(source.split("/")) for source in sources]
    length = 1
    while len({its[-length:] for its in parts}) < len(set(parts)):
        length += 1
    if len(set(parts)) < len(parts):
        raise MedtlError("A model is given twice. Give each once.")
    return ["/".join(its[-length:]) for its in parts]


def open_model(name: str, source: str, trust_remote_code: bool) -> Model:
    """Load one with all that is beside it, and answer once, so that the first visitor does not wait for it."""
    from PIL import Image

    predictor = Predictor.from_pretrained(source, trust_remote_code=trust_remote_code)
    explanations = _json(source, "explanations.json")
    model = Model(
        name, source, predictor, _json(source, "results.json"),
        explanations.get("verdict", {}), explanations.get("method"), sections(_text(source, "README.md")),
    )  # fmt: skip
    grey = Image.new("RGB", (256, 256), (96, 96, 96))
    predictor.predict([grey])
    if not model.of_masks:
        pixels = to_pixels(predictor.processor, [grey])
        model.heads = attention_of(predictor, pixels)
        model.methods = tuple(
            method for method in METHODS if method not in SLOW and (model.heads or method != "rollout")
        ) + ((HEAD,) if model.heads else ())
        model.layer = find_layer(predictor.model, pixels)
    return model


def attention_of(predictor: Predictor, pixels: Any) -> tuple[int, int] | None:
    """(layers, heads) of a model whose class token attends to patches; None for others."""
    from hf_medtl.explain.attention import head_maps

    try:
        return head_maps(predictor.model, pixels).shape[1:3]
    except MedtlError:
        return None


def sections(card: str, wanted: Sequence[str] = ("Intended use", "Limits")) -> str:
    """Those of a card that say what a model is for."""
    parts = re.split(r"^(?=#{1,2} )", card, flags=re.MULTILINE)
    return "\n".join(part for part in parts if part.partition("\n")[0].removeprefix("## ").strip() in wanted)


def _json(source: str, name: str) -> dict[str, Any]:
    return json.loads(_text(source, name) or "{}")


def _text(source: str, name: str) -> str:
    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return Path(path).read_text(encoding="utf-8") if path else ""
