"""What a Space says of a picture: plain values for the API, and for the page that shows them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import label as components

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.postprocessing import EIGHT
from hf_medtl.explain.attention import head_maps
from hf_medtl.explain.geometry import find_geometry, restore
from hf_medtl.explain.maps import Maps, normalise, to_pixels
from hf_medtl.explain.maps import explain as maps_of
from hf_medtl.predict import Prediction
from hf_medtl.publish.sentences import NOTICE
from hf_medtl.space.registry import HEAD, METHOD_NAMES, Model

CAMS = ("gradcam", "gradcam++", "eigencam")  # of `find_layer`, which need not look for it again


@dataclass(frozen=True)
class Look:
    """What a map is to show.

    Attributes:
        method: one of the model's methods.
        label: to explain; None for the one that is most probable.
        layer, head: of an attention head, from 1.
    """

    method: str = "gradcam"
    label: str | None = None
    layer: int = 1
    head: int = 1


def classify(model: Model, picture: Image.Image) -> dict[str, Any]:
    """Probabilities, decision, set of labels, and whether and why not to decide.

    Raises:
        MedtlError: the model outlines instead.
    """
    if model.of_masks:
        raise MedtlError(f"{model.name} outlines and gives no labels. Choose a classifier, or the tab Segment.")
    with model.lock:
        found = model.predictor.predict([picture])[0]
    config = model.predictor.config
    conformal = getattr(config, "conformal", None)
    return {
        **about(model, found, picture),
        "probabilities": found.probabilities,
        "label": found.label,
        "decision": found.decision,
        "threshold": getattr(config, "threshold", None),
        "thresholds": getattr(config, "thresholds", None),
        "positive_label": getattr(config, "positive_label", None),
        "calibrated": getattr(config, "folded_temperature", None) is not None,
        "candidates": None if found.candidates is None else list(found.candidates),
        "coverage": None if conformal is None else 1 - conformal["alpha"],
        "abstain": found.abstain,
        "reasons": [in_words(reason, found, conformal) for reason in found.reasons],
        "outlier": found.outlier,
        "wording": {
            label: model.predictor.wording[label]
            for label in (found.decision or "").split("|")
            if label in model.predictor.wording
        },
        "notice": NOTICE,
    }


def in_words(reason: str, found: Prediction, conformal: Mapping[str, Any] | None) -> str:
    """Why no decision should be taken, for people."""
    if reason == "uncertain":
        assert found.candidates is not None
        assert conformal is not None
        sure = f"the set that misses the true label in at most {100 * conformal['alpha']:g} % of pictures"
        if found.candidates:
            return f"More than one label is possible: {sure} holds {' and '.join(found.candidates)}."
        return f"No label fits: {sure} is empty, which happens with pictures unlike those it was calibrated on."
    return (
        f"The picture is unlike those the model was trained on: it scores {found.outlier:.2f}, and fewer than one in "
        "twenty of the model’s own validation pictures score above 1."
    )


def look(model: Model, picture: Image.Image, wish: Look) -> tuple[Maps, dict[str, Any]]:
    """A map of the picture, (H, W) in [0, 1], and what it shows, with the verdict on such maps.

    Raises:
        MedtlError: no such method, label, layer or head.
    """
    if wish.method not in model.methods:
        raise MedtlError(f"{model.name} has maps by {', '.join(model.methods)}; found {wish.method!r}.")
    facts: dict[str, Any] = {"model": model.name, "method": wish.method}
    predictor = model.predictor
    if wish.method == HEAD:
        assert model.heads is not None
        if not (1 <= wish.layer <= model.heads[0] and 1 <= wish.head <= model.heads[1]):
            raise MedtlError(f"{model.name} has layers 1 to {model.heads[0]} with heads 1 to {model.heads[1]} each.")
        pixels = to_pixels(predictor.processor, [picture])
        with model.lock:
            patches = head_maps(predictor.model, pixels)[:, wish.layer - 1, wish.head - 1]
        each = torch.nn.functional.interpolate(torch.from_numpy(patches)[:, None], pixels.shape[-2:], mode="bilinear")
        values = normalise(each[0, 0].numpy())
        whole = restore(values, find_geometry(predictor.processor, picture), (picture.height, picture.width))
        return whole, {**facts, "layer": wish.layer, "head": wish.head, "verdict": verdict(model, wish.method, None)}
    if wish.label is not None and wish.label not in predictor.labels:
        raise MedtlError(f"{model.name} knows the labels {', '.join(predictor.labels)}; found {wish.label!r}.")
    with model.lock:
        item = maps_of(
            predictor.model, predictor.processor, [picture], wish.label, wish.method,
            model.layer if wish.method in CAMS else None,
        )[0]  # fmt: skip
    return item.map, {
        **facts,
        "label": item.label,
        "probability": item.probability,
        "outside": item.outside,
        "verdict": verdict(model, wish.method, item.label),
    }


def verdict(model: Model, method: str, label: str | None) -> dict[str, Any]:
    """`passed` (True, False or None for nobody knows) and `summary` of the checks of such maps."""
    if label in model.verdicts and method == model.verdict_method:
        its = model.verdicts[label]
        return {"passed": its["passed"], "summary": its["summary"]}
    known = METHOD_NAMES.get(model.verdict_method or "")
    other = f" Those by {known} were: choose it." if model.verdicts and known and method != model.verdict_method else ""
    return {
        "passed": None,
        "summary": f"Nobody has checked whether such maps are to be believed.{other} To check, run hf-medtl explain.",
    }


def segment(model: Model, picture: Image.Image) -> tuple[NDArray[np.uint8], Maps, dict[str, Any]]:
    """Mask (H, W) of class indices, uncertainty (H, W) in [0, 1], and areas.

    Raises:
        MedtlError: the model gives labels instead.
    """
    if not model.of_masks:
        raise MedtlError(f"{model.name} gives labels and no outlines. Choose a segmentation model.")
    with model.lock:
        found = model.predictor.predict([picture], explain="uncertainty")[0]
    assert found.mask is not None
    assert found.map is not None
    labels = model.predictor.labels
    regions = []
    for index, name in enumerate(labels[1:], start=1):
        inside = found.mask == index
        regions.append(
            {
                "name": name,
                "pixels": int(inside.sum()),
                "share": float(inside.mean()),
                "uncertainty": float(found.map[inside].mean()) if inside.any() else None,
                "sides": sides(inside) if "lung" in name.lower() else None,
            }
        )
    return (
        found.mask,
        found.map,
        {
            **about(model, found, picture),
            "regions": regions,
            "uncertainty": float(found.map.mean()),
            "postprocessing": getattr(model.predictor.config, "postprocessing", None),
            "notice": NOTICE,
        },
    )


def sides(inside: NDArray[np.bool_]) -> dict[str, dict[str, float]] | None:
    """Pixels and share of the patient's right and left lung, or None if they are not two separate regions.

    In a radiograph as it is hung, the patient's right is on the left.
    """
    found, number = components(inside, structure=EIGHT)
    sizes = np.bincount(found.ravel())[1:]
    if number < 2:
        return None
    two = np.argsort(-sizes, kind="stable")[:2]
    if sizes[two[1]] < sizes[two[0]] / 10:
        return None
    whole = sizes[two].sum()
    ordered = sorted(two, key=lambda index: np.flatnonzero((found == index + 1).any(axis=0)).mean())
    return {
        side: {"pixels": int(sizes[index]), "share": float(sizes[index] / whole)}
        for side, index in zip(("right", "left"), ordered, strict=True)
    }


def compare(one: Model, other: Model, picture: Image.Image) -> dict[str, Any]:
    """Both models' answers, and where they disagree.

    Raises:
        MedtlError: they do different things, or are one model.
    """
    if one is other:
        raise MedtlError("Choose two different models to compare.")
    if one.of_masks != other.of_masks:
        raise MedtlError("A classifier can't be compared with a segmentation model. Choose two of a kind.")
    if one.of_masks:
        first, _, facts = segment(one, picture)
        second, _, others = segment(other, picture)
        both = (first > 0).sum() + (second > 0).sum()
        same = ((first > 0) & (first == second)).sum()
        found: dict[str, Any] = {
            "dice": float(2 * same / both) if both else None,
            "disagreement": float((first != second).mean()),
            "masks": (first, second),
        }
    else:
        facts, others = classify(one, picture), classify(other, picture)
        shared = [label for label in facts["probabilities"] if label in others["probabilities"]]
        found = {
            "agree": facts["decision"] == others["decision"],
            "difference": {label: facts["probabilities"][label] - others["probabilities"][label] for label in shared},
            "only_one": sorted(set(facts["probabilities"]) ^ set(others["probabilities"])),
        }
    return {"models": [facts, others], **found}


def about(model: Model, found: Prediction, picture: Image.Image) -> dict[str, Any]:
    """What every answer says of itself."""
    return {
        "model": model.name,
        "revision": model.predictor.revision,
        "width": picture.width,
        "height": picture.height,
        "seconds": round(found.seconds, 4),
    }
