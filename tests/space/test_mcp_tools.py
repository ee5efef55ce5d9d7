"""MCP tools of the Space: their answers, and inputs they refuse to read."""

import asyncio
import base64
import http.server
import io
import json
import logging
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from hf_medtl import Predictor
from hf_medtl.data.images import encode_image
from hf_medtl.errors import MedtlError
from hf_medtl.space import mcp_tools, serve
from hf_medtl.space.publish import write_space
from hf_medtl.space.security.middleware import API, MAX_MCP_BYTES, MCP_PATH
from tests.support.dicom_files import encode_dicom, make_dicom
from tests.support.space_fixtures import brain_image, run_server
from tests.support.space_fixtures import model_folders as model_folders
from tests.support.space_samples import zip_files

Client = pytest.importorskip("mcp.client", reason="the package mcp is not installed").Client
NAME = "Mustermann_Erika"


def uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def app(model_folders):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")
        patch.setenv("GRADIO_ANALYTICS_MAX_EVENTS", "")
        models = [str(folder) for folder in model_folders.values()]
        yield serve.create_app(models, limits={"exempt_clients": ["127.0.0.1"]}, mcp_server=True)


@pytest.fixture(scope="module")
def url(app):
    with run_server(app) as address:
        yield address


@pytest.fixture
def call(url):
    """Return a function that calls a tool and returns its JSON and images, or the error message."""

    def call_tool(name: str, **arguments: object) -> tuple[dict, list[Image.Image]] | str:
        async def ask():
            async with Client(url + MCP_PATH) as client:
                return await client.call_tool(name, arguments)

        result = asyncio.run(ask())
        if result.is_error:
            return result.content[0].text
        text, *images = result.content
        return json.loads(text.text), [Image.open(io.BytesIO(base64.b64decode(image.data))) for image in images]

    return call_tool


@pytest.fixture
def upload(url):
    def upload_file(name: str, content: bytes) -> Path:
        return Path(httpx.post(url + API + "upload", files={"files": (name, content)}, trust_env=False).json()[0])

    return upload_file


@pytest.mark.slow
def test_tool_descriptions_and_schemas(url):
    async def ask():
        async with Client(url + MCP_PATH) as client:
            return client.instructions, (await client.list_tools()).tools

    instructions, listed = asyncio.run(ask())
    assert [tool.name for tool in listed] == ["classify", "explain", "segment", "compare", "batch"]
    assert "vit: no_lesion, lesion" in instructions
    for tool in listed:
        assert "research and education" in tool.description
        assert tool.annotations.read_only_hint
        properties = tool.input_schema["properties"]
        assert "no URL" in (properties.get("file") or properties["files"])["description"]
    assert "One of vit, cnn, lungs, other-lungs" in listed[0].input_schema["properties"]["model"]["description"]
    assert listed[0].input_schema["required"] == ["file"]


def test_classify_tool_matches_predictor(call, model_folders, upload):
    truth = Predictor.from_pretrained(model_folders["vit"]).predict([brain_image(1)])[0]
    path = upload(f"{NAME}.png", encode_image(brain_image(1)))
    for file in (uri(encode_image(brain_image(1))), str(path)):
        result, images = call("classify", file=file)
        assert result["probabilities"] == pytest.approx(truth.probabilities, abs=1e-6)
        assert result["decision"] == truth.decision
        assert images == []
    assert not path.exists()
    again = call("classify", file=str(path))
    assert "no longer there" in again


@pytest.mark.slow
def test_images_of_an_answer_are_returned_as_images(call):
    large = uri(encode_image(brain_image(1).resize((1500, 1200))))
    result, (heat, over) = call("explain", file=large, method="rollout", label="lesion")
    assert result["pictures"] == ["map", "overlay"]
    assert result["method"] == "rollout"
    assert heat.mode == "RGBA"
    assert max(over.size) == 1024
    result, images = call("segment", file=uri(encode_image(brain_image(1))))
    assert sorted(result["pictures"]) == ["mask", "overlay", "uncertainty"]
    assert len(images) == 3
    result, masks = call("compare", file=large, one="lungs", other="other-lungs")
    assert result["pictures"] == ["masks", "masks"]
    assert len(masks) == 2
    assert "image/png" not in json.dumps(result)


def test_batch_tool_reads_zip_and_dicom(call, upload):
    slice_path = upload("slice.dcm", encode_dicom(make_dicom(np.asarray(brain_image(2).convert("L")))))
    archive = zip_files({"one.png": encode_image(brain_image(1)), "two.txt": b"not an image"})
    archive_path = str(upload("many.zip", archive))
    # Gradio's upload tool returns the URL of the file.
    result, _ = call("batch", files=[archive_path, f"http://127.0.0.1{API}file={slice_path}"], model="vit")
    assert [row["name"] for row in result["rows"]] == ["one.png", "two.txt", "slice.dcm"]
    assert [bool(row["error"]) for row in result["rows"]] == [False, True, False]


@pytest.mark.slow
def test_urls_and_other_files_are_not_read(call, app, tmp_path, caplog):
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)

        do_HEAD = do_GET

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    secret = tmp_path / f"{NAME}.png"
    secret.write_bytes(encode_image(brain_image(1)))
    own = app.uploads / "own.png"
    own.write_bytes(encode_image(brain_image(1)))
    link = f"{app.incoming}/../own.png"
    address = f"http://127.0.0.1:{server.server_port}/a.png"
    for file in (address, str(secret), f"file://{secret}", str(own), link, "", "data:,", "data:image/png;base64,!!",
                  "data:image/png;base64,", f"{address}/gradio_api/file={secret}"):  # fmt: skip
        assert "Give an image as a data URI" in call("classify", file=file), file
        assert "Give for each image" in call("batch", files=[file]), file
    server.shutdown()
    assert requests == []
    assert secret.exists()
    assert own.exists()
    own.unlink()
    assert NAME not in caplog.text


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("classify", {"file": uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>")}, "This is a drawing"),
        ("classify", {"model": "lungs"}, "is a segmentation model"),
        ("classify", {"model": NAME}, "There is no model of that name"),
        ("explain", {"method": NAME}, "has no heatmaps by"),
        ("segment", {"model": "vit"}, "is a classifier"),
        ("compare", {"one": "vit"}, "Field required"),
        ("classify", {"file": 3}, "valid string"),
        ("batch", {"files": []}, "No files were given"),
    ],
)
def test_tool_errors_are_plain_and_not_logged(tool, arguments, message, call, caplog):
    caplog.set_level(logging.DEBUG)
    assert message in call(tool, **({"file": uri(encode_image(brain_image(1)))} | arguments))
    assert not [record for record in caplog.records if record.name.startswith(("mcp", "hf_medtl"))]


@pytest.mark.parametrize("failure", [ValueError, MemoryError, SystemExit, KeyboardInterrupt])
def test_internal_error_leaks_nothing_and_stops_nothing(failure, call, monkeypatch, caplog):
    def fail(*_: object) -> None:
        raise failure(NAME)

    with monkeypatch.context() as patch:
        patch.setattr(mcp_tools, "parse_upload", fail)
        message = call("classify", file=uri(encode_image(brain_image(1))))
    assert "Something went wrong" in message
    assert NAME not in message + caplog.text
    assert f"{failure.__name__} at test_mcp_tools.py" in caplog.text
    assert "label" in call("classify", file=uri(encode_image(brain_image(1))))[0]


def test_too_many_waiting_calls_are_refused(call, monkeypatch):
    monkeypatch.setattr(mcp_tools, "MAX_WAITING", 0)
    assert "The server is busy" in call("classify", file=uri(encode_image(brain_image(1))))


def test_mcp_route_checks_host_origin_method_and_size(url):
    """One route, for local host names only, with a size limit."""
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    with httpx.Client(base_url=url, trust_env=False, headers=headers) as client:
        assert client.post(MCP_PATH, content=body).status_code == 200
        assert client.post(MCP_PATH + "/", content=body).status_code == 200
        assert client.post(MCP_PATH, content=body, headers={"host": "elsewhere.example"}).status_code == 421
        assert client.post(MCP_PATH, content=body, headers={"origin": "http://elsewhere.example"}).status_code == 403
        assert client.post(MCP_PATH, content=b"x" * (MAX_MCP_BYTES + 1)).status_code == 413
        assert [client.request(method, MCP_PATH).status_code for method in ("GET", "DELETE")] == [405, 405]
        assert client.post(MCP_PATH + "/sse", content=body).status_code == 404


@pytest.mark.parametrize(
    "files",
    [
        "[" + "1," * 3000 + "1]",  # pydantic and mcp would write an error for each value
        json.dumps("[" + "1," * 3000 + "1]"),  # mcp parses the list inside the string
        '"[' + "1\\u002c" * 3000 + '1]"',
        '["x", {' + ",".join(f'"{number}": 1' for number in range(3000)) + "}]",
        "[" * 3000 + "]" * 3000,
    ],
)
def test_json_with_many_values_is_refused(files, url):
    call = (
        '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "batch", "arguments": {"files": %s}}}'
    )
    headers = {"content-type": "application/json", "accept": "application/json"}
    response = httpx.post(url + MCP_PATH, content=call % files, headers=headers, trust_env=False)
    assert response.status_code == 413
    assert "1,000 values" in response.json()["error"]


def test_subscriptions_are_refused(url):
    """A subscribed client would hold a connection for ever."""
    method, version = "subscriptions/listen", "2026-07-28"
    meta = {"protocolVersion": version, "clientCapabilities": {}}
    meta = {f"io.modelcontextprotocol/{name}": value for name, value in meta.items()}
    call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"notifications": {}, "_meta": meta}}
    headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": version, "mcp-method": method}
    response = httpx.post(url + MCP_PATH, json=call, headers=headers, trust_env=False, timeout=20)
    assert response.json()["error"]["message"] == "Method not found"


def test_no_mcp_route_by_default_and_missing_package_raises(model_folders, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with run_server(serve.create_app([str(model_folders["vit"])])) as address:
        assert httpx.post(address + MCP_PATH, json={}, trust_env=False).status_code == 404
        assert httpx.get(address + MCP_PATH, trust_env=False).status_code == 404
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(MedtlError, match=r"hf_medtl\[mcp\]"):
        serve.create_app([str(model_folders["vit"])], mcp_server=True)


def test_space_folder_mentions_mcp_only_if_enabled(tmp_path):
    write_space(tmp_path / "with", mcp_server=True)
    write_space(tmp_path / "without")
    for folder, has in (("with", True), ("without", False)):
        texts = {name: (tmp_path / folder / name).read_text() for name in ("README.md", "app.py", "requirements.txt")}
        assert ("- mcp-server\n" in texts["README.md"]) == has
        assert (MCP_PATH in texts["README.md"]) == has
        assert ("mcp_server=True" in texts["app.py"]) == has
        assert (",mcp]" in texts["requirements.txt"]) == has
