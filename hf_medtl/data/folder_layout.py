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
    below: dict[str, set[str]] = defaultdict(set)
    for parts in labels.values():
        # Numbered folders repeat because they are patients, series or slices.
        below[parts[0]].update(name.casefold() for name in parts[1:2] if not any(map(str.isdigit, name)))
    repeated = set.intersection(*below.values()) if len(below) > 1 else set()
    if len(repeated) > 1:
        raise MedtlError(
            f"{root}: the folders {abbreviate(sorted(below))} all have folders called {abbreviate(sorted(repeated))}, "
            "so it is doubtful which of them are the labels. If the first are splits, call them train, validation and "
            "test; otherwise add a metadata.csv with the columns file_name and label."
        )
    for name, inner in below.items():
        others = {other.casefold() for other in below if other != name}
        if len(others) > 1 and others <= inner:
            raise MedtlError(
                f"{root}: the folder {name} has the folders {abbreviate(sorted(others))} once more, so it is no label. "
                f"Remove it if it is a copy, or set --data_dir to {root / name}."
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


def _names(folders: dict[str, list[str]], level: int) -> set[str]:
    return {parts[level] for parts in folders.values() if len(parts) > level}


def _is_wrapping(labels: dict[str, list[str]], splits: dict[str, str]) -> bool:
    """True if the outermost folders are the same everywhere, or the splits once more, and there are folders in them."""
    names = _names(labels, 0)
    named = find_splits(names)
    again = all(named.get(parts[0]) == splits[path] for path, parts in labels.items() if parts)
    return bool(_names(labels, 1)) and (len(names) == 1 or again)
