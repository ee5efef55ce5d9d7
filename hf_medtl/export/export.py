"""Export of a run to ONNX or OpenVINO, kept only if its decisions are those of the run."""

import contextlib
import importlib.metadata
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from hf_medtl.common.checksums import SHOWN, check_unchanged, recording_folder
from hf_medtl.common.files import replacing_folder, write_atomic
from hf_medtl.common.licences import UNKNOWN, Source, card_metadata, normalise, read_licence
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.images import read_image
from hf_medtl.data.inputs import image_files
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.names import METRIC_NAMES
from hf_medtl.export.onnx import InferenceFn, Pixels, load_onnx, move_onnx, quantise_onnx, write_onnx
from hf_medtl.export.openvino import load_openvino, write_openvino
from hf_medtl.export.preprocessing_spec import build_preprocessing_spec
from hf_medtl.export.verification import ReferenceImages, compare_with_model, with_inference_fn
from hf_medtl.models.benchmark import measure_latencies
from hf_medtl.models.smp import tile_windows
from hf_medtl.predict import Prediction, Predictor
from hf_medtl.publish.base_model import sha256_of
from hf_medtl.publish.card import write_export_section
from hf_medtl.publish.check import weight_files
from hf_medtl.runs.finished import load_run_data
from hf_medtl.runs.lock import lock_folder
from hf_medtl.runs.output_folder import check_new, filling
from hf_medtl.tasks import task_for_results
from hf_medtl.training.runtime import environment

MAX_DECISIONS_CHANGED = 0.005  # fraction of decisions that an export may change
CALIBRATION_IMAGES = 128  # at most; they set the limits of 8-bit activations


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        package: Package that runs it.
        write: (ONNX file, folder) -> path of the model in that folder; more files may be written.
        load: (model file, threads; 0 means one a core) -> inference function.
    """

    package: str
    write: Callable[[Path, Path], Path]
    load: Callable[[Path, int], InferenceFn]


FORMATS = {
    "onnx": Format("onnxruntime", move_onnx, load_onnx),
    "openvino": Format("openvino", write_openvino, load_openvino),
}

logger = logging.getLogger("hf_medtl")


def export_run(
    run: Path,
    name: str,
    int8: bool = False,
    out: Path | None = None,
    data_dir: Path | None = None,
    force: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Export a run, unless its decisions change; return the folder and the content of export.json.

    The folder gets the model, preprocessing.json (see `build_preprocessing_spec`) and export.json. An export in
    RUN/export is described on the run's card, too.

    Args:
        run: Folder of a finished run or ensemble. Its splits.csv names the test images; without one, as in ensembles of
            folds, which have no images that no member has seen, metrics are not compared.
        name: Key of FORMATS.
        int8: Quantise to 8 bits, calibrated on the validation split.
        out: New or empty folder; by default RUN/export/FORMAT, or FORMAT-int8, where an older export is replaced.
        data_dir: The run's data; downloaded if not given. For a folder without splits.csv: any images of its kind.
        force: Keep an export that changes more than MAX_DECISIONS_CHANGED of the decisions.

    Raises:
        MedtlError: Unknown format, no run, no data or not the run's data, missing packages; or the export changes
            decisions and was discarded.
    """
    if name not in FORMATS:
        raise MedtlError(f"--format is one of {', '.join(FORMATS)}, found {name!r}.")
    if out:
        check_new(out)
    check_unchanged(run, "Nothing was exported.", SHOWN)
    kind, format_ = f"{name}-int8" if int8 else name, FORMATS[name]
    folder = out or run / "export" / kind
    predictor = Predictor.from_pretrained(run, device="cpu")
    model, processor = predictor.model, predictor.processor
    images = _reference_images(run, predictor, data_dir, int8)
    inputs = {"pixel_values": torch.from_numpy(next(_preprocess(processor, images.tested[:1])))}
    height, width = inputs["pixel_values"].shape[-2:]

    with filling(out, "exports a model") if out else _replacing_export(run, kind) as staging:
        with tempfile.TemporaryDirectory(dir=staging) as beside:
            onnx_file = Path(beside) / "model.onnx"
            logger.info("Exporting %s to %s", run, kind)
            write_onnx(model, height, width, onnx_file)
            if int8:
                quantised = onnx_file.with_name("int8.onnx")
                logger.info("Quantising with %d images", len(images.calibration))
                quantise_onnx(onnx_file, quantised, _preprocess(processor, images.calibration))
                quantised.replace(onnx_file)
                onnx_file.with_name("model.onnx.data").unlink(missing_ok=True)
            file = format_.write(onnx_file, staging)
        logger.info("Comparing with the model on %d images", len(images.tested))
        threads = torch.get_num_threads()
        infer = format_.load(file, threads)
        latencies = measure_latencies([model, with_inference_fn(model, infer)], [dict(inputs)] * 2)
        record = {
            "format": name,
            "int8": int8,
            "file": file.name,
            "sha256": sha256_of(sorted(staging.iterdir())),
            "weights_sha256": sha256_of(weight_files(run)),
            "megabytes": round(sum(path.stat().st_size for path in staging.iterdir()) / 1e6, 2),
            **compare_with_model(model, processor, infer, images),
            "milliseconds": {
                side: latency.median for side, latency in zip(("torch", "exported"), latencies, strict=True)
            },
            "threads": threads,
            "device": environment("float32", 1, torch.device("cpu"))["device"],
            "versions": {package: importlib.metadata.version(package) for package in ("torch", format_.package)},
            "forced": False,
        }
        if record["decisions_changed"] > MAX_DECISIONS_CHANGED:
            if not force:
                raise MedtlError(_refusal(kind, record))
            record["forced"] = True
        shape = infer(inputs["pixel_values"].numpy()).shape
        spec = build_preprocessing_spec(model, processor, (height, width), shape, file.name)
        licence = Source(run.name, *read_licence(run / "README.md"))
        spec["license"] = card_metadata(normalise(licence.licence) or UNKNOWN, [licence])
        write_atomic(staging / "preprocessing.json", spec)
        write_atomic(staging / "export.json", record)
    if out is None and (run / "README.md").is_file():
        write_export_section(run)
    return folder, record


@contextlib.contextmanager
def _replacing_export(run: Path, kind: str) -> Iterator[Path]:
    """Yield a folder to write to, which then becomes RUN/export/KIND; other processes are kept from that one."""
    inner = f"export/{kind}"
    lock = lock_folder(run, f".{kind}.lock", f"exports to {kind}", "--out")
    with lock, recording_folder(run, inner), replacing_folder(run / inner) as staging:
        yield staging


def _reference_images(run: Path, predictor: Predictor, data_dir: Path | None, int8: bool) -> ReferenceImages:
    """Return the test images of a run or, if it has no splits.csv, the images of a folder."""
    if not (run / "splits.csv").is_file():
        if data_dir is None:
            raise MedtlError(
                f"{run} has no splits.csv, so there are no test images to compare its export on. Give "
                "--data_dir with any images of its kind: a folder."
            )
        files = image_files(data_dir)
        if int8 and len(files) < 2:
            raise MedtlError(f"{data_dir} has one image. --int8 needs some to calibrate with, and others to compare.")
        if int8:
            return ReferenceImages(files[1::2], files[::2][:CALIBRATION_IMAGES])
        return ReferenceImages(files, [])
    finished = RunFolder(run).check_finished()
    loaded = load_run_data(finished, data_dir)
    rows = {split: part.index.to_numpy() for split, part in loaded.table.groupby("split")}
    if int8 and "validation" not in rows:
        raise MedtlError(f"{run} has no validation images, on which --int8 is calibrated. Leave out --int8.")
    sampled = np.random.default_rng(0).permutation(rows.get("validation", []))[:CALIBRATION_IMAGES]
    task = task_for_results(finished.results)

    def to_table(batch: slice, predictions: Sequence[Prediction]) -> pd.DataFrame:
        return task.prediction_rows(predictor.config, loaded, rows["test"][batch].tolist(), predictions)

    tested, calibration = (
        [loaded.root / path for path in loaded.table["path"][list(part)]] for part in (rows["test"], np.sort(sampled))
    )
    return ReferenceImages(tested, calibration, finished.results, to_table)


def _preprocess(processor: Any, paths: Sequence[Path]) -> Iterator[Pixels]:
    """Yield each image as the model receives it, (1, 3, H, W), or its middle tile."""
    for path in paths:
        pixels, tile = processor([read_image(path)], return_tensors="pt")["pixel_values"], getattr(processor, "tile", 0)
        if tile:
            windows = tile_windows(pixels.shape[-2], pixels.shape[-1], tile)
            pixels = pixels[..., *windows[len(windows) // 2]].contiguous()
        yield pixels.numpy()


def _refusal(kind: str, record: dict[str, Any]) -> str:
    """Explain, with figures, why an export is discarded."""
    text = (
        f"The decisions of {kind} differ from the run's on {100 * record['decisions_changed']:.2g} % of "
        f"{record['pictures']} images (of masks: of their pixels), and {100 * MAX_DECISIONS_CHANGED:g} % are allowed; "
        f"logits differ by up to {record['largest_logit_difference']:.2g}"
    )
    if "metric" in record:
        torch_value, exported_value = (record[side]["value"] for side in ("torch", "exported"))
        if None not in (torch_value, exported_value):
            text += f"; {METRIC_NAMES[record['metric']]} is {exported_value:.4f}, the run's is {torch_value:.4f}"
    return f"{text}. The export was discarded. --force keeps it, and the card says so."
