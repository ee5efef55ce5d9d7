"""Provenance of the base model: exact weights, licence and citation."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HTTPError

from hf_medtl.common.licences import stated_licence

BIBTEX = re.compile(r"^```(?:bibtex|bib|latex)?[ \t]*\n(@\w+\{.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class BaseModel:
    """The weights before training.

    Attributes:
        name: Id on the Hub, or name of a folder.
        is_local: True if they came from a folder.
        revision: Commit on the Hub; None for a folder, or if unknown.
        sha256: File -> SHA-256 of the weights in a folder.
        licence: Licence by their card; None without a card, or if it names none.
        bibtex: BibTeX entries on their card.
        licence_link: Page with the text of the licence, if the card gives one.
    """

    name: str
    is_local: bool
    revision: str | None
    sha256: dict[str, str]
    licence: str | None
    bibtex: tuple[str, ...]
    licence_link: str = ""


def find_base_model(name: str, revision: str | None = None) -> BaseModel:
    """Return the provenance of weights that were just loaded.

    Args:
        name: Id on the Hub, or folder.
        revision: Branch, tag or commit on the Hub.
    """
    folder = Path(name)
    if folder.is_dir():
        weights = sha256_of(sorted(folder.glob("*.safetensors")))
        return BaseModel(folder.resolve().name, True, None, weights, *_read_card(folder / "README.md", name, None))
    cached = try_to_load_from_cache(name, "config.json", revision=revision)  # the loaded commit, not the newest
    commit = Path(cached).parent.name if isinstance(cached, str) else revision
    return BaseModel(name, False, commit, {}, *_read_card(None, name, commit))


def _read_card(path: Path | None, name: str, revision: str | None) -> tuple[str | None, tuple[str, ...], str]:
    """Return licence, BibTeX entries and link to the licence of a model card; a run does not fail without one."""
    try:
        card = ModelCard.load(path or hf_hub_download(name, "README.md", revision=revision))
    except (OSError, HTTPError, ValueError, yaml.YAMLError):
        return None, (), ""
    licence, link = stated_licence(card.data.to_dict())
    if link and not link.startswith(("https://", "http://")):  # of a file beside the card
        link = "" if path else f"https://huggingface.co/{name}/blob/{revision or 'main'}/{link}"
    return licence or None, tuple(entry.strip() for entry in BIBTEX.findall(card.text.replace("\r\n", "\n"))), link


def sha256_of(files: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, by its name."""
    digests = {}
    for path in files:
        with path.open("rb") as stream:
            digests[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests
