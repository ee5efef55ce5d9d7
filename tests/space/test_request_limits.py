"""Rate limits, upload budgets and cleanup of the Space's middleware, around minimal apps."""

import asyncio
import os
import time
import tracemalloc

import httpx
import numpy as np
import pytest

from hf_medtl.space.security import middleware, rate_limit, upload_budget, upload_store
from hf_medtl.space.security.middleware import API, SecurityMiddleware
from hf_medtl.space.security.rate_limit import RateLimiter, client_address
from hf_medtl.space.security.upload_store import remove_old_files
from hf_medtl.space.window_controls import MAX_IMAGES, receive_uploads
from tests.support.dicom_files import encode_dicom, make_dicom
from tests.support.space_fixtures import check_headers

NAME = "Mustermann_Erika"


async def echo(scope, receive, send) -> None:
    """Answer with "ok", or fail with a name in the error."""
    if scope["type"] == "lifespan":
        return
    if scope["path"] == "/config":
        raise ValueError(NAME)
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"server", b"x"), (b"Access-Control-A", b"*")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})


def send_request(app: SecurityMiddleware, method: str, path: str, **options: object) -> httpx.Response:
    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(once())


def test_allow_eval_sets_policy(tmp_path):
    response = send_request(SecurityMiddleware(echo, tmp_path, allow_eval=True), "GET", "/")
    assert "script-src 'self' 'unsafe-eval';" in response.headers["content-security-policy"]


def test_app_error_hides_its_text(tmp_path, caplog):
    response = send_request(SecurityMiddleware(echo, tmp_path), "GET", "/config")
    assert response.status_code == 500
    check_headers(response)
    assert "ValueError" in caplog.text
    assert NAME not in caplog.text + response.text


def test_rate_limit_returns_429_with_retry_after(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(rate_limit.time, "monotonic", lambda: now)
    app = SecurityMiddleware(echo, tmp_path, posts_per_minute=30, behind_proxy=True, exempt_clients=["7.7.7.7"])
    first, second = {"X-Forwarded-For": "1.2.3.4, 8.8.8.8"}, {"X-Forwarded-For": "1.2.3.4, 9.9.9.9"}
    join = API + "queue/join"
    assert [send_request(app, "POST", join, json={}, headers=first).status_code for _ in range(31)] == [200] * 30 + [
        429
    ]
    refused = send_request(app, "POST", join, json={}, headers=first)
    assert refused.headers["retry-after"] == "2"
    assert "2 seconds" in refused.json()["detail"]
    check_headers(refused)
    assert send_request(app, "POST", join, json={}, headers=second).status_code == 200
    exempt = {"X-Forwarded-For": "7.7.7.7"}
    assert {send_request(app, "POST", join, json={}, headers=exempt).status_code for _ in range(40)} == {200}
    assert send_request(app, "GET", "/assets/a.js", headers=first).status_code == 200
    now += 2
    assert [send_request(app, "POST", join, json={}, headers=first).status_code for _ in range(2)] == [200, 429]


BODY = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(600) + b"\r\n--b--\r\n"


async def send_body(app: SecurityMiddleware, path: str, *parts: bytes, then: asyncio.Event | None = None) -> int:
    """Return the status of a POST whose last body part is only sent after `then`."""
    remaining = list(parts)

    async def receive() -> dict:
        if then and len(remaining) == 1:
            await then.wait()
        return {"type": "http.request", "body": remaining.pop(0), "more_body": bool(remaining)}

    async def send(message: dict) -> None:
        statuses.append(message.get("status"))

    statuses: list[int | None] = []
    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    return statuses[0]


@pytest.mark.parametrize("path", [API + "upload", middleware.MCP_PATH, API + "queue/join"])
def test_slow_bodies_stay_within_budget(path, tmp_path, monkeypatch):
    for name in ("MAX_INCOMING", "MAX_CALLS", "MAX_EVENTS"):
        monkeypatch.setattr(middleware, name, 1500)
    app = SecurityMiddleware(echo, tmp_path, posts_per_minute=99, mcp=True)
    body = BODY if path.endswith("upload") else b"{" + b" " * 700 + b"}"

    async def send_all() -> tuple[list[int], list[int], int]:
        resume = asyncio.Event()
        slow = [asyncio.create_task(send_body(app, path, body[:-5], body[-5:], then=resume)) for _ in range(2)]
        await asyncio.sleep(0)
        while app.upload_budget.used_bytes + app.call_budget.used_bytes + app.event_budget.used_bytes < 2 * (
            len(body) - 5
        ):
            await asyncio.sleep(0.01)
        refused = [await send_body(app, path, body) for _ in range(3)]
        resume.set()
        return await asyncio.gather(*slow), refused, await send_body(app, path, body)

    assert asyncio.run(send_all()) == ([200, 200], [503] * 3, 200)
    assert app.upload_budget.used_bytes == app.call_budget.used_bytes == app.event_budget.used_bytes == 0


def test_tool_calls_hold_budget_until_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(middleware, "MAX_CALLS", 1500)

    async def send_all() -> tuple[list[int], int, int]:
        end = asyncio.Event()

        async def slow(scope, receive, send) -> None:
            if scope["type"] == "lifespan":
                return
            await end.wait()
            await echo(scope, receive, send)

        app, call = SecurityMiddleware(slow, tmp_path, mcp=True), b" " * 700
        waiting = [asyncio.create_task(send_body(app, middleware.MCP_PATH, call)) for _ in range(2)]
        while app.call_budget.used_bytes < 1400:
            await asyncio.sleep(0.01)
        refused = await send_body(app, middleware.MCP_PATH, call)
        end.set()
        return await asyncio.gather(*waiting), refused, await send_body(app, middleware.MCP_PATH, call)

    assert asyncio.run(asyncio.wait_for(send_all(), 20)) == ([200, 200], 503, 200)


@pytest.mark.parametrize("path", [API + "upload", middleware.MCP_PATH, API + "queue/join"])
def test_endless_body_times_out(path, tmp_path, monkeypatch):
    monkeypatch.setattr(upload_budget, "MAX_SECONDS", 0.1)
    app = SecurityMiddleware(echo, tmp_path, mcp=True)
    assert asyncio.run(asyncio.wait_for(send_body(app, path, BODY, b"", then=asyncio.Event()), 20)) == 408
    assert app.upload_budget.used_bytes == app.call_budget.used_bytes == app.event_budget.used_bytes == 0


def test_many_large_files_of_one_upload_stay_out_of_memory(tmp_path):
    """300 DICOM files of 300 kB: 200 are stored, more are refused, and neither is kept in memory."""
    pixels = np.random.default_rng(0).integers(0, 4096, (384, 384), dtype=np.uint16)
    dicom = encode_dicom(make_dicom(pixels, BitsStored=12))
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.dcm"\r\n\r\n'
    app = SecurityMiddleware(echo, tmp_path)
    for number, status in ((300, 400), (200, 200)):
        parts = [part for _ in range(number) for part in (head, dicom, b"\r\n")]
        tracemalloc.start()
        try:
            assert asyncio.run(send_body(app, API + "upload", *parts, b"--b--\r\n")) == status
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 50 * len(dicom)  # 200 times before
        stored = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(stored) == (0 if status == 400 else number)
    received, problems = receive_uploads([str(path) for path in stored])
    assert len(received.uploads) == MAX_IMAGES
    assert received.n_bytes == MAX_IMAGES * len(dicom)
    assert "Only the first 12" in problems[-1]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_open_responses_per_client_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(middleware, "MAX_OPEN", 2)

    async def send_all() -> list[list[int]]:
        end = asyncio.Event()

        async def stream(scope, receive, send) -> None:
            if scope["type"] == "lifespan":
                return
            await end.wait()
            await echo(scope, receive, send)

        app = SecurityMiddleware(stream, tmp_path, behind_proxy=True, exempt_clients=["7.7.7.7"])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:

            def open_responses(address: str) -> list[asyncio.Task]:
                get = [client.get(f"{API}heartbeat/a", headers={"X-Forwarded-For": address}) for _ in range(4)]
                return [asyncio.create_task(coroutine) for coroutine in get]

            clients = [open_responses(address) for address in ("8.8.8.8", "9.9.9.9", "7.7.7.7")]
            await asyncio.sleep(0.1)
            end.set()
            clients = [await asyncio.gather(*tasks) for tasks in clients]
            clients.append([await client.get("/robots.txt", headers={"X-Forwarded-For": "8.8.8.8"})])
        assert not app.open_responses
        return [[response.status_code for response in answers] for answers in clients]

    assert asyncio.run(send_all()) == [[200, 200, 429, 429], [200, 200, 429, 429], [200] * 4, [200]]


def test_rate_limiter_table_is_bounded(monkeypatch):
    monkeypatch.setattr(rate_limit, "MAX_CLIENTS", 3)
    table = RateLimiter(1)
    assert [table.wait(name) for name in "abcdef"] == [0] * 6
    assert list(table.buckets) == ["d", "e", "f"]
    assert table.wait("f") == 60


@pytest.mark.parametrize(
    ("passed", "proxied", "client"),
    [
        (None, True, "10.0.0.1"),
        ("8.8.8.8", False, "10.0.0.1"),
        ("8.8.8.8", True, "8.8.8.8"),
        ("1.1.1.1, 8.8.8.8", True, "8.8.8.8"),
        ("1.1.1.1, 8.8.8.8, 10.2.3.4", True, "8.8.8.8"),
        ("rubbish, 192.168.0.1", True, "10.0.0.1"),
        ("2001:4860:1:2:3::4", True, "2001:4860:1:2::/64"),
    ],
)
def test_client_address(passed, proxied, client):
    headers = [] if passed is None else [(b"x-forwarded-for", passed.encode())]
    assert client_address({"type": "http", "client": ("10.0.0.1", 5), "headers": headers}, proxied) == client


def test_old_files_are_removed(tmp_path, monkeypatch):
    for name in ("a/b/old.png", "c/old.png", "page.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (0, 0))  # modification times of copied files can be old
    kept = [tmp_path / "page.png"]
    remove_old_files(tmp_path, 60, kept)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3
    now = time.time()
    for hour in (1, 2, 3, 4):  # an emptied folder is as old as its last change
        monkeypatch.setattr(upload_store.time, "time", lambda hour=hour: now + hour * 3600)
        remove_old_files(tmp_path, 60, kept)
    assert list(tmp_path.iterdir()) == kept


def test_sweeper_runs_during_lifespan(tmp_path):
    async def lifespan(scope, receive, send) -> None:
        await asyncio.sleep(0.1)
        (tmp_path / "new.png").write_bytes(b"x")
        for _ in range(100):
            if not (tmp_path / "new.png").exists():
                return
            await asyncio.sleep(0.05)

    (tmp_path / "page.png").write_bytes(b"x")
    asyncio.run(SecurityMiddleware(lifespan, tmp_path, max_age=0.2)({"type": "lifespan"}, None, None))
    assert [path.name for path in tmp_path.iterdir()] == ["page.png"]
