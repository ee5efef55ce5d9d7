"""Inference of the Space: classification, heatmaps, segmentation and comparison as plain values for page and API."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import label as connected_components

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.postprocessing import EIGHT_CONNECTED
from hf_medtl.explain.attention import attention_head_maps
from hf_medtl.explain.geometry import find_geometry, restore
from hf_medtl.explain.maps import Heatmaps, explain, normalise, to_pixel_values
from hf_medtl.predict import Prediction
from hf_medtl.publish.sentences import NOTICE
from hf_medtl.space.registry import ATTENTION_HEAD, METHOD_NAMES, ServedModel

CAMS = ("gradcam", "gradcam++", "eigencam")  # use the layer that the registry has found already


@dataclass(frozen=True)
class HeatmapRequest:
    """Parameters of a heatmap.

    Attributes:
        method: one of the model's methods.
        label: label to explain; None for the most probable one.
        layer, head: numbers of an attention head, from 1.
    """

    method: str = "gradcam"
    label: str | None = None
    layer: int = 1
    head: int = 1


def classify(model: ServedModel, image: Image.Image) -> dict[str, Any]:
    """Return probabilities, decision, prediction set, and whether the model abstains with its reasons.

    Raises:
        MedtlError: it is a segmentation model.
    """
    if model.is_segmenter:
        raise MedtlError(f"{model.name} is a segmentation model. Choose a classifier, or the tab Segment.")
    with model.lock:
        prediction = model.predictor.predict([image])[0]
    rule, wording = model.predictor.decision_rule, model.predictor.wording
    return {
        **_metadata(model, prediction, image),
        "probabilities": prediction.probabilities,
        "label": prediction.label,
        "decision": prediction.decision,
        "threshold": rule.threshold,
        "thresholds": rule.thresholds,
        "positive_label": rule.positive,
        "calibrated": rule.temperature is not None,
        "candidates": None if prediction.candidates is None else list(prediction.candidates),
        "coverage": None if rule.conformal is None else 1 - rule.conformal["alpha"],
        "abstain": prediction.abstain,
        "reasons": [describe_reason(reason, prediction, rule.conformal) for reason in prediction.reasons],
        "outlier": prediction.outlier,
        "wording": {label: wording[label] for label in (prediction.decision or "").split("|") if label in wording},
        "notice": NOTICE,
    }


def describe_reason(reason: str, prediction: Prediction, conformal: Mapping[str, Any] | None) -> str:
    """Return a sentence about a reason to abstain.

    Args:
        reason: one of `Prediction.reasons`.
        prediction: the prediction that abstains.
        conformal: conformal settings of the model's configuration.
    """
    if reason == "uncertain":
        assert prediction.candidates is not None
        assert conformal is not None
        prediction_set = f"the set that misses the true label in at most {100 * conformal['alpha']:g} % of images"
        if prediction.candidates:
            return f"More than one label is possible: {prediction_set} contains {' and '.join(prediction.candidates)}."
        return f"No label fits: {prediction_set} is empty, which happens for images unlike those of the calibration."
    return (
        "The image is unlike those the model was trained on: its out-of-distribution score is "
        f"{prediction.outlier:.2f}, while fewer than one in twenty of the model’s own validation images score above 1."
    )


def heatmap(model: ServedModel, image: Image.Image, request: HeatmapRequest) -> tuple[Heatmaps, dict[str, Any]]:
    """Return a heatmap (H, W) in [0, 1] of an image, and its description with the verdict of its validation.

    Raises:
        MedtlError: unknown method, label, layer or head.
    """
    if request.method not in model.methods:
        raise MedtlError(
            f"{model.name} has no heatmaps by {request.method!r}. Available: {', '.join(model.methods) or 'none'}."
        )
    predictor = model.predictor
    description: dict[str, Any] = {"model": model.name, "method": request.method}

    if request.method == ATTENTION_HEAD:
        assert model.heads is not None
        if not (1 <= request.layer <= model.heads[0] and 1 <= request.head <= model.heads[1]):
            raise MedtlError(f"{model.name} has layers 1 to {model.heads[0]} with heads 1 to {model.heads[1]} each.")
        pixels = to_pixel_values(predictor.processor, [image])
        with model.lock:
            patches = attention_head_maps(predictor.model, pixels)[:, request.layer - 1, request.head - 1]
        resized = torch.nn.functional.interpolate(
            torch.from_numpy(patches)[:, None], pixels.shape[-2:], mode="bilinear"
        )
        geometry = find_geometry(predictor.processor, image)
        values = restore(normalise(resized[0, 0].numpy()), geometry, (image.height, image.width))
        head = {"layer": request.layer, "head": request.head, "verdict": saved_verdict(model, request.method, None)}
        return values, description | head

    if request.label is not None and request.label not in predictor.labels:
        raise MedtlError(f"{model.name} has no label {request.label!r}. Choose one of {', '.join(predictor.labels)}.")
    layer = model.layer if request.method in CAMS else None
    with model.lock:
        explanation = explain(
            predictor.model, predictor.processor, [image], request.label, request.method, layer
        )[0]  # fmt: skip
    return explanation.map, description | {
        "label": explanation.label,
        "probability": explanation.probability,
        "outside": explanation.outside,
        "verdict": saved_verdict(model, request.method, explanation.label),
    }


def saved_verdict(model: ServedModel, method: str, label: str | None) -> dict[str, Any]:
    """Return the validation of such heatmaps: `passed` (None if not validated), `summary` and `warnings`."""
    if label in model.verdicts and method == model.verdict_method:
        saved = model.verdicts[label]
        return {"warnings": [], **{key: saved[key] for key in ("passed", "summary", "warnings") if key in saved}}
    other = METHOD_NAMES.get(model.verdict_method or "")
    hint = f" Those by {other} were: choose it." if model.verdicts and other and method != model.verdict_method else ""
    return {
        "passed": None,
        "warnings": [],
        "summary": f"These heatmaps have not been validated.{hint} To validate them, run hf-medtl explain.",
    }


def segment(model: ServedModel, image: Image.Image) -> tuple[NDArray[np.uint8], Heatmaps, dict[str, Any]]:
    """Return the mask (H, W) of class indices, its uncertainty (H, W) in [0, 1], and the areas of the regions.

    Raises:
        MedtlError: it is a classifier.
    """
    if not model.is_segmenter:
        raise MedtlError(f"{model.name} is a classifier. Choose a segmentation model.")
    with model.lock:
        prediction = model.predictor.predict([image], explain="uncertainty")[0]
    mask, uncertainty = prediction.mask, prediction.map
    assert mask is not None
    assert uncertainty is not None
    regions = []
    for index, name in enumerate(model.predictor.labels[1:], start=1):
        region = mask == index
        regions.append(
            {
                "name": name,
                "pixels": int(region.sum()),
                "share": float(region.mean()),
                "uncertainty": float(uncertainty[region].mean()) if region.any() else None,
                "sides": lung_sides(region) if "lung" in name.lower() else None,
            }
        )
    answer = {
        **_metadata(model, prediction, image),
        "regions": regions,
        "uncertainty": float(uncertainty.mean()),
        "postprocessing": getattr(model.predictor.config, "postprocessing", None),
        "notice": NOTICE,
    }
    return mask, uncertainty, answer


def lung_sides(lungs: NDArray[np.bool_]) -> dict[str, dict[str, float]] | None:
    """Return the area of the patient's right and left lung, or None if they are not two separate regions.

    In a radiograph in standard orientation, the patient's right is on the left of the image.

    Args:
        lungs: (H, W), True inside.

    Returns:
        For "right" and "left": `pixels`, and `share`, the fraction of the area of both.
    """
    components, count = connected_components(lungs, structure=EIGHT_CONNECTED)
    sizes = np.bincount(components.ravel())[1:]
    if count < 2:
        return None
    two = np.argsort(-sizes, kind="stable")[:2]
    if sizes[two[1]] < sizes[two[0]] / 10:
        return None
    total = sizes[two].sum()
    left_to_right = sorted(two, key=lambda index: np.flatnonzero((components == index + 1).any(axis=0)).mean())
    return {
        side: {"pixels": int(sizes[index]), "share": float(sizes[index] / total)}
        for side, index in zip(("right", "left"), left_to_right, strict=True)
    }


def compare(one: ServedModel, other: ServedModel, image: Image.Image) -> dict[str, Any]:
    """Return both models' answers, and where they disagree.

    Raises:
        MedtlError: they are the same model, or have different tasks.
    """
    if one is other:
        raise MedtlError("Choose two different models to compare.")
    if one.is_segmenter != other.is_segmenter:
        raise MedtlError("A classifier cannot be compared with a segmentation model. Choose two of a kind.")
    if one.is_segmenter:
        first, _, first_answer = segment(one, image)
        second, _, second_answer = segment(other, image)
        total = (first > 0).sum() + (second > 0).sum()
        overlap = ((first > 0) & (first == second)).sum()
        comparison: dict[str, Any] = {
            "dice": float(2 * overlap / total) if total else None,
            "disagreement": float((first != second).mean()),
            "masks": (first, second),
        }
    else:
        first_answer, second_answer = classify(one, image), classify(other, image)
        p, q = first_answer["probabilities"], second_answer["probabilities"]
        comparison = {
            "agree": first_answer["decision"] == second_answer["decision"],
            "difference": {label: p[label] - q[label] for label in p if label in q},
            "only_one": sorted(set(p) ^ set(q)),
        }
    return {"models": [first_answer, second_answer], **comparison}


def _metadata(model: ServedModel, prediction: Prediction, image: Image.Image) -> dict[str, Any]:
    """Return the fields that all answers have."""
    return {
        "model": model.name,
        "revision": model.predictor.revision,
        "width": image.width,
        "height": image.height,
        "seconds": round(prediction.seconds, 4),
    }
