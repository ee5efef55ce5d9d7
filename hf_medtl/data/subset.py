"""Nested subsets of the training split, for learning curves."""

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.specs import split_labels
from hf_medtl.data.splits import stratification_columns
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)


def subsample_training(loaded: LoadedDataset, fraction: float, seed: int) -> LoadedDataset:
    """Keep a fraction of the training groups, sampled by `nested_subset`; validation and test are unchanged.

    Args:
        loaded: The dataset.
        fraction: Fraction of the training groups, above 0 and at most 1.
        seed: Random seed.

    Raises:
        MedtlError: As for `nested_subset`.
    """
    train = (loaded.table["split"] == "train").to_numpy()
    labels, groups, sources = stratification_columns(loaded.table[train])
    kept = np.ones(len(train), bool)
    kept[train] = nested_subset(labels, groups, fraction, seed, sources)
    if kept.all():
        return loaded
    unused = loaded.table[~kept].reset_index(drop=True)
    used_groups = len(set(loaded.table["group"][train & kept]))
    logger.info("%s: %d of %d training groups are used.", loaded.spec.name, used_groups, len(set(groups)))
    excluded = unused[["path", "label"]].assign(kind="not in the share for training", reason="--train_fraction")
    return loaded.select(kept, excluded=pd.concat([loaded.excluded, excluded], ignore_index=True), unused=unused)


def nested_subset(
    labels: Sequence[str], groups: Sequence[str], fraction: float, seed: int, sources: Sequence[str] | None = None
) -> NDArray[np.bool_]:
    """Select a fraction of the groups, so that a smaller fraction is always part of a larger one.

    Groups are put into one order that depends on `seed`, and a fraction is the beginning of that order. A group of
    each label comes first; the others follow so that each stratum of groups (its labels and sources) is spread evenly
    from a random start, as in systematic sampling.

    Args:
        labels: (n,) label of each image, multiple labels separated by |.
        groups: (n,) group of each image.
        fraction: Fraction of the groups, above 0 and at most 1; at least one group of each label is selected.
        seed: Random seed of the order.
        sources: (n,) source of each image.

    Returns:
        (n,) true for images in the subset.

    Raises:
        MedtlError: The fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise MedtlError(f"The fraction of the training groups must be above 0 and at most 1, found {fraction:g}.")
    group_labels: dict[str, set[str]] = {}
    strata: dict[str, set[str]] = {}
    for cell, group, source in zip(labels, groups, sources or [""] * len(labels), strict=True):
        group_labels.setdefault(group, set()).update(split_labels(cell))
        strata.setdefault(group, set()).update(f"{source}/{label}" for label in split_labels(cell) or ("",))
    rng = np.random.default_rng(seed)
    members: dict[str, list[str]] = {}
    for group in rng.permutation(sorted(strata)).tolist():
        members.setdefault("|".join(sorted(strata[group])), []).append(group)
    position: dict[str, float] = {}
    for stratum in sorted(members):
        start = rng.random()
        position |= {group: (rank + start) / len(members[stratum]) for rank, group in enumerate(members[stratum])}
    order = sorted(position, key=lambda group: (position[group], group))
    number = Counter(chain.from_iterable(group_labels.values()))
    first: list[str] = []
    for label in sorted(number, key=lambda label: (number[label], label)):
        if not any(label in group_labels[group] for group in first):
            first.append(next(group for group in order if label in group_labels[group]))
    order = [*first, *(group for group in order if group not in first)]
    chosen = {*order[: max(len(first), round(fraction * len(order)), 1)]}
    return np.array([group in chosen for group in groups])
