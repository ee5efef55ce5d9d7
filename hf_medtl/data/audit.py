"""Dataset audit: copies, leakage between splits, shortcuts and overlap, as numbers and as an HTML page."""

import importlib.metadata
import importlib.resources
import inspect
import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from hf_medtl.data.audit_plots import AVERAGED, render_figures
from hf_medtl.data.fingerprints import CROP_AGREEMENT, THUMBNAIL, near_duplicates
from hf_medtl.data.leakage import shared_images
from hf_medtl.data.loading import Survey
from hf_medtl.data.shortcuts import BORDER, FOLDS, PROBES, RESAMPLES, SIDE, FileFacts, measure_all, probe_shortcuts
from hf_medtl.data.specs import DATASETS
from hf_medtl.data.splits import SPLITS
from hf_medtl.errors import MedtlError
from hf_medtl.version import __version__

LISTED = 50  # examples of each kind in the findings; counts are always complete
FEW = 5  # images of a colour mode from which it is reported that only one label has them
SERIOUS, CLEAR = 0.8, 0.6  # AUC of a probe above which it is a serious, or a clear, shortcut

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
            **{name: inspect.signature(near_duplicates).parameters[name].default for name in ("bits", "correlation")},
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


def summary(findings: Findings) -> list[str]:
    """Return the most important findings as sentences, most severe first."""
    return [sentence for _, sentence in verdicts(findings)]


def verdicts(findings: Findings) -> list[tuple[str, str]]:
    """Return (severity, sentence) pairs, most severe first; severities are serious, warning, note and good."""
    results: list[tuple[str, str]] = []
    n = findings["n"]
    twice = findings["duplicates_across_labels"]["groups"]
    if twice:
        results.append(
            (
                "serious",
                f"{_plural(twice, 'image has', 'images have')} two labels, one of which must be wrong.",
            )
        )
    for pair, leak in findings["split_leaks"].items():
        first, second = pair.split("/")
        shared = [_plural(leak[key], *words) for key, words in LEAKS.items() if leak[key]]
        if leak["pictures"]:
            rate = f"{leak['pictures']:,} of {leak['of']:,} {second} images ({leak['pictures'] / leak['of']:.0%})"
            results.append(
                ("serious", f"The official {first} and {second} splits share {' and '.join(shared)}: {rate} leak.")
            )
        else:
            checked = "patient or copy" if findings["patients"]["known"] else "copy"
            results.append(("good", f"No {checked} is in both the official {first} and {second} splits."))
    clear = [(probe, result) for probe, result in findings["shortcuts"].items() if result.get("low", 0) > 0.5]
    if findings["shortcuts"]["dimensions"].get("constant"):
        clear = [item for item in clear if item[0] != "compression"]  # it would only repeat the file size
    for probe, result in sorted(clear, key=lambda item: -item[1]["auc"]):
        if result["auc"] >= CLEAR:
            severity = "serious" if result["auc"] >= SERIOUS else "warning"
            results.append(
                (severity, f"A model can predict the label from {PROBES[probe]} alone: AUC {_format_interval(result)}.")
            )
    for kind, label, count in _single_label_formats(findings["formats"]):
        results.append(("warning", f"All {count:,} images in {kind} format are {label}."))
    for name, overlap in findings["overlap"].items():
        if overlap["near"]:
            results.append(("serious", f"{overlap['near']:,} of {overlap['of']:,} images are also in {name}: neither "
                         "dataset is external to the other."))  # fmt: skip
        else:
            results.append(("good", f"No image is also in {name}."))
    copies = n - findings["distinct"]
    if copies:
        equal, distinct = findings["exact_redundant"], findings["distinct"]
        results.append(("warning", f"{copies:,} of {n:,} images ({copies / n:.1%}) are copies of another one, "
                     f"{equal:,} of them identical files: {distinct:,} images are distinct."))  # fmt: skip
    else:
        results.append(("good", "No image is a copy of another one."))
    if findings["unreadable"]:
        results.append(("warning", f"{_plural(len(findings['unreadable']), 'file is', 'files are')} unreadable."))
    if not findings["patients"]["known"]:
        results.append(("warning", "Patients are unknown, so images of one patient can be in different splits."))
    elif findings["patients"]["pictures"] < n:
        results.append(
            ("warning", f"The patient is unknown for {n - findings['patients']['pictures']:,} of {n:,} images.")
        )
    total = sum(findings["expected"].values())
    if total and findings["labels"] != findings["expected"]:
        results.append(("note", f"The data folder has {n:,} images; the complete dataset has {total:,}."))
    if all("reason" in result for result in findings["shortcuts"].values()):
        results.append(("note", f"Shortcuts: {findings['shortcuts']['file_size']['reason']}."))
    return sorted(results, key=lambda item: ["serious", "warning", "note", "good"].index(item[0]))


def _single_label_formats(formats: Counts) -> list[tuple[str, str, int]]:
    """Return (format and mode, label, number of images) of formats that only one label has, at least FEW times."""
    names = sorted({kind for counts in formats.values() for kind in counts})
    by_format = {kind: [(label, counts[kind]) for label, counts in formats.items() if kind in counts] for kind in names}
    return [(kind, *uses[0]) for kind, uses in by_format.items() if len(uses) == 1 and uses[0][1] >= FEW]


LEAKS = {"patients": ("patient", "patients"), "near": ("image", "images")}


def _plural(number: int, one: str, many: str) -> str:
    """Format a count such as `1 patient` or `1,170 patients`."""
    return f"{number:,} {one if number == 1 else many}"


def _format_interval(result: dict[str, float]) -> str:
    """Format an AUC such as `0.93 [0.90, 0.96]`."""
    return f"{result['auc']:.2f} [{result['low']:.2f}, {result['high']:.2f}]"


def write_audit(survey: Survey, findings: Findings, out: Path) -> Path:
    """Write audit.json and the self-contained audit.html, and return the path of the latter.

    Images in it are small, re-encoded from pixels and without metadata; it contains file names.

    Args:
        survey: The dataset.
        findings: Result of `audit`.
        out: Folder, created if necessary.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True)
    template = importlib.resources.files("hf_medtl.data").joinpath("audit.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        f=findings,
        p=render_figures(survey, findings, findings["measured"]["seed"]),
        verdicts=verdicts(findings),
        probes=PROBES,
        interval=_format_interval,
        by_label=next(
            (list(result["by_label"]) for result in findings["shortcuts"].values() if "by_label" in result), []
        ),
        averaged=AVERAGED,
        agreement=CROP_AGREEMENT,
        border=BORDER,
        clear=CLEAR,
        serious=SERIOUS,
    )
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(findings, indent=1, ensure_ascii=False, allow_nan=False)
    (out / "audit.json").write_text(text + "\n", encoding="utf-8")
    path = out / "audit.html"
    path.write_text(page, encoding="utf-8")
    return path
