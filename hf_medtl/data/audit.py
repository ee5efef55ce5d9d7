"""What is wrong with a data set: copies, leaks between splits, shortcuts, overlap; as numbers and as a page."""

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

from hf_medtl.data.audit_plots import AVERAGED, pictures
from hf_medtl.data.fingerprints import CROP_AGREEMENT, THUMBNAIL, near_duplicates
from hf_medtl.data.leakage import shared_pictures
from hf_medtl.data.loading import Survey
from hf_medtl.data.shortcuts import BORDER, FOLDS, PROBES, RESAMPLES, SIDE, Measured, measure_all, shortcuts
from hf_medtl.data.specs import DATASETS
from hf_medtl.data.splits import SPLITS
from hf_medtl.errors import MedtlError
from hf_medtl.version import __version__

LISTED = 50  # examples of each kind in the findings; counts are always complete
FEW = 5  # pictures of a colour mode from which it is worth a word that only one label has them
SERIOUS, CLEAR = 0.8, 0.6  # AUC of a probe from which it is a serious, or a clear, shortcut

Findings = dict[str, Any]
Counts = dict[str, dict[str, int]]


def audit(survey: Survey, others: Sequence[Survey] = (), seed: int = 0) -> Findings:
    """Everything that can be found out about a data set without training on it.

    Args:
        survey: of the data set.
        others: data sets that may hold the same pictures.
        seed: of folds and bootstrap.

    Returns:
        Values that JSON can hold:

        - name, title, url, licence, citation, problems (known ones), expected (label -> pictures of the complete set)
        - n, labels (label -> pictures), splits (official split -> label -> pictures), sources (likewise), masks
        - groups: sets of pictures that can't be told to be independent (same patient or copies)
        - exact_groups, exact_redundant: groups of equal files, and files that could go without a loss
        - near_groups, near_redundant, near_distinct: likewise for (near-)copies, equal files included; different
          pictures that remain
        - duplicates: at most 50 groups, worst first: exact, labels, splits, size (numbers), files (path,
          label, split)
        - duplicates_across_labels: groups (number), files (paths)
        - crops: redundant (cropped, shifted or stretched copies, beyond near_redundant), examples (paths of pictures
          that show the same); distinct: different pictures that remain after all
        - patients: known, pictures (that tell their patient), most (pictures of one)
        - split_leaks: "train/test" -> patients, exact, near (groups in both), pictures (of the latter split that share
          a patient or a copy with the former), of (pictures of the latter split)
        - formats: label -> format and mode -> pictures; sizes: width, height, bytes -> edges of bins, counts by label,
          range by label (smallest, median, largest)
        - shortcuts: probe -> auc, low, high, n, by_label, constant; or reason (see `shortcuts.shortcuts`)
        - overlap: name of another set -> exact, near (pictures of this set that are there, too), of, examples
        - unreadable: path, reason of each; other_labels: reason -> number of files left out
        - measured: how: seed, folds, resamples, bits, correlation, thumbnail, side, versions

    Raises:
        UnreadableImage: a file has become unreadable since the survey.
        MedtlError: a picture can have several labels.
    """
    if survey.spec.several:
        raise MedtlError(f"{survey.spec.title} has several labels a picture. The audit knows sets with one, so far.")
    spec, table = survey.spec, survey.table
    measured = measure_all([survey.root / path for path in table["path"]])
    copies = table["sha256"].value_counts()
    plain = near_duplicates(survey.prints, crops=False)
    near = np.bincount(plain)
    known = table.loc[table["patient"] != "", "patient"]
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
        "splits": crossed(survey, "official", [split for split in SPLITS if split in set(table["official"])]),
        "sources": crossed(survey, "source", sorted(set(table["source"]))),
        "masks": int((table["mask"] != "").sum()),
        "groups": int(table["group"].nunique()),
        "exact_groups": int((copies > 1).sum()),
        "exact_redundant": int((copies - 1).sum()),
        "near_groups": int((near > 1).sum()),
        "near_redundant": int((near - 1).sum()),
        "near_distinct": len(near),
        "duplicates": duplicates(table),
        "duplicates_across_labels": {
            "groups": int(table.loc[across, "duplicate"].nunique()),
            "files": table.loc[across, "path"].tolist()[:LISTED],
        },
        "crops": crops(table, plain),
        "distinct": int(table["duplicate"].nunique()),
        "patients": {
            "known": int(known.nunique()),
            "pictures": len(known),
            "most": int(known.value_counts().max()) if len(known) else 0,
        },
        "split_leaks": split_leaks(table),
        "formats": {
            label: {str(kind): int(count) for kind, count in pd.Series(kinds).value_counts().items()}
            for label in survey.labels
            for kinds in [[m.kind for m, its in zip(measured, table["label"], strict=True) if its == label]]
        },
        "sizes": sizes(measured, table["label"].tolist(), survey.labels),
        "shortcuts": shortcuts(
            measured, table["label"].tolist(), table["group"].tolist(), table["source"].tolist(), seed
        ),
        "overlap": {called(other): overlap(survey, other) for other in others},
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


def crossed(survey: Survey, column: str, values: list[str]) -> Counts:
    """Value of a column -> label -> number of pictures."""
    pairs = Counter(zip(survey.table[column], survey.table["label"], strict=True))
    return {value: {label: pairs[value, label] for label in survey.labels} for value in values}


def duplicates(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Groups of copies, at most LISTED: those under two labels first, then those in two splits, then the largest."""
    several = table[table["duplicate"].duplicated(keep=False)]
    found: list[dict[str, Any]] = [
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
        for _, rows in several.groupby("duplicate")
    ]
    return sorted(found, key=lambda group: (-group["labels"], -group["splits"], -group["size"]))[:LISTED]


def split_leaks(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Pair of official splits -> number of patients and of groups of copies in both; see `audit`."""
    found = {}
    present = [split for split in SPLITS if split in set(table["official"])]
    for first, second in combinations(present, 2):
        left, right = (table[table["official"] == split] for split in (first, second))
        shared = {
            key: (set(left[column]) & set(right[column])) - {""}
            for key, column in (("patients", "patient"), ("exact", "sha256"), ("near", "duplicate"))
        }
        touched = right["patient"].isin(shared["patients"]) | right["duplicate"].isin(shared["near"])
        found[f"{first}/{second}"] = {
            **{key: len(values) for key, values in shared.items()},
            "pictures": int(touched.sum()),
            "of": len(right),
        }
    return found


def overlap(survey: Survey, other: Survey) -> dict[str, Any]:
    """How many pictures of a set are in another one, too, as the same file or as a (near-)copy; see `audit`."""
    found = shared_pictures(other, survey)
    copies = found[found["reason"] != "same patient"]
    return {
        "exact": int((copies["reason"] == "same file").sum()),
        "near": len(copies),
        "of": len(survey.table),
        "examples": copies[["path", "copy_of"]].head(LISTED).to_numpy().tolist(),
    }


def called(survey: Survey) -> str:
    """Name of a data set; that of its folder, too, where any folder can bear the name."""
    row = DATASETS.get(survey.spec.name)
    return f"{survey.spec.name} ({survey.root.name})" if row and not row.labels else survey.spec.name


def sizes(measured: list[Measured], labels: list[str], names: Sequence[str]) -> dict[str, Any]:
    """Width, height and bytes -> histogram and range by label; see `audit`. Bins of bytes grow by a constant factor."""
    found = {}
    label = np.asarray(labels)
    for name, attribute in (("width", "width"), ("height", "height"), ("bytes", "size")):
        values = np.array([getattr(item, attribute) for item in measured], dtype=np.float64)
        low, high = max(values.min(), 1), max(values.max(), 1)
        space = np.geomspace if name == "bytes" else np.linspace
        edges = np.array([low - 0.5, high + 0.5]) if low == high else space(low, high, 25)
        edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # rounding must not lose the ends
        found[name] = {
            "edges": edges.round(2).tolist(),
            "counts": {one: np.histogram(values[label == one], edges)[0].tolist() for one in names},
            "range": {one: [int(f(values[label == one])) for f in (np.min, np.median, np.max)] for one in names},
        }
    return found


def crops(table: pd.DataFrame, plain: NDArray[np.int64]) -> dict[str, Any]:
    """What cropped, shifted or stretched copies add to the groups of (near-)copies, `plain` (n,); see `audit`."""
    parts = table.assign(plain=plain).drop_duplicates("plain").groupby("duplicate")["path"]
    examples = [paths.tolist() for _, paths in parts if len(paths) > 1]
    return {"redundant": sum(len(paths) - 1 for paths in examples), "examples": examples[:LISTED]}


def summary(findings: Findings) -> list[str]:
    """The sentences that matter most, worst first."""
    return [sentence for _, sentence in verdicts(findings)]


def verdicts(findings: Findings) -> list[tuple[str, str]]:
    """(severity, sentence) of what matters, worst first; severities are serious, warning, note and good."""
    said: list[tuple[str, str]] = []
    n = findings["n"]
    twice = findings["duplicates_across_labels"]["groups"]
    if twice:
        said.append(
            (
                "serious",
                f"{plural(twice, 'picture lies', 'pictures lie')} under two labels, one of which must be wrong.",
            )
        )
    for pair, leak in findings["split_leaks"].items():
        first, second = pair.split("/")
        shared = [plural(leak[key], *words) for key, words in LEAKS.items() if leak[key]]
        if leak["pictures"]:
            share = f"{leak['pictures']:,} of {leak['of']:,} {second} pictures ({leak['pictures'] / leak['of']:.0%})"
            said.append(
                ("serious", f"The official {first} and {second} splits share {' and '.join(shared)}: {share} leak.")
            )
        else:
            who = "No patient and no copy" if findings["patients"]["known"] else "No copy"
            said.append(("good", f"{who} is in both the official {first} and {second} splits."))
    told = [(probe, found) for probe, found in findings["shortcuts"].items() if found.get("low", 0) > 0.5]
    if findings["shortcuts"]["dimensions"].get("constant"):
        told = [item for item in told if item[0] != "compression"]  # it would only repeat the file size
    for probe, found in sorted(told, key=lambda item: -item[1]["auc"]):
        if found["auc"] >= CLEAR:
            severity = "serious" if found["auc"] >= SERIOUS else "warning"
            said.append((severity, f"A model can tell the label from {PROBES[probe]} alone: AUC {interval(found)}."))
    for kind, label, count in giveaways(findings["formats"]):
        said.append(("warning", f"All {count:,} pictures that are {kind} are {label}."))
    for name, found in findings["overlap"].items():
        if found["near"]:
            said.append(("serious", f"{found['near']:,} of {found['of']:,} pictures are in {name}, too: neither set is "
                         "external to the other."))  # fmt: skip
        else:
            said.append(("good", f"No picture is in {name}, too."))
    copies = n - findings["distinct"]
    if copies:
        equal, distinct = findings["exact_redundant"], findings["distinct"]
        said.append(("warning", f"{copies:,} of {n:,} pictures ({copies / n:.1%}) are copies of another one, {equal:,} "
                     f"of them the same file: {distinct:,} pictures are different."))  # fmt: skip
    else:
        said.append(("good", "No picture is a copy of another one."))
    if findings["unreadable"]:
        said.append(("warning", f"{plural(len(findings['unreadable']), 'file gives', 'files give')} no picture."))
    if not findings["patients"]["known"]:
        said.append(("warning", "Nobody knows which pictures are of one patient: a patient can be in two splits."))
    elif findings["patients"]["pictures"] < n:
        said.append(
            ("warning", f"{n - findings['patients']['pictures']:,} of {n:,} pictures don't tell their patient.")
        )
    total = sum(findings["expected"].values())
    if total and findings["labels"] != findings["expected"]:
        said.append(("note", f"{n:,} pictures are here; the complete set has {total:,}."))
    if all("reason" in found for probe, found in findings["shortcuts"].items()):
        said.append(("note", f"Shortcuts: {findings['shortcuts']['file_size']['reason']}."))
    return sorted(said, key=lambda item: ["serious", "warning", "note", "good"].index(item[0]))


def giveaways(formats: Counts) -> list[tuple[str, str, int]]:
    """(format and mode, label, number of pictures) of those that occur with one label alone, at least FEW times."""
    kinds = sorted({kind for counts in formats.values() for kind in counts})
    where = {kind: [(label, counts[kind]) for label, counts in formats.items() if kind in counts] for kind in kinds}
    return [(kind, *found[0]) for kind, found in where.items() if len(found) == 1 and found[0][1] >= FEW]


LEAKS = {"patients": ("patient", "patients"), "near": ("picture", "pictures")}


def plural(number: int, one: str, many: str) -> str:
    """`1 patient`, `1,170 patients`."""
    return f"{number:,} {one if number == 1 else many}"


def interval(found: dict[str, float]) -> str:
    """`0.93 [0.90, 0.96]`."""
    return f"{found['auc']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def write_audit(survey: Survey, findings: Findings, out: Path) -> Path:
    """Write audit.json and audit.html, which needs no other file and no network; return the path of the latter.

    The pictures in it are drawn anew from pixels, small and without metadata; names of files are in it.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True)
    template = importlib.resources.files("hf_medtl.data").joinpath("audit.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        f=findings,
        p=pictures(survey, findings, findings["measured"]["seed"]),
        verdicts=verdicts(findings),
        probes=PROBES,
        interval=interval,
        by_label=next((list(found["by_label"]) for found in findings["shortcuts"].values() if "by_label" in found), []),
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
