"""ASGI security middleware around the Gradio app: allowed routes, request sizes, rate limits, uploads and headers.

Gradio serves far more than the page needs: it fetches URLs for anyone (`file=https://...`, and inputs whose path is a
URL), keeps uploads under their users' file names, and lets any web site call it. Here a request reaches Gradio only by
the routes that the page needs; the middleware stores uploads itself, under neutral names and for a limited time; and
every response carries security headers (`headers.py`).

Written against Gradio 6.31: `routes.py`, `route_utils.py`, `processing_utils.py`.
"""

import asyncio
import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import anyio.to_thread
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_medtl.space.security.headers import SecureSend
from hf_medtl.space.security.json_bodies import count_json_values, replay, sanitize_json
from hf_medtl.space.security.origins import check_host, check_same_site
from hf_medtl.space.security.rate_limit import RateLimiter, client_address
from hf_medtl.space.security.upload_budget import BUSY, HTTPRefusal, UploadBudget, body_too_large
from hf_medtl.space.security.upload_store import is_inside, list_below, remove_old_files, store_upload, upload_folder
from hf_medtl.space.uploads import MAX_ARCHIVE

logger = logging.getLogger(__name__)

# Routes of Gradio that the page and its API clients need; all others are refused.
API = "/gradio_api/"
GET_PATHS = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/pwa_icon"} | {
    API + name for name in ("app_id", "info", "openapi.json", "queue/data", "startup-events", "upload_progress")
}
GET_PREFIXES = ("/assets/", "/static/", "/svelte/", "/pwa_icon/", API + "heartbeat/", API + "file=")
POST_PATHS = {API + name for name in ("queue/join", "run/predict", "upload", "cancel", "reset")}
CALL_PATH = re.compile(f"{API}call(?:/v2)?/([a-z]+)(/[0-9a-f]{{32}})?")  # plain HTTP clients: a POST, then a GET
MCP_PATH = f"{API}mcp"  # tools for language models, if the app has them

# Limits
MAX_MCP_BYTES = 20_000_000  # of one tool call
MAX_JSON_VALUES = 1000  # of one tool call: mcp builds a message for each invalid value, and serves nobody meanwhile
MAX_FILES = 200  # of one upload
MAX_STORED = 4_000_000_000  # bytes of uploads on disk
MAX_INCOMING = 2_000_000_000  # bytes on disk of uploads that are still arriving
MAX_CALLS, MAX_EVENTS = 300_000_000, 500_000_000  # bytes in memory of tool calls, and of the page's other requests
MAX_WAITING = 25  # events of one client in the queue, which has 100
MAX_OPEN = 100  # open GET responses of one client (the server handles 500); a page has one or two
GENERIC_ERROR = "Something went wrong. Try again."


class FormParser(MultiPartParser):
    """Parser of uploads that keeps little of each file in memory: by default a megabyte, and there may be 200."""

    spool_max_size = 1 << 16


class SecurityMiddleware:
    """ASGI middleware around a Gradio app.

    Args:
        app: the Gradio app.
        uploads: Gradio's folder of files. It should belong to this app alone: old files are removed from it.
        behind_proxy: trust the X-Forwarded-For of a reverse proxy. By default True on Hugging Face Spaces only.
        posts_per_minute: POST requests of one client.
        exempt_clients: addresses without rate limit.
        upload_bytes: bytes of one upload request.
        body_bytes: bytes of any other request.
        max_age: seconds after which a file is removed from disk.
        allow_eval: allow the page's scripts to evaluate strings, which `gr.HTML` and `js=` need.
        endpoints: names of the endpoints that may be called by plain HTTP.
        mcp: True if the app has a route for language models.
        hosts: host names that are answered, in lower case; None for all.
        count_waiting: returns the number of a client's events in the queue.
    """

    def __init__(
        self,
        app: ASGIApp,
        uploads: Path,
        *,
        behind_proxy: bool | None = None,
        posts_per_minute: int = 120,
        exempt_clients: Collection[str] = (),
        upload_bytes: int = MAX_ARCHIVE + 1_000_000,
        body_bytes: int = 1_000_000,
        max_age: float = 3600,
        allow_eval: bool = False,
        endpoints: frozenset[str] = frozenset(),
        mcp: bool = False,
        hosts: Collection[str] | None = None,
        count_waiting: Callable[[str], int] = lambda client: 0,
    ) -> None:
        self.app = app
        self.uploads = uploads.resolve()
        self.incoming = upload_folder(self.uploads)
        self.behind_proxy = "SPACE_ID" in os.environ if behind_proxy is None else behind_proxy
        self.rate_limiter, self.exempt_clients = RateLimiter(posts_per_minute), frozenset(exempt_clients)
        self.upload_bytes, self.body_bytes, self.max_age = upload_bytes, body_bytes, max_age
        self.scripts = "'self' 'unsafe-eval'" if allow_eval else "'self'"
        self.endpoints, self.mcp, self.hosts, self.count_waiting = endpoints, mcp, hosts, count_waiting
        self.upload_budget = UploadBudget(MAX_INCOMING)
        self.call_budget = UploadBudget(MAX_CALLS)
        self.event_budget = UploadBudget(MAX_EVENTS)
        self.open_responses = Counter[str]()  # GET requests in progress, by client
        self.lifespan: asyncio.Task[Any] | None = None
        self.started = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or the lifespan of the app."""
        if scope["type"] == "lifespan":
            if self.lifespan is None:
                self.lifespan = asyncio.current_task()
                self.started.set()
            sweeper = asyncio.create_task(self._sweep())
            try:
                await self.app(scope, receive, send)
            finally:
                sweeper.cancel()
        elif scope["type"] == "http":
            secure_send = SecureSend(send, self.scripts)
            if self.lifespan is None:
                self.lifespan = asyncio.create_task(self._run_lifespan())
            try:
                await self.started.wait()
                await self._respond(scope, receive, secure_send)
                if secure_send.failed:
                    await secure_send.send_instead(scope, error_response(scope, 500, GENERIC_ERROR))
            except HTTPRefusal as error:
                await secure_send.send_instead(scope, error_response(scope, error.status, str(error)))
            except Exception as error:  # its text may contain a file name
                logger.error("%s while responding to a request.", type(error).__name__)
                await secure_send.send_instead(scope, error_response(scope, 500, GENERIC_ERROR))
        else:  # a websocket, which Gradio does not use
            await send({"type": "websocket.close", "code": 1008})

    async def _run_lifespan(self) -> None:
        """Start the app and run until the server stops: an app in which this one is mounted does neither."""
        messages: Iterator[Message] = iter([{"type": "lifespan.startup"}])

        async def receive() -> Message:
            return next(messages, None) or await asyncio.Future[Message]()

        async def send(message: Message) -> None:
            self.started.set()

        try:
            await self({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
        except Exception as error:
            logger.error("%s while the page was started.", type(error).__name__)
        finally:
            self.started.set()

    async def _respond(self, scope: Scope, receive: Receive, send: SecureSend) -> None:
        """Respond to one HTTP request, or pass it on to the app."""
        # Routes
        check_host(Headers(scope=scope), self.hosts)
        method, path = scope["method"], route_path(scope)
        if path.rstrip("/") == MCP_PATH and self.mcp:
            path, full = MCP_PATH, scope.get("root_path", "") + MCP_PATH
            scope = {**scope, "path": full, "raw_path": full.encode()}
            if method != "POST":  # the protocol asks for 405 where there are no sessions
                raise HTTPRefusal(405, "Only POST is supported here.")
        elif not self._is_allowed(method, path):
            raise HTTPRefusal(404, "Not found.")
        scope = self._clean(scope)
        if method != "POST":
            if path == "/" and b"view=" in scope["query_string"]:  # opens Gradio's drawers: one records the screen
                return await RedirectResponse("?")(scope, receive, send)
            if path == API + "upload_progress":  # Gradio does not know of uploads stored by the middleware
                return await Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")(scope, receive, send)
            return await self._pass_get(scope, receive, send)

        # Origin and rate limit
        check_same_site(Headers(scope=scope))
        client = client_address(scope, self.behind_proxy)
        seconds = 0 if client in self.exempt_clients else self.rate_limiter.wait(client)
        if seconds:
            response = error_response(scope, 429, f"Too many requests. Try again in {seconds} seconds.")
            response.headers["Retry-After"] = str(seconds)
            return await response(scope, receive, send)
        if client not in self.exempt_clients and self.count_waiting(client) >= MAX_WAITING:
            raise HTTPRefusal(429, "Too many of your requests are waiting. Try again when some are answered.")
        scope["client"] = (client, 0)  # by which `count_waiting` counts

        # Bodies
        if path == API + "upload":
            return await (await self._upload(scope, receive))(scope, receive, send)
        if path == MCP_PATH:  # the tools check paths themselves
            # The budget is held until the response is sent, since calls wait in a queue.
            async with self.call_budget.limit(receive, MAX_MCP_BYTES) as limited:
                call = await Request(scope, limited).body()
                if count_json_values(call) > MAX_JSON_VALUES:
                    raise HTTPRefusal(413, f"The call has more than {MAX_JSON_VALUES:,} values. Send fewer.")
                return await self.app(scope, replay(call, limited), send)
        async with self.event_budget.limit(receive, self.body_bytes) as limited:
            body = sanitize_json(await Request(scope, limited).body(), self.incoming)
        if body is None:
            raise HTTPRefusal(403, "Only files that were uploaded here can be read.")
        return await self.app(scope, replay(body, receive), send)

    async def _pass_get(self, scope: Scope, receive: Receive, send: SecureSend) -> None:
        """Pass on a request that changes nothing. It may last as long as a page is open."""
        client = client_address(scope, self.behind_proxy)
        if self.open_responses[client] >= MAX_OPEN and client not in self.exempt_clients:
            raise HTTPRefusal(429, "Too many pages are open. Close some.")
        self.open_responses[client] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.open_responses[client] -= 1
            if not self.open_responses[client]:
                del self.open_responses[client]

    def _is_allowed(self, method: str, path: str) -> bool:
        """Return True if the page or an API client needs this route; `path` is decoded."""
        if "\0" in path or "\\" in path or {"..", "."} & set(path.split("/")):
            return False
        if method == "POST":
            return path in POST_PATHS or self._is_endpoint(path, "")
        if method not in {"GET", "HEAD"}:
            return False
        file = path.removeprefix(API + "file=")
        if file != path:  # files made by the app, not those uploaded by others
            return is_inside(file, self.uploads) and not is_inside(file, self.incoming)
        return path in GET_PATHS or path.startswith(GET_PREFIXES) or self._is_endpoint(path, "/")

    def _is_endpoint(self, path: str, suffix: str) -> bool:
        """Return True if a path calls an endpoint: `suffix` is "" for the call, "/" for reading its event."""
        match = CALL_PATH.fullmatch(path)
        return match is not None and match[1] in self.endpoints and (match[2] or "")[:1] == suffix

    def _clean(self, scope: Scope) -> Scope:
        """Return the scope without headers and parameters that Gradio trusts or echoes."""
        # Without accept-encoding the page is not compressed: its inline scripts are hashed.
        removed = {b"range"} | ({b"accept-encoding"} if route_path(scope) == "/" else set())
        if not self.behind_proxy:
            removed |= {name for name, _ in scope["headers"] if name.startswith(b"x-forwarded-")}
        headers = [(name, value) for name, value in scope["headers"] if name not in removed]
        parameters = parse_qsl(scope["query_string"].decode("latin-1"), True)
        query = urlencode([(key, value) for key, value in parameters if key != "deep_link"])
        return {**scope, "headers": headers, "query_string": query.encode()}

    async def _upload(self, scope: Scope, receive: Receive) -> Response:
        """Store the files of a form under neutral names, and respond with their paths as Gradio does."""
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self.upload_bytes:
            raise HTTPRefusal(413, body_too_large(self.upload_bytes))
        if not await anyio.to_thread.run_sync(self._has_disk_space):
            raise HTTPRefusal(503, BUSY)
        try:
            async with self.upload_budget.limit(receive, self.upload_bytes) as limited:
                stream = Request(scope, limited).stream()
                form = await FormParser(Headers(scope=scope), stream, max_files=MAX_FILES, max_fields=9).parse()
                try:
                    files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
                    paths = [await anyio.to_thread.run_sync(store_upload, file, self.incoming) for file in files]
                finally:
                    await form.close()
        except HTTPRefusal:
            raise
        except Exception as error:
            raise HTTPRefusal(400, f"The upload cannot be read. Send at most {MAX_FILES} files.") from error
        return JSONResponse([str(path) for path in paths])

    def _has_disk_space(self) -> bool:
        """Return True if the stored uploads leave space for one more."""
        stored = 0
        for path in list_below(self.incoming):
            with contextlib.suppress(OSError):  # removed meanwhile
                stored += path.lstat().st_size
        return stored + self.upload_bytes <= MAX_STORED

    async def _sweep(self) -> None:
        """Remove files older than `max_age` forever, except those present at the start, such as examples."""
        initial = frozenset(list_below(self.uploads))
        while True:
            await anyio.to_thread.run_sync(remove_old_files, self.uploads, self.max_age, initial)
            await asyncio.sleep(min(60, self.max_age))


def route_path(scope: Scope) -> str:
    """Return the decoded path below the one at which the app is mounted."""
    return scope["path"].removeprefix(scope.get("root_path", "")) or "/"


def error_response(scope: Scope, status: int, message: str) -> Response:
    """Return a response that Gradio's page displays: text for uploads, otherwise JSON."""
    if route_path(scope) == API + "upload":
        return PlainTextResponse(message, status)
    return JSONResponse({"detail": message, "error": message}, status)
