"""Robustness to image corruptions: nine corruptions at five levels, as in MedMNIST-C."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.evaluation.intervals import metric_intervals, to_json
from hf_medtl.evaluation.metrics import classification_metrics
from hf_medtl.evaluation.resampling import bootstrap_weights, group_index, percentile_limits
from hf_medtl.evaluation.score_intervals import Interval

Pixels = NDArray[np.uint8]
Scores = dict[str, list[NDArray[np.float64]]]  # corruption -> probabilities (n, K) at each level; "clean" has one
LEVELS = (1, 2, 3, 4, 5)
ROBUSTNESS_METRICS = ("balanced_accuracy", "roc_auc")


def _noise(image: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Add Gaussian noise, the same on all channels, since the images are grey; sigma is a fraction of the range."""
    return _clip(image + 255 * sigma * rng.standard_normal(image.shape[:2])[..., None])


def _blur(image: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Apply a Gaussian blur; sigma in pixels of an image whose shorter side has 224."""
    return cv2.GaussianBlur(image, (0, 0), sigma * min(image.shape[:2]) / 224).astype(np.uint8)


def _jpeg(image: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    """Compress with a quality of 0 to 100."""
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR), np.uint8)


def _contrast(image: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    """Scale the distance from the mean."""
    mean = image.mean()
    return _clip(mean + factor * (image - mean))


def _brightness(image: Pixels, shift: float, rng: np.random.Generator) -> Pixels:
    """Brighten or darken, at random, by a fraction of the range."""
    return _clip(image + 255 * shift * rng.choice([-1, 1]))


def _rotation(image: Pixels, degrees: float, rng: np.random.Generator) -> Pixels:
    """Rotate about the centre, either way at random, with a black border."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees * float(rng.choice([-1, 1])), 1)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR).astype(np.uint8)


def _resolution(image: Pixels, fraction: float, rng: np.random.Generator) -> Pixels:
    """Shrink to a fraction of an image whose shorter side has 224 pixels, and enlarge again."""
    height, width = image.shape[:2]
    factor = min(1.0, fraction * 224 / min(height, width))
    side = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(image, side, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def _occlusion(image: Pixels, area: float, rng: np.random.Generator) -> Pixels:
    """Black out a random box of a fraction of the area, with the image's aspect ratio."""
    sides = np.array(image.shape[:2])
    box = np.round(sides * np.sqrt(area)).astype(int)
    top, left = (int(rng.integers(0, free + 1)) for free in sides - box)
    image = image.copy()
    image[top : top + box[0], left : left + box[1]] = 0
    return image


def _gamma(image: Pixels, gamma: float, rng: np.random.Generator) -> Pixels:
    """Raise to the power of gamma or its inverse, at random."""
    return _clip(255 * (image / 255) ** (gamma ** int(rng.choice([-1, 1]))))


def _clip(values: NDArray[np.floating]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


# Name -> function and its parameter at each level, after MedMNIST-C (Di Salvo et al. 2024,
# https://arxiv.org/abs/2406.17536), whose parameters differ between data sets: these are one choice for all.
CORRUPTIONS: dict[str, tuple[Callable[..., Pixels], tuple[float, ...]]] = {
    "noise": (_noise, (0.02, 0.05, 0.08, 0.12, 0.18)),
    "blur": (_blur, (0.7, 1.2, 2, 3, 4.5)),
    "jpeg": (_jpeg, (50, 30, 20, 12, 7)),
    "contrast": (_contrast, (0.75, 0.6, 0.45, 0.3, 0.2)),
    "brightness": (_brightness, (0.08, 0.15, 0.22, 0.3, 0.4)),
    "rotation": (_rotation, (5, 10, 15, 22, 30)),
    "resolution": (_resolution, (0.6, 0.45, 0.33, 0.25, 0.18)),
    "occlusion": (_occlusion, (0.02, 0.05, 0.1, 0.16, 0.25)),
    "gamma": (_gamma, (1.2, 1.4, 1.7, 2.1, 2.6)),
}


def corrupt(image: Image.Image, name: str, level: int) -> Image.Image:
    """Return a corrupted RGB image; the same image is always corrupted in the same way.

    Args:
        image: as read, before any processor.
        name: key of CORRUPTIONS.
        level: 1 (hardly visible) to 5.

    Raises:
        KeyError: no such corruption.
        ValueError: no such level.
    """
    function, parameters = CORRUPTIONS[name]
    if level not in LEVELS:
        raise ValueError(f"expected a level of 1 to 5, found {level}")
    pixels = np.asarray(image.convert("RGB"))
    rng = np.random.default_rng([0, zlib.crc32(pixels.tobytes())])  # the same position and direction at all levels
    return Image.fromarray(function(pixels, parameters[level - 1], rng))


def robustness_results(
    labels: NDArray[np.int64],
    groups: Sequence[str],
    scores: Scores,
    positive: int,
    threshold: float | None,
    baseline: tuple[Scores, float | None] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute metrics at each corruption and level, and summaries over levels.

    A relative drop is the fraction of the clean balanced accuracy that is lost, averaged over levels. With a baseline
    there are also corruption errors (Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261) of the balanced
    error as in MedMNIST-C: the model's errors summed over levels divided by the baseline's, and the relative one, of
    the excess over the error on clean images. Below 1 the model is more robust. Limits are from a bootstrap over groups
    within classes with the same resamples for all levels and both models. An error relative to a baseline that does not
    degrade is null, and so are its limits where one resample in forty has such a baseline.

    Args:
        labels: (n,) class indices.
        groups: (n,) of images that belong together.
        scores: probabilities of the model, including those of "clean".
        positive: as in `classification_metrics`.
        threshold: likewise.
        baseline: probabilities of another model for the same images, and its threshold.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        clean and corruptions (name -> levels, ROBUSTNESS_METRICS each with value, low, high; relative_drop, and with a
        baseline corruption_error and relative_corruption_error); means over corruptions as mean_relative_drop and so
        on.
    """
    group = group_index(groups, len(labels))
    weights = bootstrap_weights(labels, group, resamples, seed)
    weights = np.concatenate([np.ones((1, len(labels)), weights.dtype), weights])  # the sample itself first

    def with_limits(p: NDArray[np.float64], threshold: float | None) -> dict[str, Any]:
        intervals = metric_intervals(labels, p, groups, positive, threshold, names=ROBUSTNESS_METRICS)
        return {name: to_json(interval) for name, interval in intervals.items()}

    def resampled(scores: Scores, threshold: float | None) -> dict[str, NDArray[np.float64]]:
        """Return the balanced accuracy of each corruption, (levels, 1 + B)."""

        def accuracy(p: NDArray[np.float64]) -> NDArray[np.float64]:
            names = ["balanced_accuracy"]
            return np.asarray(classification_metrics(labels, p, positive, threshold, weights, names=names)[names[0]])

        return {name: np.stack([accuracy(p) for p in levels]) for name, levels in scores.items()}

    model = resampled(scores, threshold)
    names = [name for name in scores if name != "clean"]
    summaries = {"relative_drop": {name: 1 - model[name].mean(axis=0) / model["clean"][0] for name in names}}
    if baseline:
        other = resampled(*baseline)
        summaries["corruption_error"] = {
            name: _ratio((1 - model[name]).sum(axis=0), (1 - other[name]).sum(axis=0)) for name in names
        }
        summaries["relative_corruption_error"] = {
            name: _ratio((model["clean"] - model[name]).sum(axis=0), (other["clean"] - other[name]).sum(axis=0))
            for name in names
        }
    results = {
        "clean": with_limits(scores["clean"][0], threshold),
        "corruptions": {
            name: {"levels": [with_limits(p, threshold) for p in scores[name]]}
            | {summary: _limits(values[name]) for summary, values in summaries.items()}
            for name in names
        },
        **{f"mean_{name}": _limits(np.mean([*values.values()], axis=0)) for name, values in summaries.items()},
    }
    if baseline:
        results["baseline"] = {
            name: [with_limits(p, baseline[1]) for p in levels] for name, levels in baseline[0].items()
        }
    return results


def _limits(values: NDArray[np.float64]) -> dict[str, float | None]:
    """Return the first value with quantiles of the others; no limits where one in forty of these is undefined."""
    mostly_defined = np.isfinite(values[1:]).mean() > 0.975
    low, high = percentile_limits(values[1:], 0.95) if mostly_defined else (np.nan, np.nan)
    return to_json(Interval(float(values[0]), low, high))


def _ratio(errors: NDArray[np.float64], baseline: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide, with NaN where the baseline makes no error, or no more than on clean images."""
    return np.divide(errors, baseline, out=np.full(errors.shape, np.nan), where=baseline > 1e-12)
