"""Files of a run as they are published: images have neutral identifiers instead of their file names."""

import csv
import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from hf_medtl.common.csv_cells import harmless_text, original_text, to_csv
from hf_medtl.common.files import read_json, write_atomic
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.common.text import escape_cell
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.identifiers import IDENTIFIERS, list_identifiers, number_images
from hf_medtl.data.specs import DATASETS
from hf_medtl.errors import MedtlError

IMAGE_COLUMNS = ("image_id", "path")
STAGING = ".publish"  # in the run folder: what is published instead of the files of the same names


def are_names_public(run: RunFolder, publish_names: bool = False) -> bool:
    """Return True if file names of a run's images may be published.

    Args:
        run: The run.
        publish_names: True if the user asks for it, as a run's own option of this name does.
    """
    spec = DATASETS.get(run.results.get("dataset") or run.recipe.get("dataset") or "")
    return publish_names or bool(run.recipe.get("publish_names")) or bool(spec and spec.public)


def write_identifiers(run: RunFolder, loaded: LoadedDataset, external: LoadedDataset | None = None) -> None:
    """Write identifiers.csv, which stays on this machine: identifier, image_id and file of each image.

    Args:
        run: The run.
        loaded: Its data set.
        external: Its external test set.
    """
    tables = []
    for prefix, data in (("image", loaded), ("external", external)):
        if data is None or data.spec.public:
            continue
        names = number_images(data.table["image_id"].tolist(), prefix)
        tables.append(list_identifiers(data.table, data.root, names))
    if tables:
        run.write(IDENTIFIERS, to_csv(pd.concat(tables)))


def identifiers(run: RunFolder) -> dict[str, str]:
    """Return image_id -> identifier of a run, of a cross-validation, or of an older run without identifiers.csv.

    Raises:
        MedtlError: Its table lacks the images.
    """
    splits = next((table for table in (run.splits, *(fold.splits for fold in run.folds)) if table is not None), None)
    table = run.predictions if splits is None else splits
    if "image_id" not in table:
        raise MedtlError(f"A table of {run.path} is damaged: it has no column image_id.")
    return number_images(list(map(str, table["image_id"])))


def neutral_run(run: RunFolder, publish_names: bool = False) -> RunFolder:
    """Return a run whose tables have identifiers instead of file names, unless these are public; its files stay.

    Args:
        run: A finished run or cross-validation.
        publish_names: As for `are_names_public`.
    """
    if are_names_public(run, publish_names):
        return run
    names, renamed = identifiers(run), RunFolder(run.path)
    renamed.predictions = _rename(run.predictions, names)
    if run.splits is not None:
        renamed.splits = _rename(run.splits, names)
    return renamed


def neutral_table(run: RunFolder, table: pd.DataFrame, publish_names: bool = False) -> pd.DataFrame:
    """Return a table of a run's images with the identifiers of `neutral_run`."""
    return table if are_names_public(run, publish_names) else _rename(table, identifiers(run))


def neutral_data(run: RunFolder, loaded: LoadedDataset, publish_names: bool = False) -> LoadedDataset:
    """Return the data set of a run with the identifiers of `neutral_run`; paths stay, to read the images."""
    renamed = neutral_table(run, loaded.table[["image_id"]], publish_names)
    return replace(loaded, table=loaded.table.assign(image_id=renamed["image_id"]))


def neutral_files(folder: Path, files: Mapping[str, Path]) -> dict[str, Path]:
    """Return files to publish, with copies in STAGING of those that name images by their files.

    Args:
        folder: The run folder.
        files: Name in the repository -> file.
    """
    run, published = RunFolder(folder), dict(files)
    names = identifiers(run)
    if all(name == neutral for name, neutral in names.items()):
        return published
    paths = (
        {}
        if run.splits is None or "path" not in run.splits
        else dict(zip(run.splits["path"], run.splits["image_id"], strict=True))
    )
    by_name = {neutral: neutral for neutral in names.values()}
    by_name |= {path: names[image_id] for path, image_id in paths.items()} | names
    ends: dict[str, str] = {}  # file name without folders -> identifier, "" if it is that of several images
    for name, neutral in by_name.items():
        end = PurePosixPath(name).name
        ends[end] = neutral if ends.get(end, neutral) == neutral else ""
    texts: dict[str, str | dict[str, Any]] = {}
    for name, path in files.items():
        if path.suffix == ".csv":
            texts[name] = _rename_rows(path, by_name)
        elif path.suffix == ".json":
            content = read_json(path)
            if (renamed := _rename_values(content, by_name, ends)) != content:
                texts[name] = renamed
    if "splits.csv" in texts:
        old = hashlib.sha256(files["splits.csv"].read_bytes()).hexdigest()
        new = hashlib.sha256(str(texts["splits.csv"]).encode()).hexdigest()
        by_name |= {old: new}
        for name in ("results.json", "evaluations.json"):
            if name in files:
                texts[name] = _rename_values(texts.get(name) or read_json(files[name]), by_name, ends)
    if "README.md" in files:
        card = files["README.md"].read_text(encoding="utf-8")
        cells = {escape_cell(name): neutral for name, neutral in by_name.items()}
        card = re.sub(r"(?<=^\| )(.+?)(?= \|)", lambda cell: cells.get(cell[0], cell[0]), card, flags=re.MULTILINE)
        texts["README.md"] = card.replace(old, new) if "splits.csv" in texts else card
    if not (folder / IDENTIFIERS).is_file():  # an older run
        write_atomic(
            folder / IDENTIFIERS, to_csv(pd.DataFrame({"identifier": list(names.values()), "image_id": list(names)}))
        )
    for name, text in texts.items():
        published[name] = folder / STAGING / name
        published[name].parent.mkdir(parents=True, exist_ok=True)
        write_atomic(published[name], text)
    return published


def _rename(table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Return a table with identifiers in the columns image_id and path; "" for unknown images."""
    columns = [column for column in IMAGE_COLUMNS if column in table]
    return table.assign(**{column: table[column].map(names).fillna("") for column in columns})


def _rename_rows(path: Path, names: Mapping[str, str]) -> str:
    """Return CSV text as of `_rename`; the text of numbers stays as it is, to the last digit."""
    stream = io.StringIO()
    try:
        with path.open(encoding="utf-8", newline="") as source:
            header, *rows = csv.reader(source)
    except (ValueError, csv.Error) as error:
        raise MedtlError(f"{path} is damaged ({error}). Nothing was uploaded.") from error
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        cells = [original_text(cell) for cell in row]
        pairs = zip(header, cells, strict=False)
        writer.writerow(
            harmless_text(names.get(cell, "") if column in IMAGE_COLUMNS else cell) for column, cell in pairs
        )
    return stream.getvalue()


def _rename_values(value: Any, names: Mapping[str, str], ends: Mapping[str, str]) -> Any:
    """Return JSON content whose texts that are names of images are their identifiers.

    Explanations name an image by the end of its path, under the key picture.
    """
    if isinstance(value, dict):
        return {
            key: ends.get(str(item), names.get(str(item), ""))
            if key == "picture"
            else _rename_values(item, names, ends)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_rename_values(item, names, ends) for item in value]
    return names.get(value, value) if isinstance(value, str) else value
