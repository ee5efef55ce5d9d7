"""One verdict on the maps of a model: what they must do, what they do, and whether that is enough."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedModel

from hf_medtl.errors import MedtlError
from hf_medtl.explain.faithfulness import chance_maps, curves, road
from hf_medtl.explain.geometry import find_geometry, restore
from hf_medtl.explain.maps import Maps, Method, class_indices, heatmaps, label_names, predict, to_pixels
from hf_medtl.explain.randomisation import cascade, similarity


class Check(NamedTuple):
    """What a number must be.

    Attributes:
        threshold: the limit.
        above: it must be at least that; else at most.
        reason: why there.
    """

    threshold: float
    above: bool
    reason: str


CHECKS = {
    "weights_spearman": Check(
        0.5,
        False,
        "rank correlation of maps with those of the same network with random weights: at 0.5 it explains a quarter of "
        "their variance, and most of the map comes from what was learnt (Adebayo et al. 2018)",
    ),
    "weights_ssim": Check(
        0.5,
        False,
        "structural similarity to the same: half way between equal and unrelated (Adebayo et al. 2018)",
    ),
    "deletion_insertion": Check(
        0.1,
        True,
        "area between the insertion and the deletion curve, less that of random maps: the order of places that a map "
        "gives is worth a tenth of the probability at least (Petsiuk et al. 2018)",
    ),
    "road": Check(
        0.02,
        True,
        "half the probability that is lost without the most relevant places rather than the least: above 0, which is "
        "what any order without meaning has, by more than the noise of a few pictures (Rong et al. 2022)",
    ),
    "stability": Check(
        0.7,
        True,
        "rank correlation of maps with those of pictures with noise that nobody sees: below, half of a map's variance "
        "is chance (0.7 squared)",
    ),
    "energy": Check(
        2.0,
        True,
        "share of a map's energy inside the mask, over the mask's share of the picture: 1 is what a map has that does "
        "not know the place, and twice that is more than the centre alone gives (Wang et al. 2020, Score-CAM)",
    ),
}
NOISE = 0.05  # standard deviation of what is added for `stability`, of the pixels' own


def verdict(
    model: PreTrainedModel,
    processor: Any,
    pictures: Sequence[Image.Image],
    classes: Sequence[int | str] | int | str | None = None,
    method: str | Method = "gradcam",
    layer: str | None = None,
    masks: Sequence[NDArray[Any]] | None = None,
    others: Sequence[str] = ("gradcam", "gradcam++", "eigencam"),
    seed: int = 0,
) -> dict[str, Any]:
    """Whether the maps of a method are to be believed, on a sample of pictures. The model is as it was before.

    Agreement with other methods is told and decides nothing: methods can agree and be wrong together. A dozen pictures
    of one class say most; that takes a few hundred forward passes.

    Args:
        model, processor, pictures, classes, method, layer: as for `explain`.
        masks: (H, W) of each picture, what is not 0 is where the map should be: a lesion, the lungs. Empty ones are
            left out.
        others: methods to compare with.
        seed: of all draws.

    Returns:
        For JSON. method, layer, n; constant: number of maps that are constant and thus say nothing; checks: name of
        CHECKS -> value, threshold, must_be, passed, reason; failed: their names; passed; summary: a sentence; and the
        numbers behind it: cascade (see there), deletion and insertion (areas), chance (area between them of random
        maps), agreement (other method -> rank correlation), energy (inside, area, ratio, n; only with masks).

    Raises:
        MedtlError: no pictures, not a mask for each, or as for `explain`.
    """
    if not len(pictures) or (masks is not None and len(masks) != len(pictures)):
        raise MedtlError(
            f"A verdict needs pictures, and a mask for each or none; found {len(pictures)} pictures"
            f"{'' if masks is None else f' and {len(masks)} masks'}."
        )
    pixels = to_pixels(processor, pictures)
    wanted = class_indices(label_names(model), classes, len(pictures))
    index = predict(model, pixels).argmax(axis=1) if wanted is None else wanted

    def maps_of(of: torch.Tensor, by: str | Method = method) -> Maps:
        return heatmaps(model, of, index, by, layer if by == method else None)

    maps = maps_of(pixels)
    steps = cascade(model, pixels, index, method, layer, seed=seed)
    found, chance = (
        curves(model, pixels, index, order, seed=seed)
        for order in (maps, chance_maps(len(maps), (maps.shape[1], maps.shape[2]), seed))
    )
    values = {
        "weights_spearman": steps[-1]["spearman"],
        "weights_ssim": steps[-1]["ssim"],
        "deletion_insertion": float((found.gain() - chance.gain()).mean()),
        "road": float(road(model, pixels, index, maps, seed=seed).mean()),
        "stability": stability(maps_of, pixels, maps, seed),
    }
    numbers: dict[str, Any] = {
        "cascade": steps,
        "deletion": float(found.deletion.mean()),
        "insertion": float(found.insertion.mean()),
        "chance": float(chance.gain().mean()),
        "agreement": {name: _mean_rank(maps, maps_of(pixels, name)) for name in others if name != method},
    }
    if masks is not None:
        numbers["energy"] = energy_of(maps, masks, processor, pictures)
        if numbers["energy"]["n"]:
            values["energy"] = numbers["energy"]["ratio"]
    checks = {name: _decide(CHECKS[name], value) for name, value in values.items()}
    failed = [name for name, check in checks.items() if not check["passed"]]
    name = method if isinstance(method, str) else getattr(method, "__name__", "a function")
    return {
        "method": name,
        "layer": layer,
        "n": len(pictures),
        "constant": int((np.ptp(maps, axis=(1, 2)) == 0).sum()),
        "passed": not failed,
        "failed": failed,
        "summary": _summary(name, len(pictures), checks, failed),
        "checks": checks,
        **numbers,
    }


def stability(maps_of: Callable[[torch.Tensor], Maps], pixels: torch.Tensor, maps: Maps, seed: int = 0) -> float:
    """Mean rank correlation of maps (n, H, W) with those of the same pictures with a little noise.

    Args:
        maps_of: pixels (n, C, H, W) -> maps.
        pixels: of `maps`.
        seed: of the noise.
    """
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return _mean_rank(maps, maps_of(pixels + NOISE * pixels.std(dim=(1, 2, 3), keepdim=True) * noise))


def energy(values: Maps, mask: NDArray[Any]) -> tuple[float, float]:
    """Share of a map's sum that lies inside a mask, and the mask's share of the picture, both (H, W).

    A map without any energy counts as one that is the same everywhere: it does not know the place.

    Source: Wang et al. 2020, Score-CAM, the energy-based pointing game, https://arxiv.org/abs/1910.01279.

    Raises:
        MedtlError: they differ in size.
    """
    if values.shape != mask.shape:
        raise MedtlError(f"A mask is as large as its picture: found {mask.shape} for a picture of {values.shape}.")
    inside, total = mask > 0, float(values.sum())
    area = float(inside.mean())
    return (float(values[inside].sum()) / total if total > 0 else area), area


def energy_of(
    maps: Maps, masks: Sequence[NDArray[Any]], processor: Any, pictures: Sequence[Image.Image]
) -> dict[str, float]:
    """Means of `energy` over pictures with a mask that is not empty: inside, area, ratio; and n, their number.

    Args:
        maps: (n, h, w) of the model's input.
        masks: (H, W) of each picture.
        processor: made the input.
        pictures: the originals.
    """
    pairs = []
    for values, mask, picture in zip(maps, masks, pictures, strict=True):
        if np.any(mask):
            pairs.append(energy(restore(values, find_geometry(processor, picture), picture.size[::-1]), mask))
    if not pairs:
        return {"n": 0}
    inside, area = np.array(pairs).T
    means = {"inside": inside.mean(), "area": area.mean(), "ratio": (inside / area).mean()}
    return {"n": len(pairs), **{name: float(value) for name, value in means.items()}}


def _mean_rank(some: Maps, others: Maps) -> float:
    return float(np.mean([similarity(*pair).spearman for pair in zip(some, others, strict=True)]))


def _decide(check: Check, value: float) -> dict[str, Any]:
    passed = value >= check.threshold if check.above else value <= check.threshold
    return {
        "value": value,
        "threshold": check.threshold,
        "must_be": "at least" if check.above else "at most",
        "passed": bool(passed),
        "reason": check.reason,
    }


def _summary(name: str, number: int, checks: dict[str, dict[str, Any]], failed: list[str]) -> str:
    told = "; ".join(
        f"{key} is {checks[key]['value']:.2f}, must be {checks[key]['must_be']} {checks[key]['threshold']:g}"
        for key in failed
    )
    pictures = f"on {number} pictures" if number > 1 else "on one picture"
    if not failed:
        return f"The maps of {name} pass all {len(checks)} checks {pictures}."
    return f"Do not believe the maps of {name}: {len(failed)} of {len(checks)} checks fail {pictures} ({told})."
