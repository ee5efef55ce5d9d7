"""Batch prediction of files: resumable, distributed over processes, and robust to unreadable files."""

import contextlib
import errno
import functools
import glob
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from PIL import Image
from tqdm.auto import tqdm

from hf_medtl.common.csv_cells import harmless_cells
from hf_medtl.common.files import replacing, write_atomic
from hf_medtl.common.system import is_disk_full
from hf_medtl.common.text import printable
from hf_medtl.data.dicom_writer import ObjectBuilder, make_overlay, make_segmentation, save_dicom_outputs
from hf_medtl.data.images import encode_image, read_image
from hf_medtl.data.inputs import iter_sources
from hf_medtl.errors import MedtlError
from hf_medtl.explain.gallery import overlay
from hf_medtl.predict import Predictor, prediction_columns
from hf_medtl.runs.lock import lock_folder

logger = logging.getLogger("hf_medtl")
P = ParamSpec("P")
R = TypeVar("R")
FORMATS = (".csv", ".jsonl", ".parquet")
BLOCK = 10_000  # rows in memory while the table is written
FACTS = ("label", "group", "split")  # columns of text that a data set may have; label is the predicted one otherwise
STAMP = "file"  # key of the size and the time of an image's file in the rows of a part
LONGEST_NAME = 240  # bytes of a file name, of the 255 that file systems allow: .seg.dcm may follow


def check_outputs(out: Path, masks: Path | None = None, maps: Path | None = None, explain: str | None = None) -> None:
    """Check, before a model is loaded, that a table and files of images can be written.

    Args:
        out: as for `predict_files`.
        masks: as for `predict_files`.
        maps: as for `predict_files`.
        explain: as for `predict_files`.

    Raises:
        MedtlError: `out` exists, and is not of this command when it was killed, or has another suffix; a folder can't
            be written to; masks and maps would have the same names; or only one of `maps` and `explain` is given.
    """
    if out.suffix.lower() not in FORMATS:
        raise MedtlError(f"--out must end in {', '.join(FORMATS)}, found {printable(out.name)}.")
    if out.exists() and not _parts(out):  # with parts it is of this command, killed just before their removal
        raise MedtlError(f"{printable(out)} already exists. Move it away, or use another --out.")
    if (maps is None) != (explain is None):
        raise MedtlError("--maps (folder) and --explain (method) must be given together.")
    if maps and masks and maps.resolve() == masks.resolve():
        raise MedtlError("--maps and --masks would overwrite each other's files. Give two folders.")
    for option, folder in (("--out", out.parent), ("--masks", masks), ("--maps", maps)):
        if folder is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise MedtlError(
                f"{option}: {printable(folder)} is no folder that can be written to ({error.strerror}). Give another."
            ) from error


def _one_at_a_time(function: Callable[Concatenate[Predictor, Sequence[Path], Path, P], R]) -> Callable[..., R]:
    """Refuse a second job with the same table: rows of both would be mixed in its parts."""

    @functools.wraps(function)
    def locked(predictor: Predictor, inputs: Sequence[Path], out: Path, *args: P.args, **kwargs: P.kwargs) -> R:
        if not PartialState().is_main_process:
            return function(predictor, inputs, out, *args, **kwargs)
        with lock_folder(out.parent, f".{out.name}.lock", f"predicts to {printable(out.name)}", "--out"):
            return function(predictor, inputs, out, *args, **kwargs)

    return locked


@_one_at_a_time
def predict_files(
    predictor: Predictor,
    inputs: Sequence[Path],
    out: Path,
    identity: str,
    masks: Path | None = None,
    maps: Path | None = None,
    batch_size: int = 16,
    explain: str | None = None,
    tta: int = 0,
    mc_dropout: int = 0,
    dicom: bool = False,
    embed: bool = False,
    facts: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[int, int]:
    """Write a table with one row per image.

    Until all are done, rows are in OUT.part-*.jsonl, written after each batch: the same command resumes from there,
    with any number of processes (`accelerate launch`), and predicts again what was changed since. Rows have the order
    of the files.

    Args:
        predictor: the model.
        inputs: files, and folders of images. One that is missing, or has no images, is a row with an error.
        out: table to write, one of FORMATS.
        identity: identity of the model, such as its name and revision: parts written with another one are rejected.
        masks: folder for masks, PNG of class indices, named like the images; for segmentation models. Where images of
            two inputs have the same name, their folders are kept.
        maps: folder for images with heatmap overlays, PNG, likewise; needs `explain`.
        batch_size: as for `Predictor.predict`.
        explain: as for `Predictor.predict`.
        tta: as for `Predictor.predict`.
        mc_dropout: as for `Predictor.predict`.
        dicom: also write masks and overlays of DICOM files as DICOM, with the suffixes .seg.dcm and .sc.dcm. If a file
            lacks the required attributes, its row has an error beside the prediction. They name the patient as the
            DICOM file does.
        embed: write the input of the classification head, `embedding`, instead of predictions.
        facts: with `embed`, what is known of images: path -> some of label, group and split, which become columns.

    Returns:
        The number of images, and how many of them have an error.

    Raises:
        MedtlError: as `check_outputs`; the parts of `out` are of another model; the disk is full; no images in a batch;
            or masks requested of a model without masks.
    """
    state = PartialState()
    check_outputs(out, masks, maps, explain)
    if batch_size < 1:
        raise MedtlError(f"--batch_size must be at least 1, found {batch_size}.")
    if masks and not predictor.is_segmentation:
        raise MedtlError("--masks is for segmentation models; this one predicts labels. Leave it out.")
    identity += "".join(f", {name} {number}" for name, number in (("tta", tta), ("dropout", mc_dropout)) if number)
    identity += ", embedding" if embed else ""
    columns = prediction_columns(predictor, bool(tta or mc_dropout))
    if embed:
        present = {name for fact in (facts or {}).values() for name in fact}
        columns = ["path", *(name for name in FACTS if name in present), "embedding", "error"]
    files = [Path(str(path)) for path in dict.fromkeys(iter_sources(inputs))]
    names = _names(files, inputs)
    if state.is_main_process:
        for path in _parts(out):
            _truncate(path)
    state.wait_for_everyone()
    done = {row["path"] for row in _rows(out, identity) if _is_current(row)} & {str(path) for path in files}
    if done and state.is_main_process:
        logger.info("%d of %d images are already done.", len(done), len(files))
    state.wait_for_everyone()  # no process may write before all have read
    remaining = [path for path in files if str(path) not in done][state.process_index :: state.num_processes]
    part = out.with_name(f"{out.name}.part-{state.process_index}.jsonl")
    # Only the end of a folder's path: the folders above it may contain a person's name.
    model_name = "/".join(Path(predictor.config.name_or_path or type(predictor.model).__name__).parts[-2:])
    made_by: dict[str, Any] = {"model_name": model_name, "revision": predictor.revision}
    stamps: dict[str, list[int] | None] = {}

    def stamped() -> Iterator[Path]:
        for path in remaining:
            stamps[str(path)] = _stamp(path)  # before it is read
            yield path

    with _disk_full_explained(part), part.open("a", encoding="utf-8") as stream:
        if not part.stat().st_size:
            stream.write(json.dumps({"model": identity}) + "\n")
        predictions = predictor.stream(stamped(), batch_size, explain, tta, mc_dropout, embed)
        bar = tqdm(total=len(remaining), unit="image", disable=None if state.is_local_main_process else True)
        for number, prediction in enumerate(predictions, 1):
            row, objects = prediction.row(), dict[Path, ObjectBuilder]()
            if embed:
                values = None if prediction.embedding is None else prediction.embedding.tolist()
                row = {"path": prediction.name, "embedding": values, "error": prediction.error}
            try:
                if masks and prediction.mask is not None:
                    target = _target(masks, names[prediction.name])
                    write_atomic(target, encode_image(Image.fromarray(prediction.mask)))
                    objects[target.with_suffix(".seg.dcm")] = partial(
                        make_segmentation, mask=prediction.mask, labels=predictor.labels, **made_by
                    )
                if maps and prediction.map is not None:
                    target = _target(maps, names[prediction.name])
                    blended = overlay(read_image(prediction.name), prediction.map)
                    write_atomic(target, encode_image(blended))
                    label = prediction.label
                    caption = f"{label} {prediction.probabilities[label]:.3f} by {explain}" if label else str(explain)
                    objects[target.with_suffix(".sc.dcm")] = partial(
                        make_overlay, image=blended, description=caption, **made_by
                    )
                if dicom and objects:
                    row["error"] = save_dicom_outputs(prediction.name, objects) or row["error"]
            except (OSError, MedtlError) as error:  # of this image alone; the prediction is unaffected
                if is_disk_full(error) or getattr(error, "errno", None) == errno.EROFS:  # of all images
                    raise
                row["error"] = f"{prediction.name}: no image of the result could be written ({error})."
            stream.write(json.dumps(row | {STAMP: stamps.pop(prediction.name, None)}) + "\n")
            if number % batch_size == 0:
                stream.flush()
                os.fsync(stream.fileno())
            bar.update()
        bar.close()
    state.wait_for_everyone()
    failed = 0
    if state.is_main_process:
        with _disk_full_explained(out):
            failed, differing = _write_table(out, files, columns, facts or {})
        if differing and not (predictor.multilabel or predictor.is_segmentation):
            logger.info(
                "In %d row%s the decision is not the most probable label. %s",
                differing,
                "" if differing == 1 else "s",
                predictor.decision_rule.sentence(),
            )
        for path in _parts(out):
            path.unlink()
    return len(files), failed


@contextlib.contextmanager
def _disk_full_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise MedtlError(
            f"The disk is full: {printable(path)} could not be written. What is done is kept: free some space and "
            "repeat the command."
        ) from error


def _parts(out: Path) -> list[Path]:
    return sorted(out.parent.glob(f"{glob.escape(out.name)}.part-*.jsonl"))


def _truncate(part: Path) -> None:
    """Remove the last line of a part if it is incomplete because the process died."""
    content = part.read_bytes()
    write_atomic(part, content[: content.rfind(b"\n") + 1])


def _rows(out: Path, identity: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of all parts."""
    for part in _parts(out):
        with part.open(encoding="utf-8") as stream:
            for row in map(json.loads, stream):
                if "model" not in row:
                    yield row
                elif row["model"] != identity:
                    raise MedtlError(
                        f"{part} was started with {row['model']}, this is {identity}. Use another --out, or remove it."
                    )


def _stamp(path: Path) -> list[int] | None:
    """Return the size and the time of change of a file, which tell whether it is the same; None if it is missing."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _is_current(row: dict[str, Any]) -> bool:
    """Return True if the file of a row is as it was; parts of older versions do not say."""
    return STAMP not in row or row[STAMP] == _stamp(Path(row["path"]))


def _write_table(
    out: Path, files: Sequence[Path], names: list[str], facts: Mapping[str, Mapping[str, str]]
) -> tuple[int, int]:
    """Merge the rows of the parts in the order of the files, block by block, into an atomically written table.

    Returns:
        The number of rows with an error, and of those whose decision is not the label.
    """
    positions: dict[str, tuple[Path, int]] = {}
    for part in _parts(out):
        offset = 0
        with part.open("rb") as stream:
            for line in stream:
                row = json.loads(line)
                path = row.get("path", "")
                if path not in positions or _is_current(row):  # of a changed image the newer row
                    positions[path] = part, offset
                offset += len(line)
    suffix = out.suffix.lower()
    text, failed, differing = ["path", *FACTS, "decision", "reason", "error"], 0, 0
    types = dict.fromkeys(text, pa.string()) | {"abstain": pa.bool_(), "embedding": pa.list_(pa.float32())}
    schema = pa.schema((name, types.get(name, pa.float64())) for name in names)
    with replacing(out) as partial, contextlib.ExitStack() as stack:
        streams = {part: stack.enter_context(part.open("rb")) for part in _parts(out)}
        parquet = stack.enter_context(pq.ParquetWriter(partial, schema)) if suffix == ".parquet" else None
        for start in range(0, len(files), BLOCK):
            rows = []
            for path in files[start : start + BLOCK]:
                part, offset = positions[str(path)]
                streams[part].seek(offset)
                row = json.loads(streams[part].readline()) | dict(facts.get(str(path), {}))
                if row.get("embedding"):
                    row["embedding"] = np.asarray(row["embedding"], np.float32)  # a tenth of the memory of a list
                rows.append(row | {name: printable(row[name]) for name in text if row.get(name)})
            table = pd.DataFrame(rows, columns=names)
            failed += int((table["error"] != "").sum())
            if "decision" in table:
                differing += int((table["label"] != table["decision"])[table["decision"].notna()].sum())
            if parquet:
                parquet.write_table(pa.Table.from_pandas(table, schema, preserve_index=False))
            elif suffix == ".csv":
                harmless_cells(table).to_csv(partial, mode="a", header=not start, index=False, encoding="utf-8")
            else:
                table.to_json(partial, orient="records", lines=True, mode="a", double_precision=15)
    return failed, differing


def _names(files: Sequence[Path], inputs: Sequence[Path]) -> dict[str, Path]:
    """Return the path of each image relative to its input folder, or to the folder of all inputs if two were equal."""
    names = {}
    for path in files:
        base = next((source for source in inputs if path.is_relative_to(source) and source != path), path.parent)
        names[str(path)] = path.relative_to(base)
    if len({str(name).casefold() for name in names.values()}) < len(names):
        paths = {name: Path(os.path.normpath(Path(name).absolute())) for name in names}
        try:
            common = os.path.commonpath([path.parent for path in paths.values()])
            names = {name: path.relative_to(common) for name, path in paths.items()}
        except ValueError:  # on two drives of Windows
            names = {name: Path(path.drive.strip("\\/:"), *path.parts[1:]) for name, path in paths.items()}
    return names


def _target(folder: Path, name: Path) -> Path:
    """Return the path of an image's PNG below a folder, which is made; the end of a long name becomes a checksum."""
    target = folder / f"{name}.png"
    if len(os.fsencode(target.name)) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(name.name)).hexdigest()[:16]
        start = os.fsdecode(os.fsencode(name.name)[: LONGEST_NAME - 24])
        target = target.with_name(f"{start}-{digest}.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
