"""Shortcut probes: how well labels can be predicted from properties of the files that do not show the disease."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from hf_medtl.common.system import cores
from hf_medtl.data.deep_images import read_layout
from hf_medtl.data.fingerprints import map_threads
from hf_medtl.data.images import FORMATS, is_dicom, read_image
from hf_medtl.data.quiet import QUIET

PROBES = {
    "file_size": "file size",
    "dimensions": "width, height and their ratio",
    "compression": "bytes per pixel",
    "mode": "file format and colour mode",
    "grey": "mean and spread of the grey values",
    "border": "the outermost 6 % of the image",
    "source": "source",
}
SIDE = 64  # pixels of the small grey image; its outermost 4 are the border
BORDER = 4
FOLDS = 5
MIN_GROUPS = 10  # per label: two in each fold
TREES = 100
RESAMPLES = 1000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FileFacts:
    """Properties of one image: bytes, upright size, format and mode, mean and spread of the grey values, thumbnail."""

    size: int
    width: int
    height: int
    kind: str
    mean: float
    spread: float
    small: NDArray[np.uint8]  # (SIDE, SIDE)


def measure(path: Path) -> FileFacts:
    """Measure one image, keeping nothing of its header but the format and the colour mode.

    Raises:
        UnreadableImage: The image can't be read.
    """
    grey = read_image(path).convert("L")
    pixels = np.asarray(grey)
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))
    size, kind = path.stat().st_size, _file_format(path)
    return FileFacts(size, grey.width, grey.height, kind, float(pixels.mean()), float(pixels.std()), small)


def measure_all(paths: list[Path]) -> list[FileFacts]:
    """Measure all files, in their order."""
    return map_threads(measure, paths, "Measuring images", "file")


def _file_format(path: Path) -> str:
    """Return the format and colour mode from the content, such as `JPEG L`; DICOM and NIfTI without a mode."""
    with path.open("rb") as stream:
        if is_dicom(stream, path.suffix.lower()):
            return "DICOM"
        layout = read_layout(stream)
        if layout is not None and layout.deep:
            return f"{layout.samples} × {layout.bits} bits"
    try:
        with QUIET, Image.open(path, formats=FORMATS) as image:
            return f"{image.format} {image.mode}"
    except (OSError, SyntaxError, ValueError):
        return "NIfTI"  # the only other format that `read_image` knows


def probe_shortcuts(
    measured: list[FileFacts], labels: list[str], groups: list[str], sources: list[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Measure how well each of PROBES predicts the label of unseen images.

    A random forest on the probe's features alone is evaluated out of fold with grouped folds, so that copies and other
    images of a patient don't help; the interval is a bootstrap over groups. With more than two labels, the AUC is the
    mean over labels, one versus rest.

    Args:
        measured: (n,) properties of each image.
        labels: (n,) label of each image.
        groups: (n,) group of each image.
        sources: (n,) source of each image.
        seed: Random seed of folds, forest and bootstrap.

    Returns:
        Probe -> `auc`, `low`, `high` (95 %), `n`, `by_label` (more than two labels), `constant`; or the `reason` why it
        can't be computed.
    """
    label, group = np.asarray(labels), np.asarray(groups)
    number = {name: len(set(group[label == name])) for name in sorted(set(labels))}
    enough = [name for name, count in number.items() if count >= MIN_GROUPS]
    if len(enough) < 2:
        few = ", ".join(f"{name} {count}" for name, count in number.items() if count < MIN_GROUPS)
        reason = f"not computable: fewer than {MIN_GROUPS} independent groups of images ({few})"
        return {probe: {"reason": reason} for probe in PROBES}
    keep = np.isin(label, enough)
    return {
        probe: (
            {"reason": "not computable: only one source"}
            if probe == "source" and len(set(sources)) < 2
            else _predictability(values[keep], label[keep], group[keep], seed)
        )
        for probe, values in _probe_features(measured, sources).items()
    }


def _probe_features(measured: list[FileFacts], sources: list[str]) -> dict[str, Floats]:
    """Return probe -> (n, number of features)."""
    size, width, height, mean, spread = (
        np.array([getattr(item, name) for item in measured], dtype=np.float64)[:, None]
        for name in ("size", "width", "height", "mean", "spread")
    )
    small = np.array([item.small for item in measured], dtype=np.float64)
    half = small.reshape(len(small), SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4))
    inner = np.zeros(half.shape[1:], bool)
    inner[BORDER // 2 : -BORDER // 2, BORDER // 2 : -BORDER // 2] = True
    return {
        "file_size": size,
        "dimensions": np.hstack([width, height, width / height]),
        "compression": size / (width * height),
        "mode": _one_hot([item.kind for item in measured]),
        "grey": np.hstack([mean, spread]),
        "border": half[:, ~inner],
        "source": _one_hot(sources),
    }


def _one_hot(names: list[str]) -> Floats:
    """Return (n, number of different names)."""
    return (np.asarray(names)[:, None] == np.unique(names)).astype(np.float64)


def _predictability(values: Floats, label: NDArray[np.str_], group: NDArray[np.str_], seed: int) -> dict[str, Any]:
    """Return the out-of-fold AUC of the label from `values` (n, features); see `probe_shortcuts`."""
    if (values == values[0]).all():
        return {"auc": 0.5, "low": 0.5, "high": 0.5, "n": len(values), "constant": True}
    names, target = np.unique(label, return_inverse=True)
    forest = RandomForestClassifier(
        n_estimators=TREES, min_samples_leaf=5, class_weight="balanced", n_jobs=cores(), random_state=seed
    )
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    scores = cross_val_predict(forest, values, target, groups=group, cv=folds, method="predict_proba")
    positives = [1] if len(names) == 2 else list(range(len(names)))
    weights = group_weights(group, seed)
    areas = np.array([weighted_auc(scores[:, k].round(6), target == k, weights) for k in positives])  # (labels, 1 + R)
    means = areas.mean(axis=0)
    low, high = np.nanpercentile(means[1:], [2.5, 97.5])
    interval = {"auc": means[0], "low": low, "high": high}
    result: dict[str, Any] = {key: round(float(value), 4) for key, value in interval.items()} | {"n": len(values)}
    if len(names) > 2:
        result["by_label"] = {str(name): round(float(area), 4) for name, area in zip(names, areas[:, 0], strict=True)}
    return result


def group_weights(group: NDArray[np.str_], seed: int) -> NDArray[np.int16]:
    """Return (1 + RESAMPLES, n) weights of the images: first 1, then how often their group was sampled."""
    names, index = np.unique(group, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    return np.vstack([np.ones((1, len(index)), np.int16), drawn.astype(np.int16)[:, index]])


def weighted_auc(score: Floats, positive: NDArray[np.bool_], weights: NDArray[np.int16]) -> Floats:
    """Return the area under the ROC curve for each row of weights, counting ties half.

    Args:
        score: (n,) scores.
        positive: (n,) true for positive images.
        weights: (rows, n) how often each image counts.

    Returns:
        (rows,) areas; NaN if a resample lacks positives or negatives.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    areas = []
    for block in np.array_split(weights, max(1, weights.size >> 22)):  # bounded memory
        sorted_, inside = block[:, order].astype(np.float64), positive[order]
        above = np.add.reduceat(sorted_ * inside, starts, axis=1)
        below = np.add.reduceat(sorted_ * ~inside, starts, axis=1)
        pairs = above.sum(axis=1) * below.sum(axis=1)
        wins = (above * (below.cumsum(axis=1) - below / 2)).sum(axis=1)
        areas.append(np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))
    return np.concatenate(areas)
