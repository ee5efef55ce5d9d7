"""Security middleware around a small Gradio page on loopback: allowed requests, refused requests and logs."""

import asyncio
import http.server
import json
import logging
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from hf_medtl.errors import MedtlError
from hf_medtl.space.security import middleware, upload_store
from hf_medtl.space.security.hardening import secure_page, with_plain_errors
from hf_medtl.space.security.middleware import API, SecurityMiddleware
from hf_medtl.space.security.upload_store import pop_name
from hf_medtl.space.serve import create_temp_folder
from hf_medtl.space.uploads import load_upload
from tests.support.space_fixtures import check_headers, run_server

NAME = "Mustermann_Erika"
META = {"meta": {"_type": "gradio.FileData"}}


@dataclass
class Page:
    """A served page."""

    url: str
    folder: Path
    app: SecurityMiddleware

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, trust_env=False, **options)

    def upload(self, content: bytes, name: str = f"{NAME}.png") -> Path:
        with self.client() as client:
            return Path(client.post(API + "upload", files={"files": (name, content)}).json()[0])


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """Serve a page with an upload whose function can also fail in three ways."""
    import gradio

    before = os.environ.get("GRADIO_TEMP_DIR")
    folder = create_temp_folder()

    def answer(file: str | None, low: float) -> object:
        if low == 1:
            raise MedtlError("The image is too dark. Send another.")
        if low == 2:
            raise ValueError(f"{NAME} can't be read")
        if low == 3:
            sys.exit(NAME)
        name = pop_name(file)
        return load_upload(file, name=name).image(), f"read {name}"

    with gradio.Blocks(title="tiny", analytics_enabled=False) as demo:
        gradio.Markdown("# Tiny")
        file = gradio.File(label="Picture")
        low = gradio.Slider(0, 9, 0, label="low")
        button = gradio.Button("Go")
        image, message = gradio.Image(label="Out", format="png", interactive=False), gradio.Textbox(label="Said")
        button.click(answer, [file, low], [image, message], api_name="answer")
    app = secure_page(
        demo, {"posts_per_minute": 10_000, "upload_bytes": 3_000_000, "body_bytes": 20_000, "behind_proxy": False}
    )
    with run_server(app) as url:
        yield Page(url, folder, app)
    shutil.rmtree(folder)
    os.environ.pop("GRADIO_TEMP_DIR")
    if before is not None:
        os.environ["GRADIO_TEMP_DIR"] = before


@pytest.fixture
def internal() -> Iterator[tuple[str, list[str]]]:
    """Return the URL of a server that must not be contacted, and the list of its requests."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}", requests
        serving.shutdown()


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


def ask(page: Page, file: object, low: float = 0) -> tuple[int, dict]:
    """Return the status of joining the queue and the output of the function."""
    session = f"s{time.monotonic_ns()}"
    body = {"data": [file, low], "fn_index": 0, "session_hash": session}
    with page.client() as client:
        joined = client.post(API + "queue/join", json=body)
        if joined.status_code != 200:
            return joined.status_code, joined.json()
        with client.stream("GET", API + "queue/data", params={"session_hash": session}) as events:
            for line in events.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") == "process_completed":
                    return 200, message["output"] | {"success": message["success"]}
    raise AssertionError("no answer")


def test_every_response_has_security_headers(page, png):
    with page.client(headers={"Origin": "https://me.hf.space", "Host": "me.hf.space"}) as client:
        for method, path, status in [
            ("GET", "/", 200),
            ("HEAD", "/", 200),
            ("GET", "/theme.css", 200),
            ("GET", "/config", 200),
            ("GET", "/nothing", 404),
            ("GET", "/assets/nothing.js", 404),
            ("OPTIONS", API + "upload", 404),
            ("DELETE", "/", 404),
            ("POST", API + "queue/join", 422),
            ("POST", API + "upload", 400),
        ]:
            response = client.request(method, path)
            assert response.status_code == status, (method, path)
            check_headers(response)
    status, output = ask(page, {"path": str(page.upload(png)), **META})
    assert status == 200
    with page.client() as client:
        served = client.get(API + "file=" + output["data"][0]["path"], headers={"Range": "bytes=0-9", "X-Evil": "1"})
        assert served.headers["content-type"] == "image/png"
        assert served.status_code == 200
        assert "x-evil" not in served.headers  # Gradio's range responses repeat request headers
        check_headers(served)


def test_answers_are_not_cached(page, png):
    session = {"session_hash": "somebody"}
    with page.client() as client:
        uploaded = client.post(API + "upload", files={"files": ("a.png", png)})
        joined = client.post(API + "queue/join", json={"data": [None, 1], "fn_index": 0} | session)
        answers = [uploaded, joined, client.get(API + "queue/data", params=session), client.get("/"), client.get("/no")]
        assert {response.headers["cache-control"] for response in answers} == {"no-store"}
        assert "no-store" not in client.get("/theme.css").headers.get("cache-control", "")


def test_forwarded_headers_are_ignored_without_proxy(page):
    with page.client(headers={"X-Forwarded-Host": "evil.example"}) as client:
        assert "evil.example" not in client.get("/").text


@pytest.mark.parametrize("path", ["/etc/passwd", str(Path(__file__)), "{folder}/../{file}", "{folder}"])
def test_files_outside_are_not_served(page, path):
    path = path.format(folder=page.folder, file=os.path.relpath(__file__, page.folder.parent))
    dotted = os.path.relpath(path, Path.cwd())
    with page.client() as client:
        for route in (
            "gradio_api/file=",
            "gradio_api/file/",
            "file=",
            "static/",
            "assets/",
            "svelte/",
            "gradio_api/file=file://",
        ):
            for variant in (path, dotted, path.lstrip("/")):
                for encoded in (
                    variant,
                    variant.replace("..", "%2e%2e"),
                    variant.replace("/", "%2f"),
                    variant.replace("..", "%252e%252e"),
                    variant + "%00.png",
                    variant.replace("/", "\\"),
                ):
                    url = httpx.URL(page.url).copy_with(raw_path=f"/{route}{encoded}".encode())
                    response = client.send(httpx.Request("GET", url))
                    assert response.status_code in {403, 404, 422}, url
                    assert b"root:" not in response.content
                    assert b"import" not in response.content


def test_urls_are_not_fetched(page, internal):
    address, requests = internal
    with page.client() as client:
        for route in ("file=", "file/", "proxy="):
            for url in (f"{address}/x", f"{address}/x".replace("127.0.0.1", "localhost"), "file:///etc/passwd"):
                assert client.get(f"{API}{route}{url}").status_code == 404
    named = address.replace("127.0.0.1", "localhost")
    for path in (f"{address}/x", f"{named}/x", "//127.0.0.1/x", "file:///etc/passwd", "/etc/passwd",
                  "../../etc/passwd", f"{page.folder}/../x", f"{page.folder}\0", str(page.folder)):  # fmt: skip
        for file in ({"path": path, **META}, {"path": path}, [{"deep": {"path": path}}]):
            assert ask(page, file)[0] == 403, file
    link = page.folder / "incoming" / "link"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to("/etc/passwd")
    assert ask(page, {"path": str(link), **META})[0] == 403
    link.unlink()
    status, output = ask(page, {"path": None, "url": f"{address}/x", **META})
    assert status == 200
    assert not output["success"]
    assert requests == []


def test_mounted_gradio_checks_file_locations(tmp_path, monkeypatch):
    """A mounted Gradio app does not check them by itself: see `secure_page`."""
    import gradio

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "own"))
    secret = tmp_path / "secret.txt"
    secret.write_text("planted")
    with gradio.Blocks(analytics_enabled=False) as demo:
        file, text = gradio.File(), gradio.Textbox()
        gradio.Button().click(lambda path: Path(path).read_text(), file, text, api_name="answer", queue=False)
    app = secure_page(demo).app

    async def directly() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post(f"{API}run/answer", json={"data": [{"path": str(secret), **META}]})

    response = asyncio.run(directly())
    assert response.status_code == 500
    assert "planted" not in response.text


@pytest.mark.parametrize(
    "route",
    [
        *("gradio_api/call/other", "gradio_api/call/v2/other", f"gradio_api/call/answer/{'0' * 32}"),
        *("gradio_api/run/answer", "gradio_api/api/answer", "gradio_api/component_server"),
        *("gradio_api/process_recording", "gradio_api/vibe-edit", "gradio_api/stream/x", "login", "queue/join"),
        *("gradio_api/upload/", "gradio_api/run-history/connect", "gradio_api/call/%2e%2e/call/answer"),
    ],
)
def test_other_post_routes_are_not_found(page, route):
    with page.client() as client:
        url = httpx.URL(page.url).copy_with(raw_path=f"/{route}".encode())
        assert client.send(httpx.Request("POST", url, json={"data": []})).status_code == 404


@pytest.mark.parametrize(
    "route",
    [
        *("docs", "openapi.json", "redoc", "monitoring", "monitoring/summary", "login", "logout", "gradio_api/token"),
        *("gradio_api/deep_link?session_hash=a", "gradio_api/runs", "gradio_api/mcp/sse", "gradio_api/mcp/"),
        *("gradio_api/call/answer", f"gradio_api/call/other/{'0' * 32}", "gradio_api/call/answer/%2e%2e/%2e%2e/info"),
        *(
            "gradio_api/vibe-code",
            "gradio_api/dev/reload",
            "gradio_api/custom_component/a/client/b/c",
            "gradio_api/user",
        ),
    ],
)
def test_other_get_routes_are_not_found(page, route):
    with page.client() as client:
        assert client.get(f"/{route}").status_code == 404


def test_upload_has_neutral_name_and_is_not_served(page, png, capfd):
    path = page.upload(png, f"../{NAME}.PNG")
    assert path.name == "upload.png"
    assert path.read_bytes() == png
    assert path.parent.parent == page.folder.resolve() / "incoming"
    assert path.parent.name not in page.upload(png).parts  # the same image from another user
    with page.client() as client:
        assert client.get(f"{API}file={path}").status_code == 404
        assert client.get(API + "upload_progress", params={"upload_id": "x"}).text == 'data: {"msg": "done"}\n\n'
    assert page.upload(b"<script>", f"{NAME}.html").name == "upload"
    assert page.upload(b"", f"{NAME}.nii.gz").name == "upload.nii.gz"

    status, output = ask(page, {"path": str(path), "orig_name": f"{NAME}.PNG", **META})
    assert (status, output["success"]) == (200, True)
    assert output["data"][1] == f"read ../{NAME}.PNG"  # the user sees the name
    assert not path.parent.exists()
    assert pop_name(path) == "upload.png"  # the name is returned once
    assert not [path for path in page.folder.rglob("*") if NAME in path.name]
    printed = capfd.readouterr()
    assert NAME not in printed.out + printed.err


@pytest.mark.parametrize("path", ["upload", "queue/join"])
def test_oversized_body_is_refused_while_it_arrives(path, page):
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    before = sorted(page.folder.rglob("*"))
    with page.client() as client:
        for content in (bytes(4_000_000), iter([head, *[bytes(100_000)] * 60])):  # the second has no Content-Length
            response = client.post(API + path, content=content, headers=kind)
            assert response.status_code == 413
            assert "MB" in response.text
            check_headers(response)

    received = 0

    async def receive() -> dict:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": head if received == 1 else bytes(10_000), "more_body": True}

    async def send(message: dict) -> None:
        sent.append(message)

    sent: list[dict] = []
    headers = [(b"content-type", kind["Content-Type"].encode())]
    scope = {"type": "http", "method": "POST", "path": API + path, "headers": headers, "query_string": b""}
    asyncio.run(page.app(scope, receive, send))
    assert sent[0]["status"] == 413
    assert received <= {"upload": 3_000_000, "queue/join": 20_000}[path] / 10_000 + 2
    assert sorted(page.folder.rglob("*")) == before


def test_aborted_upload_leaves_nothing(page):
    before = len(list(page.folder.rglob("*")))
    host, port = page.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(9999)
        )
    with page.client() as client:
        malformed = client.post(API + "upload", content=b"x", headers={"Content-Type": "multipart/form-data"})
        assert malformed.status_code == 400
        assert client.post(API + "upload", data={"files": "text"}).status_code == 400  # not multipart
        none = client.post(API + "upload", files={"files": (None, "text")})
        assert none.json() == []
    assert len(list(page.folder.rglob("*"))) == before


def test_endless_headers_are_refused(page):
    host, port = page.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(b"GET /config HTTP/1.1\r\nHost: x\r\n")
        with pytest.raises(OSError, match=r"reset|pipe"):
            for _ in range(500):
                raw.sendall(b"X: " + b"a" * 100_000 + b"\r\n")
    with page.client() as client:
        assert client.get("/config").status_code == 200


def test_full_upload_storage_returns_503(page, png, monkeypatch):
    monkeypatch.setattr(middleware, "MAX_STORED", 1000)
    with page.client() as client:
        response = client.post(API + "upload", files={"files": ("a.png", png)})
    assert response.status_code == 503
    assert "a few minutes" in response.text


@pytest.mark.parametrize(("low", "words"), [(1, "too dark"), (2, "Something went wrong"), (3, "Something went wrong")])
def test_failure_is_a_sentence_and_log_has_no_name(page, png, low, words, capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        status, output = ask(page, {"path": str(page.upload(png)), "orig_name": NAME, **META}, low)
    assert status == 200
    assert words in output["error"]
    printed = capfd.readouterr()
    assert NAME not in printed.out + printed.err + caplog.text
    assert "Traceback" not in printed.out + printed.err
    logged = [
        error for error in ("ValueError", "SystemExit") if re.search(rf"{error} at test_middleware.py:\d+", caplog.text)
    ]
    assert logged == {1: [], 2: ["ValueError"], 3: ["SystemExit"]}[low]
    assert ask(page, {"path": str(page.upload(png)), **META})[1]["success"]  # the app still works


@pytest.mark.parametrize("data", [[f"{NAME}.png", 0], [{"path": None, "orig_name": NAME}, 0], [None, NAME], [NAME] * 9])
def test_gradio_validation_error_is_a_sentence_and_not_logged(page, data, capfd, caplog):
    with page.client() as client, caplog.at_level(logging.DEBUG):
        event = client.post(API + "call/answer", json={"data": data}).json()["event_id"]
        answer = client.get(f"{API}call/answer/{event}").text
    assert "event: error" in answer
    assert "Something went wrong" in answer
    printed = capfd.readouterr()
    assert NAME not in printed.out + printed.err + caplog.text + answer
    assert "Traceback" not in printed.out + printed.err


def test_endpoints_work_by_plain_http(page, png):
    with page.client() as client:
        schema = client.get(API + "openapi.json").json()
        assert {f"{API}call/v2/answer", f"{API}call/answer/{{event_id}}", API + "upload"} <= set(schema["paths"])
        for version in ("call", "call/v2"):
            file = {"path": str(page.upload(png)), **META}
            body = {"file": file, "low": 0} if version == "call/v2" else {"data": [file, 0]}
            posted = client.post(f"{API}{version}/answer", json=body)
            check_headers(posted)
            read = client.get(f"{API}call/answer/{posted.json()['event_id']}")
            check_headers(read)
            assert posted.headers["cache-control"] == read.headers["cache-control"] == "no-store"
            assert "event: complete" in read.text
            assert "read " in json.loads(read.text.rpartition("data: ")[2])[1]
        assert client.post(f"{API}call/answer", json={"data": [{"path": "/etc/passwd", **META}, 0]}).status_code == 403


def test_queue_cannot_be_bypassed(page):
    with page.client() as client:
        response = client.post(API + "run/predict", json={"data": [None, 0], "fn_index": 0})
    assert response.status_code == 404
    assert "queue" in response.text


def test_gradio_crash_is_a_sentence(page, caplog):
    with page.client() as client:
        response = client.post(API + "queue/join", json={"data": [NAME], "fn_index": 99, "session_hash": NAME})
    assert response.status_code == 500
    assert response.json()["detail"] == "Something went wrong. Try again."
    check_headers(response)
    assert NAME not in caplog.text


def test_generator_errors_are_sentences():
    import gradio

    @with_plain_errors
    def steps(end: Exception | None) -> Iterator[int]:
        yield 1
        if end:
            raise end
        yield 2

    assert list(steps(None)) == [1, 2]
    for end, words in (
        (MedtlError("Too dark."), "Too dark"),
        (ValueError(NAME), "wrong"),
        (gradio.Error("Own."), "Own"),
    ):
        with pytest.raises(gradio.Error, match=words) as caught:
            list(steps(end))
        assert caught.value.__context__ is None or end is caught.value


def test_original_names_do_not_reach_gradio(tmp_path):
    path = str(tmp_path.resolve() / "upload.png")
    file = {"path": path, "orig_name": f"{NAME}.png", "size": 5, **META}
    seen = middleware.sanitize_json(
        json.dumps({"data": [[file], {"orig_name": "of no file"}, "ä", 0.5]}).encode(), tmp_path
    )
    assert json.loads(seen) == {"data": [[{**file, "orig_name": "upload.png"}], {"orig_name": "of no file"}, "ä", 0.5]}
    assert middleware.sanitize_json(b"", tmp_path) == b""
    for body in (b"{", b"[" * 100_000, b"\xff", b'{"path": 5}', b'{"path": ["/"]}'):
        assert middleware.sanitize_json(body, tmp_path) is None


def test_long_session_names_are_refused(tmp_path):
    for name, accepted in (("a" * 36, True), ("a" * 900_000, False), (["a" * 900_000], False), (None, True)):
        body = json.dumps({"data": [], "session_hash": name}).encode()
        assert (middleware.sanitize_json(body, tmp_path) == body) == accepted


def test_long_paths_are_not_resolved(tmp_path, monkeypatch):
    """Resolving checks each path component and would block all other requests."""
    monkeypatch.setattr(upload_store.os.path, "realpath", lambda path, **_: pytest.fail("followed"))
    assert not upload_store.is_inside("/a" * 4000, tmp_path)
    assert middleware.sanitize_json(json.dumps({"path": f"{tmp_path}/" + "a/" * 4000}).encode(), tmp_path) is None


@pytest.mark.browser
def test_page_works_in_browser_with_content_security_policy(page, png, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium on the PATH")
    image = tmp_path / f"{NAME}.png"
    image.write_bytes(png)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        problems, hosts = [], set()
        tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: hosts.add(httpx.URL(request.url).host))
        tab.goto(page.url)
        tab.wait_for_selector("button:has-text('Go')")
        tab.locator("input[type=file]").first.set_input_files(image)
        tab.wait_for_selector("text=Muster")  # the original file name
        tab.click("button:has-text('Go')")
        tab.wait_for_selector("img[src*='image.png']")
        tab.wait_for_function("document.querySelector(\"img[src*='image.png']\").naturalWidth == 64")
        assert tab.locator("textarea").last.input_value() == f"read {NAME}.png"
        assert problems == []
        assert hosts == {"127.0.0.1"}
        tab.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.bad = 1'}))")
        assert tab.evaluate("window.bad") is None
        assert any("Content Security Policy" in text for text in problems)
        browser.close()
