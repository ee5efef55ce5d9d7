"""Sanity verdict on heatmaps: randomisation, faithfulness, stability and localisation checks with fixed thresholds."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedModel

from hf_medtl.errors import MedtlError
from hf_medtl.explain.faithfulness import deletion_insertion_curves, random_maps, road
from hf_medtl.explain.geometry import find_geometry, restore
from hf_medtl.explain.localization import energy_fraction
from hf_medtl.explain.maps import (
    Heatmaps,
    Method,
    class_indices,
    heatmaps,
    label_names,
    predict_probabilities,
    to_pixel_values,
)
from hf_medtl.explain.randomisation import cascading_randomisation, similarity


class Check(NamedTuple):
    """Requirement for a number.

    Attributes:
        threshold: the limit.
        above: the number must be at least the limit; otherwise at most.
        reason: why the limit is there.
    """

    threshold: float
    above: bool
    reason: str


CHECKS = {
    "weights_spearman": Check(
        0.5,
        False,
        "rank correlation with heatmaps of the same network with random weights: at 0.5 it explains a quarter of their "
        "variance, and most of the heatmap depends on the learned weights (Adebayo et al. 2018)",
    ),
    "weights_ssim": Check(
        0.5,
        False,
        "structural similarity to heatmaps of the same network with random weights: half way between equal and "
        "unrelated (Adebayo et al. 2018)",
    ),
    "deletion_insertion": Check(
        0.1,
        True,
        "area between the insertion and the deletion curve, minus that of random maps: the order of pixels in a "
        "heatmap is worth at least a tenth of the probability (Petsiuk et al. 2018)",
    ),
    "road": Check(
        0.02,
        True,
        "half the probability that is lost by removing the most relevant pixels rather than the least: above 0, the "
        "value of a random order, by more than the noise of a few images (Rong et al. 2022)",
    ),
    "stability": Check(
        0.7,
        True,
        "rank correlation with heatmaps of the same images with invisible noise: below, half of a heatmap's variance "
        "is random (0.7 squared)",
    ),
    "energy": Check(
        2.0,
        True,
        "fraction of a heatmap's energy inside the mask, divided by the mask's fraction of the image: 1 is expected "
        "from a map that is independent of the mask, and 2 is more than the centre alone gives (Wang et al. 2020, "
        "Score-CAM)",
    ),
}
NOISE = 0.05  # standard deviation of the noise for `stability`, relative to that of the pixels


def verdict(
    model: PreTrainedModel,
    processor: Any,
    images: Sequence[Image.Image],
    classes: Sequence[int | str] | int | str | None = None,
    method: str | Method = "gradcam",
    layer: str | None = None,
    masks: Sequence[NDArray[Any]] | None = None,
    others: Sequence[str] = ("gradcam", "gradcam++", "eigencam"),
    seed: int = 0,
) -> dict[str, Any]:
    """Test on a sample of images if the heatmaps of a method can be trusted. The state of the model is restored.

    Agreement with other methods is reported but not required: methods can agree and all be wrong. A dozen images of one
    class are most informative; that takes a few hundred forward passes.

    Args:
        model: as for `explain`.
        processor: as for `explain`.
        images: as for `explain`.
        classes: as for `explain`.
        method: as for `explain`.
        layer: as for `explain`.
        masks: (H, W) for each image, non-zero where the heatmap should be: a lesion, the lungs. Empty ones are ignored.
        others: methods to compare with.
        seed: seed of all random choices.

    Returns:
        For JSON. method, layer, n; constant: number of constant, thus uninformative maps; checks: name of CHECKS ->
        value, threshold, must_be, passed, reason; failed: their names; passed; summary: a sentence; and the underlying
        numbers: cascade (see `cascading_randomisation`), deletion and insertion (areas), chance (area between them of
        random maps), agreement (other method -> rank correlation), energy (inside, area, ratio, n; only with masks).

    Raises:
        MedtlError: no images, not one mask per image, or as for `explain`.
    """
    if not len(images) or (masks is not None and len(masks) != len(images)):
        raise MedtlError(
            f"A verdict needs images, and either one mask per image or none; found {len(images)} images"
            f"{'' if masks is None else f' and {len(masks)} masks'}."
        )
    pixels = to_pixel_values(processor, images)
    targets = class_indices(label_names(model), classes, len(images))
    index = predict_probabilities(model, pixels).argmax(axis=1) if targets is None else targets

    def compute_maps(inputs: torch.Tensor, by: str | Method = method) -> Heatmaps:
        return heatmaps(model, inputs, index, by, layer if by == method else None)

    maps = compute_maps(pixels)
    steps = cascading_randomisation(model, pixels, index, method, layer, seed=seed)
    curves, random_curves = (
        deletion_insertion_curves(model, pixels, index, order, seed=seed)
        for order in (maps, random_maps(len(maps), (maps.shape[1], maps.shape[2]), seed))
    )
    values = {
        "weights_spearman": steps[-1]["spearman"],
        "weights_ssim": steps[-1]["ssim"],
        "deletion_insertion": float((curves.gain() - random_curves.gain()).mean()),
        "road": float(road(model, pixels, index, maps, seed=seed).mean()),
        "stability": stability(compute_maps, pixels, maps, seed),
    }
    numbers: dict[str, Any] = {
        "cascade": steps,
        "deletion": float(curves.deletion.mean()),
        "insertion": float(curves.insertion.mean()),
        "chance": float(random_curves.gain().mean()),
        "agreement": {name: _mean_rank(maps, compute_maps(pixels, name)) for name in others if name != method},
    }
    if masks is not None:
        numbers["energy"] = mean_energy_in_masks(maps, masks, processor, images)
        if numbers["energy"]["n"]:
            values["energy"] = numbers["energy"]["ratio"]
    checks = {name: _apply(CHECKS[name], value) for name, value in values.items()}
    failed = [name for name, check in checks.items() if not check["passed"]]
    name = method if isinstance(method, str) else getattr(method, "__name__", "a function")
    return {
        "method": name,
        "layer": layer,
        "n": len(images),
        "constant": int((np.ptp(maps, axis=(1, 2)) == 0).sum()),
        "passed": not failed,
        "failed": failed,
        "summary": _summary(name, len(images), checks, failed),
        "checks": checks,
        **numbers,
    }


def stability(
    compute_maps: Callable[[torch.Tensor], Heatmaps], pixels: torch.Tensor, maps: Heatmaps, seed: int = 0
) -> float:
    """Return the mean rank correlation of heatmaps with those of the same images with a little noise.

    Args:
        compute_maps: pixels (n, C, H, W) -> maps.
        pixels: of the images.
        maps: (n, H, W), of `pixels`.
        seed: seed of the noise.
    """
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return _mean_rank(maps, compute_maps(pixels + NOISE * pixels.std(dim=(1, 2, 3), keepdim=True) * noise))


def mean_energy_in_masks(
    maps: Heatmaps, masks: Sequence[NDArray[Any]], processor: Any, images: Sequence[Image.Image]
) -> dict[str, float]:
    """Average `energy_fraction` over images with a non-empty mask: inside, area, ratio; and their number n.

    Args:
        maps: (n, h, w) of the model's input.
        masks: (H, W) of each image.
        processor: image processor that produced the input.
        images: the originals.
    """
    pairs = [
        energy_fraction(restore(values, find_geometry(processor, image), image.size[::-1]), mask)
        for values, mask, image in zip(maps, masks, images, strict=True)
        if np.any(mask)
    ]
    if not pairs:
        return {"n": 0}
    inside, area = np.array(pairs).T
    means = {"inside": inside.mean(), "area": area.mean(), "ratio": (inside / area).mean()}
    return {"n": len(pairs), **{name: float(value) for name, value in means.items()}}


def _mean_rank(maps: Heatmaps, others: Heatmaps) -> float:
    return float(np.mean([similarity(*pair).spearman for pair in zip(maps, others, strict=True)]))


def _apply(check: Check, value: float) -> dict[str, Any]:
    passed = value >= check.threshold if check.above else value <= check.threshold
    return {
        "value": value,
        "threshold": check.threshold,
        "must_be": "at least" if check.above else "at most",
        "passed": bool(passed),
        "reason": check.reason,
    }


def _summary(name: str, number: int, checks: dict[str, dict[str, Any]], failed: list[str]) -> str:
    images = f"on {number} images" if number > 1 else "on one image"
    if not failed:
        return (
            f"The heatmaps of {name} pass all {len(checks)} checks {images}: they show what the model uses. That does "
            "not mean that the model is right, or that it uses signs of the disease."
        )
    details = "; ".join(
        f"{key} is {checks[key]['value']:.2f}, must be {checks[key]['must_be']} {checks[key]['threshold']:g}"
        for key in failed
    )
    return f"Do not trust the heatmaps of {name}: {len(failed)} of {len(checks)} checks fail {images} ({details})."
