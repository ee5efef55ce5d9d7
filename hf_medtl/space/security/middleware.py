"""What stands between the open web and a Gradio app: a pure ASGI layer around the whole of it.

Gradio serves far more than a page needs: it fetches URLs for whoever asks (`file=https://...`, and inputs whose path is
a URL), keeps uploads under the names that users gave them, and lets any web site call it. Here a request reaches Gradio
only by the routes that its page needs; uploads are kept by the guard itself, under neutral names and for a limited
time; and each response says what a browser may do with it (`responses.py`).

Read in Gradio 6.31: `routes.py`, `route_utils.py`, `processing_utils.py`.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import anyio.to_thread
from starlette.datastructures import Headers, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_medtl.data.images import EXTENSIONS
from hf_medtl.space.security.headers import Answer
from hf_medtl.space.security.rate_limit import Clients, client_of
from hf_medtl.space.security.upload_budget import FULL, Refused, Room, too_long
from hf_medtl.space.uploads import MAX_ARCHIVE

logger = logging.getLogger(__name__)

API = "/gradio_api/"
READABLE = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/pwa_icon"}
READABLE |= {
    API + name for name in ("app_id", "info", "openapi.json", "queue/data", "startup-events", "upload_progress")
}
CALLED = re.compile(f"{API}call(?:/v2)?/([a-z]+)(/[0-9a-f]{{32}})?")  # without gradio_client: a POST, then a GET
READABLE_BELOW = ("/assets/", "/static/", "/svelte/", "/pwa_icon/", API + "heartbeat/", API + "file=")
TOOLS, TOOLS_BYTES = f"{API}mcp", 20_000_000  # for language models, if the app has them
PARTS = 1000  # of JSON for them: about each wrong one mcp makes a sentence, meanwhile nobody is answered
WRITABLE = {API + name for name in ("queue/join", "run/predict", "upload", "cancel", "reset")}

WRONG = "Something went wrong. Try again."
LONGEST = 4096  # PATH_MAX of Linux
MAX_SESSION = 64  # characters of its name; a page's have 11, those of gradio_client 36
MAX_FILES = 200
MAX_KEPT = 4_000_000_000  # bytes of uploads on disk
MAX_COMING = 2_000_000_000  # bytes, also on disk, of those that are not whole yet
MAX_CALLS, MAX_EVENTS = 300_000_000, 500_000_000  # bytes in memory of tools' calls, and of the page's bodies, likewise
MAX_OPEN = 100  # answers of 500 that a client may have open; a page has one or two


class Guard:
    """The layer around an ASGI app of Gradio.

    Args:
        app: the app.
        uploads: the folder in which Gradio keeps files. It should be nobody else's: what is old is removed from it.
        proxied: whether there is a proxy in front whose X-Forwarded-For is to be believed; by default on Spaces.
        posts: requests that change something, which one client may make a minute.
        spared: addresses of clients that may make as many as they like.
        upload_bytes: of one request with files.
        body_bytes: of any other.
        keep: seconds for which a file stays on disk.
        evaluated: whether the page's scripts may make code of text, as Gradio does for `gr.HTML` and `js=`.
        names: of the page's functions that programs may call by plain HTTP, too.
        tools: whether the app has a route for language models.
    """

    def __init__(
        self,
        app: ASGIApp,
        uploads: Path,
        *,
        proxied: bool | None = None,
        posts: int = 120,
        spared: Collection[str] = (),
        upload_bytes: int = MAX_ARCHIVE + 1_000_000,
        body_bytes: int = 1_000_000,
        keep: float = 3600,
        evaluated: bool = False,
        names: frozenset[str] = frozenset(),
        tools: bool = False,
    ) -> None:
        self.app = app
        self.uploads = uploads.resolve()
        self.incoming = incoming(self.uploads)
        self.proxied = "SPACE_ID" in os.environ if proxied is None else proxied
        self.clients, self.spared = Clients(posts), frozenset(spared)
        self.upload_bytes, self.body_bytes, self.keep = upload_bytes, body_bytes, keep
        self.scripts = "'self' 'unsafe-eval'" if evaluated else "'self'"
        self.names, self.tools = names, tools
        self.files, self.calls, self.events = Room(MAX_COMING), Room(MAX_CALLS), Room(MAX_EVENTS)
        self.open = Counter[str]()  # requests that only read, by client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            sweeper = asyncio.create_task(self.sweep())
            try:
                await self.app(scope, receive, send)
            finally:
                sweeper.cancel()
        elif scope["type"] == "http":
            answer = Answer(send, self.scripts)
            try:
                await self.answer(scope, receive, answer)
                if answer.failed:
                    await answer.instead(scope, refusal(scope, 500, WRONG))
            except Refused as error:
                await answer.instead(scope, refusal(scope, error.status, str(error)))
            except Exception as error:  # its text may hold a file's name
                logger.error("%s while a request was answered.", type(error).__name__)
                await answer.instead(scope, refusal(scope, 500, WRONG))
        else:  # a websocket, which Gradio has no use for
            await send({"type": "websocket.close", "code": 1008})

    async def answer(self, scope: Scope, receive: Receive, send: "Answer") -> None:
        """Answer one HTTP request, or let the app do it."""
        method, path = scope["method"], scope["path"]
        if path.rstrip("/") == TOOLS and self.tools:
            path, scope = TOOLS, {**scope, "path": TOOLS, "raw_path": TOOLS.encode()}
            if method != "POST":  # the protocol asks for 405 where there are no sessions
                raise Refused(405, "Only POST is answered here.")
        elif not self.known(method, path):
            raise Refused(404, "There is nothing here.")
        scope = self.cleaned(scope)
        if method != "POST":
            if path == API + "upload_progress":  # Gradio knows nothing of the guard's uploads
                return await Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")(scope, receive, send)
            return await self.reading(scope, receive, send)

        client = client_of(scope, self.proxied)
        wait = 0 if client in self.spared else self.clients.wait(client)
        if wait:
            response = refusal(scope, 429, f"Too many requests. Try again in {wait} seconds.")
            response.headers["Retry-After"] = str(wait)
            return await response(scope, receive, send)
        if path == API + "upload":
            return await (await self.upload(scope, receive))(scope, receive, send)
        if path == TOOLS:  # it looks at paths itself
            async with self.calls.counted(receive, TOOLS_BYTES) as received:  # until it is answered, since calls wait
                call = await Request(scope, received).body()
                if parts(call) > PARTS:
                    raise Refused(413, f"More than {PARTS:,} values were sent at once. Send fewer.")
                return await self.app(scope, again(call, received), send)
        body = harmless(await body_of(scope, receive, self.body_bytes, self.events), self.incoming)
        if body is None:
            raise Refused(403, "Only files that were uploaded here are read.")
        return await self.app(scope, again(body, receive), send)

    async def reading(self, scope: Scope, receive: Receive, send: "Answer") -> None:
        """Let the app answer what changes nothing. That may last as long as a page is open."""
        client = client_of(scope, self.proxied)
        if self.open[client] >= MAX_OPEN and client not in self.spared:
            raise Refused(429, "Too many pages are open. Close some.")
        self.open[client] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.open[client] -= 1
            if not self.open[client]:
                del self.open[client]

    def known(self, method: str, path: str) -> bool:
        """Whether the page needs this; `path` is decoded."""
        if "\0" in path or "\\" in path or {"..", "."} & set(path.split("/")):
            return False
        if method == "POST":
            return path in WRITABLE or self.called(path, "")
        if method not in {"GET", "HEAD"}:
            return False
        file = path.removeprefix(API + "file=")
        if file != path:  # what the app made, not what others uploaded
            return inside(file, self.uploads) and not inside(file, self.incoming)
        return path in READABLE or path.startswith(READABLE_BELOW) or self.called(path, "/")

    def called(self, path: str, behind: str) -> bool:
        """Whether a path calls one of the functions: "" is `behind` its name, or "/" and the event that is read."""
        match = CALLED.fullmatch(path)
        return match is not None and match[1] in self.names and (match[2] or "")[:1] == behind

    def cleaned(self, scope: Scope) -> Scope:
        """The scope without headers that Gradio believes or repeats, and that can't be trusted."""
        removed = {b"range"} | ({b"accept-encoding"} if scope["path"] == "/" else set())  # its scripts are hashed
        if not self.proxied:
            removed |= {name for name, _ in scope["headers"] if name.startswith(b"x-forwarded-")}
        query = [
            (key, value)
            for key, value in parse_qsl(scope["query_string"].decode("latin-1"), True)
            if key != "deep_link"
        ]
        headers = [(name, value) for name, value in scope["headers"] if name not in removed]
        return {**scope, "headers": headers, "query_string": urlencode(query).encode()}

    async def upload(self, scope: Scope, receive: Receive) -> Response:
        """Keep the files of a form under neutral names, and tell their paths as Gradio does."""
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self.upload_bytes:
            raise Refused(413, too_long(self.upload_bytes))
        if not await anyio.to_thread.run_sync(self.has_room):
            raise Refused(503, FULL)
        try:
            async with (
                self.files.counted(receive, self.upload_bytes) as received,
                Request(scope, received).form(max_files=MAX_FILES, max_fields=9) as form,
            ):
                files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
                paths = [await anyio.to_thread.run_sync(keep, file, self.incoming) for file in files]
        except Refused:
            raise
        except Exception as error:
            raise Refused(400, f"The upload can't be read. Send up to {MAX_FILES} files.") from error
        return JSONResponse([str(path) for path in paths])

    def has_room(self) -> bool:
        """Whether uploads on disk leave room for one more."""
        kept = 0
        for path in below(self.incoming):
            with contextlib.suppress(OSError):  # removed meanwhile
                kept += path.lstat().st_size
        return kept + self.upload_bytes <= MAX_KEPT

    async def sweep(self) -> None:
        """Remove what is older than `keep` seconds, for ever; but not what is there at first, such as examples."""
        spared = frozenset(below(self.uploads))
        while True:
            await anyio.to_thread.run_sync(remove_old, self.uploads, self.keep, spared)
            await asyncio.sleep(min(60, self.keep))


def refusal(scope: Scope, status: int, text: str) -> Response:
    """A response as Gradio's page shows it: text to uploads, else JSON."""
    if scope["path"] == API + "upload":
        return PlainTextResponse(text, status)
    return JSONResponse({"detail": text, "error": text}, status)


async def body_of(scope: Scope, receive: Receive, limit: int, room: Room) -> bytes:
    """The body of a request."""
    async with room.counted(receive, limit) as received:
        return await Request(scope, received).body()


def again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already."""
    messages: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def received() -> Message:
        return next(messages, None) or await receive()

    return received


def harmless(body: bytes, uploads: Path) -> bytes | None:
    """A body of JSON without the names of files.

    None if a "path" in it is no file below `uploads`, or a session's name is long.

    Gradio would fetch a path that is a URL, `gr.Image` writes a copy under the file's own name, and a session's name
    stays in memory, as of 6.31 for ever if nobody reads the answer.
    """
    if not body:
        return body
    try:
        whole = json.loads(body)
    except (ValueError, RecursionError):
        return None
    left = [whole]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if len(str(value.get("session_hash"))) > MAX_SESSION:
                return None
            path = value.get("path")
            if path and not (isinstance(path, str) and inside(path, uploads)):
                return None
            if path and value.get("orig_name"):
                value["orig_name"] = Path(path).name
            left += value.values()
        elif isinstance(value, list):
            left += value
    return json.dumps(whole).encode()


def parts(body: bytes) -> int:
    """More than the values in a body of JSON, and in the JSON within its strings; nothing is made of it."""
    return sum(map(body.count, (b",", b"[", b"{", b"\\u")))


def inside(path: str, folder: Path) -> bool:
    """Whether an absolute path is below a folder, links followed. A long one is none, and takes minutes to follow."""
    if not path.startswith("/") or "\0" in path or len(path) > LONGEST:
        return False
    return folder in Path(os.path.realpath(path)).parents


def incoming(folder: Path) -> Path:
    """Where uploads are kept, and not served from, in Gradio's folder."""
    return folder.resolve() / "incoming"


def keep(file: UploadFile, folder: Path) -> Path:
    """Write an uploaded file into a new folder, under a neutral name with its own ending; its name is remembered."""
    name = file.filename or ""
    ending = next((end for end in sorted((*EXTENSIONS, ".zip"), key=len)[::-1] if name.lower().endswith(end)), "")
    path = folder / secrets.token_hex(16) / f"upload{ending}"
    path.parent.mkdir(parents=True, mode=0o700)
    with path.open("wb") as stream:
        shutil.copyfileobj(file.file, stream)
    NAMES[str(path)] = name
    while len(NAMES) > MAX_NAMES:
        NAMES.pop(next(iter(NAMES)), None)
    return path


@contextlib.contextmanager
def gone(paths: Iterable[str]) -> Iterator[None]:
    """Uploaded files that are no longer on disk at the end, whatever happens, nor their names in memory."""
    try:
        yield
    finally:
        for path in paths:
            name_of(path)
            with contextlib.suppress(OSError):  # most were removed when they were read
                Path(path).unlink(missing_ok=True)
                Path(path).parent.rmdir()


MAX_NAMES = 10_000
NAMES: dict[str, str] = {}  # path -> name: in memory only


def name_of(path: str | Path) -> str:
    """The name that its user gave an uploaded file, told once; `take` and `unpack` want it."""
    return NAMES.pop(str(path), Path(path).name)


def below(folder: Path) -> list[Path]:
    """Files and folders below a folder. Unlike `Path.rglob` it does not mind if some are removed meanwhile."""
    return [Path(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)]


def remove_old(folder: Path, seconds: float, spared: Collection[Path] = ()) -> None:
    """Remove files below a folder that were put there that long ago, and folders left empty."""
    before = time.time() - seconds
    for path in set(below(folder)).difference(spared):
        with contextlib.suppress(OSError):  # gone meanwhile, or not empty
            if path.lstat().st_ctime < before:  # Gradio's copies have the time of the original otherwise
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
                NAMES.pop(str(path), None)
