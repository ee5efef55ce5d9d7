"""A row of DATASETS -> a DatasetDict with canonical columns, split without leaks."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import datasets
import pandas as pd

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
        table: one row a picture, in the order of `image_id`, with the columns of splits.csv: image_id, path (relative
            to `root`), label, patient, group, split, sha256.
        excluded: one row a file that gives no picture: path, label, reason.
    """

    spec: DatasetSpec
    root: Path
    table: pd.DataFrame
    excluded: pd.DataFrame

    def splits(self) -> datasets.DatasetDict:
        """DatasetDict of train, validation and test with the columns image, label, patient, source, image_id."""
        features = datasets.Features(
            image=datasets.Image(decode=False),  # decoded by `read_image`, which knows 16-bit pictures
            label=datasets.ClassLabel(names=list(self.spec.labels)),
            patient=datasets.Value("string"),
            source=datasets.Value("string"),
            image_id=datasets.Value("string"),
        )
        return datasets.DatasetDict(
            {
                name: datasets.Dataset.from_dict(
                    {
                        "image": [str(self.root / path) for path in rows["path"]],
                        "label": list(rows["label"]),
                        "patient": list(rows["patient"]),
                        "source": [self.spec.id] * len(rows),
                        "image_id": list(rows["image_id"]),
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
    validation_fraction: float = 0.15,
    test_fraction: float = 0.2,
    seed: int = 42,
) -> Loaded:
    """Find, check and split a data set. No patient and no (near-)duplicate picture is in two splits.

    Args:
        dataset: key of DATASETS.
        data_dir: folder with the data; by default it is downloaded from Kaggle (public sets need no login) or, for
            phantoms, generated, and kept in the cache.
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
    table = list_files(spec, root)
    table, excluded = check_files(spec, root, table)
    table["group"] = join_groups(table["patient"].tolist(), table.pop("duplicate").to_numpy())
    fractions = dict(
        zip(SPLITS, (1 - validation_fraction - test_fraction, validation_fraction, test_fraction), strict=True)
    )
    table["split"] = split_groups(table["label"].tolist(), table["group"].tolist(), fractions, seed)
    return Loaded(spec, root, table[COLUMNS], excluded)


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
    """One row a picture file below the first of the spec's roots that has its folders: image_id, path, label, patient.

    Raises:
        MedtlError: no such folders, or a label without pictures.
    """
    if not root.is_dir():
        raise MedtlError(f"{root} is not a folder. Give the folder of {spec.title} with --data_dir.")
    base = next((root / place for place in spec.roots if all((root / place / f).is_dir() for f in spec.folders)), None)
    if base is None:
        inside = sorted(p.name + "/" * p.is_dir() for p in root.iterdir())
        places = " or ".join(f"{Path(place) / '_'}"[:-1] or "./" for place in spec.roots)
        raise MedtlError(
            f"{root} does not look like {spec.title}: expected the folders {', '.join(f + '/' for f in spec.folders)} "
            f"in {places}, found {', '.join(inside[:10]) or 'an empty folder'}{' ...' * (len(inside) > 10)}. "
            "Point --data_dir to the unpacked download."
        )
    rows = []
    for folder, label in spec.folders.items():
        files = [p for p in sorted((base / folder).iterdir()) if is_picture(p)]
        if not files:
            raise MedtlError(f"{base / folder} has no pictures, so label {label!r} would be empty. Expected some of "
                             f"{', '.join(sorted(EXTENSIONS))}. Download the data set again.")  # fmt: skip
        for path in files:
            match = re.match(spec.patient, path.name) if spec.patient else None
            rows.append(
                {
                    "image_id": path.relative_to(base).as_posix(),
                    "path": path.relative_to(root).as_posix(),
                    "label": label,
                    "patient": match.group(1) if match else "",
                }
            )
    found = pd.Series([row["label"] for row in rows]).value_counts()
    for label, count in spec.counts.items():
        if found[label] != count:
            logger.warning("%s: %d pictures of %r, the complete set has %d.", spec.name, found[label], label, count)
    return pd.DataFrame(rows).sort_values("image_id", ignore_index=True)


def is_picture(path: Path) -> bool:
    """Whether a file's name is a picture's; hidden files and macOS' `._` twins are not."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and not path.is_dir()


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
