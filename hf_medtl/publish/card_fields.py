"""Fields of a model card: which information it should give, and which it lacks."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hf_medtl.errors import MedtlError


class CardField(NamedTuple):
    """Information that a card should give.

    Attributes:
        description: Human-readable name.
        is_given: (text of the card, content of results.json) -> True if they give it.
        required: True if a run can't be published without it.
    """

    description: str
    is_given: Callable[[str, Mapping[str, Any]], bool]
    required: bool = True


# Lines in which an author states nothing, comments (but not the marks of sections), and sections without text.
UNSTATED = re.compile(r"^.*(?:The author has not stated|\b(?:TODO|TBD|FIXME)\b).*\n?", re.MULTILINE)
COMMENT = re.compile(r"<!--(?! /?[a-z]+ -->).*?-->", re.DOTALL)
EMPTY_SECTION = re.compile(r"^## .*\n\s*(?=^## |\Z)", re.MULTILINE)


def _contains(*phrases: str) -> Callable[[str, Mapping[str, Any]], bool]:
    """Return a test of a text for phrases; one that ends with a colon needs words behind it."""
    patterns = [re.escape(phrase) + (r"[ \t]*\n?[ \t]*[^\s#]" if phrase[-1] == ":" else "") for phrase in phrases]
    return lambda text, results: all(re.search(pattern, text) for pattern in patterns)


def _has_intervals(results: Mapping[str, Any]) -> bool:
    metrics = results.get("metrics", {}).values()
    return any(metric["value"] is not None and metric["low"] is not None for metric in metrics)


# Contents of a card by CLAIM 2024 (https://doi.org/10.1148/ryai.240300), TRIPOD+AI
# (https://doi.org/10.1136/bmj-2023-078378) and Model Facts (https://doi.org/10.1038/s41746-020-0253-3).
# First the fields that only the author can write.
PROSE_FIELDS = {
    "intended_use": CardField(
        "intended use and users",
        lambda text, results: (
            _contains("Users:")(text, results)
            and bool(re.search(r"## Intended use\s+(?!Users:|Out of scope:|Stop using it)[^\s#]", text))
        ),
    ),
    "out_of_scope": CardField("out-of-scope uses", _contains("Out of scope:")),
    "limits": CardField("limits, biases and known shortcuts", _contains("## Limits")),
    "population": CardField(
        "population: whose images, from where and when, and how they were acquired", _contains("Population:")
    ),
    "reference_standard": CardField(
        "how the reference standard was established, and by whom", _contains("Reference standard:")
    ),
}
AUTHOR_FIELDS = PROSE_FIELDS | {
    "directions": CardField(
        "how to use a prediction, and when to stop using the model", _contains("Stop using it"), required=False
    ),
    "acquisition": CardField("how the images were acquired", _contains("Acquisition:"), required=False),
    "support": CardField("funding, interests, ethics approval", _contains("Funding and interests:"), required=False),
}
# Then the fields that a run fills in. Fields that are not required are missing in cards of older versions, or need
# another command.
CARD_FIELDS = AUTHOR_FIELDS | {
    "not_a_device": CardField("that it is not a medical device", _contains("Not a medical device")),
    "results": CardField("results with intervals", lambda text, results: _has_intervals(results)),
    "data": CardField("data, with licence, known problems and split", _contains("## Data and split", "licence")),
    "procedure": CardField("preprocessing, training and environment", _contains("## Procedure", "Preprocessing:")),
    "loading": CardField("how to load it", _contains("## How to load it")),
    "split": CardField(
        "how images were split, by patient or not", _contains("\nSplit: ", "patients |"), required=False
    ),
    "selection": CardField(
        "how the weights were chosen, and the seeds", _contains("- The weights are", "- Seeds:"), False
    ),
    "origin": CardField("weights before training", _contains("- Model: `"), required=False),
    "calibration": CardField("whether probabilities are calibrated", _contains("calibrat"), required=False),
    "failures": CardField("where it fails", _contains("### Where it fails"), required=False),
    "environment": CardField(
        "software, hardware, time, energy", _contains("## Environment and cost", "Energy:"), False
    ),
    "licences": CardField("licences of data, base model and model", _contains("## Licences"), required=False),
    "citation": CardField("how to cite data and base model", _contains("## Citation", "```bibtex"), required=False),
    "exports": CardField("exports and their accuracy (hf-medtl export)", _contains("<!-- exports -->"), required=False),
    "external": CardField(
        "a test on another data set (hf-medtl evaluate)",
        lambda text, results: bool(results.get("external")) or "- On other data: " in text,
        required=False,
    ),
    "explanations": CardField(
        "whether its heatmaps can be trusted (hf-medtl explain)", _contains("`explanations.json`"), required=False
    ),
    "robustness": CardField(
        "robustness to corrupted images (hf-medtl evaluate --robustness)", _contains("  Robustness:"), required=False
    ),
    "subgroups": CardField(
        "results by subgroup or source (hf-medtl evaluate --by)",
        lambda text, results: bool(results.get("by_source")) or "  Subgroups by " in text,
        required=False,
    ),
}


def missing_fields(
    text: str, results: Mapping[str, Any], fields: Mapping[str, CardField] = CARD_FIELDS
) -> dict[str, CardField]:
    """Return the fields that a card lacks; those waived on the card count as given.

    What an author has left to fill in is lacking: a line with "The author has not stated" or TODO, an empty section.

    Args:
        text: Text of the card.
        results: Content of results.json.
        fields: Fields to look for.
    """
    waived = set(re.findall(r"^- (\w+) is not given: \S", text, flags=re.MULTILINE))
    stated = EMPTY_SECTION.sub("", UNSTATED.sub("", COMMENT.sub("", text)))
    return {name: field for name, field in fields.items() if name not in waived and not field.is_given(stated, results)}


def check_prose(text: str) -> None:
    """Raise MedtlError unless the prose of a card has the fields that only its author can write."""
    if missing := missing_fields(text, {}, PROSE_FIELDS):
        descriptions = ", ".join(field.description for field in missing.values())
        raise MedtlError(
            f"--push_to_hub publishes a card, and --model_card does not give {descriptions}. `hf-medtl card new FILE` "
            "writes the headings; or leave --push_to_hub out and publish later with hf-medtl push --waive."
        )
