"""Licence chain of a model: its sources, its own licence, and whether it may be published under that."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_medtl.common.files import read_object
from hf_medtl.common.licences import (
    HUB_NAMES,
    LICENCES,
    UNKNOWN,
    Source,
    card_metadata,
    inherit,
    laxer_than,
    normalise,
    read_licence,
    stated_licence,
)
from hf_medtl.common.links import check_link
from hf_medtl.common.text import escape_cell
from hf_medtl.errors import MedtlError

FACTS = "card.json"  # in the run folder: the facts of its card; not published
MODELS = {"base_model": "the base model", "lung_model": "the lung model"}


def check_licence(name: Any) -> None:
    """Raise MedtlError if a model can't have a licence of this name."""
    if name not in HUB_NAMES and name not in LICENCES:
        raise MedtlError(
            f"The Hub knows no licence {name!r}. Give one of its identifiers, such as apache-2.0 or cc-by-nc-4.0 "
            "(https://huggingface.co/docs/hub/repositories-licenses), or other."
        )


def check_waiver(text: str | None) -> None:
    """Raise MedtlError if the text of --license_waiver is empty."""
    if text is not None and not text.strip():
        raise MedtlError("--license_waiver is empty. Give a sentence for the card: who permitted what.")


def list_sources(facts: Mapping[str, Any]) -> list[Source]:
    """Return the works that a model is made from: data and weights, by the facts of its card.

    Args:
        facts: spec, base_model and lung_model, as for `render_card` or as in card.json.
    """
    parts = {key: value if isinstance(value, dict) else vars(value) for key, value in facts.items()
             if key in ("spec", *MODELS) and value}  # fmt: skip
    sources = [Source(f"the data ({parts['spec']['title']})", parts["spec"].get("licence") or UNKNOWN)]
    for key, title in MODELS.items():
        if model := parts.get(key):
            licence, link = model.get("licence") or "", model.get("licence_link") or ""
            sources.append(Source(f"{title} {model['name']}", licence, link))
    return sources


def asked_licence(sources: Sequence[Source], asked: str | None) -> str:
    """Return the licence that an author asks for: what the model inherits if none, or `other` where that has a name."""
    inherited = inherit(sources)
    return inherited if asked is None or (asked == "other" and inherited not in HUB_NAMES) else asked


def choose_licence(sources: Sequence[Source], asked: str | None, waiver: str | None = None) -> str:
    """Return the licence that a card states: the one asked for, or what the model inherits if that allows less.

    Args:
        sources: What it is made from.
        asked: --model_license; None for what it inherits.
        waiver: --license_waiver.
    """
    licence = asked_licence(sources, asked)
    return licence if waiver or not laxer_than(licence, sources) else inherit(sources)


def find_problem(sources: Sequence[Source], licence: str, waiver: str | None = None) -> str:
    """Return why a model may not be published under a licence; "" if it may.

    Args:
        sources: What it is made from.
        licence: Of the model.
        waiver: What the author states about permissions beyond the licences of the sources.
    """
    for source in sources:
        if source.terms and not source.terms.derivatives:
            return f"The licence of {_name(source)} allows no derivatives, so a model made from it can't be published."
    if licence == UNKNOWN:
        unclear = [source for source in sources if source.terms is None]
        if unclear:
            return (
                f"What the licence of {' and of '.join(map(_name, unclear))} allows is not known. Look it up, and give "
                "the licence that the model may have with --model_license."
            )
        if inherit(sources) == UNKNOWN:
            return (
                f"No licence keeps the terms of {' and of '.join(map(_name, sources))}. If the owners permit it, give "
                "--model_license, and --license_waiver with a sentence about the permission."
            )
        return "The licence of the model is not known. Give it with --model_license."
    if waiver:
        return ""
    for source in sources:
        if source.terms and not source.terms.redistribution:
            return (
                f"The licence of {_name(source)} allows no redistribution. If its owners permit to publish the model, "
                "give --license_waiver with a sentence about the permission."
            )
    if laxer := laxer_than(licence, sources):
        inherited = inherit(sources)
        instead = "Give a stricter one" if inherited == UNKNOWN else f"The model can have {inherited}"
        return (
            f"The licence {licence} allows more than that of {' and of '.join(map(_name, laxer))}. {instead}; or, if "
            "the owners permit it, give --license_waiver with a sentence about the permission."
        )
    return ""


def check_chain(folder: Path, card: ModelCard) -> None:
    """Check that the licence on the card of a run goes with those of its data and its base model.

    Args:
        folder: Run folder.
        card: Its card.

    Raises:
        MedtlError: It allows more than they do, or what they allow is not known.
    """
    if not (folder / FACTS).is_file():  # an ensemble, or a run of an old version
        return
    facts = _read_facts(folder)
    licence = stated_licence(card.data.to_dict())[0]
    if problem := find_problem(list_sources(facts), normalise(licence), facts.get("license_waiver")):
        raise MedtlError(
            f"{problem} (For a finished run, hf-medtl card write and push take these options.) Nothing was uploaded."
        )


def _read_facts(folder: Path) -> dict[str, Any]:
    """Return the facts of a run's card, with those about the sources of the model.

    Raises:
        MedtlError: They are damaged.
    """
    facts = read_object(folder / FACTS)
    works = [(facts.get("spec"), "title"), *((facts[key], "name") for key in MODELS if facts.get(key))]
    if not all(isinstance(work, dict) and isinstance(work.get(name), str) for work, name in works):
        raise MedtlError(f"{folder / FACTS} does not name the data and the base model of the run. Train it again.")
    return facts


def describe_licences(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return work -> what the card says of its licence: each source, and the model itself."""
    sources, licence = list_sources(facts), facts["license"]
    lines = {"Data": describe_licence(sources[0])}
    if not facts["base_model"]:
        lines["Weights before training"] = "none (random initialization)"
    names = {"the base": "Weights before training", "the lung": "Lung model"}
    for source in sources[1:]:
        lines[next(name for start, name in names.items() if source.title.startswith(start))] = describe_licence(source)
    lines["This model"] = describe_licence(own_source(licence, sources))
    return lines


def own_source(licence: str, sources: Sequence[Source]) -> Source:
    """Return the model itself with its licence, and the link to its text."""
    metadata = card_metadata(licence, sources)
    return Source("This model", metadata.get("license_name", licence), metadata.get("license_link", ""))


def member_sources(folder: Path) -> list[Source]:
    """Return what a model made from a run inherits from: the run and, unless its card has a waiver, its own sources.

    Args:
        folder: Run folder.

    Raises:
        MedtlError: A file of it is a link to outside.
    """
    for name in (FACTS, "README.md"):
        check_link(folder / name, folder)
    facts = _read_facts(folder) if (folder / FACTS).is_file() else {}
    sources = [] if facts.get("license_waiver") or not facts else list_sources(facts)
    return [Source(f"the run {folder.resolve().name}", *read_licence(folder / "README.md")), *sources]


def describe_licence(source: Source) -> str:
    """Return what a card says of the licence of a work: its name, what it allows and a link."""
    if source.licence in ("", UNKNOWN):
        return "unknown, because no card names it" if not source.licence else UNKNOWN
    terms = source.terms
    link = source.link or (terms.link if terms else "")
    text = escape_cell(source.licence)
    details = [*([terms.describe()] if terms else ["its terms were not checked"]), *([f"<{link}>"] if link else [])]
    return f"{text} ({'; '.join(details)})"


def _name(source: Source) -> str:
    return f"{source.title} ({source.licence or UNKNOWN})"
