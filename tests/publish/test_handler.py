"""The handler that travels with a model: bodies of requests, DICOM, models with one output, and what it imports."""

import ast
import base64
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from hf_medtl import Predictor, read_image
from hf_medtl.data.images import encode_image
from hf_medtl.publish import handler as handler_module
from hf_medtl.publish.handler import EndpointHandler, app, parse, read
from tests.support.dicom_files import COLOUR, NAME, RAMP, encode_dicom, make_dicom
from tests.support.tiny_models import save_foreign_classifier

RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
PNG = encode_image(RGB)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return save_foreign_classifier(tmp_path_factory.mktemp("model"), ("normal", "ill"))


@pytest.fixture(scope="module")
def client(folder):
    return TestClient(app(EndpointHandler(str(folder))))


def test_imports_nothing_of_the_package():
    tree = ast.parse(Path(handler_module.__file__).read_text(encoding="utf-8"))
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    assert not [name for name in names if name is None or name.startswith("hf_medtl")]


def test_every_kind_of_body_has_the_same_answer(client, folder):
    (expected,) = Predictor.from_pretrained(folder).predict(RGB)
    encoded = base64.b64encode(PNG).decode()
    broken = "\n".join(encoded[i : i + 76] for i in range(0, len(encoded), 76))
    requests = [
        {"content": PNG},
        {"content": PNG, "headers": {"content-type": "image/png"}},
        {"content": PNG, "headers": {"content-type": "application/x-www-form-urlencoded"}},  # curl --data-binary
        {"content": encode_image(RGB, "TIFF")},
        {"files": {"file": ("image.png", PNG, "image/png")}},
        {"files": {"anything": ("a; b.png", PNG)}, "data": {"note": "text beside it"}},
        {"json": {"inputs": encoded}},
        {"json": {"inputs": broken, "parameters": {}}},
        {"json": {"inputs": f"data:image/png;base64,{encoded}"}},
        {"content": json.dumps({"inputs": encoded}), "headers": {"content-type": "application/x-www-form-urlencoded"}},
    ]
    for request in requests:
        response = client.post("/", **request)
        assert response.status_code == 200, (request, response.text)
        assert response.json()["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
        assert set(response.json()) == {"probabilities", "label", "decision", "candidates", "abstain", "reasons"}
    jpeg = encode_image(RGB, "JPEG")
    (of_jpeg,) = Predictor.from_pretrained(folder).predict(jpeg)
    for request in ({"content": jpeg}, {"files": {"image": jpeg}}):
        assert client.post("/", **request).json()["probabilities"] == pytest.approx(of_jpeg.probabilities, abs=1e-6)
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"content": b""}, "not a readable image"),
        ({"content": b"no image"}, "not a readable image"),
        ({"content": PNG[:200]}, "not a readable image"),
        ({"json": {"image": "x"}}, "inputs"),
        ({"json": ["x"]}, "inputs"),
        ({"json": {"inputs": None}}, "not a readable image"),
        ({"json": {"inputs": 7}}, "not a readable image"),
        ({"json": {"inputs": "scan.png"}}, "expected an image in base64"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, "inputs"),
        ({"json": {"inputs": "https://example.org/a.png"}}, "not downloaded"),
        ({"files": [("a", PNG), ("b", PNG)]}, "expected one file in the form, found 2"),
        ({"content": PNG, "headers": {"content-type": "multipart/form-data"}}, "expected one file"),
        ({"content": encode_image(Image.fromarray(np.full((9, 9), 4000, np.uint16)))}, "apply a window"),
        ({"content": cv2.imencode(".png", np.full((9, 9, 3), 4000, np.uint16))[1].tobytes()}, "apply a window"),
        ({"content": cv2.imencode(".tif", np.full((9, 9, 3), 4000, np.uint16))[1].tobytes()}, "apply a window"),
    ],
)
def test_bad_bodies_are_told(client, request_, message):
    response = client.post("/", **request_)
    assert response.status_code == 400
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    "data",
    [
        make_dicom(RAMP, BitsStored=12),
        make_dicom(RAMP, BitsStored=12, PhotometricInterpretation="MONOCHROME1"),
        make_dicom(RAMP, BitsStored=12, WindowCenter=40, WindowWidth=400, RescaleSlope=1, RescaleIntercept=-1024),
        make_dicom(RAMP, BitsStored=12, WindowCenter=[2000, 40], WindowWidth=[3000, 400]),
        make_dicom(RAMP, BitsStored=12, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT"),
        make_dicom(RAMP.astype(np.int16) - 1000, PixelPaddingValue=-1000),
        make_dicom(COLOUR[..., 0].copy()),
        make_dicom(COLOUR),
        make_dicom(COLOUR.astype(np.uint16) * 256 + 99),
        make_dicom(RAMP, BitsStored=12, WindowCenter=9, WindowWidth=4, RescaleSlope=None, RescaleIntercept=None),
        make_dicom(RAMP, BitsStored=12, WindowCenter=2000, WindowWidth=1000, RescaleSlope=0),
        make_dicom(np.stack([RAMP // 2, RAMP, RAMP // 4]), frames=3, BitsStored=12),
    ],
)
def test_dicom_is_read_as_by_read_image(data, client, folder):
    content = encode_dicom(data)
    difference = np.asarray(read(content)).astype(int) - np.asarray(read_image(content))
    assert np.abs(difference).max() <= 1  # rounding
    (expected,) = Predictor.from_pretrained(folder).predict(content)
    for request in ({"content": content}, {"files": {"file": ("a.dcm", content, "application/dicom")}}):
        response = client.post("/", **request)
        assert response.json()["probabilities"] == pytest.approx(expected.probabilities, abs=5e-3)


def test_dicom_that_is_not_read_here_says_so_without_its_header(client, monkeypatch):
    sigmoid = make_dicom(RAMP, BitsStored=12, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    response = client.post("/", content=encode_dicom(sigmoid))
    assert response.status_code == 400 and "send it as PNG" in response.json()["error"]
    shifted = make_dicom(RAMP << 4, BitsStored=12)
    shifted.HighBit = 15
    assert "bits not supported here" in client.post("/", content=encode_dicom(shifted)).json()["error"]
    torn = client.post("/", content=encode_dicom(make_dicom(RAMP, BitsStored=12))[:2000])
    assert torn.status_code == 400 and NAME not in torn.text
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    missing = client.post("/", content=encode_dicom(sigmoid))
    assert "pip install pydicom" in missing.json()["error"]


def test_model_with_one_output_has_two_sides(tmp_path):
    folder = save_foreign_classifier(tmp_path, ("ill",))
    (expected,) = Predictor.from_pretrained(folder).predict(RGB)
    handler = EndpointHandler(str(folder))
    for bias, decision in ((-3.0, ""), (3.0, "ill")):
        torch.nn.init.constant_(handler.model.classifier.bias, bias)
        answer = handler({"inputs": RGB})
        assert answer["decision"] == decision and 0 < answer["probabilities"]["ill"] < 1
    torch.nn.init.zeros_(handler.model.classifier.bias)
    assert handler({"inputs": RGB})["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)


def test_form_with_any_bytes():
    content = bytes(range(256)) * 3 + b"\r\n--x\r\n"
    body = (
        b'--boundary\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n'
        + content
        + b"\r\n--boundary--\r\n"
    )
    assert parse("multipart/form-data; boundary=boundary", body) == content
