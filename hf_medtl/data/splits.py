"""Group-aware train/validation/test splits: images of a patient and near-duplicates always stay in one split."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hf_medtl.common.text import abbreviate
from hf_medtl.data.specs import split_labels
from hf_medtl.data.split_names import parse_split
from hf_medtl.data.table_files import read_table_file
from hf_medtl.errors import MedtlError

SPLITS = ("train", "validation", "test")


def join_groups(patients: Sequence[str], duplicates: NDArray[np.int64]) -> list[str]:
    """Group images that must stay together: same patient or (near-)duplicates, transitively.

    Args:
        patients: (n,) patient of each image, "" if unknown.
        duplicates: (n,) number of each image's duplicate group.

    Returns:
        (n,) group names `g0001`, `g0002`, ... in order of appearance.
    """
    n = len(patients)
    keys = [f"patient {patient}" if patient else f"image {index}" for index, patient in enumerate(patients)]
    nodes = {key: n + len(duplicates) + i for i, key in enumerate(dict.fromkeys(keys))}
    images = np.arange(n)
    left = np.concatenate([images, images])
    right = np.concatenate([n + duplicates, [nodes[key] for key in keys]])
    size = n + len(duplicates) + len(nodes)
    links = coo_array((np.ones(2 * n, bool), (left, right)), shape=(size, size))
    component = connected_components(links, directed=False)[1][:n]
    order = {c: i for i, c in enumerate(dict.fromkeys(component.tolist()), start=1)}
    return [f"g{order[c]:04d}" for c in component.tolist()]


def pseudonymize_patients(patients: Sequence[str]) -> list[str]:
    """Replace patient identifiers by `p0001`, `p0002`, ... in order of appearance; "" (unknown) stays."""
    numbers = {patient: i for i, patient in enumerate(dict.fromkeys(filter(None, patients)), start=1)}
    return [f"p{numbers[patient]:04d}" if patient else "" for patient in patients]


def split_groups(
    labels: Sequence[str],
    groups: Sequence[str],
    fractions: dict[str, float],
    seed: int,
    sources: Sequence[str] | None = None,
) -> NDArray[np.str_]:
    """Assign each image to a split, never dividing a group and stratifying by label and source.

    Greedy, as scikit-learn's `StratifiedGroupKFold`: the largest groups first, each to the split that lacks most of
    the group's labels, ties in an order sampled from `seed`. A multilabel image counts for each of its labels, with
    rare labels weighted more, as in iterative stratification (Sechidis et al. 2011, doi:10.1007/978-3-642-23808-6_10):
    label combinations need not be balanced.

    Args:
        labels: (n,) label of each image, multiple labels separated by |, in an order that is the same everywhere.
        groups: (n,) group of each image.
        fractions: Split -> fraction of the images; they must sum to 1.
        seed: Random seed.
        sources: (n,) hospital or collection of each image.

    Returns:
        (n,) split names.

    Raises:
        MedtlError: The fractions are invalid, or a label has too few groups to be in every split.
    """
    names = list(fractions)
    target = np.array([fractions[name] for name in names])
    if (target <= 0).any() or abs(target.sum() - 1) > 1e-6:
        given = ", ".join(f"{name} {fraction:g}" for name, fraction in fractions.items())
        raise MedtlError(
            f"The fractions of the splits must be above 0 and sum to 1, found {given}. Set --validation_fraction and "
            "--test_fraction, which leave the rest for training."
        )
    image_labels = [split_labels(cell) for cell in labels]
    for label in sorted(set(chain.from_iterable(image_labels))):
        number = len({group for group, own in zip(groups, image_labels, strict=True) if label in own})
        if number < len(names):
            parts = f"{len(names)} folds" if names[0].isdecimal() else f"splits {', '.join(names)}"
            raise MedtlError(
                f"Label {str(label)!r} has {number} independent group(s) of images (of one patient, or copies of one "
                f"another), too few for the {parts}. Add images of other patients, or remove the label."
            )
    images = [image for image, own in enumerate(image_labels) for _ in own or ("",)]
    strata = [
        f"{source}/{label}"
        for source, own in zip(sources or [""] * len(image_labels), image_labels, strict=True)
        for label in own or ("",)
    ]
    stratum_names, stratum_index = np.unique(np.asarray(strata), return_inverse=True)
    group_names, group_index = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.zeros((len(group_names), len(stratum_names)))
    np.add.at(counts, (group_index[images], stratum_index), 1)
    totals = counts.sum(axis=0)
    missing = target[:, None] * totals  # (splits, strata): number of images each split still lacks
    order = np.random.default_rng(seed).permutation(len(group_names))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    assigned = np.empty(len(group_names), dtype=int)
    for group in order:
        # Relative to the split's own target, so that a small split is not starved until the large one is full.
        need = (missing / (target[:, None] * totals) * (counts[group] / totals)).sum(axis=1)
        assigned[group] = int(np.argmax(need))
        missing[assigned[group]] -= counts[group]
    return np.asarray(names)[assigned[group_index]]


def stratification_columns(table: pd.DataFrame) -> tuple[list[str], list[str], list[str]]:
    """Return the labels, groups and sources of a dataset's table."""
    labels, groups, sources = (table[column].tolist() for column in ("label", "group", "source"))
    return labels, groups, sources


def random_splits(table: pd.DataFrame, fractions: dict[str, float], seed: int) -> NDArray[np.str_]:
    """Return the (n,) split of each row: `split_groups` by group, stratified by label and source."""
    labels, groups, sources = stratification_columns(table)
    return split_groups(labels, groups, fractions, seed, sources)


def fold_splits(table: pd.DataFrame, folds: int, fold: int, validation: float, seed: int) -> NDArray[np.str_]:
    """Return the (n,) split of each row with fold number `fold` as the test split.

    Args:
        table: Rows with the columns label, group and source.
        folds: Number of folds, at least 2.
        fold: Number of the test fold, from 0.
        validation: Fraction of all images in the validation split.
        seed: Random seed.

    Raises:
        MedtlError: Invalid numbers, or a label with too few groups.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise MedtlError(f"Expected at least 2 folds and a fold from 0 to folds - 1, found fold {fold} of {folds}.")
    test = random_splits(table, {str(i): 1 / folds for i in range(folds)}, seed) == str(fold)
    fraction = validation / (1 - 1 / folds)
    split = np.full(len(table), "test", dtype="<U10")
    split[~test] = random_splits(table[~test], {"train": 1 - fraction, "validation": fraction}, seed)
    return split


def official_splits(table: pd.DataFrame, fractions: dict[str, float], seed: int) -> NDArray[np.str_]:
    """Return the (n,) official split of each row; "" for images that share a group with test (or validation).

    Validation is sampled from the rest, in the ratio of `fractions`, if the archive has no validation split or one
    that lacks a label.
    """
    official, group = table["official"].to_numpy(), table["group"]
    test = official == "test"
    leaks = ~test & group.isin(group[test]).to_numpy()
    validation = (official == "validation") & ~leaks
    split = np.where(test, "test", "train").astype("<U10")
    if labels_present(table[validation]) == labels_present(table):
        split[validation] = "validation"
        leaks |= ~test & ~validation & group.isin(group[validation]).to_numpy()
    else:
        rest = ~test & ~leaks
        fraction = fractions["validation"] / sum(fractions.values())
        split[rest] = random_splits(table[rest], {"train": 1 - fraction, "validation": fraction}, seed)
    split[leaks] = ""
    return split


def read_splits(table: pd.DataFrame, path: Path) -> NDArray[np.str_]:
    """Return the (n,) split of each row according to the splits.csv of another run; "" for images not listed.

    Raises:
        MedtlError: The file can't be read, lists images that are missing or have changed, or divides a group.
    """
    given = read_splits_file(path, ("image_id", "split", "sha256")).set_index("image_id")
    names = {name: parse_split(name) for name in sorted(set(given["split"]))}
    if unknown := [name for name, split in names.items() if split is None]:
        raise MedtlError(f"{path}: expected the splits {', '.join(SPLITS)}, found {', '.join(map(repr, unknown))}.")
    given["split"] = given["split"].map(names)
    if not given.index.is_unique:
        twice = sorted(set(given.index[given.index.duplicated()]))
        raise MedtlError(f"{path} has more than one row for {abbreviate(twice, 3)}. Keep one row for each image.")
    hashes = table.set_index("image_id")["sha256"]
    absent = sorted(set(given.index) - set(hashes.index))
    changed = [name for name in given.index if name in hashes.index and hashes[name] != given.at[name, "sha256"]]
    if absent or changed:
        raise MedtlError(
            f"{path} does not fit these images: {len(absent)} are missing ({abbreviate(absent, 3)}), {len(changed)} "
            f"have different contents ({abbreviate(changed, 3)}). Use the dataset that the file was made with."
        )
    split = table["image_id"].map(given["split"]).fillna("").to_numpy()
    listed = table.assign(split=split)[split != ""]
    divided = listed[listed.groupby("group")["split"].transform("nunique") > 1]
    if len(divided):
        raise MedtlError(
            f"{path} puts images of the same patient (or copies) into different splits: {divided['group'].nunique()} "
            f"groups, such as {abbreviate(divided['image_id'].tolist(), 4)}. Results would be too optimistic. Create a "
            "new split."
        )
    return split


def read_splits_file(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Return columns of a splits.csv as text.

    Raises:
        MedtlError: The file can't be read, or lacks one of the columns.
    """
    table = read_table_file(path)
    if not set(columns) <= set(table):
        raise MedtlError(
            f"{path} is not the splits.csv of a run: expected the columns {', '.join(columns)}, found "
            f"{abbreviate(list(map(str, table.columns)))}."
        )
    return table[list(columns)]


def labels_present(table: pd.DataFrame) -> set[str]:
    """Return the labels that a table's images have."""
    return set(chain.from_iterable(map(split_labels, table["label"])))
