"""A part of the training split, to see what more pictures would bring: smaller parts are in larger ones."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_medtl.data.loading import Loaded, strata
from hf_medtl.data.specs import labels_of
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)


def subsample_training(loaded: Loaded, share: float, seed: int) -> Loaded:
    """The same with a share of the training groups only, drawn by `part_of`; validation and test stay as they are.

    Raises:
        MedtlError: as `part_of`.
    """
    train = (loaded.table["split"] == "train").to_numpy()
    labels, groups, sources = strata(loaded.table[train])
    kept = np.ones(len(train), bool)
    kept[train] = part_of(labels, groups, share, seed, sources)
    if kept.all():
        return loaded
    unused, table = loaded.table[~kept].reset_index(drop=True), loaded.table[kept].reset_index(drop=True)
    logger.info(
        "%s: %d of %d training groups are used.",
        loaded.spec.name,
        len(set(table["group"][table["split"] == "train"])),
        len(set(groups)),
    )
    left_out = unused[["path", "label"]].assign(kind="not in the share for training", reason="--train_fraction")
    prints = [item for item, keep in zip(loaded.prints, kept, strict=True) if keep]
    return replace(
        loaded,
        table=table,
        excluded=pd.concat([loaded.excluded, left_out], ignore_index=True),
        prints=prints,
        unused=unused,
    )


def part_of(
    labels: Sequence[str], groups: Sequence[str], share: float, seed: int, sources: Sequence[str] | None = None
) -> NDArray[np.bool_]:
    """(n,) which pictures are in a share of the groups; those of a smaller share are all in a larger one.

    The groups stand in one order, drawn from `seed`, of which a share is the beginning. First comes a group of each
    label; the others follow so that each kind of group (its labels and sources) is spread evenly, from a random start,
    as in systematic sampling.

    Args:
        labels, groups, sources: (n,) as in `split_groups`.
        share: of the groups, above 0 and at most 1; there is at least one group of each label.
        seed: of the order.

    Raises:
        MedtlError: another share.
    """
    if not 0 < share <= 1:
        raise MedtlError(f"A share of the training groups is above 0 and at most 1, found {share:g}.")
    has: dict[str, set[str]] = {}
    kinds: dict[str, set[str]] = {}
    for cell, group, source in zip(labels, groups, sources or [""] * len(labels), strict=True):
        has.setdefault(group, set()).update(labels_of(cell))
        kinds.setdefault(group, set()).update(f"{source}/{label}" for label in labels_of(cell) or ("",))
    rng = np.random.default_rng(seed)
    members: dict[str, list[str]] = {}
    for group in rng.permutation(sorted(kinds)).tolist():
        members.setdefault("|".join(sorted(kinds[group])), []).append(group)
    place: dict[str, float] = {}
    for kind in sorted(members):
        start = rng.random()
        place |= {group: (rank + start) / len(members[kind]) for rank, group in enumerate(members[kind])}
    order = sorted(place, key=lambda group: (place[group], group))
    number = Counter(chain.from_iterable(has.values()))
    first: list[str] = []
    for label in sorted(number, key=lambda label: (number[label], label)):
        if not any(label in has[group] for group in first):
            first.append(next(group for group in order if label in has[group]))
    order = [*first, *(group for group in order if group not in first)]
    chosen = {*order[: max(len(first), round(share * len(order)), 1)]}
    return np.array([group in chosen for group in groups])
