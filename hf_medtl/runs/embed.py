"""Embeddings: the features of images before the classification head, and a table of them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_medtl.common.text import printable
from hf_medtl.data.loading import locate_dataset
from hf_medtl.data.readers import READERS
from hf_medtl.data.specs import DATASETS
from hf_medtl.data.splits import join_groups
from hf_medtl.data.table_files import TABLE_SUFFIXES
from hf_medtl.errors import MedtlError
from hf_medtl.models.build import UNUSED_HEAD, build_classifier
from hf_medtl.models.device import select_device
from hf_medtl.models.encoder_classifier import ENCODERS, EncoderConfig
from hf_medtl.models.untrusted import load_config
from hf_medtl.predict import Predictor, loaded_revision
from hf_medtl.runs.batch_predict import check_outputs, predict_files

logger = logging.getLogger("hf_medtl")

FORMATS = (".parquet", ".jsonl")  # of tables that can hold lists
TRAINED = ("ForImageClassification", "ForSemanticSegmentation")


def embed_images(
    model: str,
    data: Sequence[str],
    out: Path,
    *,
    data_dir: Path | None = None,
    columns: Mapping[str, str] | None = None,
    batch_size: int = 16,
    revision: str | None = None,
    device: str | None = None,
) -> tuple[int, int]:
    """Write a table with the embedding of each image, the input of the last linear layer of a model.

    The columns are path, label, group and split where the data have them, embedding (d float32) and error. Groups stand
    for patients, by numbers instead of names. Resumes, and treats unreadable images, as `predict_files` does.

    Args:
        model: run folder, Hub id or folder of a classifier; or an image encoder, whose pooled output it is then, with
            the preprocessing that training would use.
        data: images and folders of images; or one folder of labels, one table of images, or the name of one dataset.
        out: table to write, one of FORMATS.
        data_dir: folder or file of a dataset that `data` names.
        columns: as for `load`.
        batch_size: images per forward pass.
        revision: branch, tag or commit on the Hub.
        device: as for `Predictor.from_pretrained`.

    Returns:
        The number of images, and how many of them have an error.

    Raises:
        MedtlError: As `Predictor.from_pretrained`, `build_classifier`, `predict_files` and `load`.
    """
    if out.suffix.lower() not in FORMATS:
        raise MedtlError(f"--out must end in {' or '.join(FORMATS)}, found {printable(out.name)}.")
    check_outputs(out)
    images, facts = find_images(data, data_dir, columns)
    predictor = load_embedder(model, revision, device)
    identity = f"{model}@{predictor.revision}"
    return predict_files(predictor, images, out, identity, batch_size=batch_size, embed=True, facts=facts)


def load_embedder(name: str, revision: str | None = None, device: str | None = None) -> Predictor:
    """Load a classifier as it is, or an encoder, or any other backbone, with a head that is not used.

    Args:
        name: run folder, folder or Hub id.
        revision: branch, tag or commit on the Hub.
        device: as for `Predictor.from_pretrained`.

    Raises:
        MedtlError: There is no such model, it has no image encoder, or files are unsafe or damaged.
    """
    chosen = select_device(device)
    try:
        config = load_config(name, revision=revision)
    except (OSError, ValueError, KeyError, RuntimeError):
        return Predictor.from_pretrained(name, revision, device)  # which says why it can't be loaded
    if any(str(architecture).endswith(TRAINED) for architecture in config.architectures or ()):
        return Predictor.from_pretrained(name, revision, device)
    model, processor = build_classifier(name, UNUSED_HEAD, revision=revision, pooling=_own_pooling(config))
    logger.info("The head is not used: embeddings are its input.")
    model.to(chosen)  # type: ignore[arg-type]
    return Predictor(model, processor, None, loaded_revision(name, revision))


def _own_pooling(config: Any) -> str | None:
    """Return how an image encoder is pooled by itself: the stock classifiers of some, such as DINOv2, differ."""
    vision = config if config.model_type in ENCODERS else getattr(config, "vision_config", None)
    return EncoderConfig(vision).pooling if getattr(vision, "model_type", None) in ENCODERS else None


def find_images(
    data: Sequence[str], data_dir: Path | None = None, columns: Mapping[str, str] | None = None
) -> tuple[list[Path], dict[str, dict[str, str]]]:
    """Return the images of files, folders, a table or a dataset, and path -> label, group and split where known.

    Args:
        data: as for `embed_images`.
        data_dir: as for `embed_images`.
        columns: as for `embed_images`.

    Raises:
        MedtlError: There is no such dataset, its files can't be found, or an argument does not fit.
    """
    paths = [Path(name) for name in data]
    name, path = data[0], paths[0]
    if len(data) == 1 and not path.exists() and (name in DATASETS or data_dir or _is_hub_id(name)):
        return _read_dataset(name, data_dir, columns)
    if data_dir:
        raise MedtlError("--data_dir is for one dataset that is named. Give its name instead of images.")
    if len(data) == 1 and path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        try:
            return _read_dataset("table", path, columns)
        except MedtlError as error:
            if "label" in (columns or {}):
                raise
            without_labels = _read_dataset("table", path, columns, "image-segmentation")  # a task that needs no labels
            logger.info("%s has no labels to write: %s", printable(path), error)
            return without_labels
    if columns:
        raise MedtlError("--columns is for a table or a dataset. Give one of them, or leave it out.")
    if len(data) == 1 and path.is_dir():
        try:
            return _read_dataset("imagefolder", path)
        except MedtlError as error:
            logger.info("%s has no labels to write: %s", printable(path), error)
    return paths, {}


def _is_hub_id(name: str) -> bool:
    """Return True for OWNER/NAME, unless it may be a file, or something in a folder, by a name that has a typo."""
    path = Path(name)
    return name.count("/") == 1 and "\\" not in name and not (path.suffix or path.parent.is_dir() or path.is_absolute())


def _read_dataset(
    name: str, data_dir: Path | None, columns: Mapping[str, str] | None = None, task: str | None = None
) -> tuple[list[Path], dict[str, dict[str, str]]]:
    spec, root = locate_dataset(name, data_dir, columns)
    spec, rows = READERS[spec.reader](replace(spec, task=task or spec.task), root)
    root = root.parent if root.is_file() else root
    rows = sorted(rows, key=lambda row: row["image_id"])
    patients = [row["patient"] for row in rows]
    groups = join_groups(patients, np.arange(len(rows))) if any(patients) else [""] * len(rows)
    table = [
        {
            "label": "" if row["label"].startswith("?") else row["label"],  # readers mark labels that a dataset lacks
            "group": group,
            "split": spec.official.get(row["official"], ""),
        }
        for row, group in zip(rows, groups, strict=True)
    ]
    present = {key for row in table for key, value in row.items() if value}
    facts = [{key: value for key, value in row.items() if key in present} for row in table]
    images = [root / row["path"] for row in rows]
    return images, dict(zip(map(str, images), facts, strict=True))
