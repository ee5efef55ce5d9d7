"""Testing on a second data set: only on pictures that the model has not seen in the first."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_medtl.data.fingerprints import near_duplicates
from hf_medtl.data.load import COLUMNS, Loaded, Survey, survey
from hf_medtl.data.readers import some
from hf_medtl.data.specs import labels_of
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)


def shared_pictures(seen: Survey, other: Survey) -> pd.DataFrame:
    """The pictures of `other` that are copies, or near copies, of one in `seen`, or show one of its patients.

    Patients are compared only where both sets are the same collection, since the numbers of two hospitals mean nothing
    to each other.

    Returns:
        One row a picture of `other`: path, copy_of (path in `seen`), reason (same file, near copy, or same patient).
    """
    n = len(seen.table)
    groups = near_duplicates([*seen.prints, *other.prints])
    files = first_of(seen.table["sha256"], seen.table["path"])
    copies = first_of(groups[:n], seen.table["path"])
    same = seen.spec.id == other.spec.id and (seen.spec.patient or seen.spec.columns)
    patients = first_of(seen.table["patient"], seen.table["path"]) if same else {}
    patients.pop("", None)
    rows = []
    for path, sha256, group, patient in zip(
        other.table["path"], other.table["sha256"], groups[n:], other.table["patient"], strict=True
    ):
        for known, key, reason in (
            (files, sha256, "same file"), (copies, group, "near copy"), (patients, patient, "same patient")
        ):  # fmt: skip
            if key in known:
                rows.append({"path": path, "copy_of": known[key], "reason": reason})
                break
    return pd.DataFrame(rows, columns=["path", "copy_of", "reason"])


def first_of(keys: "pd.Series | np.ndarray", paths: pd.Series) -> dict[object, str]:
    """Key -> the first path that has it."""
    return dict(reversed(list(zip(keys, paths, strict=True))))


def map_labels(loaded: Loaded, found: Survey, mapping: dict[str, str]) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """The second set's table with labels of the first, and (n,) which pictures have one; errors of `external`."""
    wrong = sorted({*mapping} - {*found.labels}) + sorted({*mapping.values()} - {*loaded.labels})
    if wrong:
        raise MedtlError(
            f"{some(wrong)}: no such label. {found.spec.name} has {', '.join(found.labels)}; the model has "
            f"{', '.join(loaded.labels)}."
        )
    mapping = {label: label for label in found.labels if label in loaded.labels} | mapping
    told = [{mapping.get(label) for label in labels_of(cell)} for cell in found.table["label"]]
    table = found.table.assign(label=["|".join(label for label in loaded.labels if label in its) for its in told])
    known = (table["label"] != "").to_numpy() | found.spec.several
    if loaded.spec.several != found.spec.several:
        raise MedtlError(
            f"Of {loaded.spec.name} and {found.spec.name} one has several labels a picture, the other does not. A | "
            "in any cell of a table's column label says that there can be several."
        )
    # Else what nobody looked for would count as absent.
    unasked = [label for label in loaded.labels if label not in mapping.values()] if found.spec.several else []
    if unasked:
        raise MedtlError(
            f"{found.spec.name} says nothing about {', '.join(unasked)}: it has {', '.join(found.labels)}. Say which "
            "mean the same, such as --external_labels oedema=edema, or test on a data set with all labels."
        )
    if table.loc[known, "label"].nunique() < 2:
        raise MedtlError(
            f"{found.spec.name} has the labels {', '.join(found.labels)}, the model {', '.join(loaded.labels)}: fewer "
            "than two in common. Say which mean the same, such as --external_labels viral_pneumonia=pneumonia."
        )
    return table, known


def same_masks(loaded: Loaded, found: Survey, mapping: dict[str, str]) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """The second set's table, of which all pictures count; refuses masks that show something else, and a mapping."""
    shown, theirs = loaded.spec.mask_shows, found.spec.mask_shows
    if mapping:
        raise MedtlError("--external_labels are for labels; a model of masks does not look at them. Leave them out.")
    if shown != theirs and "mask" not in (shown, theirs):
        raise MedtlError(f"The masks of {found.spec.name} show {theirs}, those of {loaded.spec.name} {shown}.")
    return found.table, np.ones(len(found.table), bool)


def external(
    loaded: Loaded,
    dataset: str,
    data_dir: str | Path | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    drop_overlap: bool = False,
    sources: Sequence[str] = (),
) -> Loaded:
    """A second data set as a test split for a model of the first: the same labels, and nothing that training sees.

    For a model of masks labels do not matter, only what the masks show.

    Args:
        loaded: what the model learns from; its train and validation splits count as seen.
        dataset, data_dir: as for `load`; all its pictures are for testing, whatever its own splits are.
        labels: label of the second set -> label of the first, where their names differ; others are left out.
        drop_overlap: leave out pictures that training sees, instead of refusing.
        sources: as for `load`, so that a set of two hospitals can be learnt from one and tested on the other.

    Raises:
        MedtlError: pictures of the second set are in the first, or known to be there beyond recognition; no label in
            common, or with several a picture one that the second set says nothing about; masks of something else; or
            an error of `load`.
    """
    of_masks = loaded.spec.of_masks
    found = survey(dataset, data_dir, task=loaded.spec.task, sources=sources)
    if loaded.spec.name in found.spec.copies_of or found.spec.name in loaded.spec.copies_of:
        raise MedtlError(
            f"{found.spec.name} is never external to {loaded.spec.name}: one holds pictures of the other, cropped or "
            "shrunk so that not all can be recognised and dropped. Test on another data set."
        )
    table, known = (same_masks if of_masks else map_labels)(loaded, found, dict(labels or {}))
    kept = known.copy()
    others = found.table.loc[~known, ["path", "label"]]
    excluded = [others.assign(kind="of another label", reason="the model does not have the label " + others["label"])]

    seen = (loaded.table["split"] != "test").to_numpy()
    training = replace(
        loaded, table=loaded.table[seen], prints=[p for p, s in zip(loaded.prints, seen, strict=True) if s]
    )
    both = shared_pictures(training, replace(found, table=table))
    both = both[both["path"].isin(table.loc[known, "path"])]
    if len(both) and not drop_overlap:
        named = "; ".join(f"{row.path} is {row.copy_of} ({row.reason})" for row in both.head(5).itertuples())
        raise MedtlError(
            f"{dataset} is not external to {loaded.spec.name}: {len(both)} of its {known.sum()} pictures are among "
            f"those that training sees: {named}{' ...' * (len(both) > 5)}. Give --drop_overlap to test on the others."
        )
    if len(both):
        logger.warning("%s: %d of %d pictures are seen in training and left out.", dataset, len(both), known.sum())
        kept &= ~table["path"].isin(both["path"]).to_numpy()
        reasons = both.merge(table[["path", "label"]], on="path").assign(kind="seen in training")
        reasons["reason"] += " as " + reasons["copy_of"]
        excluded.append(reasons[["path", "label", "kind", "reason"]])
        if not kept.any() or (table.loc[kept, "label"].nunique() < 2 and not of_masks):
            raise MedtlError(f"{dataset}: without the pictures that training sees, fewer than two labels are left.")
    return Loaded(
        replace(found.spec, labels=loaded.spec.labels, positive=loaded.positive),
        found.root,
        loaded.labels,
        table.loc[kept].assign(split="test")[[*COLUMNS, "source", "mask"]].reset_index(drop=True),
        pd.concat([found.excluded, *excluded], ignore_index=True),
        [item for item, keep in zip(found.prints, kept, strict=True) if keep],
    )
