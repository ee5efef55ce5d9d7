"""Dataset filters: which images can be used for training, by label, mask or source."""

import logging
import posixpath
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pandas as pd

from hf_medtl.common.text import abbreviate
from hf_medtl.data.listing import is_image_file, list_paths
from hf_medtl.data.specs import DatasetSpec, split_labels
from hf_medtl.errors import MedtlError

logger = logging.getLogger("hf_medtl.data.loading")


def select_labeled(spec: DatasetSpec, root: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the images with a known label, and the others as rows of excluded.csv.

    Raises:
        MedtlError: Fewer than two labels have images.
    """
    # The reader has already removed unknown labels from multilabel data.
    doubtful = table["label"].str.startswith("?")
    unknown = doubtful | (~table["label"].isin(spec.labels) & (not spec.multilabel))
    original = table.loc[unknown, "label"].str.removeprefix("?")
    others = table.loc[unknown, ["path"]].assign(label="", kind="of another label", reason="called " + original)
    if len(others):
        names = abbreviate(sorted(set(original)))
        logger.warning("%s: %d images have other labels and are excluded: %s.", spec.name, len(others), names)
    table = table[~unknown].reset_index(drop=True)
    _check_counts(spec, root, list(chain.from_iterable(map(split_labels, table["label"]))))
    return table, others


def select_masked(spec: DatasetSpec, root: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the images with a mask, whatever their label, and the others as rows of excluded.csv.

    Raises:
        MedtlError: No image has a mask.
    """
    bare = table["mask"] == ""
    if bare.all():
        rule = spec.masks[0] if spec.masks else "masks/IMAGE, IMAGE_mask.png beside the image, or a column mask"
        raise MedtlError(
            f"None of the {len(table)} images in {root} has a mask, so there is nothing to learn. {spec.title} has "
            f"masks such as {rule}. Add masks, or train a classifier: --task image-classification."
        )
    if bare.any():
        logger.warning("%s: %d of %d images have no mask and are excluded.", spec.name, bare.sum(), len(table))
    used = {part for cell in table["mask"] for part in cell.split("|") if part}
    folders = {posixpath.dirname(part) for part in used}
    siblings = {path for path in list_paths(root) if posixpath.dirname(path) in folders}
    unused = sorted(path for path in siblings - used - {*table["path"]} if is_image_file(root, path))
    if unused:
        logger.warning(
            "%s: %d masks belong to none of these images: %s. Is an image missing, or named differently?",
            *(spec.name, len(unused), abbreviate(unused, 3)),
        )
    usable = (table["label"].isin(spec.labels) | spec.multilabel) & ~table["label"].str.startswith("?")
    table = table.assign(label=table["label"].where(usable, ""))
    others = table.loc[bare, ["path", "label"]].assign(kind="without a mask", reason="no mask was found")
    return table[~bare].reset_index(drop=True), others


def select_sources(spec: DatasetSpec, table: pd.DataFrame, sources: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the images of certain hospitals or collections, and the others as rows of excluded.csv.

    Raises:
        MedtlError: A source that no image has, or all remaining images have the same label.
    """
    available = sorted(set(table["source"]))
    if unknown := sorted(set(sources) - set(available)):
        raise MedtlError(f"{spec.name} has no source {abbreviate(unknown)}. Its sources are {', '.join(available)}.")
    kept = table["source"].isin(sources)
    reason = "from " + table.loc[~kept, "source"]
    others = table.loc[~kept, ["path", "label"]].assign(kind="of another source", reason=reason)
    table = table[kept].reset_index(drop=True)
    if not (spec.is_segmentation or spec.multilabel) and table["label"].nunique() < 2:
        raise MedtlError(
            f"All {len(table)} images of {abbreviate(list(sources))} are {table['label'][0]}: nothing to learn."
        )
    return table, others


def _check_counts(spec: DatasetSpec, root: Path, labels: list[str]) -> None:
    """Warn about missing labels and images; raise MedtlError if fewer than two labels have images."""
    missing = [label for label in spec.labels if label not in labels]
    if missing and len(spec.labels) - len(missing) < 2:
        raise MedtlError(
            f"{root} has no images of {', '.join(map(repr, missing))}. {spec.title} needs at least two labels, in "
            f"files such as {spec.example}. Download it again."
        )
    if missing:
        logger.warning("%s: no images of %s; the model will not know it.", spec.name, ", ".join(missing))
    for label, count in spec.counts.items():
        if label not in missing and labels.count(label) != count:
            logger.warning("%s: %d %s images; the complete set has %d.", spec.name, labels.count(label), label, count)
