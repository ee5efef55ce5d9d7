"""Dataset audit: copies, leakage between splits, shortcuts and overlap with other datasets, as numbers."""

import importlib.metadata
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_medtl.data.dataset import Survey
from hf_medtl.data.fingerprints import BITS, CORRELATION, THUMBNAIL, near_duplicates
from hf_medtl.data.leakage import shared_images
from hf_medtl.data.shortcuts import FOLDS, RESAMPLES, SIDE, FileFacts, measure_all, probe_shortcuts
from hf_medtl.data.specs import DATASETS
from hf_medtl.data.splits import SPLITS
from hf_medtl.errors import MedtlError
from hf_medtl.version import __version__

LISTED = 50  # examples of each kind in the findings; counts are always complete

Findings = dict[str, Any]
Counts = dict[str, dict[str, int]]


def audit(survey: Survey, others: Sequence[Survey] = (), seed: int = 0) -> Findings:
    """Examine a dataset without training on it.

    Args:
        survey: The dataset.
        others: Datasets that may contain the same images.
        seed: Random seed of folds and bootstrap.

    Returns:
        JSON-serializable findings:

        - name, title, url, licence, citation, problems (known ones), expected (label -> images of the complete set)
        - n, labels (label -> images), splits (official split -> label -> images), sources (likewise), masks
        - groups: number of sets of possibly dependent images (same patient or copies)
        - exact_groups, exact_redundant: groups of identical files, and files that could be removed
        - near_groups, near_redundant, near_distinct: likewise for (near-)copies including identical files, and the
          distinct images that remain
        - duplicates: at most LISTED groups, worst first: exact, labels, splits, size (numbers), files (path, label,
          split)
        - duplicates_across_labels: groups (number), files (paths)
        - crops: redundant (cropped, shifted or stretched copies beyond near_redundant), examples (paths of images with
          the same content); distinct: distinct images that remain after all
        - patients: known, pictures (images with a known patient), most (images of one patient)
        - split_leaks: "train/test" -> patients, exact, near (groups in both), pictures (images of the latter split
          that share a patient or a copy with the former), of (images of the latter split)
        - formats: label -> format and mode -> images; sizes: width, height, bytes -> bin edges, counts by label, range
          by label (smallest, median, largest)
        - shortcuts: probe -> auc, low, high, n, by_label, constant; or reason (see `shortcuts.probe_shortcuts`)
        - overlap: name of another dataset -> exact, near (images of this dataset also found there), of, examples
        - unreadable: path, reason of each file; other_labels: reason -> number of excluded files
        - measured: parameters: seed, folds, resamples, bits, correlation, thumbnail, side, versions

    Raises:
        UnreadableImage: A file has become unreadable since the survey.
        MedtlError: The dataset is multilabel.
    """
    if survey.spec.multilabel:
        raise MedtlError(
            f"{survey.spec.title} is multilabel. The audit only supports datasets with one label per image."
        )
    spec, table = survey.spec, survey.table
    measured = measure_all([survey.root / path for path in table["path"]])
    copies = table["sha256"].value_counts()
    plain = near_duplicates(survey.fingerprints, crops=False)
    near = np.bincount(plain)
    patients = table.loc[table["patient"] != "", "patient"]
    damaged = survey.excluded["label"] != ""
    across = table.groupby("duplicate")["label"].transform("nunique") > 1
    return {
        "name": spec.name,
        "title": spec.title,
        "url": spec.url,
        "licence": spec.licence,
        "citation": spec.citation,
        "problems": list(spec.problems),
        "expected": dict(spec.counts),
        "n": len(table),
        "labels": {label: int((table["label"] == label).sum()) for label in survey.labels},
        "splits": _cross_tabulate(survey, "official", [split for split in SPLITS if split in set(table["official"])]),
        "sources": _cross_tabulate(survey, "source", sorted(set(table["source"]))),
        "masks": int((table["mask"] != "").sum()),
        "groups": int(table["group"].nunique()),
        "exact_groups": int((copies > 1).sum()),
        "exact_redundant": int((copies - 1).sum()),
        "near_groups": int((near > 1).sum()),
        "near_redundant": int((near - 1).sum()),
        "near_distinct": len(near),
        "duplicates": _duplicate_groups(table),
        "duplicates_across_labels": {
            "groups": int(table.loc[across, "duplicate"].nunique()),
            "files": table.loc[across, "path"].tolist()[:LISTED],
        },
        "crops": _cropped_copies(table, plain),
        "distinct": int(table["duplicate"].nunique()),
        "patients": {
            "known": int(patients.nunique()),
            "pictures": len(patients),
            "most": int(patients.value_counts().max()) if len(patients) else 0,
        },
        "split_leaks": _split_leaks(table),
        "formats": {
            label: {str(kind): int(count) for kind, count in pd.Series(names).value_counts().items()}
            for label in survey.labels
            for names in [[m.kind for m, own in zip(measured, table["label"], strict=True) if own == label]]
        },
        "sizes": _size_histograms(measured, table["label"].tolist(), survey.labels),
        "shortcuts": probe_shortcuts(
            measured, table["label"].tolist(), table["group"].tolist(), table["source"].tolist(), seed
        ),
        "overlap": {_display_name(other): _overlap(survey, other) for other in others},
        "unreadable": survey.excluded.loc[damaged, ["path", "reason"]].to_dict("records"),
        "other_labels": {
            str(reason): int(count) for reason, count in survey.excluded.loc[~damaged, "reason"].value_counts().items()
        },
        "measured": {
            "seed": seed,
            "folds": FOLDS,
            "resamples": RESAMPLES,
            "bits": BITS,
            "correlation": CORRELATION,
            "thumbnail": THUMBNAIL,
            "side": SIDE,
            "versions": {
                "hf_medtl": __version__,
                **{name: importlib.metadata.version(name) for name in ("scikit-learn", "imagehash", "pillow")},
            },
        },
    }


def _cross_tabulate(survey: Survey, column: str, values: list[str]) -> Counts:
    """Return value of a column -> label -> number of images."""
    pairs = Counter(zip(survey.table[column], survey.table["label"], strict=True))
    return {value: {label: pairs[value, label] for label in survey.labels} for value in values}


def _duplicate_groups(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return at most LISTED groups of copies: first those with two labels, then in two splits, then the largest."""
    copies = table[table["duplicate"].duplicated(keep=False)]
    groups: list[dict[str, Any]] = [
        {
            "exact": bool(rows["sha256"].nunique() == 1),
            "labels": int(rows["label"].nunique()),
            "splits": int(rows["official"].nunique()),
            "size": len(rows),
            "files": [
                {"path": row["path"], "label": row["label"], "split": row["official"]}
                for row in rows.to_dict("records")[:LISTED]
            ],
        }
        for _, rows in copies.groupby("duplicate")
    ]
    return sorted(groups, key=lambda group: (-group["labels"], -group["splits"], -group["size"]))[:LISTED]


def _split_leaks(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return pair of official splits -> number of patients and of groups of copies in both; see `audit`."""
    leaks = {}
    present = [split for split in SPLITS if split in set(table["official"])]
    for first, second in combinations(present, 2):
        left, right = (table[table["official"] == split] for split in (first, second))
        shared = {
            key: (set(left[column]) & set(right[column])) - {""}
            for key, column in (("patients", "patient"), ("exact", "sha256"), ("near", "duplicate"))
        }
        affected = right["patient"].isin(shared["patients"]) | right["duplicate"].isin(shared["near"])
        leaks[f"{first}/{second}"] = {
            **{key: len(values) for key, values in shared.items()},
            "pictures": int(affected.sum()),
            "of": len(right),
        }
    return leaks


def _overlap(survey: Survey, other: Survey) -> dict[str, Any]:
    """Count the images that are also in another dataset, as the same file or as a (near-)copy; see `audit`."""
    shared = shared_images(other, survey)
    copies = shared[shared["reason"] != "same patient"]
    return {
        "exact": int((copies["reason"] == "same file").sum()),
        "near": len(copies),
        "of": len(survey.table),
        "examples": copies[["path", "copy_of"]].head(LISTED).to_numpy().tolist(),
    }


def _display_name(survey: Survey) -> str:
    """Return the name of a dataset, with its folder for user data."""
    spec = DATASETS.get(survey.spec.name)
    return f"{survey.spec.name} ({survey.root.name})" if spec and not spec.labels else survey.spec.name


def _size_histograms(measured: list[FileFacts], labels: list[str], names: Sequence[str]) -> dict[str, Any]:
    """Return width, height and bytes -> histogram and range by label; bins of bytes are logarithmic; see `audit`."""
    histograms = {}
    label = np.asarray(labels)
    for name, attribute in (("width", "width"), ("height", "height"), ("bytes", "size")):
        values = np.array([getattr(item, attribute) for item in measured], dtype=np.float64)
        low, high = max(values.min(), 1), max(values.max(), 1)
        space = np.geomspace if name == "bytes" else np.linspace
        edges = np.array([low - 0.5, high + 0.5]) if low == high else space(low, high, 25)
        edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # rounding must not exclude the extremes
        histograms[name] = {
            "edges": edges.round(2).tolist(),
            "counts": {one: np.histogram(values[label == one], edges)[0].tolist() for one in names},
            "range": {one: [int(f(values[label == one])) for f in (np.min, np.median, np.max)] for one in names},
        }
    return histograms


def _cropped_copies(table: pd.DataFrame, plain: NDArray[np.int64]) -> dict[str, Any]:
    """Return what cropped, shifted or stretched copies add to the (near-)copy groups `plain` (n,); see `audit`."""
    parts = table.assign(plain=plain).drop_duplicates("plain").groupby("duplicate")["path"]
    examples = [paths.tolist() for _, paths in parts if len(paths) > 1]
    return {"redundant": sum(len(paths) - 1 for paths in examples), "examples": examples[:LISTED]}
