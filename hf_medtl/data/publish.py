"""Dataset publishing: Parquet files with a dataset card, splits and audit, uploaded to the Hub."""

import hashlib
import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData, HfApi
from huggingface_hub.utils import filter_repo_objects
from jinja2 import Environment, StrictUndefined
from PIL import Image
from tqdm.auto import tqdm

from hf_medtl.common.csv_cells import to_csv
from hf_medtl.common.files import adding_files, list_files, write_atomic
from hf_medtl.common.hub_errors import hub_errors, with_retries
from hf_medtl.common.licences import LICENCES, card_metadata, normalise
from hf_medtl.common.text import escape_cell
from hf_medtl.data.dataset import COLUMNS, LoadedDataset, Survey
from hf_medtl.data.identifiers import are_neutral
from hf_medtl.data.images import encode_image, read_image, read_mask
from hf_medtl.data.name_scan import check_names
from hf_medtl.data.person_names import names_in_headers, names_in_paths
from hf_medtl.data.splits import SPLITS, pseudonymize_patients
from hf_medtl.errors import MedtlError

UPLOADED = ["README.md", "splits.csv", "data/*.parquet", "audit/audit.*"]
SurveyType = TypeVar("SurveyType", bound=Survey)
_BATCH_ROWS = 64  # images in memory at a time


def check_licence(loaded: LoadedDataset, rights_held: bool) -> None:
    """Check that a dataset may be redistributed.

    Args:
        loaded: The dataset.
        rights_held: True if the user states that they hold the right to publish the images.

    Raises:
        MedtlError: The licence is unknown or forbids redistribution, and the rights are not held.
    """
    if not _is_redistributable(loaded.spec.licence) and not rights_held:
        raise MedtlError(
            f"The licence of {loaded.spec.title} is {loaded.spec.licence}: it is not known to allow redistribution, so "
            "nothing was uploaded. Ask its owners. If you hold the right to publish these images, pass --rights_held."
        )


def _is_redistributable(licence: str) -> bool:
    """Return True if a licence is known to allow a modified copy, which re-encoded images are."""
    terms = LICENCES.get(normalise(licence))
    return terms is not None and terms.redistribution and terms.derivatives


def check_places(survey: Survey, outside: Sequence[Path] = ()) -> None:
    """Check that all images and masks are inside the data folder: a table or a link may name any file of the disk.

    Args:
        survey: The dataset.
        outside: Other folders that they may be in.

    Raises:
        MedtlError: One is elsewhere.
    """
    folders = [folder.resolve() for folder in (survey.root, *outside)]
    masks = [part for cell in survey.table["mask"] for part in cell.split("|") if part]
    for what, paths in (("images", list(survey.table["path"])), ("masks", masks)):
        files = [(survey.root / path).resolve() for path in paths]
        elsewhere = [file for file in files if not any(file.is_relative_to(folder) for folder in folders)]
        if elsewhere:
            raise MedtlError(
                f"{len(elsewhere)} of {len(files)} {what} are outside {survey.root}, such as {elsewhere[0]}, and would "
                "be published. Copy them into the folder, or allow their folder: --outside DIR. Nothing was uploaded."
            )


def hide_names(survey: SurveyType, names: Mapping[str, str]) -> SurveyType:
    """Return a dataset with other image_ids; the paths stay, to read the images.

    Args:
        survey: The dataset.
        names: image_id -> identifier of `number_images`.
    """
    return replace(survey, table=survey.table.assign(image_id=survey.table["image_id"].map(names)))


def check_published_names(folder: Path, survey: Survey, allowed: frozenset[str] = frozenset()) -> None:
    """Check that no file of a written dataset holds a name of a file, folder or header of its source.

    Args:
        folder: Result of `write_parquet`, with its audit.
        survey: The dataset, with its own names.
        allowed: As for `check_names`.

    Raises:
        MedtlError: One does.
    """
    table, excluded = survey.table, survey.excluded
    masks = [part for cell in table["mask"] for part in cell.split("|") if part]
    public = {*survey.labels, *table["source"], survey.spec.name, survey.spec.title}
    names = names_in_headers([survey.root / path for path in [*table["path"], *masks]])
    names |= names_in_paths([*table["path"], *masks, *excluded["path"], *table["image_id"]], public)
    files = list_files(folder)
    check_names({name: files[name] for name in filter_repo_objects(files, allow_patterns=UPLOADED)}, names, allowed)


def write_parquet(loaded: LoadedDataset, out: Path, findings: list[str], name: str) -> Path:
    """Write the files of a dataset repository: data/SPLIT-*.parquet, README.md and splits.csv.

    Every image is decoded by `read_image` and re-encoded as PNG, which removes EXIF and DICOM headers; patients are
    pseudonymized. `datasets.load_dataset` gives the columns image, mask, label, patient, source, image_id. Neutral
    image_ids (`hide_names`) are in splits.csv instead of paths, too.

    Args:
        loaded: The dataset.
        out: Folder, created if necessary.
        findings: Sentences of `audit_page.summary` for the card.
        name: Repository id for the card.

    Returns:
        The folder.

    Raises:
        MedtlError: The dataset is multilabel.
    """
    if loaded.spec.multilabel:
        raise MedtlError(f"{loaded.spec.title} is multilabel. Only datasets with one label per image can be written.")
    schema = loaded.features().arrow_schema
    table = loaded.table.assign(patient=pseudonymize_patients(loaded.table["patient"].tolist()))
    progress = tqdm(total=len(table), desc="Encoding images", unit="image", leave=False, disable=None)
    with adding_files(out) as staging, progress:
        (staging / "data").mkdir()
        for split in SPLITS:
            rows = table[table["split"] == split]
            if rows.empty:
                continue
            with pq.ParquetWriter(staging / "data" / f"{split}-00000-of-00001.parquet", schema) as writer:
                for start in range(0, len(rows), _BATCH_ROWS):
                    batch = list(_encode_rows(loaded, rows.iloc[start : start + _BATCH_ROWS]))
                    writer.write_table(pa.Table.from_pylist(batch, schema))
                    progress.update(len(batch))
        if are_neutral(table["image_id"].tolist()):
            table["path"] = table["image_id"]
        splits = to_csv(table[COLUMNS])
        write_atomic(staging / "splits.csv", splits)
        write_atomic(staging / "README.md", render_card(loaded, findings, name, splits))
    return out


def _encode_rows(loaded: LoadedDataset, rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file."""
    for row in rows.to_dict("records"):
        image = read_image(loaded.root / row["path"])
        pixels = np.asarray(image)
        if (pixels[..., :1] == pixels).all():
            image = image.getchannel(0)
        parts = [loaded.root / part for part in row["mask"].split("|") if part]
        yield {
            "image": _encode_png(image, row["image_id"]),
            "mask": _encode_png(read_mask(parts), row["image_id"]) if parts else None,
            "label": loaded.labels.index(row["label"]),
            "patient": row["patient"],
            "source": row["source"],
            "image_id": row["image_id"],
        }


def _encode_png(image: Image.Image, image_id: str) -> dict[str, Any]:
    """Return an image as the `Image` feature stores it."""
    return {"bytes": encode_image(image), "path": f"{Path(image_id).stem}.png"}


def render_card(loaded: LoadedDataset, findings: list[str], name: str, splits: str) -> str:
    """Return the README.md of a dataset with the Hub's metadata.

    Args:
        loaded: The dataset.
        findings: Sentences of `audit_page.summary`.
        name: Repository id.
        splits: Content of splits.csv.
    """
    spec = loaded.spec
    number = len(loaded.table)
    sizes = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M"]
    licence = normalise(spec.licence) if _is_redistributable(spec.licence) else "other"
    metadata = DatasetCardData(
        **card_metadata(licence),
        task_categories=[spec.task],
        pretty_name=spec.title,
        size_categories=[sizes[min(3, max(0, len(str(number)) - 3))]],
        tags=["medical", "hf_medtl", *(["synthetic-data"] if spec.phantom else [])],
    )
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["cell"] = escape_cell
    template = importlib.resources.files("hf_medtl.data").joinpath("card.md.jinja").read_text(encoding="utf-8")
    body = environment.from_string(template).render(
        spec=spec,
        name=name,
        labels=loaded.labels,
        counts=loaded.counts(),
        findings=findings,
        excluded={str(kind): int(n) for kind, n in loaded.excluded["kind"].value_counts().items()},
        sources=loaded.table["source"].value_counts().to_dict(),
        patients=loaded.table["patient"].replace("", pd.NA).nunique(),
        masks=int((loaded.table["mask"] != "").sum()),
        sha256=hashlib.sha256(splits.encode()).hexdigest(),
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def upload_dataset(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a written dataset as one commit with the token of `hf auth login`.

    Args:
        folder: Result of `write_parquet`.
        repo_id: Repository id, `owner/name`.
        private: Create a private repository.

    Returns:
        URL of the repository.

    Raises:
        MedtlError: The Hub refuses the upload or can't be reached.
    """
    api = HfApi()
    with hub_errors(f"{repo_id} could not be uploaded", "Push it again."):
        repo = with_retries(lambda: api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True))
        with_retries(
            lambda: api.upload_folder(
                repo_id=repo.repo_id,
                repo_type="dataset",
                folder_path=folder,
                allow_patterns=UPLOADED,
                delete_patterns=["data/*.parquet"],  # files of an earlier push with other splits
                commit_message="Upload dataset",
            )
        )
    return str(repo)


def folder_size_mb(folder: Path) -> float:
    """Return the size of a folder in megabytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
