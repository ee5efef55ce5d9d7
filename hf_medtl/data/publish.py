"""A data set -> Parquet with a card, splits and audit, and from there to the Hub."""

import hashlib
import importlib.resources
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData, HfApi
from jinja2 import Environment, StrictUndefined
from PIL import Image
from tqdm.auto import tqdm

from hf_medtl.data.images import read_image, read_mask
from hf_medtl.data.loading import COLUMNS, Loaded
from hf_medtl.data.splits import SPLITS, pseudonyms
from hf_medtl.errors import MedtlError

# Licences that let anybody pass a changed copy on (pictures are encoded anew); NC and SA bind those who take it, too.
OPEN = ("cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
        "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "pddl", "odc-by", "odbl", "mit", "apache-2.0")  # fmt: skip
ROWS = 64  # pictures that are in memory at a time


def check_licence(loaded: Loaded, rights_held: bool) -> None:
    """Refuse to pass on what nobody has allowed to.

    Raises:
        MedtlError: the licence is unknown or forbids it, and the user has not said that they hold the right.
    """
    if loaded.spec.licence not in OPEN and not rights_held:
        raise MedtlError(
            f"The licence of {loaded.spec.title} is {loaded.spec.licence}: it is not known to allow redistribution, so "
            "nothing was uploaded. Ask its owners. If you hold the right to publish these pictures, say so with "
            "--rights_held."
        )


def write_parquet(loaded: Loaded, out: Path, findings: list[str], name: str) -> Path:
    """Write what a data-set repo needs: data/SPLIT-*.parquet, README.md and splits.csv.

    Every picture is decoded by `read_image` and encoded anew as PNG, so that EXIF and DICOM headers stay behind; the
    patients are numbered. `datasets.load_dataset` gives the columns image, mask, label, patient, source, image_id.

    Args:
        loaded: what to write.
        out: folder, made if need be.
        findings: what is to be known about the data, as `audit.summary` says it; they go on the card.
        name: of the repo, for the card.

    Raises:
        MedtlError: a picture can have several labels.
    """
    if loaded.spec.several:
        raise MedtlError(f"{loaded.spec.title} has several labels a picture. Only sets with one are written, so far.")
    features = datasets.Features(
        image=datasets.Image(),
        mask=datasets.Image(),
        label=datasets.ClassLabel(names=list(loaded.labels)),
        patient=datasets.Value("string"),
        source=datasets.Value("string"),
        image_id=datasets.Value("string"),
    )
    table = loaded.table.assign(patient=pseudonyms(loaded.table["patient"].tolist()))
    (out / "data").mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(table), desc="Encoding pictures", unit="picture", leave=False, disable=None) as progress:
        for split in SPLITS:
            rows = table[table["split"] == split]
            if rows.empty:
                continue
            schema = features.arrow_schema
            with pq.ParquetWriter(out / "data" / f"{split}-00000-of-00001.parquet", schema) as writer:
                for start in range(0, len(rows), ROWS):
                    batch = list(encoded(loaded, rows.iloc[start : start + ROWS]))
                    writer.write_table(pa.Table.from_pylist(batch, schema))
                    progress.update(len(batch))
    splits = table[COLUMNS].to_csv(index=False)
    (out / "splits.csv").write_text(splits, encoding="utf-8")
    (out / "README.md").write_text(card(loaded, findings, name, splits), encoding="utf-8")
    return out


def encoded(loaded: Loaded, rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file."""
    for row in rows.to_dict("records"):
        image = read_image(loaded.root / row["path"])
        pixels = np.asarray(image)
        if (pixels[..., :1] == pixels).all():
            image = image.getchannel(0)
        parts = [loaded.root / part for part in row["mask"].split("|") if part]
        yield {
            "image": png(image, row["image_id"]),
            "mask": png(read_mask(parts), row["image_id"]) if parts else None,
            "label": loaded.labels.index(row["label"]),
            "patient": row["patient"],
            "source": row["source"],
            "image_id": row["image_id"],
        }


def png(image: Image.Image, image_id: str) -> dict[str, Any]:
    """A picture as the `Image` feature stores it."""
    content = io.BytesIO()
    image.save(content, "PNG")
    return {"bytes": content.getvalue(), "path": f"{Path(image_id).stem}.png"}


def card(loaded: Loaded, findings: list[str], name: str, splits: str) -> str:
    """README.md of the data set, with the front matter of the Hub."""
    spec = loaded.spec
    number = len(loaded.table)
    sizes = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M"]
    known = spec.licence if spec.licence in OPEN else "other"
    metadata = DatasetCardData(
        license=known,
        task_categories=[spec.task],
        pretty_name=spec.title,
        size_categories=[sizes[min(3, max(0, len(str(number)) - 3))]],
        tags=["medical", "hf_medtl", *(["synthetic-data"] if spec.phantom else [])],
    )
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
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


def upload(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a written data set as one commit and return the repo's address; the token is that of `hf auth login`.

    Raises:
        MedtlError: the Hub refuses or can't be reached.
    """
    try:
        api = HfApi()
        repo = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=["README.md", "splits.csv", "data/*.parquet", "audit/audit.*"],
            delete_patterns=["data/*.parquet"],  # those of an earlier push with other splits
            commit_message="Upload data set",
        )
    except OSError as error:  # what huggingface_hub raises on HTTP errors is one, too
        raise MedtlError(
            f"{repo_id} could not be uploaded ({type(error).__name__}: {str(error).splitlines()[0]}). Check the "
            "network, the name and `hf auth login`, then push again."
        ) from error
    return str(repo)


def size_mb(folder: Path) -> float:
    """Megabytes in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
