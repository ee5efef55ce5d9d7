"""Masks of images, recognized by their names: beside the image (`x_mask.png`) or in a folder of masks."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from hf_medtl.data.dataset_spec import DatasetSpec
from hf_medtl.data.images import EXTENSIONS
from hf_medtl.data.split_names import split_word

MASK_WORD = r"\w*masks?|seg(?:m|mentations?)?|gt|anno(?:tations?)?|labels?"
IMAGE_WORD = r"images?|imgs?|volumes?|vol|scans?|inputs?|originals?|raw"
# Folders of masks. Some words are only taken alone, or with one for a split, such as labelsTr and train_labels.
MASK_FOLDER = rf"(?:.* )?(?:\w*masks?|segmentations?|gt)(?: .*)?|{MASK_WORD}"
PART = r"\(?\d+\)?|left|right"  # of the masks of an image

Key = tuple[tuple[str | None, ...], str]  # folders, and words of a name


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


def pair_masks(images: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """Find the masks among image files by their names.

    A file is a mask if its name is that of an image in the same folder and a word such as mask, or if it is in a
    folder with such a word in its name, most of whose files have the name of an image elsewhere. In a folder called
    `masks` all are. Masks of an image in the same folder belong together.

    Args:
        images: POSIX paths of all files that are images by their extension or content.

    Returns:
        Image -> its masks, joined by |; and the set of all masks, also of those without an image.
    """
    folder_of = _find_mask_folders({posixpath.dirname(path) for path in images})
    names = {path: _parse_name(path) for path in images}
    inside: dict[str, list[str]] = defaultdict(list)
    for path in images:
        if folder := folder_of[posixpath.dirname(path)]:
            inside[folder].append(path)
    others = [path for path in images if not folder_of[posixpath.dirname(path)]]
    if not inside and not any(names[path][1] for path in others):
        return {}, set()
    index = _index_images(others, names, bool(inside))
    masks: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # image -> folder -> masks
    recognized = set()
    for folder, paths in inside.items():
        pairs = [(image, path) for path in paths for image in _find_images(path, folder, names[path][0], index)]
        if posixpath.basename(folder).lower() == "masks" or 2 * len({path for _, path in pairs}) >= len(paths):
            recognized.update(paths)
            for image, path in pairs:
                masks[image][folder].append(path)
        else:  # a folder around everything, such as lgg-mri-segmentation or Dataset_BUSI_with_GT
            others.extend(paths)
    index = _index_images(others, names)
    for path in [path for path in others if names[path][1]]:
        folders = tuple(path.split("/")[:-1])
        for image in next((index[folders, name] for name in names[path][0] if (folders, name) in index), []):
            masks[image][""].append(path)
            recognized.add(path)
    return {image: "|".join(_choose(folders)) for image, folders in masks.items()}, recognized


def _index_images(
    paths: Sequence[str], names: Mapping[str, tuple[list[str], bool]], wildcards: bool = False
) -> dict[Key, list[str]]:
    """Return folders and name -> the images among files, those whose names do not say mask; see `_patterns`."""
    index: dict[Key, list[str]] = defaultdict(list)
    for path in paths:
        if not names[path][1]:
            for folders in _patterns(tuple(path.split("/")[:-1]), wildcards):
                index[folders, names[path][0][0]].append(path)
    return index


def _find_mask_folders(folders: set[str]) -> dict[str, str]:
    """Return folder -> the folder of masks that it is or is in; "" for none.

    It is the innermost one by its name, unless that has a folder of images or another one of masks in it.
    """
    result = {}
    for folder in folders:
        parts = folder.split("/")
        level = next((i for i in reversed(range(len(parts))) if _is_mask_folder(parts[i]) is not None), None)
        result[folder] = "" if level is None or not _is_mask_folder(parts[level]) else "/".join(parts[: level + 1])
    outer = {parent.as_posix() for folder in {*result.values()} - {""} for parent in PurePosixPath(folder).parents}
    outer = {folder for folder in outer if posixpath.basename(folder).lower() != "masks"}
    return {folder: "" if mask_folder in outer else mask_folder for folder, mask_folder in result.items()}


def _is_mask_folder(name: str) -> bool | None:
    """Return True for the name of a folder of masks, False for one of images, None for others."""
    words = _words(name)
    rest = " ".join(word for word in words.split() if not re.fullmatch(IMAGE_WORD, word))
    if name.lower() == "masks" or re.fullmatch(MASK_FOLDER, split_word(rest)[1]):
        return True
    return None if rest == words else False


def _words(name: str) -> str:
    """Return the lower-case words of a name, separated by spaces: training gt for Training_GroundTruth."""
    words = " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|[ _.-]", " ", name).lower().split())
    return re.sub(r"ground ?truth", "gt", words)


def _parse_name(path: str) -> tuple[list[str], bool]:
    """Return the words that a file shares with its image, most likely first, and true if others say mask."""
    words = _words(posixpath.basename(_split_extension(path))).split()
    is_mask = any(re.fullmatch(MASK_WORD, word) for word in words)
    words = [word for word in words if not re.fullmatch(f"{MASK_WORD}|{IMAGE_WORD}", word)]
    names = [" ".join(words)]
    if words and re.fullmatch(PART, words[-1]):
        names.append(" ".join(words[:-1]))
    return names, is_mask


def _patterns(folders: tuple[str, ...], wildcards: bool) -> list[tuple[str | None, ...]]:
    """Return an image's folders, also with None for any one of them, or for all from one on as (None, None)."""
    patterns: list[tuple[str | None, ...]] = [folders]
    if wildcards:
        patterns += [(*folders[:i], None, *folders[i + 1 :]) for i in range(len(folders))]
        patterns += [(*folders[:i], None, None) for i in range(len(folders) + 1)]
    return patterns


def _find_images(path: str, folder: str, names: list[str], index: dict[Key, list[str]]) -> list[str]:
    """Return the images that a file in a folder of masks may belong to, all in one folder.

    Their folder is that of the mask without the folder of masks, or with another one in its place, or any folder
    beside the folder of masks if that has none in it.
    """
    above, below = tuple(folder.split("/")[:-1]), tuple(path[len(folder) + 1 :].split("/")[:-1])
    while above and _is_mask_folder(above[-1]):  # ManualMask/leftMask
        above = above[:-1]
    split = split_word(posixpath.basename(folder))[0]
    for name in names:
        for folders in ((*above, *below), (*above, None, *below), *([] if below else [(*above, None, None)])):
            images = [image for image in index.get((folders, name), []) if _is_in_split(image, split)]
            if len({posixpath.dirname(image) for image in images}) == 1:
                return images
    return []


def _is_in_split(path: str, split: str | None) -> bool:
    """False if a folder of an image names another split."""
    others = {split_word(name)[0] for name in path.split("/")[:-1]} - {None}
    return split is None or not others or split in others


def _choose(folders: dict[str, list[str]]) -> list[str]:
    """Return the masks of an image in one folder only; folders for the left and right side count as one."""
    sides = [folder for folder in folders if re.search(r"(?i)(left|right)[^/]*$", folder)]
    best = min(folders, key=lambda folder: (folder != "", not re.search(r"(?i)(^|/)masks?$", folder), folder))
    return sorted(path for folder in (sides if best in sides else [best]) for path in folders[folder])


def _split_extension(path: str) -> str:
    """Return a path without the extension of an image; `.nii.gz` is one."""
    longest = max((end for end in EXTENSIONS if path.lower().endswith(end)), key=len, default="")
    return path[: len(path) - len(longest)]


def _find_stem(path: str, stems: dict[str, list[str]]) -> str:
    """Return a path if it exists, else one that differs in the extension alone; else ""."""
    files = stems.get(_split_extension(path), [])
    return path if path in files else next(iter(files), "")
