"""What tells the label without showing the disease: probes that predict it from side facts of the files alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from tqdm.contrib.concurrent import thread_map

from hf_medtl.common.system import cores
from hf_medtl.data.images import FORMATS, QUIET, is_dicom, read_image

PROBES = {
    "file_size": "file size",
    "dimensions": "width, height and their ratio",
    "compression": "bytes per pixel",
    "mode": "file format and colour mode",
    "grey": "mean and spread of the grey values",
    "border": "the outermost 6 % of the picture",
    "source": "source",
}
SIDE = 64  # pixels of the small grey picture; its outermost 4 are the border
BORDER = 4
FOLDS = 5
MIN_GROUPS = 10  # of a label: two in each fold
TREES = 100
RESAMPLES = 1000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """Facts of one picture: bytes of the file, pixels upright, format and mode, grey values, small grey picture."""

    size: int
    width: int
    height: int
    kind: str
    mean: float
    spread: float
    small: NDArray[np.uint8]  # (SIDE, SIDE)


def measure(path: Path) -> Measured:
    """Read one picture. Nothing of its header is kept but the format and the colour mode.

    Raises:
        UnreadableImage: the file gives no picture.
    """
    grey = read_image(path).convert("L")
    pixels = np.asarray(grey)
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))
    return Measured(
        path.stat().st_size, grey.width, grey.height, kind(path), float(pixels.mean()), float(pixels.std()), small
    )


def measure_all(paths: list[Path]) -> list[Measured]:
    """`measure` of each file, in their order."""
    return thread_map(
        measure, paths, desc="Measuring pictures", unit="file", max_workers=cores(), disable=None, leave=False
    )


def kind(path: Path) -> str:
    """Format and colour mode as the content says, such as `JPEG L`; DICOM and NIfTI without a mode."""
    with path.open("rb") as stream:
        if is_dicom(stream, path.suffix.lower()):
            return "DICOM"
    try:
        with QUIET, Image.open(path, formats=FORMATS) as image:
            return f"{image.format} {image.mode}"
    except (OSError, SyntaxError, ValueError):
        return "NIfTI"  # the only other format that `read_image` knows


def shortcuts(
    measured: list[Measured], labels: list[str], groups: list[str], sources: list[str], seed: int
) -> dict[str, dict[str, Any]]:
    """How well each of PROBES tells the label of pictures it has not seen.

    A random forest on the probe's features alone, out of fold over groups, so that copies and other pictures of a
    patient don't help; the interval is a bootstrap over groups. With more than two labels the AUC is the mean over
    labels, each against the rest.

    Args:
        measured, labels, groups, sources: (n,) of each picture.
        seed: of folds, forest and bootstrap.

    Returns:
        Probe -> `auc`, `low`, `high` (95 %), `n`, `by_label` (more than two labels), `constant`; or `reason` why there
        is none.
    """
    label, group = np.asarray(labels), np.asarray(groups)
    number = {name: len(set(group[label == name])) for name in sorted(set(labels))}
    enough = [name for name, count in number.items() if count >= MIN_GROUPS]
    if len(enough) < 2:
        few = ", ".join(f"{name} {count}" for name, count in number.items() if count < MIN_GROUPS)
        reason = f"not computable: fewer than {MIN_GROUPS} independent groups of pictures ({few})"
        return {probe: {"reason": reason} for probe in PROBES}
    keep = np.isin(label, enough)
    return {
        probe: (
            {"reason": "not computable: only one source"}
            if probe == "source" and len(set(sources)) < 2
            else predictability(values[keep], label[keep], group[keep], seed)
        )
        for probe, values in features(measured, sources).items()
    }


def features(measured: list[Measured], sources: list[str]) -> dict[str, Floats]:
    """Probe -> (n, number of features)."""
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
        "mode": one_hot([item.kind for item in measured]),
        "grey": np.hstack([mean, spread]),
        "border": half[:, ~inner],
        "source": one_hot(sources),
    }


def one_hot(names: list[str]) -> Floats:
    """(n, number of different names)."""
    return (np.asarray(names)[:, None] == np.unique(names)).astype(np.float64)


def predictability(values: Floats, label: NDArray[np.str_], group: NDArray[np.str_], seed: int) -> dict[str, Any]:
    """AUC of the label out of fold from `values` (n, features), with its 95 % interval; see `shortcuts`."""
    if (values == values[0]).all():
        return {"auc": 0.5, "low": 0.5, "high": 0.5, "n": len(values), "constant": True}
    names, target = np.unique(label, return_inverse=True)
    forest = RandomForestClassifier(
        n_estimators=TREES, min_samples_leaf=5, class_weight="balanced", n_jobs=cores(), random_state=seed
    )
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    scores = cross_val_predict(forest, values, target, groups=group, cv=folds, method="predict_proba")
    positives = [1] if len(names) == 2 else list(range(len(names)))
    weights = resamples(group, seed)
    areas = np.array([weighted_auc(scores[:, k].round(6), target == k, weights) for k in positives])  # (labels, 1 + R)
    found = areas.mean(axis=0)
    low, high = np.nanpercentile(found[1:], [2.5, 97.5])
    result: dict[str, Any] = {
        "auc": round(float(found[0]), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "n": len(values),
    }
    if len(names) > 2:
        result["by_label"] = {
            str(names[k]): round(float(area), 4) for k, area in zip(positives, areas[:, 0], strict=True)
        }
    return result


def resamples(group: NDArray[np.str_], seed: int) -> NDArray[np.int16]:
    """(1 + RESAMPLES, n) how often each picture counts: once, then as often as its group was drawn."""
    names, index = np.unique(group, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    return np.vstack([np.ones((1, len(index)), np.int16), drawn.astype(np.int16)[:, index]])


def weighted_auc(score: Floats, positive: NDArray[np.bool_], weights: NDArray[np.int16]) -> Floats:
    """(rows of `weights`,) area under the ROC curve, ties counted half; nan where a resample lacks one of the two."""
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
