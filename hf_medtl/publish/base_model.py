"""What a model was fine-tuned from: which weights exactly, their licence, and how to cite them, as far as known."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HTTPError

BIBTEX = re.compile(r"^```(?:bibtex|bib|latex)?[ \t]*\n(@\w+\{.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class BaseModel:
    """The weights before training.

    Attributes:
        name: id on the Hub, or name of a folder.
        is_local: whether they came from a folder.
        revision: commit on the Hub; None of a folder, or where it is not known.
        sha256: file -> SHA-256, of a folder's weights.
        licence: by their card; None where there is no card, or it does not say.
        bibtex: entries on their card.
    """

    name: str
    is_local: bool
    revision: str | None
    sha256: dict[str, str]
    licence: str | None
    bibtex: tuple[str, ...]


def find_base_model(name: str, revision: str | None = None) -> BaseModel:
    """What is known of weights that were just loaded.

    Args:
        name: id on the Hub, or folder.
        revision: branch, tag or commit on the Hub.
    """
    folder = Path(name)
    if folder.is_dir():
        weights = sha256_of(sorted(folder.glob("*.safetensors")))
        return BaseModel(folder.resolve().name, True, None, weights, *read_card(folder / "README.md", name, None))
    cached = try_to_load_from_cache(name, "config.json", revision=revision)  # what was loaded, not what is newest
    commit = Path(cached).parent.name if isinstance(cached, str) else revision
    return BaseModel(name, False, commit, {}, *read_card(None, name, commit))


def read_card(path: Path | None, name: str, revision: str | None) -> tuple[str | None, tuple[str, ...]]:
    """Licence and BibTeX entries of a model card, as far as it can be had; a run does not fail for want of one."""
    try:
        card = ModelCard.load(path or hf_hub_download(name, "README.md", revision=revision))
    except (OSError, HTTPError, ValueError, yaml.YAMLError):
        return None, ()
    said = getattr(card.data, "license_name", None) or card.data.license
    licence = ", ".join(map(str, said)) if isinstance(said, list) else said and str(said)
    return licence, tuple(entry.strip() for entry in BIBTEX.findall(card.text.replace("\r\n", "\n")))


def sha256_of(files: Sequence[Path]) -> dict[str, str]:
    """Name -> SHA-256 of each file."""
    found = {}
    for path in files:
        with path.open("rb") as stream:
            found[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
