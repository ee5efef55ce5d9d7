"""A Gradio app served on the open web: what is started, and what its functions may say when they fail."""

import asyncio
import atexit
import contextlib
import ctypes
import functools
import inspect
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hf_medtl.errors import MedtlError
from hf_medtl.space.security.middleware import Guard

if TYPE_CHECKING:
    from gradio import Blocks
    from starlette.applications import Starlette
    from uvicorn import Server

logger = logging.getLogger(__name__)
SORRY = "Something went wrong. Try again, or with another picture."
FOLDER = "hf_medtl-space-"
SESSIONS = 1000  # that Gradio remembers, 300 kB each: of visitors, and of each question that a program asks


def own_folder() -> Path:
    """Make a folder for the files of this process alone, removed when it ends.

    To be called before the first component is made.
    """
    remove_abandoned(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=FOLDER))
    lock(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    # Else Gradio remembers ten thousand events, and makes a table of all of them whenever one fails.
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
    return folder


def lock(folder: Path) -> bool:
    """Lock a folder until this process ends, however it does; False where another has, or there are no locks."""
    try:
        import fcntl

        place = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except (ImportError, OSError):  # Windows; a link, or somebody else's
        return False
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(place)
        return False
    return True


def remove_abandoned(folder: Path) -> None:
    """Remove what processes left that were killed: pictures of visitors may be among it."""
    for path in folder.glob(f"{FOLDER}*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
            new = time.time() - path.lstat().st_mtime < 60  # maybe not locked yet
            if not new and lock(path):
                shutil.rmtree(path)


def few_heaps() -> None:
    """Let all threads of the process share two heaps, where the C library is GNU's; to be called before there are many.

    By default each thread has one of its own and hands little back: a minute of questions by 20 users took a gigabyte.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(-8, 2)  # M_ARENA_MAX of malloc.h


def guarded(
    demo: "Blocks", limits: dict[str, Any] | None = None, tools: "Starlette | None" = None, **options: Any
) -> Guard:
    """The ASGI app of a Gradio page, behind a guard.

    Gradio's `launch` takes middleware, but puts its own around it and starts a server that tells its name; mounted, the
    app is wholly inside. Each function of the page becomes `plain`.

    Args:
        demo: the page.
        limits: of `Guard`.
        tools: an app for language models, of `hf_medtl.space.tools`.
        options: of `gradio.mount_gradio_app`, such as theme, css and head.
    """
    import gradio
    from fastapi import FastAPI
    from gradio.utils import get_upload_folder

    hush()
    forgetful()
    for event in demo.fns.values():
        if event.fn is not None:
            event.fn = plain(event.fn)
    demo.state_session_capacity = SESSIONS
    demo.api_open = False  # else /run/predict would call functions past the queue
    shut = {"run_history": False, "enable_monitoring": False, "mcp_server": False, "ssr_mode": False}
    quiet = {"show_error": False, "footer_links": []}
    lifespan: Any = tools and (lambda _: tools.router.lifespan_context(tools))
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.router.routes += tools.routes if tools else []
    gradio.mount_gradio_app(app, demo, path="/", **(shut | quiet | options))
    # Until 6.31 at least, Gradio does not look where the files are that a request names, unless it was launched.
    demo.has_launched = True
    names = frozenset(name.removeprefix("/") for name in demo.get_api_info()["named_endpoints"])
    return Guard(app, Path(get_upload_folder()), **{"names": names, "tools": tools is not None, **(limits or {})})


def server(app: Guard, host: str = "127.0.0.1", port: int = 7860) -> "Server":
    """What serves an app; its `run()` does until interrupted.

    Nothing is logged of a request, and the answers do not tell what serves them.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http="h11",  # httptools, which is taken where it is installed, keeps headers of any length in memory
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the guard reads what a proxy says
        limit_concurrency=500,  # a page that is open holds one or two connections
        timeout_graceful_shutdown=2,
    )
    logging.getLogger("uvicorn.error").addFilter(tells)
    return uvicorn.Server(config)


def tells(record: logging.LogRecord) -> bool:
    """Whether a record of uvicorn tells more than that a page was open, which holds a connection, when it stopped."""
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and "graceful shutdown exceeded" not in record.getMessage()


def free(host: str, port: int) -> None:
    """Raise a MedtlError unless the port can be listened at: before models are loaded, not after."""
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((host, port))
        except OSError as error:
            raise MedtlError(
                f"{host}:{port} can't be listened at ({error.strerror}). Give another port, or another host."
            ) from error


def forgetful() -> None:
    """Let Gradio keep no copy of what a page shows, and one component of each for a visitor.

    As of 6.31 it keeps the answers of each visitor, one more after each change of a component, until an hour after the
    page was closed. They are for links that show a page again, which the guard shuts. And a component that an answer
    changed gets a new id, under which it is kept beside its next one: six components a picture.
    """
    from gradio.blocks import Block
    from gradio.state_holder import SessionState

    forget: Any = lambda state, key, value=None: None  # noqa: E731
    SessionState._update_config = SessionState._update_value_in_config = forget  # type: ignore[method-assign]
    replace = inspect.unwrap(SessionState.__setitem__)

    @functools.wraps(replace)
    def under_its_id(state: SessionState, key: int, value: Any) -> None:
        if isinstance(value, Block):
            value._id = key
        replace(state, key, value)

    SessionState.__setitem__ = under_its_id  # type: ignore[method-assign]


def hush() -> None:
    """Let Gradio log no text of an error that is raised around a page's functions, and tell its client a sentence.

    It prints tracebacks, with values that a client sent, and tells the client nothing: there is no option, as of 6.31.
    """
    import gradio
    from gradio import queueing, routes, utils

    original = inspect.unwrap(utils.error_payload)

    @functools.wraps(original)
    def payload(error: BaseException | None, show_error: bool) -> dict[str, Any]:
        return original(error if isinstance(error, gradio.Error) else gradio.Error(SORRY), show_error)

    def tell(*_: Any) -> None:
        if (error := sys.exception()) is not None:
            logger.error(place(error))

    queueing.error_payload = utils.error_payload = payload
    queueing.traceback = routes.traceback = SimpleNamespace(print_exc=tell)  # type: ignore[assignment]


def place(error: BaseException) -> str:
    """An error's class, and where in the code it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return type(error).__name__ + where


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A page's function whose failure is a sentence for its user; the log has a place in the code, and no text.

    Gradio would print a traceback, whose last line may quote a file's name or a header; and SystemExit in a function
    would end the server.
    """

    def said(error: BaseException) -> Exception:
        from gradio import Error

        if isinstance(error, Error):
            return error
        if isinstance(error, MedtlError):
            return Error(str(error), print_exception=False)
        logger.error(place(error))
        return Error(SORRY, print_exception=False)

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def steps(*arguments: Any, **more: Any) -> Iterator[Any]:
            try:
                yield from function(*arguments, **more)
            except GeneratorExit:
                raise
            except BaseException as error:
                problem = said(error)
            else:
                return
            raise problem  # outside `except`: no context that could be printed

        return steps

    @functools.wraps(function)
    def call(*arguments: Any, **more: Any) -> Any:
        try:
            return function(*arguments, **more)
        except BaseException as error:
            problem = said(error)
        raise problem

    return call
