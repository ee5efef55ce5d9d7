"""Who is on which side: groups that belong together, and splits that never part them."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hf_medtl.data.specs import labels_of
from hf_medtl.errors import MedtlError

SPLITS = ("train", "validation", "test")


def join_groups(patients: Sequence[str], duplicates: NDArray[np.int64]) -> list[str]:
    """Groups of pictures that must stay together: same patient or (near-)duplicates, transitively.

    Args:
        patients: (n,) patient of each picture, "" where unknown.
        duplicates: (n,) number of each picture's duplicate group.

    Returns:
        (n,) names `g0001`, `g0002`, ... in order of appearance.
    """
    n = len(patients)
    keys = [f"patient {patient}" if patient else f"picture {index}" for index, patient in enumerate(patients)]
    numbers = {key: n + len(duplicates) + i for i, key in enumerate(dict.fromkeys(keys))}
    pictures = np.arange(n)
    left = np.concatenate([pictures, pictures])
    right = np.concatenate([n + duplicates, [numbers[key] for key in keys]])
    size = n + len(duplicates) + len(numbers)
    links = coo_array((np.ones(2 * n, bool), (left, right)), shape=(size, size))
    component = connected_components(links, directed=False)[1][:n]
    order = {c: i for i, c in enumerate(dict.fromkeys(component.tolist()), start=1)}
    return [f"g{order[c]:04d}" for c in component.tolist()]


def pseudonyms(patients: Sequence[str]) -> list[str]:
    """`p0001`, `p0002`, ... in order of appearance for patients, "" where unknown: what is written down about them."""
    numbers = {patient: i for i, patient in enumerate(dict.fromkeys(filter(None, patients)), start=1)}
    return [f"p{numbers[patient]:04d}" if patient else "" for patient in patients]


def split_groups(
    labels: Sequence[str],
    groups: Sequence[str],
    fractions: dict[str, float],
    seed: int,
    sources: Sequence[str] | None = None,
) -> NDArray[np.str_]:
    """Give each picture a split so that no group is in two and each has about its share of every label and source.

    Greedy, as scikit-learn's StratifiedGroupKFold: the largest groups first, each to the split that lacks most of the
    group's labels; ties in an order drawn from `seed`. A picture of several labels counts for each, rare ones more, as
    in iterative stratification (Sechidis et al. 2011, doi:10.1007/978-3-642-23808-6_10): combinations need no share.

    Args:
        labels, groups: (n,) of each picture, in an order that is the same on every machine; several labels with |
            between them.
        fractions: split -> share of the pictures; the shares sum to 1.
        seed: of the draw.
        sources: (n,) hospital or collection of each picture.

    Returns:
        (n,) names of splits.

    Raises:
        MedtlError: a label has too few groups to be in every split.
    """
    names = list(fractions)
    shares = np.array([fractions[name] for name in names])
    if (shares <= 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise MedtlError(f"Split fractions must be positive and sum to 1, found {fractions}.")
    its = [labels_of(cell) for cell in labels]
    for label in sorted(set(chain.from_iterable(its))):
        number = len({group for group, some in zip(groups, its, strict=True) if label in some})
        if number < len(names):
            raise MedtlError(
                f"Label {str(label)!r} has {number} independent group(s) of pictures, too few for the splits "
                f"{', '.join(names)}. Add pictures of other patients, or leave the label out."
            )
    pictures = [picture for picture, some in enumerate(its) for _ in some or ("",)]
    strata = [f"{source}/{label}" for source, some in zip(sources or [""] * len(its), its, strict=True)
              for label in some or ("",)]  # fmt: skip
    stratum_names, stratum_index = np.unique(np.asarray(strata), return_inverse=True)
    group_names, group_index = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.zeros((len(group_names), len(stratum_names)))
    np.add.at(counts, (group_index[pictures], stratum_index), 1)
    totals = counts.sum(axis=0)
    missing = shares[:, None] * totals  # (splits, strata): how many pictures each split still lacks
    order = np.random.default_rng(seed).permutation(len(group_names))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    assigned = np.empty(len(group_names), dtype=int)
    for group in order:
        # Relative to the split's own share, so that a small split is not starved until the large one is full.
        need = (missing / (shares[:, None] * totals) * (counts[group] / totals)).sum(axis=1)
        assigned[group] = int(np.argmax(need))
        missing[assigned[group]] -= counts[group]
    return np.asarray(names)[assigned[group_index]]


def fold_groups(
    labels: Sequence[str], groups: Sequence[str], folds: int, seed: int, sources: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """(n,) number, from 0, of each picture's fold: as `split_groups` with equal shares."""
    names = split_groups(labels, groups, {str(fold): 1 / folds for fold in range(folds)}, seed, sources)
    return names.astype(np.int64)
