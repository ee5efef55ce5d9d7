"""Sentences that explain a decision to people, each with the sensitivity behind it."""

from collections.abc import Mapping
from typing import Any

import yaml

from hf_medtl.errors import MedtlError

NOTICE = "For research and education only: not for diagnosis."


def split_prose(text: str) -> tuple[dict[str, str], str]:
    """Split a file of model_cards/ into its findings (label -> phrase) and its Markdown.

    Findings are optional YAML front matter, between two lines of ---.

    Raises:
        MedtlError: The front matter is not `findings` with a phrase for each label.
    """
    if not text.startswith("---\n"):
        return {}, text
    front, _, prose = text.removeprefix("---\n").partition("\n---\n")
    try:
        findings = dict(yaml.load(front, yaml.BaseLoader)["findings"] or {})  # all text: a label may be no, yes or 1
        if not all(isinstance(phrase, str) and phrase for phrase in findings.values()):
            raise TypeError("a label has no phrase")
        return findings, prose
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise MedtlError(
            "A model card's text may begin with findings: between two lines of ---, each label with its phrase. "
            f"Found: {front[:200]!r}."
        ) from error


def finding_sentences(findings: Mapping[str, str], results: Mapping[str, Any], title: str) -> dict[str, str]:
    """Return a sentence for each label that a model can decide; none for a segmentation model.

    Args:
        findings: Label -> phrase; labels without one are named by themselves.
        results: Content of results.json.
        title: Title of the data set.
    """
    recall = results.get("recall") or {
        label: measured["metrics"]["sensitivity"] for label, measured in results.get("per_label", {}).items()
    }
    return {
        label: _sentence(findings.get(label, f"labelled {label}"), sensitivity, results["n"], title)
        for label, sensitivity in recall.items()
    }


def _sentence(finding: str, sensitivity: Mapping[str, float | None], n: int, title: str) -> str:
    opening = finding[0].upper() + finding[1:]
    if sensitivity["value"] is None:
        return f"{opening}; no test image of {title} had it, so it is unknown how often it is found. {NOTICE}"
    value, low, high = (f"{100 * sensitivity[key]:.0f}" for key in ("value", "low", "high"))  # type: ignore[operator]
    return (
        f"{opening}; of the images that had it, {value} % [{low}, {high}] were labelled so, among {n} test images of "
        f"{title}. {NOTICE}"
    )
