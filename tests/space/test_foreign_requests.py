"""Requests of other sites and for other visitors' answers: to the Space, its app.py, and one mounted in an app."""

import asyncio
import contextlib
import re
import runpy
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from hf_medtl.data.images import encode_image
from hf_medtl.space import demo, serve
from hf_medtl.space.security import middleware
from hf_medtl.space.security.hardening import secure_page
from hf_medtl.space.security.middleware import API, SecurityMiddleware
from hf_medtl.space.security.origins import LOCAL_HOSTS
from tests.support.commands import ROOT
from tests.support.space_fixtures import META, brain_image, check_headers, run_server, wait_until, write_models

ELSEWHERE = "https://elsewhere.example"


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_models(tmp_path_factory.mktemp("models"))["vit"])


@pytest.fixture(scope="module")
def mounted(vit: str) -> Iterator[tuple[str, SecurityMiddleware]]:
    """Return the URL of a Space mounted at /demo of another app, and its middleware."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_MAX_EVENTS"):
            patch.setenv(name, "")
        space = serve.create_app([vit], limits={"exempt_clients": ["127.0.0.1"]})
        outer = FastAPI()
        outer.mount("/demo", space)
        with run_server(outer) as url:
            yield url, space
        shutil.rmtree(space.uploads, ignore_errors=True)


def send(app: SecurityMiddleware, method: str, path: str, **options: object) -> httpx.Response:
    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:7860") as client:
            return await client.request(method, path, **options)

    return asyncio.run(once())


async def accept(scope, receive, send) -> None:
    """Answer every request with "ok"."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # a program
        ({"Origin": "http://127.0.0.1:7860"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:7860"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:8000"}, 403),
        ({"Origin": ELSEWHERE}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:7860.elsewhere.example"}, 403),
        ({"Origin": ELSEWHERE, "X-Forwarded-Host": "elsewhere.example"}, 403),  # there is no proxy here
    ],
)
def test_pages_of_other_sites_send_nothing(headers, status, tmp_path):
    app = SecurityMiddleware(accept, tmp_path, behind_proxy=False)
    for path in ("queue/join", "cancel", "upload"):
        response = send(app, "POST", API + path, headers=headers)
        assert response.status_code == (400 if path == "upload" and status == 200 else status), path  # without a file
        check_headers(response)
    assert send(app, "GET", "/", headers=headers).status_code == 200  # a link to the page


def test_proxy_names_the_page(tmp_path):
    app = SecurityMiddleware(accept, tmp_path, behind_proxy=True)
    headers = {"Origin": "https://space.example", "X-Forwarded-Host": "space.example"}
    assert send(app, "POST", API + "queue/join", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("localhost:7860", 200), ("LOCALHOST", 200), ("[::1]:7860", 200), ("[::1]", 200),
        ("elsewhere.example", 421), ("elsewhere.example:7860", 421), ("127.0.0.1.elsewhere.example", 421),
        ("localhost.elsewhere.example:7860", 421), ("localhost@elsewhere.example", 421), ("", 421),
        ("169.254.1.1", 421),
    ],
)  # fmt: skip
def test_names_that_point_to_a_local_page_are_refused(host, status, tmp_path):
    """A name of another site can point to 127.0.0.1, whose page then is of the same origin (DNS rebinding)."""
    app = SecurityMiddleware(accept, tmp_path, hosts=LOCAL_HOSTS)
    for method, path in (("GET", "/"), ("GET", "/config"), ("POST", API + "queue/join")):
        response = send(app, method, path, headers={"Host": host})
        assert response.status_code == status, (method, path)
        check_headers(response)


@pytest.mark.parametrize("variable", [None, "GRADIO_SERVER_NAME"])
def test_app_file_has_the_same_guard(variable, vit, monkeypatch):
    """The app.py of a Space answers to all names where other machines may ask, otherwise to local ones."""
    served: list[SecurityMiddleware] = []
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_MAX_EVENTS"):
        monkeypatch.setenv(name, "")
    for name in ("GRADIO_SERVER_NAME", "SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "0.0.0.0")
    monkeypatch.setattr(demo, "demo_models", lambda: [vit])
    monkeypatch.setattr(serve, "check_port", lambda host, port: None)
    monkeypatch.setattr(serve, "serve", lambda app, host, port: served.append(app))
    runpy.run_path(str(ROOT / "spaces" / "app.py"), run_name="__main__")
    (app,) = served
    shutil.rmtree(app.uploads, ignore_errors=True)
    assert type(app) is SecurityMiddleware
    assert app.hosts == (None if variable else LOCAL_HOSTS)
    assert send(app, "GET", "/", headers={"Host": "elsewhere.example"}).status_code == (200 if variable else 421)
    assert send(app, "GET", "/config").json()["footer_links"] == []
    for address in ("/?view=settings", "/?view=api", "/?a=1&view=settings"):
        response = send(app, "GET", address)
        assert (response.status_code, response.headers["location"]) == (307, "?")
    assert send(app, "POST", API + "queue/join", headers={"Origin": ELSEWHERE}).status_code == 403


def test_mounted_space_works_and_has_the_same_guard(mounted):
    """An app that a Space is mounted in neither starts it nor strips the path."""
    url, _ = mounted
    with httpx.Client(base_url=url + "/demo", timeout=60, trust_env=False) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "display-capture=()" in page.headers["permissions-policy"]
        for asset in set(re.findall(r'(?:src|href)="\.?/?(assets/[^"]+)"', page.text)):
            assert client.get("/" + asset).status_code == 200
        assert client.get("/config").json()["footer_links"] == []
        path = client.post(API + "upload", files={"files": ("a.png", encode_image(brain_image(1)))}).json()[0]
        event = client.post(API + "call/classify", json={"data": [{"path": path, **META}, ""]}).json()["event_id"]
        assert "event: complete" in client.get(f"{API}call/classify/{event}").text
        assert client.post(API + "queue/join", headers={"Origin": ELSEWHERE}, json={}).status_code == 403
        assert client.get("/", headers={"Host": "elsewhere.example"}).status_code == 421
        assert client.post(API + "run/predict", json={"data": [None, 0], "fn_index": 0}).status_code == 404
        assert (
            client.post(API + "call/classify", json={"data": [{"path": "/etc/passwd", **META}, ""]}).status_code == 403
        )


def test_mounted_space_removes_old_files(tmp_path):
    """Starlette sends no lifespan events to mounted apps."""
    outer = FastAPI()
    outer.mount("/demo", SecurityMiddleware(accept, tmp_path, max_age=0.1))

    async def ask_and_wait() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as client:
            assert (await client.get("/demo/config")).status_code == 200
            (tmp_path / "upload.png").write_bytes(b"x")
            for _ in range(200):
                if not (tmp_path / "upload.png").exists():
                    return
                await asyncio.sleep(0.05)

    asyncio.run(ask_and_wait())
    assert not list(tmp_path.iterdir())


# Paths that must not leave the mounted page, nor reach a file or a route that it does not serve.
PATHS = [
    "/demo/%2e%2e/outer", "/demo/%252e%252e/outer", "/demo/%25252e%25252e/outer", "/demo/..;/outer", "/demo/../outer",
    "/demo//etc/passwd", "/demo/%2fetc%2fpasswd", "/demo/%c0%ae%c0%ae/etc/passwd",
    "/demo/%EF%BC%8E%EF%BC%8E/etc/passwd", "/demo/gradio_api/file=/etc/passwd",
    "/demo/gradio_api/file=%2fetc%2fpasswd", "/demo/gradio_api/file=%252fetc/passwd",
    "/demo/gradio_api/file=/demo/gradio_api/file=/etc/passwd", "/demo/demo/config", "/demogradio_api/config",
    "/demo/gradio_api%2ffile=/etc/passwd", "/demo/static/%2e%2e%2f%2e%2e%2fqueueing.py",
    "/demo/static/..%5cqueueing.py", "/demo/static/%252e%252e/queueing.py", "/demo/assets/%2e%2e/%2e%2e/routes.py",
    "/demo/svelte/....//queueing.py",
]  # fmt: skip


def exchange(url: str, content: bytes) -> list[tuple[int, bytes]]:
    """Send bytes over one connection; return the status and the whole of each response until it is closed."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port), timeout=20) as connection:
        connection.sendall(content)
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    answers = re.split(rb"(?=HTTP/1\.1 \d{3} )", received)[1:]
    return [(int(answer[9:12]), answer) for answer in answers]


def test_pipelined_and_encoded_requests_are_refused_one_by_one(mounted):
    url, _ = mounted
    requests = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-\r\n\r\n" for path in PATHS]
    last = "GET /demo/nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answers = exchange(url, "".join([*requests, last]).encode())
    assert [status for status, _ in answers] == [404] * (len(PATHS) + 1)
    assert not [answer for _, answer in answers if b"root:" in answer or b"import " in answer]
    good = "GET /demo/config HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert [status for status, _ in exchange(url, f"{requests[0]}{good}{last}".encode())] == [404, 200, 404]


def test_request_smuggling_and_upgrades_are_refused(mounted):
    url, _ = mounted
    inner = "POST /demo/gradio_api/reset HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    close = "Host: localhost\r\nConnection: close\r\n"
    join = f"POST /demo/gradio_api/queue/join HTTP/1.1\r\n{close}Content-Type: application/json\r\n"
    for framing in (
        f"Content-Length: {len(inner) + 5}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}",
        f"Content-Length: 0\r\nContent-Length: {len(inner)}\r\n\r\n{inner}",
        f"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}",
        f"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{inner}",
        f"Content-Length: +0\r\n\r\n{inner}",
    ):
        answers = exchange(url, (join + framing).encode())
        assert not [status for status, _ in answers[:1] if status < 400], framing
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade, close\r\nSec-WebSocket-Version: 13\r\n"
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    for path in ("/demo/", "/demo/gradio_api/queue/join", "/demo/gradio_api/stream/x"):
        ((status, _), *_) = exchange(url, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{upgrade}{key}".encode())
        assert status in {200, 403, 404}, path  # never 101
    h2 = f"GET /demo/ HTTP/1.1\r\n{close}Upgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n"
    assert [status for status, _ in exchange(url, h2.encode())] == [200]
    for line in ("GET http://elsewhere.example/ HTTP/1.1", "CONNECT elsewhere.example:443 HTTP/1.1"):
        ((status, _), *_) = exchange(url, f"{line}\r\nConnection: close\r\nHost: elsewhere.example\r\n\r\n".encode())
        assert status >= 400, line


def read(client: httpx.Client, address: str) -> str:
    """Return what is answered; Gradio breaks off its answer about an unknown event."""
    received = []
    with client.stream("GET", address) as response, contextlib.suppress(httpx.RemoteProtocolError):
        received += response.iter_text()
    return "".join(received)


def test_other_visitors_answers_and_files_are_not_found(mounted):
    url, _ = mounted
    with httpx.Client(base_url=url + "/demo", timeout=60, trust_env=False) as client:
        path = client.post(API + "upload", files={"files": ("a.png", encode_image(brain_image(1)))}).json()[0]
        event = client.post(API + "call/classify", json={"data": [{"path": path, **META}, ""]}).json()["event_id"]
        assert re.fullmatch("[0-9a-f]{32}", event)
        other = event[:-1] + ("0" if event[-1] != "0" else "1")
        for address in (
            f"call/classify/{other}", f"call/classify/{event[:8]}", "call/classify/", "call/classify/%2a",
            f"queue/data?session_hash={other}", "queue/data?session_hash=", "queue/data", "queue/data?session_hash=%00",
            f"file={path}", f"file={Path(path).parent}", f"file={Path(path).parent.parent}/",
        ):  # fmt: skip
            text = read(client, API + address)
            assert "probabilities" not in text and "complete" not in text, address
        for body in ({"session_hash": other, "fn_index": 0, "event_id": other}, {"session_hash": "", "fn_index": 0}):
            client.post(API + "cancel", json=body)
        client.post(API + "reset", json={"event_id": other})
        assert "event: complete" in client.get(f"{API}call/classify/{event}").text
        folder = Path(path).parent.parent
        for guess in (folder, folder / "..", f"{folder}/./", f"{folder}/../incoming"):
            body = {"data": [{"path": str(guess), **META}, ""]}
            assert client.post(API + "call/classify", json=body).status_code == 403, guess


def test_one_visitor_cannot_fill_the_queue(monkeypatch):
    import gradio

    monkeypatch.setattr(middleware, "MAX_WAITING", 3)
    release = threading.Event()
    with gradio.Blocks(analytics_enabled=False) as demo_page:
        text = gradio.Textbox()
        gradio.Button().click(lambda value: release.wait(20) and value, text, text, api_name="answer")
    demo_page.queue(max_size=9, default_concurrency_limit=1)
    app = secure_page(demo_page, {"behind_proxy": True})
    first, second = {"X-Forwarded-For": "8.8.8.8"}, {"X-Forwarded-For": "9.9.9.9"}
    with run_server(app) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as client:

        def call(headers: dict[str, str]) -> httpx.Response:
            return client.post(API + "call/answer", json={"data": ["x"]}, headers=headers)

        call(first)
        wait_until(lambda: len(demo_page._queue) == 0)  # this one runs
        flood = [call(first) for _ in range(12)]
        assert [response.status_code for response in flood] == [200] * 3 + [429] * 9
        assert "requests are waiting" in flood[-1].json()["detail"]
        answer = call(second)
        assert answer.status_code == 200
        release.set()
        event = answer.json()["event_id"]
        assert 'data: ["x"]' in client.get(f"{API}call/answer/{event}", headers=second).text
        wait_until(lambda: len(demo_page._queue) == 0)
        assert call(first).status_code == 200
