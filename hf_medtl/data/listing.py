"""Files of a data folder: which there are, which are images, and which are their masks."""

import posixpath
import re
from pathlib import Path

from hf_medtl.common.text import abbreviate
from hf_medtl.data.images import EXTENSIONS
from hf_medtl.data.specs import DatasetSpec
from hf_medtl.errors import MedtlError


def is_image_file(root: Path, path: str) -> bool:
    """True for an image's file name, or for a bare or numeric name (common for DICOM) with DICOM content."""
    if path.lower().endswith(EXTENSIONS):
        return True
    if not re.fullmatch(r"(\.\d+)?", Path(path).suffix) or not (root / path).is_file():
        return False
    with (root / path).open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def list_paths(spec: DatasetSpec, root: Path) -> set[str]:
    """Return all POSIX paths below the data folder, without hidden files and macOS' `__MACOSX`."""
    if not root.is_dir():
        raise MedtlError(f"{root} is not a folder. Specify the folder of {spec.title} with --data_dir.")
    paths = (path.relative_to(root) for path in root.rglob("*"))
    return {p.as_posix() for p in paths if not any(part.startswith((".", "__MACOSX")) for part in p.parts)}


def list_folder(root: Path) -> str:
    """Return the first names in a folder, for error messages."""
    return abbreviate(sorted(p.name + "/" * p.is_dir() for p in root.iterdir())) or "an empty folder"


def find_mask(spec: DatasetSpec, path: str, paths: set[str]) -> str:
    """Return the paths, joined by |, of the first mask rule of the spec whose files all exist; else ""."""
    image = Path(path)
    for rule in spec.masks:
        parts = rule.format(folder=image.parent.as_posix(), name=image.name, stem=image.stem).split("|")
        parts = [posixpath.normpath(part) for part in parts]
        if all(part in paths for part in parts):
            return "|".join(parts)
    return ""
