"""Leakage between datasets: external test sets without the images that a model was trained on."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_medtl.common.text import abbreviate
from hf_medtl.data.dataset import COLUMNS, LoadedDataset, Survey
from hf_medtl.data.fingerprints import cached_fingerprints, near_duplicates
from hf_medtl.data.loading import load, survey
from hf_medtl.data.positive_label import is_absence
from hf_medtl.data.specs import DATASETS, DatasetSpec, split_labels
from hf_medtl.data.splits import SPLITS, read_splits_file
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)


def shared_images(seen: Survey, other: Survey) -> pd.DataFrame:
    """Find the images of `other` that are (near) copies of an image in `seen`, or show one of its patients.

    Patients are compared by name only within one collection, since the numbers of two hospitals are unrelated. But if
    one image of a patient in `other` is a copy, all images of that patient count as shared. An image in `seen` without
    a thumbnail (see `training_footprint`) matches identical files only.

    Args:
        seen: Images of the first dataset.
        other: Images to look up in it.

    Returns:
        One row per shared image of `other`: path, copy_of (path in `seen`), reason (same file, near copy or same
        patient).
    """
    n, fingerprints = len(seen.table), [*seen.fingerprints, *other.fingerprints]
    comparable = [i for i, item in enumerate(fingerprints) if item.thumbnail]
    groups = -1 - np.arange(len(fingerprints))
    if min(comparable, default=n) < n:
        groups[comparable] = near_duplicates([fingerprints[i] for i in comparable])
    files = _first_paths(seen.table["sha256"], seen.table["path"])
    copies = _first_paths(groups[:n], seen.table["path"])
    same_collection = seen.spec.id == other.spec.id and (seen.spec.patient or seen.spec.table)
    patients = _first_paths(seen.table["patient"], seen.table["path"]) if same_collection else {}
    patients.pop("", None)
    images = list(zip(other.table["path"], other.table["sha256"], groups[n:], other.table["patient"], strict=True))
    for _, sha256, group, patient in images:
        if patient and (sha256 in files or group in copies):
            patients.setdefault(patient, files.get(sha256) or copies[group])
    rows = []
    for path, sha256, group, patient in images:
        for paths, key, reason in (
            (files, sha256, "same file"), (copies, group, "near copy"), (patients, patient, "same patient")
        ):  # fmt: skip
            if key in paths:
                rows.append({"path": path, "copy_of": paths[key], "reason": reason})
                break
    return pd.DataFrame(rows, columns=["path", "copy_of", "reason"])


def training_footprint(spec: DatasetSpec, splits: Path | None, data_dir: str | Path | None = None) -> LoadedDataset:
    """Return the images that a finished model was trained on, reconstructed from its splits.csv.

    Args:
        spec: Specification of the dataset, with the model's labels.
        splits: The model's splits.csv; None for a model whose training images are unknown.
        data_dir: The images listed in it. Without them, near copies are found only for images whose fingerprints are
            still in this machine's cache; the others have no thumbnail.

    Raises:
        MedtlError: `splits` is not a splits.csv, or `load` fails with it.
    """
    if splits and data_dir:
        footprint = load(spec.name, data_dir, splits=splits, task=spec.task, columns=spec.columns)
        return replace(footprint, spec=spec, labels=spec.labels)
    table = read_splits_file(splits, COLUMNS) if splits else pd.DataFrame(columns=COLUMNS, dtype=str)
    # Patients in splits.csv are pseudonyms, which can't be compared with the names in another table.
    table = table.assign(patient="", source=spec.id, mask="")
    nothing = pd.DataFrame(columns=["path", "label", "kind", "reason"])
    return LoadedDataset(spec, Path(), spec.labels, table, nothing, cached_fingerprints(table["sha256"].tolist()))


def keep_seen(loaded: LoadedDataset) -> LoadedDataset:
    """Return the images of the train and validation splits."""
    return loaded.select((loaded.table["split"] != "test").to_numpy())


def load_external(
    loaded: LoadedDataset,
    dataset: str,
    data_dir: str | Path | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    drop_overlap: bool = False,
    sources: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    split: str = "all",
    option: str = "--external_labels",
) -> LoadedDataset:
    """Load a second dataset as a test split for a model of the first, with the same labels and no training images.

    For segmentation models labels are irrelevant; only what the masks show matters.

    Args:
        loaded: What the model is or was trained on (`training_footprint`); its train and validation splits count as
            seen.
        dataset: As for `load`.
        data_dir: As for `load`.
        labels: Label of the second dataset -> label of the first, if their names differ; "" excludes its images.
        drop_overlap: Exclude images seen in training instead of raising an error.
        sources: As for `load`; a model can be trained on one hospital of a dataset and tested on another.
        columns: As for `load`.
        split: "all", or the official split to test on.
        option: Command-line option that sets `labels`, for error messages.

    Returns:
        The second dataset with all its images in the test split.

    Raises:
        MedtlError: The second dataset contains training images, or is known to contain altered ones that can't be
            recognized; fewer than two labels are shared; the model lacks a label, or (multilabel) the second dataset
            does not annotate one; the masks show another structure; there is no such split; or `load` fails.
    """
    if dataset in loaded.spec.copies_of or (dataset in DATASETS and loaded.spec.name in DATASETS[dataset].copies_of):
        raise MedtlError(
            f"{dataset} is never external to {loaded.spec.name}: one contains images of the other, cropped or "
            "downscaled so that not all can be recognized and dropped. Test on another dataset."
        )
    is_segmentation = loaded.spec.is_segmentation
    surveyed = survey(dataset, data_dir, task=loaded.spec.task, sources=sources, columns=columns)
    external = _select_official_split(surveyed, split)
    spec = external.spec
    table, usable = (_check_masks if is_segmentation else _map_labels)(loaded, external, dict(labels or {}), option)
    kept = usable.copy()
    others = external.table.loc[~usable, ["path", "label"]]
    excluded = [others.assign(kind="of another label", reason="the model does not have the label " + others["label"])]

    shared = shared_images(keep_seen(loaded), replace(external, table=table))
    shared = shared[shared["path"].isin(table.loc[usable, "path"])]
    if len(shared) and not drop_overlap:
        examples = "; ".join(f"{row.path} is {row.copy_of} ({row.reason})" for row in shared.head(5).itertuples())
        raise MedtlError(
            f"{dataset} is not external to {loaded.spec.name}: {len(shared)} of its {usable.sum()} images are among "
            f"those seen in training: {examples}{' ...' * (len(shared) > 5)}. Use --drop_overlap to test on the others."
        )
    if len(shared):
        logger.warning(
            "%s: %d of %d images were seen in training and are excluded.", dataset, len(shared), usable.sum()
        )
        kept &= ~table["path"].isin(shared["path"]).to_numpy()
        reasons = shared.merge(table[["path", "label"]], on="path").assign(kind="seen in training")
        reasons["reason"] += " as " + reasons["copy_of"]
        excluded.append(reasons[["path", "label", "kind", "reason"]])
        if not kept.any() or (table.loc[kept, "label"].nunique() < 2 and not is_segmentation):
            raise MedtlError(f"{dataset}: fewer than two labels remain without the images seen in training.")
    return LoadedDataset(
        replace(
            spec,
            labels=loaded.spec.labels,
            positive=loaded.positive,
            positive_source=loaded.spec.positive_source,
        ),
        external.root,
        loaded.labels,
        table.loc[kept].assign(split="test")[[*COLUMNS, "source", "mask"]].reset_index(drop=True),
        pd.concat([external.excluded, *excluded], ignore_index=True),
        [item for item, keep in zip(external.fingerprints, kept, strict=True) if keep],
    )


def _select_official_split(dataset: Survey, split: str) -> Survey:
    """Return the images of one official split; all of them for "all".

    Raises:
        MedtlError: There is no such split.
    """
    kept = (dataset.table["official"] == split).to_numpy() | (split == "all")
    if not kept.any():
        available = [name for name in SPLITS if name in set(dataset.table["official"])]
        raise MedtlError(
            f"{dataset.spec.name} has no official split {split!r}. Use --split {' or '.join(['all', *available])}."
        )
    return dataset.select(kept)


def _first_paths(keys: "pd.Series | np.ndarray", paths: pd.Series) -> dict[object, str]:
    """Return key -> first path with that key."""
    return dict(reversed(list(zip(keys, paths, strict=True))))


def _map_labels(
    loaded: LoadedDataset, external: Survey, mapping: dict[str, str], option: str
) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """Return the external table with labels of the first dataset, and (n,) true for images that have one.

    Raises:
        MedtlError: As for `load_external`.
    """
    own, other = loaded.spec, external.spec
    own_labels, other_labels = ", ".join(loaded.labels), ", ".join(external.labels)
    unknown = sorted({*mapping} - {*external.labels}) + sorted({*mapping.values()} - {*loaded.labels, ""})
    if unknown:
        raise MedtlError(
            f"{abbreviate(unknown)}: no such label. {other.name} has {other_labels}; the model has {own_labels}."
        )
    mapping = {label: label for label in external.labels if label in loaded.labels} | mapping
    mapped = [{mapping.get(label) for label in split_labels(cell)} for cell in external.table["label"]]
    table = external.table.assign(label=["|".join(label for label in loaded.labels if label in m) for m in mapped])
    usable = (table["label"] != "").to_numpy() | other.multilabel
    if own.multilabel != other.multilabel:
        raise MedtlError(
            f"One of {own.name} and {other.name} is multilabel, the other is not. A | in any cell of a table's column "
            "label marks a dataset as multilabel."
        )
    # Otherwise findings that were never annotated would count as absent.
    unannotated = [label for label in loaded.labels if label not in mapping.values()] if other.multilabel else []
    if unannotated:
        raise MedtlError(
            f"{other.name} does not annotate {', '.join(unannotated)}: it has {other_labels}. State which labels mean "
            f"the same, such as {option} oedema=edema, or test on a dataset with all labels."
        )
    if table.loc[usable, "label"].nunique() < 2:
        raise MedtlError(
            f"{other.name} has the labels {other_labels}, the model {own_labels}: fewer than two in common. State "
            f"which labels mean the same, such as {option} {_suggest_map(loaded, external)}"
        )
    unmapped = [] if other.multilabel else [label for label in external.labels if label not in mapping]
    if unmapped:
        number = external.table["label"].isin(unmapped).sum()
        raise MedtlError(
            f"{number} images of {other.name} are {', '.join(unmapped)}, which the model does not know: it has "
            f"{own_labels}. State which of them is meant, such as {option} "
            f"{_suggest_map(loaded, external, unmapped)}, or "
            f"exclude these images with nothing after the sign: {option} "
            f"{','.join(f'{label}=' for label in unmapped)}"
        )
    return table, usable


def _suggest_map(loaded: LoadedDataset, external: Survey, labels: Sequence[str] = ()) -> str:
    """Return an example of --external_labels, negative labels to negative ones; `labels` are the external ones."""
    labels = labels or [label for label in external.labels if label not in loaded.labels]
    by_name = {name.casefold().replace("_", " "): name for name in loaded.labels}
    negative = next((name for name in loaded.labels if loaded.positive not in (None, name)), loaded.labels[0])
    pairs = {}
    for label in labels:
        usual = negative if is_absence(label) else loaded.positive or loaded.labels[-1]
        pairs[label] = by_name.get(label.casefold().replace("_", " "), usual)
    return ",".join(f"{label}={own}" for label, own in pairs.items())


def _check_masks(
    loaded: LoadedDataset, external: Survey, mapping: dict[str, str], option: str
) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """Return the external table, and (n,) true for all images; reject masks of another structure, and a label map."""
    own, other = loaded.spec.mask_shows, external.spec.mask_shows
    if mapping:
        raise MedtlError(f"{option} is for labels, which a segmentation model ignores. Remove it.")
    if own != other and "mask" not in (own, other):
        raise MedtlError(f"The masks of {external.spec.name} show {other}, those of {loaded.spec.name} {own}.")
    return external.table, np.ones(len(external.table), bool)
