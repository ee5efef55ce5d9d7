"""Dataset loading: from an entry of `DATASETS` to checked, grouped and split images in canonical columns."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from hf_medtl.common.extras import require
from hf_medtl.common.licences import UNKNOWN, read_licence
from hf_medtl.common.run_folder import read_table
from hf_medtl.common.system import cache_dir, writing_cache
from hf_medtl.data import phantoms
from hf_medtl.data.dataset import COLUMNS, LoadedDataset, Survey
from hf_medtl.data.download import download_from_hub, licence_on_hub, unpack_medmnist
from hf_medtl.data.filters import select_labeled, select_masked, select_sources
from hf_medtl.data.fingerprints import Fingerprint, compute_fingerprints, near_duplicates
from hf_medtl.data.identifiers import adopt_identifiers
from hf_medtl.data.positive_label import choose_positive, warn_of_guess
from hf_medtl.data.readers import READERS
from hf_medtl.data.specs import DATASETS, DatasetSpec, check_dataset_name
from hf_medtl.data.splits import (
    SPLITS,
    fold_splits,
    join_groups,
    labels_present,
    official_splits,
    random_splits,
    read_splits,
)
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)

INSTALL = "Install it with: "  # in the reason of a file that a missing package would read
MAX_UNREADABLE = 0.05
UNKNOWN_PATIENTS = "No patient identifiers: images of one patient can be in different splits."


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
    columns: Mapping[str, str] | None = None,
) -> LoadedDataset:
    """Find, check and split a dataset, without a patient or a (near-)duplicate image in two splits.

    Args:
        dataset: Key of `DATASETS`, or id of a dataset on the Hub (`owner/name`).
        data_dir: Folder or file with the data. By default the dataset is downloaded (public Kaggle datasets need no
            login) or, for phantoms, generated, and kept in the cache.
        official_split: Keep the dataset's own test split, if any, and its validation split if that is worth keeping.
            Images that share a patient or a copy with test are excluded from train and validation, and those that
            share one with validation from train. Otherwise all images are split anew.
        validation_fraction: Fraction of the images in the validation split.
        test_fraction: Fraction of the images in the test split; the rest is for training.
        seed: Random seed of the split.
        folds: Number of cross-validation folds, instead of an official split and of `test_fraction`; 0 disables them.
        fold: Number of the fold, from 0, that is the test split.
        splits: The splits.csv of another run, to repeat its split exactly; the arguments above are then ignored.
        positive: Positive one of two labels. By default it is the dataset's own, or the one whose name does not mean
            an absence (`positive_label.py`); if the names do not tell, the last one, with a warning.
        task: Task of the model, if it is not the dataset's own. For image-segmentation, images without a mask are
            excluded and fewer than two labels are allowed.
        sources: Hospitals or collections to keep, as in the column source; all if empty.
        columns: Columns of a table that have other names than usual: file_name, label, patient, source, mask or split
            -> column, or as `parse_columns` describes.

    Returns:
        The images with their splits.

    Raises:
        MedtlError: Unknown dataset, no network, unexpected layout, a label without (training) images, no masks, more
            than 5 % unreadable files, too few images to split, or a splits.csv of other images or with leaks.

    Example:
        >>> from hf_medtl import load
        >>> load("brain-phantoms").splits()["train"].column_names
        ['image', 'mask', 'label', 'patient', 'source', 'image_id']
    """
    checked = survey(dataset, data_dir, positive=positive, task=task, sources=sources, columns=columns)
    warn_of_guess(checked.spec.title, str(checked.spec.positive), checked.spec.positive_source, checked.labels)
    spec, table, excluded = checked.spec, checked.table, checked.excluded
    fractions = {"train": 1 - validation_fraction - test_fraction, "validation": validation_fraction}
    sampled = "sampled by group, stratified by label and source"
    left_out = ""
    if splits is not None:
        table = adopt_identifiers(table, Path(splits))
        split = read_splits(table, Path(splits))
        left_out = "not in the splits.csv that was given"
        rule = "as in the splits.csv of another run"
    elif folds:
        split = fold_splits(table, folds, fold, validation_fraction, seed)
        rule = f"fold {fold} of 0 to {folds - 1} for testing, {_percent(validation_fraction)} for validation; {sampled}"
    elif official_split and {"train", "test"} <= set(table["official"]):
        split = official_splits(table, fractions, seed)
        if number := int((table["official"] == "").sum()):
            note = f"{number} images have no official split and are not used for testing."
            logger.warning("%s: %s", spec.name, note)
            spec = replace(spec, notes=(*spec.notes, note))
        left_out = "same patient or picture as one of another official split"  # a key of results.json
        rule = f"the dataset's own test split, and its validation split if worth keeping; the rest is {sampled}"
    else:
        if official_split and table["official"].any():
            spec = _note_unused_split(spec, table["official"])
        split = random_splits(table, {**fractions, "test": test_fraction}, seed)
        rule = f"{_percent(validation_fraction)} for validation, {_percent(test_fraction)} for testing; {sampled}"
    table = table.assign(split=split)
    if splits is None and not spec.is_segmentation:
        _check_training_labels(spec, checked.labels, table)
    kept = (table["split"] != "").to_numpy()
    if not kept.all():
        new = ~kept & ~table["path"].isin(_paths_excluded_before(splits)).to_numpy()
        if new.any():
            logger.warning("%s: %d images are excluded: %s.", spec.name, new.sum(), left_out)
        leaking = table.loc[~kept, ["path", "label"]].assign(kind=left_out, reason=left_out)
        excluded = pd.concat([excluded, leaking], ignore_index=True)
    kept_fingerprints = [item for item, keep in zip(checked.fingerprints, kept, strict=True) if keep]
    table = table.loc[kept, [*COLUMNS, "source", "mask"]].reset_index(drop=True)
    return LoadedDataset(spec, checked.root, checked.labels, table, excluded, kept_fingerprints, rule=rule)


def _paths_excluded_before(splits: str | Path | None) -> list[str]:
    """Return the images that the run of a splits.csv excluded, too: no news to anybody."""
    path = Path(splits).with_name("excluded.csv") if splits is not None else None
    return read_table(path)["path"].tolist() if path is not None and path.is_file() else []


def survey(
    dataset: str,
    data_dir: str | Path | None = None,
    *,
    positive: str | None = None,
    task: str | None = None,
    sources: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
) -> Survey:
    """Find and check all files of a dataset, and group copies and patients.

    Args:
        dataset: As for `load`.
        data_dir: As for `load`.
        positive: As for `load`.
        task: As for `load`.
        sources: As for `load`.
        columns: As for `load`.

    Returns:
        All readable images, not yet split.

    Raises:
        MedtlError: As for `load`, except for errors of splitting.
    """
    spec, root = locate_dataset(dataset, data_dir, columns)
    spec = replace(spec, task=task or spec.task)
    spec, rows = READERS[spec.reader](spec, root)
    if root.is_file():
        root = root.parent
    if spec.licence == UNKNOWN:
        spec = replace(spec, licence=read_licence(root / "README.md")[0] or UNKNOWN)
    table = pd.DataFrame(rows).sort_values("image_id", ignore_index=True)
    table["source"] = table["source"].replace("", spec.id)
    table["official"] = table["official"].map(lambda name: spec.official.get(name, ""))
    table, others = (select_masked if spec.is_segmentation else select_labeled)(spec, root, table)
    if sources:
        table, elsewhere = select_sources(spec, table, sources)
        others = pd.concat([others, elsewhere], ignore_index=True)
    spec = choose_positive(spec, _labels_with_images(spec, table), positive)  # before the work
    table, excluded, fingerprints = _check_files(spec, root, table)
    table["group"] = join_groups(table["patient"].tolist(), table["duplicate"].to_numpy())
    if not spec.problems and not table["patient"].any():
        spec = replace(spec, problems=(UNKNOWN_PATIENTS,))
    labels = _labels_with_images(spec, table)
    return Survey(spec, root, labels, table, pd.concat([excluded, others], ignore_index=True), fingerprints)


def locate_dataset(
    dataset: str, data_dir: str | Path | None, columns: Mapping[str, str] | None = None
) -> tuple[DatasetSpec, Path]:
    """Return a dataset's spec and its folder or file, downloading or unpacking it if necessary.

    Args:
        dataset: As for `load`.
        data_dir: As for `load`.
        columns: As for `load`.

    Raises:
        MedtlError: Unknown dataset, one without a table for the columns, or it could not be downloaded or unpacked.
    """
    path = None if data_dir is None else Path(data_dir).expanduser()
    if dataset not in DATASETS and "/" in dataset:
        spec = replace(DATASETS["imagefolder"], name=dataset, title=dataset)
        if path is None:
            root = download_from_hub(dataset, columns)
            return replace(spec, licence=licence_on_hub(dataset)), root
        return replace(spec, columns=dict(columns or {})), path
    check_dataset_name(dataset)
    spec = DATASETS[dataset]
    if columns and spec.reader == "paths":
        raise MedtlError(
            f"--columns is for tables, but {spec.name} is read from folders and names of files. Remove it, or use "
            "--dataset table or imagefolder."
        )
    spec = replace(spec, columns=spec.columns | dict(columns or {}))
    if path is None:
        return spec, fetch_dataset(spec)
    if dataset == "medmnist" and path.suffix == ".npz":
        return replace(spec, title=f"MedMNIST ({path.stem})"), unpack_medmnist(path)
    return spec, path


def fetch_dataset(spec: DatasetSpec) -> Path:
    """Download or generate a dataset and return its folder; a cached copy is reused.

    Raises:
        MedtlError: The dataset can't be downloaded.
    """
    if spec.phantom:
        folder = cache_dir() / "phantoms" / f"{spec.phantom}-{phantoms.VERSION}"
        with writing_cache(folder.parent):
            return phantoms.write_phantoms(folder, spec.phantom, patients=300)
    if not spec.kaggle:
        page = f" from here. Get it from {spec.homepage}, and give" if spec.homepage else ". Give"
        raise MedtlError(f"{spec.name} can't be downloaded{page} its folder or file with --data_dir: {spec.example}.")
    kagglehub = require("kagglehub", "kaggle", f"Downloading {spec.name} from Kaggle")
    try:
        return Path(kagglehub.dataset_download(spec.kaggle))
    except Exception as error:  # kagglehub passes on whatever its HTTP client, the archive or the disk raise
        raise MedtlError(
            f"{spec.name} could not be downloaded from Kaggle ({type(error).__name__}). Check the network, or download "
            f"{spec.url} manually, unpack it and give its folder with --data_dir."
        ) from error


def _note_unused_split(spec: DatasetSpec, official: pd.Series) -> DatasetSpec:
    """Warn that the official splits can't be kept, and return the dataset with a note of it."""
    present = [split for split in SPLITS if (official == split).any()]
    absent = [split for split in ("train", "test") if split not in present]
    note = (
        f"The data have images for {' and '.join(present)} but none for {' and '.join(absent)}, so all images are "
        "split anew."
    )
    logger.warning("%s: %s", spec.name, note)
    return replace(spec, notes=(*spec.notes, note))


def _labels_with_images(spec: DatasetSpec, table: pd.DataFrame) -> tuple[str, ...]:
    present = labels_present(table)
    return tuple(label for label in spec.labels if label in present)


def _check_files(
    spec: DatasetSpec, root: Path, table: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, list[Fingerprint]]:
    """Open every file and return the readable rows with hashes, the unreadable rows, and the fingerprints.

    Raises:
        MedtlError: More than 5 % of the files are unreadable.
    """
    results = compute_fingerprints([root / path for path in table["path"]], spec.name.replace("/", "--"))
    reasons = [_reason(root, path, item.error) for path, item in zip(table["path"], results, strict=True)]
    if spec.is_segmentation:
        reasons = [reason or of_mask for reason, of_mask in zip(reasons, _mask_errors(spec, root, table), strict=True)]
    table = table.assign(sha256=[item.sha256 for item in results], reason=reasons)
    readable = table["reason"] == ""
    excluded = table.assign(kind="unreadable").loc[~readable, ["path", "label", "kind", "reason"]]
    excluded = excluded.reset_index(drop=True)
    if len(excluded):
        examples = "; ".join(f"{row.path}: {row.reason}" for row in excluded.head(5).itertuples())
        examples = f"{examples} ..." if len(excluded) > 5 else f"{examples.rstrip('.')}."
        message = f"{len(excluded)} of {len(table)} files are unreadable: {examples}"
        if len(excluded) > MAX_UNREADABLE * len(table):
            commands = {reason.partition(INSTALL)[2] for reason in excluded["reason"]} - {""}
            advice = f"download {spec.title} again."
            if commands:  # nothing is wrong with the files
                advice = f"install what they need: {' ; '.join(sorted(commands))}"
            raise MedtlError(f"{message} This is more than {MAX_UNREADABLE:.0%}: repair or remove them, or {advice}")
        logger.warning("%s They are excluded.", message)
    table = table[readable].drop(columns="reason").reset_index(drop=True)
    fingerprints = [item for item, keep in zip(results, readable, strict=True) if keep]
    # Phantoms of different patients look more alike than cropped copies do, and none is a copy.
    table["duplicate"] = near_duplicates(fingerprints, crops=not spec.phantom)
    return table, excluded, fingerprints


def _mask_errors(spec: DatasetSpec, root: Path, table: pd.DataFrame) -> list[str]:
    """Return why the mask of each row is unreadable, "" if it is not."""
    parts = sorted({part for cell in table["mask"] for part in cell.split("|") if part})
    results = compute_fingerprints([root / part for part in parts], spec.name.replace("/", "--"))
    errors = {part: _reason(root, part, item.error) for part, item in zip(parts, results, strict=True)}
    return [
        next((f"its mask {part}: {errors[part]}" for part in cell.split("|") if errors.get(part)), "")
        for cell in table["mask"]
    ]


def _reason(root: Path, path: str, error: str) -> str:
    r"""Return why a file is unreadable; there is none with a name such as `M\xfcller.png`, see `printable`."""
    if error and "\\x" in path and not (root / path).exists():
        return "its name is not UTF-8. Rename it, for example with convmv."
    return error


def _check_training_labels(spec: DatasetSpec, labels: Sequence[str], table: pd.DataFrame) -> None:
    """Raise MedtlError if no training image has one of the labels; warn if no test image has."""
    present = {split: labels_present(table[table["split"] == split]) for split in ("train", "test", "")}
    for label in labels:
        if label in present["train"]:
            continue
        reason = "they are in validation and test"
        if label in present[""]:
            reason = "they are in test, or share a patient or a copy with one that is"
        raise MedtlError(
            f"{spec.name}: no training image has the label {label!r}: {reason}. Correct the label or move images to "
            "train, or split all images anew with --no_official_split."
        )
    if untested := [label for label in labels if label not in present["test"]]:
        logger.warning("%s: no test image has the label %s, so it is not measured.", spec.name, ", ".join(untested))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"
