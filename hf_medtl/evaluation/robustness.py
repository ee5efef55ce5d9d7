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
Answers = dict[str, list[NDArray[np.float64]]]  # corruption -> probabilities (n, K) at each level; "clean" has one
LEVELS = (1, 2, 3, 4, 5)
METRICS = ("balanced_accuracy", "roc_auc")


def _noise(picture: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Gaussian, the same on all channels, since the images are grey; sigma as a share of the range."""
    return _clip(picture + 255 * sigma * rng.standard_normal(picture.shape[:2])[..., None])


def _blur(picture: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Gaussian; sigma in pixels of an image whose shorter side has 224."""
    return cv2.GaussianBlur(picture, (0, 0), sigma * min(picture.shape[:2]) / 224).astype(np.uint8)


def _jpeg(picture: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    """Compressed with a quality of 0 to 100."""
    _, content = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR), np.uint8)


def _contrast(picture: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Only a share of the distance from the mean is left."""
    mean = picture.mean()
    return _clip(mean + share * (picture - mean))


def _brightness(picture: Pixels, shift: float, rng: np.random.Generator) -> Pixels:
    """Brighter or darker, at random, by a share of the range."""
    return _clip(picture + 255 * shift * rng.choice([-1, 1]))


def _rotation(picture: Pixels, degrees: float, rng: np.random.Generator) -> Pixels:
    """About the centre, either way at random; what comes in is black."""
    height, width = picture.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees * float(rng.choice([-1, 1])), 1)
    return cv2.warpAffine(picture, turn, (width, height), flags=cv2.INTER_LINEAR).astype(np.uint8)


def _resolution(picture: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Shrunk to a share of an image whose shorter side has 224 pixels, and enlarged again."""
    height, width = picture.shape[:2]
    factor = min(1.0, share * 224 / min(height, width))
    side = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(picture, side, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def _occlusion(picture: Pixels, area: float, rng: np.random.Generator) -> Pixels:
    """A black box, somewhere, of a share of the area and the image's own shape."""
    sides = np.array(picture.shape[:2])
    box = np.round(sides * np.sqrt(area)).astype(int)
    top, left = (int(rng.integers(0, free + 1)) for free in sides - box)
    picture = picture.copy()
    picture[top : top + box[0], left : left + box[1]] = 0
    return picture


def _gamma(picture: Pixels, gamma: float, rng: np.random.Generator) -> Pixels:
    """To the power of gamma or of its inverse, at random."""
    return _clip(255 * (picture / 255) ** (gamma ** int(rng.choice([-1, 1]))))


def _clip(values: NDArray[np.floating]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


# Name -> function, and its number at each level. What and how much follows MedMNIST-C (Di Salvo et al. 2024,
# https://arxiv.org/abs/2406.17536), whose own numbers differ from data set to data set: these are one choice for all.
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


def corrupt(picture: Image.Image, name: str, level: int, seed: int = 0) -> Image.Image:
    """An RGB image made worse; the same image always in the same way.

    Args:
        picture: as it was read, before any processor.
        name: of CORRUPTIONS.
        level: 1 (hardly to be seen) to 5.
        seed: of what is drawn.

    Raises:
        KeyError, ValueError: no such corruption or level.
    """
    function, numbers = CORRUPTIONS[name]
    if level not in LEVELS:
        raise ValueError(f"expected a level of 1 to 5, found {level}")
    pixels = np.asarray(picture.convert("RGB"))
    rng = np.random.default_rng([seed, zlib.crc32(pixels.tobytes())])  # the same place and direction at all levels
    return Image.fromarray(function(pixels, numbers[level - 1], rng))


def robustness_results(
    labels: NDArray[np.int64],
    groups: Sequence[str],
    answers: Answers,
    positive: int,
    threshold: float | None,
    baseline: tuple[Answers, float | None] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of each corruption and level, and what they come to.

    A relative drop is the share of the clean balanced accuracy that is lost, in the mean over levels. With a baseline
    there are corruption errors, too (Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261), of the balanced
    error as in MedMNIST-C: the sum over levels of the model's errors by that of the baseline's, and the relative one,
    of what is above the error on clean images. Below 1 the model is the more robust. Their limits are of a bootstrap
    over groups within classes that gives the same images to all levels and both models. An error relative to a
    baseline that does not fall is null, and so are the limits of one where one resample in forty has such a baseline.

    Args:
        labels: (n,) class indices.
        groups: (n,) of images that belong together.
        answers: of the model, those of "clean" among them.
        positive, threshold: as in `classification_metrics`.
        baseline: answers of another model to the same images, and its threshold.
        resamples, seed: of the bootstrap.

    Returns:
        clean and corruptions (name -> levels, METRICS each with value, low, high; relative_drop, and with a baseline
        corruption_error and relative_corruption_error); of all corruptions mean_relative_drop and so on.
    """
    group = group_index(groups, len(labels))
    weights = bootstrap_weights(labels, group, resamples, seed)

    def single(p: NDArray[np.float64], cut: float | None) -> dict[str, Any]:
        found = metric_intervals(labels, p, groups, positive, cut, names=METRICS)
        return {name: to_json(interval) for name, interval in found.items()}

    def draws(its: Answers, cut: float | None) -> dict[str, NDArray[np.float64]]:
        """Balanced accuracy, (levels, 1 + B): of the sample first, then of the resamples."""
        both = np.concatenate([np.ones((1, len(labels)), weights.dtype), weights])

        def one(p: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(classification_metrics(labels, p, positive, cut, both, names=METRICS[:1])[METRICS[0]])

        return {kind: np.stack([one(p) for p in each]) for kind, each in its.items()}

    own = draws(answers, threshold)
    names = [name for name in answers if name != "clean"]
    parts = {"relative_drop": {name: 1 - own[name].mean(axis=0) / own["clean"][0] for name in names}}
    if baseline:
        other = draws(*baseline)
        parts["corruption_error"] = {
            name: _ratio((1 - own[name]).sum(axis=0), (1 - other[name]).sum(axis=0)) for name in names
        }
        parts["relative_corruption_error"] = {
            name: _ratio((own["clean"] - own[name]).sum(axis=0), (other["clean"] - other[name]).sum(axis=0))
            for name in names
        }
    beside = {name: [single(p, baseline[1]) for p in each] for name, each in baseline[0].items()} if baseline else {}
    return {
        "clean": single(answers["clean"][0], threshold),
        "corruptions": {
            name: {"levels": [single(p, threshold) for p in answers[name]]}
            | {what: _limits(of[name]) for what, of in parts.items()}
            for name in names
        },
        **{f"mean_{what}": _limits(np.mean([*of.values()], axis=0)) for what, of in parts.items()},
        **({"baseline": beside} if baseline else {}),
    }


def _limits(values: NDArray[np.float64]) -> dict[str, float | None]:
    """The first value with the quantiles of the others; none where one in forty of these is undefined."""
    known = np.isfinite(values[1:]).mean() > 0.975
    low, high = percentile_limits(values[1:], 0.95) if known else (np.nan, np.nan)
    return to_json(Interval(float(values[0]), low, high))


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN where the baseline makes no error, or is no worse than on clean images: nothing to be relative to."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 1e-12)
