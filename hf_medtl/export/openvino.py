"""Conversion of an ONNX model to OpenVINO, and inference with it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from hf_medtl.common.extras import require
from hf_medtl.export.onnx import INPUT, OUTPUT, InferenceFn


def write_openvino(source: Path, folder: Path) -> Path:
    """Convert an ONNX model to OpenVINO's intermediate representation; a quantised (QDQ) one runs in 8 bits there, too.

    Returns:
        The .xml file, with its weights beside it in a .bin file.
    """
    openvino = _import_openvino("OpenVINO export")
    target = folder / "model.xml"
    # TRAP: by default save_model rounds the weights to 16 bits.
    openvino.save_model(openvino.convert_model(source), target, compress_to_fp16=False)
    return target


def load_openvino(file: Path, threads: int = 0) -> InferenceFn:
    """Load a model with OpenVINO on the CPU, in float32; 0 threads means one a core."""
    openvino = _import_openvino("OpenVINO inference")
    # TRAP: on processors with bfloat16, OpenVINO computes in it by default.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    # A copy: the next result is written to the same memory.
    return lambda pixels: np.array(compiled({INPUT: pixels})[OUTPUT])


def _import_openvino(purpose: str) -> Any:
    """Import OpenVINO without its telemetry, which reports each import and conversion to Google Analytics, unasked."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if not installed: that is allowed
    return require("openvino", "export", purpose)
