"""Labels and splits in the names of folders."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_medtl.common.text import abbreviate
from hf_medtl.data.split_names import find_splits, split_word
from hf_medtl.errors import MedtlError


@dataclass(frozen=True)
class FolderLayout:
    """What the folders of images stand for.

    Attributes:
        base: Number of folders around all images.
        labels: Image -> the folders that may be labels, outermost first.
        splits: Image -> train, validation or test; "" for all if no folders are splits, else for images of none.
        has_splits: True if there are folders of splits.
    """

    base: int
    labels: dict[str, list[str]] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    has_splits: bool = False


def read_layout(paths: Sequence[str]) -> FolderLayout:
    """Find the folders of splits, above or below those of labels and below any wrapping folders.

    Args:
        paths: POSIX paths of images.
    """
    folders = {path: path.split("/")[:-1] for path in paths}
    base = 0
    while len(_names(folders, base)) == 1 and _names(folders, base + 1):
        base += 1
    level, named = base, find_splits(_names(folders, base))
    if not named:
        below = find_splits(_names(folders, base + 1))
        if all(len(parts) > base + 1 and parts[base + 1] in below for parts in folders.values()):
            level, named = base + 1, below
    if not named:
        return FolderLayout(base, {path: parts[base:] for path, parts in folders.items()}, dict.fromkeys(paths, ""))
    splits = {path: named.get(parts[level], "") if len(parts) > level else "" for path, parts in folders.items()}
    labels = {path: parts[base:level] + parts[level + 1 :] for path, parts in folders.items()}
    while _is_wrapping({path: parts for path, parts in labels.items() if splits[path]}, splits):
        labels = {path: parts[1:] for path, parts in labels.items()}
    return FolderLayout(base, labels, splits, True)


def check_labels(root: Path, labels: dict[str, list[str]]) -> None:
    """Refuse folders of which it is doubtful that the outermost are labels.

    Args:
        root: Data folder, for errors.
        labels: Image -> the folders that may be labels, outermost first.

    Raises:
        MedtlError: The same folders repeat below all of them, one has all others once more, or the
            names of all have a split and something else.
    """
    paths: dict[str, list[list[str]]] = defaultdict(list)
    for parts in labels.values():
        paths[parts[0]].append(parts[1:])
    inner = {name: {parts[0].casefold() for parts in own if parts} for name, own in paths.items()}
    below = {name: _unwrap(own) for name, own in paths.items()}
    # Numbered folders repeat because they are patients, series or slices, but not if all have the same few of them.
    repeated = (
        {name for name in set.intersection(*below.values()) if not _has_number(name)} if len(below) > 1 else set()
    )
    numbered = set.union(*inner.values()) if inner else set()
    if 1 < len(numbered) < len(inner) and all(inner.values()) and all(map(_has_number, (*inner, *numbered))):
        repeated = numbered
    if len(repeated) > 1:
        raise MedtlError(
            f"{root}: the folders {abbreviate(sorted(below))} all have folders called {abbreviate(sorted(repeated))}, "
            "so it is doubtful which of them are the labels. If the first are splits, call them train, validation and "
            "test; if they are parts of the data, give one of them; otherwise add a metadata.csv with the columns "
            "file_name and label."
        )
    others = {name: {other.casefold() for other in inner if other != name} for name in inner}
    copies = [name for name in inner if len(others[name]) > 1 and others[name] <= inner[name]]
    if len(copies) == 1:
        name = copies[0]
        raise MedtlError(
            f"{root}: the folder {name} has the folders {abbreviate(sorted(others[name]))} once more, so it is no "
            f"label. Remove it if it is a copy, or set --data_dir to {root / name}."
        )
    words = {name: split_word(name) for name in below}
    splits: dict[str, set[str | None]] = defaultdict(set)
    for split, rest in words.values():
        splits[rest].add(split)
    if len(splits) > 1 and all(len(values - {None}) > 1 for values in splits.values()):
        raise MedtlError(
            f"{root}: the names of the folders {abbreviate(sorted(below))} have both a split and a label. Move them "
            f"to folders of splits with folders of labels, such as train/{next(iter(splits))}."
        )


def _has_number(name: str) -> bool:
    return any(map(str.isdigit, name))


def _unwrap(paths: list[list[str]]) -> set[str]:
    """Return the names in lower case of the outermost folders of which there is more than one; empty if of none."""
    while paths and all(paths) and len({parts[0] for parts in paths}) == 1:
        paths = [parts[1:] for parts in paths]
    return {parts[0].casefold() for parts in paths if parts}


def _names(folders: dict[str, list[str]], level: int) -> set[str]:
    return {parts[level] for parts in folders.values() if len(parts) > level}


def _is_wrapping(labels: dict[str, list[str]], splits: dict[str, str]) -> bool:
    """True if the outermost folders are the same everywhere, or the splits once more, and there are folders in them."""
    names = _names(labels, 0)
    named = find_splits(names)
    again = all(named.get(parts[0]) == splits[path] for path, parts in labels.items() if parts)
    return bool(_names(labels, 1)) and (len(names) == 1 or again)
