"""Which of a data set's pictures can be learnt from: those of its labels, or those with a mask."""

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pandas as pd

from hf_medtl.common.text import some
from hf_medtl.data.readers import is_picture
from hf_medtl.data.specs import DatasetSpec, labels_of
from hf_medtl.errors import MedtlError

logger = logging.getLogger("hf_medtl.data.loading")


def with_labels(spec: DatasetSpec, root: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The pictures of known labels, and the others as excluded.csv has them.

    Raises:
        MedtlError: fewer than two labels have pictures.
    """
    # Where there are several, those that are not meant have been left out by the reader.
    unknown = ~table["label"].isin(spec.labels) & (not spec.several)
    told = table.loc[unknown, "label"].str.removeprefix("?")
    others = table.loc[unknown, ["path"]].assign(label="", kind="of another label", reason="called " + told)
    if len(others):
        logger.warning("%s: %d pictures have other labels and are left out: %s.", spec.name, len(others),
                       some(sorted(set(told))))  # fmt: skip
    table = table[~unknown].reset_index(drop=True)
    check_counts(spec, root, list(chain.from_iterable(map(labels_of, table["label"]))))
    return table, others


def with_masks(spec: DatasetSpec, root: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The pictures with a mask, whatever their label, and the others as excluded.csv has them.

    Raises:
        MedtlError: there is no mask.
    """
    bare = table["mask"] == ""
    if bare.all():
        rule = spec.masks[0] if spec.masks else "masks/PICTURE beside the folders, or a column mask"
        raise MedtlError(
            f"None of the {len(table)} pictures in {root} has a mask, so there is nothing to learn. {spec.title} has "
            f"masks such as {rule}. Add them, or tell labels apart: --task image-classification."
        )
    if bare.any():
        logger.warning("%s: %d of %d pictures have no mask and are left out.", spec.name, bare.sum(), len(table))
    used = {part for cell in table["mask"] for part in cell.split("|") if part}
    beside = {path.relative_to(root).as_posix() for folder in {(root / part).parent for part in used}
              for path in folder.iterdir()}  # fmt: skip
    lonely = sorted(path for path in beside - used - {*table["path"]} if is_picture(root, path))
    if lonely:
        logger.warning("%s: %d masks belong to none of these pictures: %s. Is a picture missing, or named otherwise?",
                       spec.name, len(lonely), some(lonely, 3))  # fmt: skip
    ours = table["label"].isin(spec.labels) | spec.several
    table = table.assign(label=table["label"].where(ours, ""))
    others = table.loc[bare, ["path", "label"]].assign(kind="without a mask", reason="no mask was found")
    return table[~bare].reset_index(drop=True), others


def of_sources(spec: DatasetSpec, table: pd.DataFrame, sources: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The pictures of some hospitals or collections, and the others as excluded.csv has them.

    Raises:
        MedtlError: a source that no picture has, or one label for all that is left.
    """
    known = sorted(set(table["source"]))
    if wrong := sorted(set(sources) - set(known)):
        raise MedtlError(f"{spec.name} has no source {some(wrong)}. Its sources are {', '.join(known)}.")
    ours = table["source"].isin(sources)
    told = "from " + table.loc[~ours, "source"]
    others = table.loc[~ours, ["path", "label"]].assign(kind="of another source", reason=told)
    table = table[ours].reset_index(drop=True)
    if not (spec.of_masks or spec.several) and table["label"].nunique() < 2:
        raise MedtlError(
            f"All {len(table)} pictures of {some(list(sources))} are {table['label'][0]}: nothing to learn."
        )
    return table, others


def check_counts(spec: DatasetSpec, root: Path, labels: list[str]) -> None:
    """Say what is missing.

    Raises:
        MedtlError: fewer than two labels have pictures.
    """
    missing = [label for label in spec.labels if label not in labels]
    if missing and len(spec.labels) - len(missing) < 2:
        raise MedtlError(
            f"{root} has no pictures of {', '.join(map(repr, missing))}. {spec.title} needs at least two labels, in "
            f"files such as {spec.example}. Download it again."
        )
    if missing:
        logger.warning("%s: no pictures of %s; the model will not know it.", spec.name, ", ".join(missing))
    for label, count in spec.counts.items():
        if label not in missing and labels.count(label) != count:
            logger.warning("%s: %d %s pictures; the complete set has %d.", spec.name, labels.count(label), label, count)
