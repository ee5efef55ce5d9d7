"""A row of DATASETS -> a DatasetDict with canonical columns, split without leaks."""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_medtl.common.system import cache_dir
from hf_medtl.common.text import some
from hf_medtl.data import download as unpack
from hf_medtl.data import fingerprints, phantoms
from hf_medtl.data.filters import of_sources, with_labels, with_masks
from hf_medtl.data.fingerprints import Fingerprint
from hf_medtl.data.images import read_mask
from hf_medtl.data.readers import READERS
from hf_medtl.data.specs import DATASETS, DatasetSpec, labels_of
from hf_medtl.data.splits import SPLITS, fold_groups, join_groups, split_groups
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)

MAX_UNREADABLE = 0.05
UNKNOWN_PATIENTS = "No patient identifiers: pictures of one patient can be on both sides of the split."
DRAWN = "drawn by group, with like shares of each label and source"
COLUMNS = ["image_id", "path", "label", "patient", "group", "split", "sha256"]


@dataclass(frozen=True)
class Survey:
    """Every picture of a data set, before any is left out for a split.

    Attributes:
        spec: the row of DATASETS; for a data set of your own with the labels that were found.
        root: the data folder.
        labels: those of the spec that have pictures here, in its order.
        table: one row a readable picture, in the order of `image_id`: image_id, path (relative to `root`), label (with
            | between several, "" where there is none), patient, source, mask (relative to `root`, with | between the
            parts, "" where there is none), official (split that the archive puts it in: train, validation, test or
            ""), sha256, duplicate (number, equal for copies and near copies), group (name, equal for copies and for
            pictures of one patient, transitively).
        excluded: one row a file that is left out: path, label, kind (a few words), reason.
        prints: fingerprint of each row of `table`.
    """

    spec: DatasetSpec
    root: Path
    labels: tuple[str, ...]
    table: pd.DataFrame
    excluded: pd.DataFrame
    prints: list[Fingerprint]


@dataclass(frozen=True)
class Loaded(Survey):
    """Pictures of a data set, ready to be learnt from: `table` has the column split, too, and only what is in one.

    Attributes:
        unused: rows as in `table` that `part.part_of_training` took from the training split.
        rule: how the pictures were split, in words.
    """

    unused: pd.DataFrame | None = None
    rule: str = ""

    def every(self) -> "Loaded":
        """The same with what is not used: what all parts of a split have in common."""
        if self.unused is None:
            return self
        return replace(self, table=pd.concat([self.table, self.unused]).sort_values("image_id", ignore_index=True))

    @property
    def positive(self) -> str | None:
        """The label whose probability the threshold is put on, with two labels."""
        return self.spec.positive if len(self.labels) == 2 else None

    @property
    def positive_index(self) -> int | None:
        """Output of the positive label."""
        return None if self.positive is None else self.labels.index(self.positive)

    def has(self) -> NDArray[np.bool_]:
        """(n, K) which picture has which label."""
        cells = [labels_of(cell) for cell in self.table["label"]]
        return np.array([[label in cell for label in self.labels] for cell in cells]).reshape(len(cells), -1)

    def counts(self) -> dict[str, dict[str, int]]:
        """Split -> label -> number of pictures; of several those with (none), and (all), too."""
        has, found = self.has(), {}
        for split in SPLITS:
            here = has[self.table["split"] == split]
            found[split] = dict(zip(self.labels, here.sum(axis=0).tolist(), strict=True))
            if self.spec.several:
                found[split]["(none)"] = int((~here.any(axis=1)).sum())
            if self.spec.several or self.spec.of_masks:
                found[split]["(all)"] = len(here)
        return found

    def splits(self) -> datasets.DatasetDict:
        """DatasetDict of train, validation and test with the columns image, mask, label, patient, source, image_id.

        With several labels a picture `label` is a list.
        """
        label = datasets.ClassLabel(names=list(self.labels))
        features = datasets.Features(
            image=datasets.Image(decode=False),  # decoded by `read_image`, which knows 16-bit pictures
            mask=datasets.Image(decode=False),
            label=datasets.List(label) if self.spec.several else label,
            patient=datasets.Value("string"),
            source=datasets.Value("string"),
            image_id=datasets.Value("string"),
        )
        return datasets.DatasetDict(
            {
                name: datasets.Dataset.from_dict(
                    {
                        "image": [str(self.root / path) for path in rows["path"]],
                        "mask": [self._mask(cell) for cell in rows["mask"]],
                        "label": [list(labels_of(cell)) if self.spec.several else cell for cell in rows["label"]],
                        **{column: list(rows[column]) for column in ("patient", "source", "image_id")},
                    },
                    features=features,
                )
                for name in SPLITS
                for rows in [self.table[self.table["split"] == name]]
            }
        )

    def _mask(self, cell: str) -> str | dict[str, Any] | None:
        """A mask's file; one of several parts as the bytes of a PNG that unites them."""
        parts = [self.root / part for part in cell.split("|")]
        if not cell or len(parts) == 1:
            return str(parts[0]) if cell else None
        content = io.BytesIO()
        read_mask(parts).save(content, "PNG")
        return {"bytes": content.getvalue(), "path": None}


def load(
    dataset: str,
    data_dir: str | Path | None = None,
    *,
    official_split: bool = True,
    validation_fraction: float = 0.15,
    test_fraction: float = 0.2,
    seed: int = 42,
    folds: int = 0,
    fold: int = 0,
    splits: str | Path | None = None,
    positive: str | None = None,
    task: str | None = None,
    sources: Sequence[str] = (),
) -> Loaded:
    """Find, check and split a data set. No patient and no (near-)duplicate picture is in two splits.

    Args:
        dataset: key of DATASETS, or id of a data set on the Hub (`owner/name`).
        data_dir: folder or file with the data; by default it is downloaded (public Kaggle sets need no login) or, for
            phantoms, generated, and kept in the cache.
        official_split: keep the set's own test split where it has one, and its validation split where that is worth
            keeping; pictures that share a patient or a copy with test are left out of train and validation, those that
            share one with validation out of train. Otherwise all is split anew.
        validation_fraction, test_fraction: shares of the pictures; the rest is for training.
        seed: of the split.
        folds, fold: cut all pictures into so many folds, of which number `fold`, from 0, is the test split; instead of
            an official split and of `test_fraction`.
        splits: the splits.csv of another run, to repeat its split exactly; the above are not used then.
        positive: the positive one of two labels, where the spec does not know it or guesses wrong.
        task: that of the model, where it is not the data set's own: for image-segmentation pictures without a mask are
            left out, and labels need not be two.
        sources: hospitals or collections to keep, as the column source has them; all if empty.

    Raises:
        MedtlError: unknown data set, no network, another layout than expected, a label without pictures, no masks, more
            than 5 % unreadable files, too few pictures to split, a splits.csv of other pictures or one that leaks.
    """
    found = survey(dataset, data_dir, positive=positive, task=task, sources=sources)
    spec, table, excluded = found.spec, found.table, found.excluded
    shares = {"train": 1 - validation_fraction - test_fraction, "validation": validation_fraction}
    if splits is not None:
        split = given_splits(table, Path(splits))
        left_out = "not in the splits.csv that was given"
        rule = "as in the splits.csv of another run"
    elif folds:
        split, left_out = fold_splits(table, folds, fold, validation_fraction, seed), ""
        rule = f"fold {fold} of 0 to {folds - 1} is for testing, {percent(validation_fraction)} for validation; {DRAWN}"
    elif official_split and {"train", "test"} <= set(table["official"]):
        split = official_splits(table, shares, seed)
        left_out = "same patient or picture as one of another official split"
        rule = f"the test split, and validation where it is worth keeping, are the data set's own; the rest is {DRAWN}"
    else:
        split, left_out = draw_splits(table, {**shares, "test": test_fraction}, seed), ""
        rule = f"{percent(validation_fraction)} for validation, {percent(test_fraction)} for testing; {DRAWN}"
    table = table.assign(split=split)
    kept = (table["split"] != "").to_numpy()
    if not kept.all():
        logger.warning("%s: %d pictures are left out: %s.", spec.name, (~kept).sum(), left_out)
        leaking = table.loc[~kept, ["path", "label"]].assign(kind=left_out, reason=left_out)
        excluded = pd.concat([excluded, leaking], ignore_index=True)
    prints = [item for item, keep in zip(found.prints, kept, strict=True) if keep]
    table = table.loc[kept, [*COLUMNS, "source", "mask"]].reset_index(drop=True)
    return Loaded(spec, found.root, found.labels, table, excluded, prints, rule=rule)


def survey(
    dataset: str,
    data_dir: str | Path | None = None,
    *,
    positive: str | None = None,
    task: str | None = None,
    sources: Sequence[str] = (),
) -> Survey:
    """Find and check every file of a data set, and group copies and patients. Arguments and errors as for `load`."""
    spec, root = locate(dataset, data_dir)
    spec = replace(spec, task=task or spec.task)
    spec, rows = READERS[spec.reader](spec, root)
    if root.is_file():
        root = root.parent
    table = pd.DataFrame(rows).sort_values("image_id", ignore_index=True)
    table["source"] = table["source"].replace("", spec.id)
    table["official"] = table["official"].map(lambda name: spec.official.get(name, ""))
    table, others = (with_masks if spec.of_masks else with_labels)(spec, root, table)
    if sources:
        table, elsewhere = of_sources(spec, table, sources)
        others = pd.concat([others, elsewhere], ignore_index=True)
    table, excluded, prints = check_files(spec, root, table)
    table["group"] = join_groups(table["patient"].tolist(), table["duplicate"].to_numpy())
    found = present(table)
    labels = tuple(label for label in spec.labels if label in found)
    if not spec.problems and not table["patient"].any():
        spec = replace(spec, problems=(UNKNOWN_PATIENTS,))
    if positive:
        if spec.several:
            raise MedtlError(
                f"A positive label is one of two that exclude each other, found {positive!r} where a picture can have "
                f"several of {', '.join(labels)}. Each has a threshold of its own: leave out --positive_label."
            )
        if len(labels) != 2 or positive not in labels:
            raise MedtlError(f"The positive label must be one of two, found {positive!r} for {', '.join(labels)}.")
        spec = replace(spec, positive=positive)
    return Survey(spec, root, labels, table, pd.concat([excluded, others], ignore_index=True), prints)


def locate(dataset: str, data_dir: str | Path | None) -> tuple[DatasetSpec, Path]:
    """The spec of a data set, and the folder or file where it lies, downloaded or unpacked if it has to be."""
    path = None if data_dir is None else Path(data_dir).expanduser()
    if dataset not in DATASETS and "/" in dataset:
        spec = replace(DATASETS["imagefolder"], name=dataset, title=dataset)
        return spec, unpack.from_hub(dataset) if path is None else path
    if dataset not in DATASETS:
        raise MedtlError(
            f"Unknown data set {dataset!r}. Known are: {', '.join(DATASETS)}, and ids on the Hub, such as owner/name."
        )
    spec = DATASETS[dataset]
    if path is None:
        return spec, fetch(spec)
    if dataset == "medmnist" and path.suffix == ".npz":
        return replace(spec, title=f"MedMNIST ({path.stem})"), unpack.from_npz(path)
    return spec, path


def fetch(spec: DatasetSpec) -> Path:
    """Make or download a data set and return its folder; what is already there is used again."""
    if spec.phantom:
        folder = cache_dir() / "phantoms" / f"{spec.phantom}-{phantoms.VERSION}"
        return phantoms.write(folder, spec.phantom, patients=300)
    if not spec.kaggle:
        raise MedtlError(f"{spec.name} can't be downloaded. Give its folder or file with --data_dir: {spec.example}.")
    import kagglehub

    try:
        return Path(kagglehub.dataset_download(spec.kaggle))
    except Exception as error:  # kagglehub passes on whatever its HTTP client, the archive or the disk raise
        raise MedtlError(
            f"{spec.name} could not be downloaded from Kaggle ({type(error).__name__}). Check the network, or download "
            f"{spec.url} by hand, unpack it and give its folder with --data_dir."
        ) from error


def check_files(
    spec: DatasetSpec, root: Path, table: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, list[Fingerprint]]:
    """Open every file; return the readable ones, with sha256 and duplicate group, the others with the reason, prints.

    Raises:
        MedtlError: more than 5 % of the files are unreadable.
    """
    found = fingerprints.fingerprints([root / path for path in table["path"]], spec.name.replace("/", "--"))
    table = table.assign(sha256=[f.sha256 for f in found], reason=[f.error for f in found])
    readable = table["reason"] == ""
    excluded = (
        table.assign(kind="unreadable").loc[~readable, ["path", "label", "kind", "reason"]].reset_index(drop=True)
    )
    if len(excluded):
        named = "; ".join(f"{row.path}: {row.reason}" for row in excluded.head(5).itertuples())
        message = f"{len(excluded)} of {len(table)} files give no picture: {named}{' ...' * (len(excluded) > 5)}"
        if len(excluded) > MAX_UNREADABLE * len(table):
            raise MedtlError(f"{message} That is more than {MAX_UNREADABLE:.0%}: download {spec.title} again.")
        logger.warning("%s They are left out.", message)
    table = table[readable].drop(columns="reason").reset_index(drop=True)
    prints = [f for f in found if not f.error]
    # Phantoms of different patients look more alike than cropped copies do, and none is a copy.
    table["duplicate"] = fingerprints.near_duplicates(prints, crops=not spec.phantom)
    return table, excluded, prints


def percent(share: float) -> str:
    """`15 %`."""
    return f"{100 * share:g} %"


def draw_splits(table: pd.DataFrame, fractions: dict[str, float], seed: int) -> NDArray[np.str_]:
    """(n,) split of each row, by group, stratified by label and source."""
    labels, groups, sources = strata(table)
    return split_groups(labels, groups, fractions, seed, sources)


def present(table: pd.DataFrame) -> set[str]:
    """The labels of a table's pictures."""
    return set(chain.from_iterable(map(labels_of, table["label"])))


def strata(table: pd.DataFrame) -> tuple[list[str], list[str], list[str]]:
    """Labels, groups and sources of a table."""
    labels, groups, sources = (table[column].tolist() for column in ("label", "group", "source"))
    return labels, groups, sources


def fold_splits(table: pd.DataFrame, folds: int, fold: int, validation: float, seed: int) -> NDArray[np.str_]:
    """(n,) split of each row: fold number `fold` is the test split, a share of all pictures validation."""
    if folds < 2 or not 0 <= fold < folds:
        raise MedtlError(f"Folds are 2 or more, and the fold is one of 0 to folds - 1; found {fold} of {folds}.")
    labels, groups, sources = strata(table)
    test = fold_groups(labels, groups, folds, seed, sources) == fold
    share = validation / (1 - 1 / folds)
    split = np.full(len(table), "test", dtype="<U10")
    split[~test] = draw_splits(table[~test], {"train": 1 - share, "validation": share}, seed)
    return split


def official_splits(table: pd.DataFrame, shares: dict[str, float], seed: int) -> NDArray[np.str_]:
    """(n,) the archive's own splits, "" for a picture that shares a group with one of test, or of validation.

    Validation is drawn from the rest by `shares` where the archive has none, or one that lacks a label.
    """
    official, group = table["official"].to_numpy(), table["group"]
    test = official == "test"
    leaks = ~test & group.isin(group[test]).to_numpy()
    valid = (official == "validation") & ~leaks
    split = np.where(test, "test", "train").astype("<U10")
    if present(table[valid]) == present(table):
        split[valid] = "validation"
        leaks |= ~test & ~valid & group.isin(group[valid]).to_numpy()
    else:
        rest = ~test & ~leaks
        share = shares["validation"] / sum(shares.values())
        split[rest] = draw_splits(table[rest], {"train": 1 - share, "validation": share}, seed)
    split[leaks] = ""
    return split


def given_splits(table: pd.DataFrame, path: Path) -> NDArray[np.str_]:
    """(n,) split of each row as another run's splits.csv says, "" for a picture that it does not name.

    Raises:
        MedtlError: it can't be read, names pictures that are not here or have changed, or parts a group.
    """
    try:
        given = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("image_id")[["split", "sha256"]]
    except (OSError, ValueError, KeyError) as error:
        raise MedtlError(
            f"{path} is not the splits.csv of a run ({type(error).__name__}): expected columns image_id, split, sha256."
        ) from error
    here = table.set_index("image_id")["sha256"]
    absent = sorted(set(given.index) - set(here.index))
    changed = [name for name in given.index if name in here.index and here[name] != given.at[name, "sha256"]]
    if absent or changed or not given.index.is_unique or not set(given["split"]) <= set(SPLITS):
        raise MedtlError(
            f"{path} does not fit these pictures: {len(absent)} are not here ({some(absent, 3)}), {len(changed)} have "
            f"other contents ({some(changed, 3)}). Give the data set that it was made with."
        )
    split = table["image_id"].map(given["split"]).fillna("").to_numpy()
    parted = table[split != ""].assign(split=split[split != ""]).groupby("group").filter(
        lambda rows: rows["split"].nunique() > 1
    )  # fmt: skip
    if len(parted):
        raise MedtlError(
            f"{path} parts {parted['group'].nunique()} groups of pictures of one patient or copies, such as "
            f"{some(parted['image_id'].tolist(), 4)}. Its results would be too good: split anew."
        )
    return split
