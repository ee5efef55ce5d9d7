"""ONNX export of a model, static 8-bit quantisation, and inference with ONNX Runtime.

There is no torch.export format: the archives of torch 2.15 hold a pickle (data/sample_inputs/model.pt), and loading
one may run code in it, so it is not published, like weights other than safetensors. `torch.jit` is deprecated.
"""

import importlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from hf_medtl.common.extras import require
from hf_medtl.errors import MedtlError

INPUT, OUTPUT = "pixel_values", "logits"
MAX_PROTOBUF_BYTES = 2_000_000_000  # protobuf ends at 2 GiB; larger weights go to a separate file
# Operators that are quantised in networks with attention: the others (softmax, layer norm, residual sums) lose more in
# 8 bits than they gain. In networks without attention all are, to avoid converting back and forth.
ATTENTION_OPERATORS = ["Conv", "Gemm", "MatMul"]

Pixels = NDArray[np.float32]
InferenceFn = Callable[[Pixels], Pixels]  # pixel_values (B, 3, H, W) -> logits (B, K) or (B, K, h, w)


class Logits(nn.Module):
    """Wrapper that returns only the logits of a model."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K) or (B, K, h, w) for pixel values (B, 3, H, W)."""
        return self.model(pixel_values=pixel_values).logits


def write_onnx(model: PreTrainedModel, height: int, width: int, file: Path) -> None:
    """Export a model to ONNX, with a dynamic batch size, a fixed image size and calibrated logits as output.

    Args:
        model: Model in evaluation mode, float32, on the CPU.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        file: File to write; .data is written beside it if the weights are too large for one file.

    Raises:
        MedtlError: The packages of hf_medtl[export] are missing, or torch can't export the model.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require(name, "export", "ONNX export")
    attention = getattr(model.config, "_attn_implementation", None)
    try:
        try:
            _export(model, height, width, file)
        except torch.onnx.errors.OnnxExporterError:
            if attention != "sdpa":
                raise
            # TRAP: torch 2.15 fails on the fused attention of Swin, whose number of windows depends on the batch size.
            model.set_attn_implementation("eager")
            try:
                _export(model, height, width, file)
            finally:
                model.set_attn_implementation(attention)
    except torch.onnx.errors.OnnxExporterError as error:
        raise MedtlError(
            f"torch can't export {type(model).__name__} to ONNX ({str(error).strip().splitlines()[0]}). The run "
            "is unchanged; its weights load with transformers."
        ) from error


def _export(model: PreTrainedModel, height: int, width: int, file: Path) -> None:
    # A batch of two: torch.export treats sizes 0 and 1 as constants.
    sample = {INPUT: torch.zeros(2, 3, height, width)}
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    with _quiet_loggers("onnxscript", "torch.onnx", "onnx_ir"):
        torch.onnx.export(
            Logits(model).eval(),
            kwargs=sample,
            f=file,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            dynamo=True,
            external_data=size > MAX_PROTOBUF_BYTES,
            verbose=False,
        )


def quantise_onnx(file: Path, target: Path, images: Iterator[Pixels]) -> None:
    """Quantise a model statically to 8 bits, with QuantizeLinear and DequantizeLinear (QDQ) nodes.

    Weights are signed, per channel; activations are unsigned, limited by the lowest and highest value seen in `images`.
    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.

    Args:
        file: ONNX model in float32.
        target: File to write.
        images: Calibration images, each (1, 3, H, W); from the validation split, never from the test split.
    """
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    onnx = require("onnx", "export", "Quantisation")

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, Pixels] | None:
            image = next(images, None)
            return None if image is None else {INPUT: image}

    has_attention = any(node.op_type == "Softmax" for node in onnx.load(file, load_external_data=False).graph.node)
    with _quiet_loggers(""), tempfile.TemporaryDirectory() as temporary:
        prepared = Path(temporary) / "prepared.onnx"
        # ONNX Runtime folds batch norm and infers shapes; its symbolic shape inference fails on transformers.
        shapes.quant_pre_process(file, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=ATTENTION_OPERATORS if has_attention else None,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


def move_onnx(source: Path, folder: Path) -> Path:
    """Move an ONNX model, with its .data file if there is one, to another folder; return its new path."""
    for path in (source, source.with_name(f"{source.name}.data")):
        if path.exists():
            path.replace(folder / path.name)
    return folder / source.name


def load_onnx(file: Path, threads: int = 0) -> InferenceFn:
    """Load a model with ONNX Runtime on the CPU; 0 threads means one a core."""
    runtime = require("onnxruntime", "export", "ONNX inference")
    runtime.disable_telemetry_events()  # on by default on Windows
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run([OUTPUT], {INPUT: pixels})[0]


@contextmanager
def _quiet_loggers(*names: str) -> Iterator[None]:
    """Silence messages below errors: the exporters log every step, and every layer that they skip."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
