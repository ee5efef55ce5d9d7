"""What the libraries of exports would report."""

import sys

import numpy as np
import pytest

from hf_medtl.export.onnx import INPUT, OUTPUT, load_onnx
from tests.support.commands import run_command


@pytest.fixture
def onnx_file(tmp_path):
    """An ONNX model that adds 0.1, with a dynamic batch size."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    shapes = [helper.make_tensor_value_info(name, kind, ["batch", 2]) for name in (INPUT, OUTPUT)]
    constant = helper.make_tensor("constant", kind, [2], [0.1, 0.1])
    graph = helper.make_graph(
        [helper.make_node("Add", [INPUT, "constant"], [OUTPUT])], "add", shapes[:1], shapes[1:], [constant]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "source.onnx")
    return tmp_path / "source.onnx"


CODE = """
import sys
from pathlib import Path
import numpy as np
from hf_medtl.export.openvino import load_openvino, write_openvino
infer = load_openvino(write_openvino(Path(sys.argv[1]), Path(sys.argv[1]).parent))
pixels = np.full((3, 2), 0.2, np.float32)
assert np.array_equal(infer(pixels), pixels + np.float32(0.1))
"""


@pytest.mark.slow
def test_openvino_computes_the_same_and_reports_nothing(onnx_file, tmp_path):
    """OpenVINO's telemetry makes an identifier of the user in the home folder, unless this is CI."""
    home = tmp_path / "home"
    home.mkdir()
    done = run_command(sys.executable, "-c", CODE, onnx_file, HOME=str(home), USERPROFILE=str(home), CI="")
    assert done.returncode == 0, done.stderr
    assert not any(home.glob("**/*openvino*"))


def test_onnx_runtime_computes_the_same_and_reports_nothing(onnx_file, monkeypatch):
    runtime, switched_off = pytest.importorskip("onnxruntime"), []
    monkeypatch.setattr(runtime, "disable_telemetry_events", lambda: switched_off.append(True))
    pixels = np.full((3, 2), 0.2, np.float32)
    assert np.array_equal(load_onnx(onnx_file)(pixels), pixels + np.float32(0.1))
    assert switched_off == [True]
