"""Neutral identifiers of images, which stand for their file names in whatever is published."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from hf_medtl.data.splits import read_splits_file

IDENTIFIERS = "identifiers.csv"  # beside tables with file names; never published
NEUTRAL = re.compile(r"(?:image|external)-\d{6,}")


def number_images(image_ids: Sequence[str], prefix: str = "image") -> dict[str, str]:
    """Return image_id -> identifier: `image-000001`, `image-000002`, ... in order, so that sorting keeps the order.

    Args:
        image_ids: (n,) image_id of each image. Those that are such identifiers already stay.
        prefix: Begin of the identifiers.
    """
    if are_neutral(image_ids):
        return {name: name for name in image_ids}
    width = max(6, len(str(len(image_ids))))
    return {name: f"{prefix}-{i:0{width}d}" for i, name in enumerate(dict.fromkeys(image_ids), start=1)}


def are_neutral(image_ids: Sequence[str]) -> bool:
    """Return True if all of these are results of `number_images`."""
    return bool(image_ids) and all(map(NEUTRAL.fullmatch, image_ids))


def list_identifiers(table: pd.DataFrame, root: Path, names: Mapping[str, str]) -> pd.DataFrame:
    """Return the content of identifiers.csv: identifier, image_id and file.

    Args:
        table: The images, with the columns image_id and path.
        root: Their data folder.
        names: image_id -> identifier.
    """
    files = [str((root / path).absolute()) for path in table["path"]]
    return pd.DataFrame({"identifier": table["image_id"].map(names), "image_id": table["image_id"], "file": files})


def adopt_identifiers(table: pd.DataFrame, splits: Path) -> pd.DataFrame:
    """Return the table of a dataset with the identifiers of a published splits.csv, found by the files' SHA-256.

    Args:
        table: The images, in order of their names, with the columns image_id and sha256.
        splits: The splits.csv of a run. If its images have their names, the table is returned as it is.

    Raises:
        MedtlError: The file can't be read, or lacks a column.
    """
    given = read_splits_file(splits, ("image_id", "sha256"))
    if not are_neutral(given["image_id"].tolist()):
        return table

    def keys(frame: pd.DataFrame) -> list[tuple[str, int]]:  # copies in their order
        return list(zip(frame["sha256"], frame.groupby("sha256").cumcount(), strict=True))

    identifiers = dict(zip(keys(given), given["image_id"], strict=True))
    pairs = zip(keys(table), table["image_id"], strict=True)
    return table.assign(image_id=[identifiers.get(key, name) for key, name in pairs])
