"""A row of DATASETS -> a DatasetDict with canonical columns, split without leaks."""

import logging
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_medtl.data import fingerprints, phantoms
from hf_medtl.data.images import EXTENSIONS
from hf_medtl.data.specs import DATASETS, DatasetSpec
from hf_medtl.data.splits import SPLITS, join_groups, split_groups
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)

MAX_UNREADABLE = 0.05
COLUMNS = ["image_id", "path", "label", "patient", "group", "split", "sha256"]


@dataclass(frozen=True)
class Loaded:
    """Pictures of a data set, ready to be learnt from.

    Attributes:
        spec: the row of DATASETS.
        root: the data folder.
        labels: those of the spec that have pictures here, in its order.
        table: one row a picture, in the order of `image_id`: image_id, path (relative to `root`), label, patient,
            group, split, sha256 (the columns of splits.csv), source, and mask (relative to `root`, "" where there is
            none).
        excluded: one row a file that is left out: path, label, reason.
    """

    spec: DatasetSpec
    root: Path
    labels: tuple[str, ...]
    table: pd.DataFrame
    excluded: pd.DataFrame

    @property
    def positive(self) -> str | None:
        """The label whose probability the threshold is put on, with two labels."""
        return self.spec.positive if len(self.labels) == 2 else None

    @property
    def positive_index(self) -> int | None:
        """Output of the positive label."""
        return None if self.positive is None else self.labels.index(self.positive)

    def counts(self) -> dict[str, dict[str, int]]:
        """Split -> label -> number of pictures."""
        pairs = list(zip(self.table["split"], self.table["label"], strict=True))
        return {split: {label: pairs.count((split, label)) for label in self.labels} for split in SPLITS}

    def splits(self) -> datasets.DatasetDict:
        """DatasetDict of train, validation and test with the columns image, mask, label, patient, source, image_id."""
        features = datasets.Features(
            image=datasets.Image(decode=False),  # decoded by `read_image`, which knows 16-bit pictures
            mask=datasets.Image(decode=False),
            label=datasets.ClassLabel(names=list(self.labels)),
            patient=datasets.Value("string"),
            source=datasets.Value("string"),
            image_id=datasets.Value("string"),
        )
        return datasets.DatasetDict(
            {
                name: datasets.Dataset.from_dict(
                    {
                        "image": [str(self.root / path) for path in rows["path"]],
                        "mask": [str(self.root / path) if path else None for path in rows["mask"]],
                        **{column: list(rows[column]) for column in ("label", "patient", "source", "image_id")},
                    },
                    features=features,
                )
                for name in SPLITS
                for rows in [self.table[self.table["split"] == name]]
            }
        )


def load(
    dataset: str,
    data_dir: str | Path | None = None,
    *,
    official_split: bool = True,
    validation_fraction: float = 0.15,
    test_fraction: float = 0.2,
    seed: int = 42,
) -> Loaded:
    """Find, check and split a data set. No patient and no (near-)duplicate picture is in two splits.

    Args:
        dataset: key of DATASETS.
        data_dir: folder with the data; by default it is downloaded from Kaggle (public sets need no login) or, for
            phantoms, generated, and kept in the cache.
        official_split: keep the set's own test split where it has one; training pictures that share a patient or a
            copy with it are left out, and validation is drawn from the rest. Otherwise all is split anew.
        validation_fraction, test_fraction: shares of the pictures; the rest is for training.
        seed: of the split.

    Raises:
        MedtlError: unknown data set, no network, another layout than expected, a label without pictures, more than
            5 % unreadable files, too few pictures to split.
    """
    if dataset not in DATASETS:
        raise MedtlError(f"Unknown data set {dataset!r}. Known are: {', '.join(DATASETS)}.")
    spec = DATASETS[dataset]
    root = fetch(spec) if data_dir is None else Path(data_dir).expanduser()
    table, excluded = check_files(spec, root, list_files(spec, root))
    labels = tuple(label for label in spec.labels if label in set(table["label"]))
    table["group"] = join_groups(table["patient"].tolist(), table.pop("duplicate").to_numpy())
    fractions = dict(
        zip(SPLITS, (1 - validation_fraction - test_fraction, validation_fraction, test_fraction), strict=True)
    )
    if official_split and spec.official and set(table["official"].map(spec.official)) >= set(spec.official.values()):
        table, leaking = keep_official(table.assign(official=table["official"].map(spec.official)), fractions, seed)
        excluded = pd.concat([excluded, leaking], ignore_index=True)
    else:
        table["split"] = draw_splits(table, fractions, seed)
    return Loaded(spec, root, labels, table[[*COLUMNS, "source", "mask"]], excluded)


def keep_official(table: pd.DataFrame, fractions: dict[str, float], seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep the official test split, leave out training pictures that leak into it, draw validation from the rest."""
    test = table["official"] == "test"
    leaks = ~test & table["group"].isin(table.loc[test, "group"])
    excluded = table.loc[leaks, ["path", "label"]].assign(reason="same patient or picture as one of the official test")
    if len(excluded):
        logger.warning("%d training pictures share a patient or a copy with the test split: left out.", len(excluded))
    rest = ~test & ~leaks
    share = fractions["validation"] / (fractions["train"] + fractions["validation"])
    table.loc[test, "split"] = "test"
    table.loc[rest, "split"] = draw_splits(table[rest], {"train": 1 - share, "validation": share}, seed)
    return table[~leaks].reset_index(drop=True), excluded


def draw_splits(table: pd.DataFrame, fractions: dict[str, float], seed: int) -> NDArray[np.str_]:
    """(n,) split of each row, by group, stratified by label and source."""
    labels, groups, sources = (table[column].tolist() for column in ("label", "group", "source"))
    return split_groups(labels, groups, fractions, seed, sources)


def fetch(spec: DatasetSpec) -> Path:
    """Make or download a data set and return its folder; what is already there is used again."""
    if spec.phantom:
        folder = fingerprints.cache_dir() / "phantoms" / f"{spec.phantom}-{phantoms.VERSION}"
        return phantoms.write(folder, spec.phantom, patients=300)
    if not spec.kaggle:
        raise MedtlError(f"{spec.name} can't be downloaded. Give its folder with --data_dir.")
    import kagglehub

    try:
        return Path(kagglehub.dataset_download(spec.kaggle))
    except Exception as error:  # kagglehub passes on whatever its HTTP client, the archive or the disk raise
        raise MedtlError(
            f"{spec.name} could not be downloaded from Kaggle ({type(error).__name__}). Check the network, or download "
            f"{spec.url} by hand, unpack it and give its folder with --data_dir."
        ) from error


def list_files(spec: DatasetSpec, root: Path) -> pd.DataFrame:
    """One row a picture file that fits the spec below its first root that has any.

    Columns: image_id, path, label, patient, official, source, mask.

    Raises:
        MedtlError: nothing fits, or a label has no pictures.
    """
    if not root.is_dir():
        raise MedtlError(f"{root} is not a folder. Give the folder of {spec.title} with --data_dir.")
    every = {path.relative_to(root).as_posix() for path in sorted(root.rglob("*"))}
    found: list[tuple[str, re.Match[str]]] = []
    for place in spec.roots:
        below = (re.fullmatch(spec.pattern, path.removeprefix(place)) for path in every if path.startswith(place))
        here = [(place, match) for match in below if match and is_picture(root / place / match[0])]
        if len({match["label"] for _, match in here}) > len({match["label"] for _, match in found}):
            found = here  # the first place with the most labels, and no other: archives hold copies
    if not found:
        inside = sorted(p.name + "/" * p.is_dir() for p in root.iterdir())
        raise MedtlError(
            f"{root} does not look like {spec.title}: expected files such as {spec.example}, "
            f"found {', '.join(inside[:10]) or 'an empty folder'}{' ...' * (len(inside) > 10)}. "
            "Point --data_dir to the unpacked download."
        )
    rows = []
    for place, match in found:
        groups, path, name = match.groupdict(), match[0], Path(match[0])
        patient = re.match(spec.patient, name.name) if spec.patient else None
        masks = [
            posixpath.normpath(place + rule.format(folder=name.parent.as_posix(), name=name.name, stem=name.stem))
            for rule in spec.masks
        ]
        rows.append(
            {
                "image_id": path,
                "path": place + path,
                "label": spec.values[groups["label"]],
                "patient": patient.group(1) if patient else "",
                "official": groups.get("split", ""),
                "source": groups.get("source") or spec.id,
                "mask": next((mask for mask in masks if mask in every), ""),
            }
        )
    check_counts(spec, root, [row["label"] for row in rows])
    return pd.DataFrame(rows).sort_values("image_id", ignore_index=True)


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


def is_picture(path: Path) -> bool:
    """Whether a file's name is a picture's; hidden files and macOS' `._` twins are not."""
    return path.name.lower().endswith(EXTENSIONS) and not path.name.startswith(".") and path.is_file()


def check_files(spec: DatasetSpec, root: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Open every file; return the readable ones, with sha256 and duplicate group, and the others with the reason.

    Raises:
        MedtlError: more than 5 % of the files are unreadable.
    """
    found = fingerprints.fingerprints([root / path for path in table["path"]], spec.name)
    table = table.assign(sha256=[f.sha256 for f in found], reason=[f.error for f in found])
    readable = table["reason"] == ""
    excluded = table.loc[~readable, ["path", "label", "reason"]].reset_index(drop=True)
    if len(excluded):
        named = "; ".join(f"{row.path}: {row.reason}" for row in excluded.head(5).itertuples())
        message = f"{len(excluded)} of {len(table)} files give no picture: {named}{' ...' * (len(excluded) > 5)}"
        if len(excluded) > MAX_UNREADABLE * len(table):
            raise MedtlError(f"{message} That is more than {MAX_UNREADABLE:.0%}: download {spec.title} again.")
        logger.warning("%s They are left out.", message)
    table = table[readable].drop(columns="reason").reset_index(drop=True)
    table["duplicate"] = fingerprints.near_duplicates([f for f in found if not f.error])
    return table, excluded
