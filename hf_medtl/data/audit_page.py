"""Audit page: the findings of a dataset audit as sentences and as a self-contained HTML page."""

import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from hf_medtl.common.files import write_atomic
from hf_medtl.data.audit import Counts, Findings
from hf_medtl.data.audit_plots import AVERAGED, render_figures
from hf_medtl.data.dataset import Survey
from hf_medtl.data.fingerprints import CROP_AGREEMENT
from hf_medtl.data.shortcuts import BORDER, PROBES

FEW = 5  # images of a colour mode from which it is reported that only one label has them
SERIOUS, CLEAR = 0.8, 0.6  # AUC of a probe above which it is a serious, or a clear, shortcut
SEVERITIES = ("serious", "warning", "note", "good")
LEAKS = {"patients": ("patient", "patients"), "near": ("image", "images")}


def summary(findings: Findings) -> list[str]:
    """Return the most important findings as sentences, most severe first."""
    return [sentence for _, sentence in verdicts(findings)]


def verdicts(findings: Findings) -> list[tuple[str, str]]:
    """Return (severity, sentence) pairs, most severe first; severities are serious, warning, note and good."""
    results: list[tuple[str, str]] = []

    def add(severity: str, sentence: str) -> None:
        results.append((severity, sentence))

    # Labels and official splits
    n, patients = findings["n"], findings["patients"]
    twice = findings["duplicates_across_labels"]["groups"]
    if twice:
        add("serious", f"{_plural(twice, 'image has', 'images have')} two labels, one of which must be wrong.")
    for pair, leak in findings["split_leaks"].items():
        first, second = pair.split("/")
        shared = [_plural(leak[key], *words) for key, words in LEAKS.items() if leak[key]]
        if leak["pictures"]:
            rate = f"{leak['pictures']:,} of {leak['of']:,} {second} images ({leak['pictures'] / leak['of']:.0%})"
            add("serious", f"The official {first} and {second} splits share {' and '.join(shared)}: {rate} leak.")
        else:
            checked = "patient or copy" if patients["known"] else "copy"
            add("good", f"No {checked} is in both the official {first} and {second} splits.")

    # Shortcuts
    shortcuts = findings["shortcuts"]
    clear = [(probe, result) for probe, result in shortcuts.items() if result.get("low", 0) > 0.5]
    if shortcuts["dimensions"].get("constant"):
        clear = [item for item in clear if item[0] != "compression"]  # it would only repeat the file size
    for probe, result in sorted(clear, key=lambda item: -item[1]["auc"]):
        if result["auc"] >= CLEAR:
            severity = "serious" if result["auc"] >= SERIOUS else "warning"
            add(severity, f"A model can predict the label from {PROBES[probe]} alone: AUC {_format_interval(result)}.")
    for kind, label, count in _single_label_formats(findings["formats"]):
        add("warning", f"All {count:,} images in {kind} format are {label}.")

    # Copies, here and in other datasets
    for name, overlap in findings["overlap"].items():
        if overlap["near"]:
            number = f"{overlap['near']:,} of {overlap['of']:,} images"
            add("serious", f"{number} are also in {name}: neither dataset is external to the other.")
        else:
            add("good", f"No image is also in {name}.")
    copies = n - findings["distinct"]
    if copies:
        number, equal = f"{copies:,} of {n:,} images ({copies / n:.1%})", findings["exact_redundant"]
        distinct = f"{equal:,} of them identical files: {findings['distinct']:,} images are distinct"
        add("warning", f"{number} are copies of another one, {distinct}.")
    else:
        add("good", "No image is a copy of another one.")

    # Files, patients and completeness
    if findings["unreadable"]:
        add("warning", f"{_plural(len(findings['unreadable']), 'file is', 'files are')} unreadable.")
    if not patients["known"]:
        add("warning", "Patients are unknown, so images of one patient can be in different splits.")
    elif patients["pictures"] < n:
        add("warning", f"The patient is unknown for {n - patients['pictures']:,} of {n:,} images.")
    total = sum(findings["expected"].values())
    if total and findings["labels"] != findings["expected"]:
        add("note", f"The data folder has {n:,} images; the complete dataset has {total:,}.")
    if all("reason" in result for result in shortcuts.values()):
        add("note", f"Shortcuts: {shortcuts['file_size']['reason']}.")
    return sorted(results, key=lambda item: SEVERITIES.index(item[0]))


def write_audit(survey: Survey, findings: Findings, out: Path, names: Mapping[str, str] | None = None) -> Path:
    """Write audit.json and the self-contained audit.html, and return the path of the latter.

    Images in it are small, re-encoded from pixels and without metadata; it contains file names.

    Args:
        survey: The dataset.
        findings: Result of `audit`.
        out: Folder, created if necessary.
        names: Path of an image -> what to call it; by default its path.
    """
    shown = findings
    if names is not None:  # messages about files that can't be read may quote their names
        unreadable = [{"path": f"file {i}", "reason": "unreadable"} for i, _ in enumerate(findings["unreadable"], 1)]
        shown = _rename(findings | {"unreadable": unreadable}, names)
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True)
    template = importlib.resources.files("hf_medtl.data").joinpath("audit.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        f=shown,
        p=_rename(render_figures(survey, findings, findings["measured"]["seed"]), names or {}),
        verdicts=verdicts(findings),
        probes=PROBES,
        interval=_format_interval,
        by_label=next((list(probe["by_label"]) for probe in findings["shortcuts"].values() if "by_label" in probe), []),
        averaged=AVERAGED,
        agreement=CROP_AGREEMENT,
        border=BORDER,
        clear=CLEAR,
        serious=SERIOUS,
    )
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(shown, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(out / "audit.json", text + "\n")
    path = out / "audit.html"
    write_atomic(path, page)
    return path


def _rename(value: Any, names: Mapping[str, str]) -> Any:
    """Return nested lists and dicts with other texts."""
    if isinstance(value, dict):
        return {key: _rename(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rename(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _single_label_formats(formats: Counts) -> list[tuple[str, str, int]]:
    """Return (format and mode, label, number of images) of formats that only one label has, at least FEW times."""
    names = sorted({kind for counts in formats.values() for kind in counts})
    by_format = {kind: [(label, counts[kind]) for label, counts in formats.items() if kind in counts] for kind in names}
    return [(kind, *uses[0]) for kind, uses in by_format.items() if len(uses) == 1 and uses[0][1] >= FEW]


def _plural(number: int, one: str, many: str) -> str:
    """Format a count such as `1 patient` or `1,170 patients`."""
    return f"{number:,} {one if number == 1 else many}"


def _format_interval(result: dict[str, float]) -> str:
    """Format an AUC such as `0.93 [0.90, 0.96]`."""
    return f"{result['auc']:.2f} [{result['low']:.2f}, {result['high']:.2f}]"
