"""Masks of images, recognized by their names: beside the image (`x_mask.png`) or in a folder of masks."""

import posixpath
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from hf_medtl.data.images import EXTENSIONS
from hf_medtl.data.specs import DatasetSpec


def find_mask(spec: DatasetSpec, path: str, stems: dict[str, list[str]]) -> str:
    """Return the paths, joined by |, of the first mask rule of a dataset whose files all exist; else "".

    Args:
        spec: The dataset.
        path: The image, as a POSIX path below the data folder.
        stems: Files of the data folder, from `group_by_stem`: a mask may have another extension than its image.
    """
    image = PurePosixPath(path)
    for rule in spec.masks:
        parts = rule.format(folder=image.parent.as_posix(), name=image.name, stem=image.stem).split("|")
        files = [_find_stem(posixpath.normpath(part), stems) for part in parts]
        if all(file not in ("", path) for file in files):
            return "|".join(files)
    return ""


def group_by_stem(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return path without extension -> paths."""
    stems = defaultdict(list)
    for path in paths:
        stems[_split_extension(path)].append(path)
    return stems


def _split_extension(path: str) -> str:
    """Return a path without the extension of an image; `.nii.gz` is one."""
    longest = max((end for end in EXTENSIONS if path.lower().endswith(end)), key=len, default="")
    return path[: len(path) - len(longest)]


def _find_stem(path: str, stems: dict[str, list[str]]) -> str:
    """Return a path if it exists, else one that differs in the extension alone; else ""."""
    files = stems.get(_split_extension(path), [])
    return path if path in files else next(iter(files), "")
