"""Testing on a second data set: only on pictures that the model has not seen in the first."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_medtl.common.text import some
from hf_medtl.data.fingerprints import near_duplicates, remembered
from hf_medtl.data.loading import COLUMNS, Loaded, Survey, load, survey
from hf_medtl.data.specs import DatasetSpec, labels_of
from hf_medtl.data.splits import SPLITS
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)


def shared_pictures(seen: Survey, other: Survey) -> pd.DataFrame:
    """The pictures of `other` that are copies, or near copies, of one in `seen`, or show one of its patients.

    Patients' names are compared only where both sets are the same collection, since the numbers of two hospitals mean
    nothing to each other; but of a patient of `other` with a copy in `seen` all pictures count. Of a picture in `seen`
    without a thumbnail (see `learnt`) only the same file is found.

    Returns:
        One row a picture of `other`: path, copy_of (path in `seen`), reason (same file, near copy, or same patient).
    """
    n, prints = len(seen.table), [*seen.prints, *other.prints]
    shown = [i for i, item in enumerate(prints) if item.thumbnail]
    groups = -1 - np.arange(len(prints))
    if min(shown, default=n) < n:
        groups[shown] = near_duplicates([prints[i] for i in shown])
    files = first_of(seen.table["sha256"], seen.table["path"])
    copies = first_of(groups[:n], seen.table["path"])
    same = seen.spec.id == other.spec.id and (seen.spec.patient or seen.spec.columns)
    patients = first_of(seen.table["patient"], seen.table["path"]) if same else {}
    patients.pop("", None)
    pictures = list(zip(other.table["path"], other.table["sha256"], groups[n:], other.table["patient"], strict=True))
    for _, sha256, group, patient in pictures:
        if patient and (sha256 in files or group in copies):
            patients.setdefault(patient, files.get(sha256) or copies[group])
    rows = []
    for path, sha256, group, patient in pictures:
        for known, key, reason in (
            (files, sha256, "same file"), (copies, group, "near copy"), (patients, patient, "same patient")
        ):  # fmt: skip
            if key in known:
                rows.append({"path": path, "copy_of": known[key], "reason": reason})
                break
    return pd.DataFrame(rows, columns=["path", "copy_of", "reason"])


def learnt(spec: DatasetSpec, splits: Path | None, data_dir: str | Path | None = None) -> Loaded:
    """What a finished model has learnt from, for `external`, as far as its splits.csv and the pictures tell.

    Args:
        spec: with the model's labels.
        splits: its splits.csv; None where there is none, and then nothing is known to be seen.
        data_dir: the pictures that it names. Without them near copies are known only of those whose fingerprints are
            in the cache, since they have been read on this machine before; the others have no thumbnail.

    Raises:
        MedtlError: what is given is no splits.csv, or an error of `load` with it.
    """
    if splits and data_dir:
        found = load(spec.name, data_dir, splits=splits, task=spec.task)
        return replace(found, spec=spec, labels=spec.labels)
    table = pd.DataFrame(columns=COLUMNS, dtype=str)
    if splits:
        try:
            table = pd.read_csv(splits, dtype=str, keep_default_na=False)[COLUMNS]
        except (OSError, ValueError, KeyError) as error:
            raise MedtlError(
                f"{splits} is not the splits.csv of a run: expected columns {', '.join(COLUMNS)}."
            ) from error
    # Patients are pseudonyms there, which mean nothing beside the names of another table.
    table = table.assign(patient="", source=spec.id, mask="")
    nothing = pd.DataFrame(columns=["path", "label", "kind", "reason"])
    return Loaded(spec, Path(), spec.labels, table, nothing, remembered(table["sha256"].tolist()))


def seen_in_training(loaded: Loaded) -> Loaded:
    """The pictures of the train and validation splits."""
    seen = (loaded.table["split"] != "test").to_numpy()
    return replace(loaded, table=loaded.table[seen], prints=[p for p, s in zip(loaded.prints, seen, strict=True) if s])


def of_split(found: Survey, split: str) -> Survey:
    """The pictures that the archive itself puts in a split; all of them for "all".

    Raises:
        MedtlError: there is no such split.
    """
    kept = (found.table["official"] == split).to_numpy() | (split == "all")
    if not kept.any():
        own = [name for name in SPLITS if name in set(found.table["official"])]
        raise MedtlError(
            f"{found.spec.name} has no split {split!r} of its own. Give --split {' or '.join(['all', *own])}."
        )
    prints = [item for item, keep in zip(found.prints, kept, strict=True) if keep]
    return replace(found, table=found.table[kept].reset_index(drop=True), prints=prints)


def first_of(keys: "pd.Series | np.ndarray", paths: pd.Series) -> dict[object, str]:
    """Key -> the first path that has it."""
    return dict(reversed(list(zip(keys, paths, strict=True))))


def map_labels(
    loaded: Loaded, found: Survey, mapping: dict[str, str], option: str
) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """The second set's table with labels of the first, and (n,) which pictures have one; errors of `external`."""
    wrong = sorted({*mapping} - {*found.labels}) + sorted({*mapping.values()} - {*loaded.labels, ""})
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
            f"mean the same, such as {option} oedema=edema, or test on a data set with all labels."
        )
    if table.loc[known, "label"].nunique() < 2:
        raise MedtlError(
            f"{found.spec.name} has the labels {', '.join(found.labels)}, the model {', '.join(loaded.labels)}: fewer "
            f"than two in common. Say which mean the same, such as {option} viral_pneumonia=pneumonia."
        )
    unknown = [] if found.spec.several else [label for label in found.labels if label not in mapping]
    if unknown:
        number = found.table["label"].isin(unknown).sum()
        raise MedtlError(
            f"{number} pictures of {found.spec.name} are {', '.join(unknown)}, which the model does not have: it has "
            f"{', '.join(loaded.labels)}. Say which of them is meant, such as {option} "
            f"{unknown[0]}={loaded.labels[-1]}, or leave these pictures out, with nothing after the sign: {option} "
            f"{','.join(f'{label}=' for label in unknown)}"
        )
    return table, known


def same_masks(
    loaded: Loaded, found: Survey, mapping: dict[str, str], option: str
) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """The second set's table, of which all pictures count; refuses masks that show something else, and a mapping."""
    shown, theirs = loaded.spec.mask_shows, found.spec.mask_shows
    if mapping:
        raise MedtlError(f"{option} are for labels; a model of masks does not look at them. Leave them out.")
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
    split: str = "all",
    option: str = "--external_labels",
) -> Loaded:
    """A second data set as a test split for a model of the first: the same labels, and nothing that training sees.

    For a model of masks labels do not matter, only what the masks show.

    Args:
        loaded: what the model learns from, or has learnt from (`learnt`); its train and validation count as seen.
        dataset, data_dir: as for `load`.
        labels: label of the second set -> label of the first, where their names differ; "" to leave its pictures out.
        drop_overlap: leave out pictures that training sees, instead of refusing.
        sources: as for `load`, so that a set of two hospitals can be learnt from one and tested on the other.
        split: all its pictures are for testing, or only those of one of the archive's own splits.
        option: by which a user gives `labels`, for messages.

    Raises:
        MedtlError: pictures of the second set are in the first, or known to be there beyond recognition; fewer than two
            labels in common, one that the model does not have, or with several a picture one that the second set says
            nothing about; masks of something else; no such split; or an error of `load`.
    """
    of_masks = loaded.spec.of_masks
    found = of_split(survey(dataset, data_dir, task=loaded.spec.task, sources=sources), split)
    if loaded.spec.name in found.spec.copies_of or found.spec.name in loaded.spec.copies_of:
        raise MedtlError(
            f"{found.spec.name} is never external to {loaded.spec.name}: one holds pictures of the other, cropped or "
            "shrunk so that not all can be recognised and dropped. Test on another data set."
        )
    table, known = (same_masks if of_masks else map_labels)(loaded, found, dict(labels or {}), option)
    kept = known.copy()
    others = found.table.loc[~known, ["path", "label"]]
    excluded = [others.assign(kind="of another label", reason="the model does not have the label " + others["label"])]

    both = shared_pictures(seen_in_training(loaded), replace(found, table=table))
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
