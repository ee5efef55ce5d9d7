"""Predictions of many files: resumed where it stopped, shared between processes, one bad file never stops the rest."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from PIL import Image
from tqdm.auto import tqdm

from hf_medtl.data.dicom_writer import ObjectBuilder, make_overlay, make_segmentation, save_dicom_outputs
from hf_medtl.data.images import read_image
from hf_medtl.data.inputs import image_files
from hf_medtl.errors import MedtlError
from hf_medtl.explain.gallery import overlay
from hf_medtl.predict import Predictor, prediction_columns

logger = logging.getLogger("hf_medtl")
FORMATS = (".csv", ".jsonl", ".parquet")
BLOCK = 10_000  # rows at a time, when the table is written


def predict_files(
    predictor: Predictor,
    places: Sequence[Path],
    out: Path,
    identity: str,
    masks: Path | None = None,
    maps: Path | None = None,
    batch_size: int = 16,
    explain: str | None = None,
    tta: int = 0,
    mc_dropout: int = 0,
    dicom: bool = True,
) -> tuple[int, int]:
    """Write a table with a row a picture; return how many there are, and how many of them have an error.

    Until all are done, rows are in OUT.part-*.jsonl, written after each batch: the same command goes on from there,
    with any number of processes (`accelerate launch`). The order of rows is that of the files.

    Args:
        predictor: what predicts.
        places: files, and folders of pictures.
        out: table to write, one of FORMATS.
        identity: of the model, such as its name and revision: parts made with another are refused.
        masks: folder for masks, PNG of class indices, under the pictures' names; for segmentation models.
        maps: folder for the pictures with maps over them, PNG, likewise; needs `explain`.
        batch_size, explain, tta, mc_dropout: as for `Predictor.predict`.
        dicom: write masks and maps of DICOM files as DICOM, too, under the same names with .seg.dcm and .sc.dcm. A file
            that lacks what these need has an error beside its answer.

    Raises:
        MedtlError: `out` is there, has another ending, or its parts are of another model; no pictures; masks asked of a
            model that gives none.
    """
    state = PartialState()
    if out.suffix not in FORMATS:
        raise MedtlError(f"--out ends in {', '.join(FORMATS)}, found {out.name}.")
    if out.exists():
        raise MedtlError(f"{out} is there already. Move it away, or give another --out.")
    if masks and not predictor.of_masks:
        raise MedtlError("--masks is for segmentation models; this one gives labels. Leave it out.")
    if (maps is None) != (explain is None):
        raise MedtlError("--maps says where maps go, and --explain which: give both.")
    identity += "".join(f", {name} {number}" for name, number in (("tta", tta), ("dropout", mc_dropout)) if number)
    files = list(dict.fromkeys(path for place in places for path in image_files(place)))
    out.parent.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        for path in _parts(out):
            _mend(path)
    state.wait_for_everyone()
    known = {str(path) for path in files}
    done = {row["path"] for row in _rows(out, identity)} & known
    if done and state.is_main_process:
        logger.info("%d of %d pictures are done already.", len(done), len(files))
    state.wait_for_everyone()  # nobody writes before all have read
    mine = [path for path in files if str(path) not in done][state.process_index :: state.num_processes]
    part = out.with_name(f"{out.name}.part-{state.process_index}.jsonl")
    # Of a folder the end only: what is above it may name a person.
    maker = "/".join(Path(predictor.config.name_or_path or type(predictor.model).__name__).parts[-2:])
    made_by: dict[str, Any] = {"model_name": maker, "revision": predictor.revision}
    with part.open("a", encoding="utf-8") as stream:
        if not part.stat().st_size:
            stream.write(json.dumps({"model": identity}) + "\n")
        bar = tqdm(total=len(mine), unit="picture", disable=None if state.is_local_main_process else True)
        for number, prediction in enumerate(predictor.stream(mine, batch_size, explain, tta, mc_dropout), 1):
            row, objects = prediction.row(), dict[Path, ObjectBuilder]()
            if masks and prediction.mask is not None:
                target = _target(prediction.name, places, masks)
                Image.fromarray(prediction.mask).save(target)
                objects[target.with_suffix(".seg.dcm")] = partial(
                    make_segmentation, mask=prediction.mask, labels=predictor.labels, **made_by
                )
            if maps and prediction.map is not None:
                target = _target(prediction.name, places, maps)
                over = overlay(read_image(prediction.name), prediction.map)
                over.save(target)
                label = prediction.label
                told = f"{label} {prediction.probabilities[label]:.3f} by {explain}" if label else str(explain)
                objects[target.with_suffix(".sc.dcm")] = partial(make_overlay, picture=over, told=told, **made_by)
            if dicom and objects:
                row["error"] = save_dicom_outputs(prediction.name, objects)
            stream.write(json.dumps(row) + "\n")
            if number % batch_size == 0:
                stream.flush()
                os.fsync(stream.fileno())
            bar.update()
        bar.close()
    state.wait_for_everyone()
    failed = 0
    if state.is_main_process:
        failed = _write_table(out, files, prediction_columns(predictor, spread=bool(tta or mc_dropout)))
        for path in _parts(out):
            path.unlink()
    return len(files), failed


def _parts(out: Path) -> list[Path]:
    return sorted(out.parent.glob(f"{out.name}.part-*.jsonl"))


def _mend(part: Path) -> None:
    """Cut off the last line of a part if it was being written when the process died."""
    content = part.read_bytes()
    part.write_bytes(content[: content.rfind(b"\n") + 1])


def _rows(out: Path, identity: str) -> Iterator[dict[str, Any]]:
    """The rows of all parts."""
    for part in _parts(out):
        with part.open(encoding="utf-8") as stream:
            for row in map(json.loads, stream):
                if "model" not in row:
                    yield row
                elif row["model"] != identity:
                    raise MedtlError(
                        f"{part} was begun with {row['model']}, this is {identity}. Give another --out, or remove it."
                    )


def _write_table(out: Path, files: Sequence[Path], names: list[str]) -> int:
    """The parts' rows in the order of the files, a block at a time, in a file that is whole or not there.

    Returns:
        How many have an error.
    """
    place: dict[str, tuple[Path, int]] = {}
    for part in _parts(out):
        offset = 0
        with part.open("rb") as stream:
            for line in stream:
                place[json.loads(line).get("path", "")] = part, offset
                offset += len(line)
    text, failed = {"path", "label", "decision", "reason", "error"}, 0
    schema = pa.schema(
        (name, pa.string() if name in text else pa.bool_() if name == "abstain" else pa.float64()) for name in names
    )
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    with contextlib.ExitStack() as stack:
        streams = {part: stack.enter_context(part.open("rb")) for part in _parts(out)}
        parquet = stack.enter_context(pq.ParquetWriter(partial, schema)) if out.suffix == ".parquet" else None
        for start in range(0, len(files), BLOCK):
            rows = []
            for path in files[start : start + BLOCK]:
                part, offset = place[str(path)]
                streams[part].seek(offset)
                rows.append(json.loads(streams[part].readline()))
            table = pd.DataFrame(rows, columns=names)
            failed += int((table["error"] != "").sum())
            if parquet:
                parquet.write_table(pa.Table.from_pandas(table, schema, preserve_index=False))
            elif out.suffix == ".csv":
                table.to_csv(partial, mode="a", header=not start, index=False)
            else:
                table.to_json(partial, orient="records", lines=True, mode="a", double_precision=15)
    partial.replace(out)
    return failed


def _target(name: str, places: Sequence[Path], folder: Path) -> Path:
    """A picture's path below the place that was given, in `folder` and with .png added."""
    path = Path(name)
    base = next((place for place in places if path.is_relative_to(place) and place != path), path.parent)
    target = folder / f"{path.relative_to(base)}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
