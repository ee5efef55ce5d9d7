"""What a decision means, in a sentence for people, with the figure that stands behind it."""

from collections.abc import Mapping
from typing import Any

import yaml

from hf_medtl.errors import MedtlError

NOTICE = "For research and education only: not for diagnosis."


def split_prose(text: str) -> tuple[dict[str, str], str]:
    """Findings (label -> words for it) and the Markdown of a file of model_cards/.

    The findings stand before the text, as YAML between two lines of ---.

    Raises:
        MedtlError: what stands there is not `findings` with words for each label.
    """
    if not text.startswith("---\n"):
        return {}, text
    front, _, prose = text.removeprefix("---\n").partition("\n---\n")
    try:
        findings = yaml.safe_load(front)["findings"]
        return {str(label): str(words) for label, words in findings.items()}, prose
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise MedtlError(
            "A model card's text may begin with findings: between two lines of ---, each label with its words. "
            f"Found: {front[:200]!r}."
        ) from error


def finding_sentences(findings: Mapping[str, str], results: Mapping[str, Any], title: str) -> dict[str, str]:
    """A sentence for each label that a model can decide.

    Args:
        findings: label -> words for it; where there are none the label stands for itself.
        results: of results.json, of labels.
        title: of the data set.
    """
    several = results.get("per_label", {})
    recall = results.get("recall") or {label: its["metrics"]["sensitivity"] for label, its in several.items()}
    return {
        label: sentence(findings.get(label, f"called {label}"), its, results["n"], title)
        for label, its in recall.items()
    }


def sentence(finding: str, recall: Mapping[str, float | None], n: int, title: str) -> str:
    """`Findings compatible with ...; found in 95 % [88, 98] of ...`."""
    begins = finding[0].upper() + finding[1:]
    if recall["value"] is None:
        return f"{begins}; no test picture of {title} had it, so nothing is known about how often it is found. {NOTICE}"
    share, low, high = (f"{100 * recall[key]:.0f}" for key in ("value", "low", "high"))  # type: ignore[operator]
    return (
        f"{begins}; of the pictures that had it, {share} % [{low}, {high}] were called so, among {n} test pictures of "
        f"{title}. {NOTICE}"
    )
