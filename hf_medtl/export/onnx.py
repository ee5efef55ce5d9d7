"""A model in the formats of ONNX Runtime and OpenVINO, which need no torch.

There is no torch.export format: the archives of torch 2.15 hold a pickle (data/sample_inputs/model.pt), and loading
one may run what is in it, so it is not published, as weights other than safetensors are not. `torch.jit` is deprecated.
"""

import importlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from hf_medtl.errors import MedtlError

INPUT, OUTPUT = "pixel_values", "logits"
LARGEST = 2_000_000_000  # bytes: protobuf ends at 2 GiB, beyond which weights lie in a file of their own
# Of a network with attention only these are quantised: what else is between them (softmax, layer norm, the sums that
# skip layers) loses more in 8 bits than it gains. Of others all is, so that nothing goes back and forth.
OF_ATTENTION = ["Conv", "Gemm", "MatMul"]

Pixels = NDArray[np.float32]
Ask = Callable[[Pixels], Pixels]


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        name: in words.
        package: that runs it.
        write: file of ONNX, folder -> the file to open, made from it; several files may be written.
        open: file, threads (0: as many as there are cores) -> pixel_values (B, 3, H, W) -> logits.
    """

    name: str
    package: str
    write: Callable[[Path, Path], Path]
    open: Callable[[Path, int], Ask]


class Logits(nn.Module):
    """A model whose only output are its logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, K) or (B, K, h, w) of (B, 3, H, W)."""
        return self.model(pixel_values=pixel_values).logits


def write_onnx(model: PreTrainedModel, height: int, width: int, file: Path) -> None:
    """The graph of a model as ONNX: batches of any number of pictures of one size, calibrated logits.

    Args:
        model: in evaluation mode, float32, on the CPU.
        height, width: of the pictures, in pixels.
        file: to write; with .data beside it where the weights are too large for one file.

    Raises:
        MedtlError: the packages of hf_medtl[export] are missing, or torch can't export the model.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        required(name)
    attention = getattr(model.config, "_attn_implementation", None)
    try:
        try:
            _export(model, height, width, file)
        except torch.onnx.errors.OnnxExporterError:
            if attention != "sdpa":
                raise
            # TRAP: torch 2.15 fails on the fused attention of Swin, whose number of windows depends on the batch.
            model.set_attn_implementation("eager")
            try:
                _export(model, height, width, file)
            finally:
                model.set_attn_implementation(attention)
    except torch.onnx.errors.OnnxExporterError as error:
        raise MedtlError(
            f"torch can't export {type(model).__name__} to ONNX ({str(error).strip().splitlines()[0]}). The run "
            "stays as it is; its weights load with transformers."
        ) from error


def _export(model: PreTrainedModel, height: int, width: int, file: Path) -> None:
    # Two pictures: torch.export takes sizes of 0 and 1 for constants.
    sample = {INPUT: torch.zeros(2, 3, height, width)}
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    with quiet("onnxscript", "torch.onnx", "onnx_ir"):
        torch.onnx.export(
            Logits(model).eval(),
            kwargs=sample,
            f=file,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            dynamo=True,
            external_data=size > LARGEST,
            verbose=False,
        )


def quantise(file: Path, target: Path, pictures: Iterator[Pixels]) -> None:
    """Static quantisation to 8 bits, as QuantizeLinear and DequantizeLinear (QDQ) around what is quantised.

    Weights are signed, per channel; activations unsigned, with the lowest and highest value seen in `pictures` as
    limits. Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.

    Args:
        file: of ONNX, float32.
        target: to write.
        pictures: each (1, 3, H, W); of the validation split, never of the test split.
    """
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    onnx = required("onnx")

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, Pixels] | None:
            found = next(pictures, None)
            return None if found is None else {INPUT: found}

    attends = any(node.op_type == "Softmax" for node in onnx.load(file, load_external_data=False).graph.node)
    with quiet(""), tempfile.TemporaryDirectory() as temporary:
        prepared = Path(temporary) / "prepared.onnx"
        # Batch norm is folded and shapes are inferred by ONNX Runtime; its symbolic inference fails on transformers.
        shapes.quant_pre_process(file, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=OF_ATTENTION if attends else None,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


def keep_onnx(source: Path, folder: Path) -> Path:
    """ONNX as it is, in another folder."""
    for path in (source, source.with_name(f"{source.name}.data")):
        if path.exists():
            path.replace(folder / path.name)
    return folder / source.name


def write_openvino(source: Path, folder: Path) -> Path:
    """OpenVINO's intermediate representation of ONNX; one with QDQ is run in 8 bits there, too."""
    openvino = required("openvino")
    target = folder / "model.xml"
    # TRAP: by default save_model rounds the weights to 16 bits.
    openvino.save_model(openvino.convert_model(source), target, compress_to_fp16=False)
    return target


def open_onnx(file: Path, threads: int = 0) -> Ask:
    """What ONNX Runtime answers on the CPU."""
    runtime = required("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run([OUTPUT], {INPUT: pixels})[0]


def open_openvino(file: Path, threads: int = 0) -> Ask:
    """What OpenVINO answers on the CPU, in float32."""
    openvino = required("openvino")
    # TRAP: where the processor has bfloat16, OpenVINO computes in it unless told otherwise.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"} | (
        {"INFERENCE_NUM_THREADS": threads} if threads else {}
    )
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    # A copy: the next answer is written to the same memory.
    return lambda pixels: np.array(compiled({INPUT: pixels})[OUTPUT])


def required(name: str) -> Any:
    """A package of hf_medtl[export].

    Raises:
        MedtlError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MedtlError(f"Exporting needs {name}: pip install 'hf_medtl[export]'.") from error


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Without what libraries log below errors: the exporters tell of every step, and of every layer they pass over."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


FORMATS = {
    "onnx": Format("ONNX Runtime", "onnxruntime", keep_onnx, open_onnx),
    "openvino": Format("OpenVINO", "openvino", write_openvino, open_openvino),
}
