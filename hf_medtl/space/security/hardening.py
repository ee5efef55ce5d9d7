"""Gradio hardening: a page behind the security middleware, without tracebacks and without copies of answers.

Gradio 6.31 has no options for some of this, so the functions below replace or set its internals.
`tests/space/test_gradio_internals.py` lists all of them and fails with a plain message when a release changes one.
"""

import functools
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hf_medtl.errors import MedtlError
from hf_medtl.space.security.middleware import SecurityMiddleware

if TYPE_CHECKING:
    from gradio import Blocks
    from starlette.applications import Starlette

logger = logging.getLogger(__name__)
GENERIC_ERROR = "Something went wrong. Try again, or with another image."
MAX_GRADIO_SESSIONS = 1000  # kept by Gradio, 300 kB each: one per visitor, and one per API call


def secure_page(
    page: "Blocks", limits: dict[str, Any] | None = None, mcp_app: "Starlette | None" = None, **options: Any
) -> SecurityMiddleware:
    """Return the ASGI app of a Gradio page behind the security middleware.

    The page is mounted, not launched: Gradio's `launch` wraps its own middleware around any that it is given, and
    starts a server that sends its name. Exceptions of the page's functions reach users as plain sentences.

    Args:
        page: Gradio page. Its functions are replaced by wrapped ones.
        limits: keyword arguments of `SecurityMiddleware`.
        mcp_app: app of `hf_medtl.space.mcp_tools`, served beside the page.
        **options: keyword arguments of `gradio.mount_gradio_app`, such as theme, css and head.
    """
    import gradio
    from fastapi import FastAPI
    from gradio.utils import get_upload_folder

    hide_tracebacks()
    keep_no_session_copies()
    for event in page.fns.values():
        if event.fn is not None:
            event.fn = with_plain_errors(event.fn)
    page.state_session_capacity = MAX_GRADIO_SESSIONS
    page.api_open = False  # otherwise /run/predict calls functions past the queue
    disabled = {"run_history": False, "enable_monitoring": False, "mcp_server": False, "ssr_mode": False}
    quiet = {"show_error": False, "footer_links": []}
    lifespan: Any = mcp_app and (lambda _: mcp_app.router.lifespan_context(mcp_app))
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.router.routes += mcp_app.routes if mcp_app else []
    gradio.mount_gradio_app(app, page, path="/", **(disabled | quiet | options))
    # Up to at least 6.31, Gradio checks the location of requested files only if the page was launched.
    page.has_launched = True
    endpoints = frozenset(name.removeprefix("/") for name in page.get_api_info()["named_endpoints"])
    defaults: dict[str, Any] = {"endpoints": endpoints, "mcp": mcp_app is not None}
    defaults["count_waiting"] = lambda client: count_waiting(page, client)
    return SecurityMiddleware(app, Path(get_upload_folder()), **(defaults | (limits or {})))


def count_waiting(page: "Blocks", client: str) -> int:
    """Return the number of events of a client that wait in the page's queue: Gradio 6.31 limits those of all only."""
    queues = page._queue.event_queue_per_concurrency_id.values()
    clients = [event.request.client for queue in queues for event in queue.queue]
    return sum(waiting is not None and waiting.host == client for waiting in clients)


def keep_no_session_copies() -> None:
    """Stop Gradio from keeping copies of a visitor's answers and of replaced components.

    As of 6.31 it stores each answer of a session, and once more after each change of a component, until an hour after
    the page was closed. The copies serve deep links, which the middleware refuses. A component changed by an answer
    also gets a new id and is kept beside its successor, six components per image.
    """
    from gradio.blocks import Block
    from gradio.state_holder import SessionState

    do_nothing: Any = lambda state, key, value=None: None  # noqa: E731
    SessionState._update_config = SessionState._update_value_in_config = do_nothing  # type: ignore[method-assign]
    original = inspect.unwrap(SessionState.__setitem__)

    @functools.wraps(original)
    def set_under_same_id(state: SessionState, key: int, value: Any) -> None:
        if isinstance(value, Block):
            value._id = key
        original(state, key, value)

    SessionState.__setitem__ = set_under_same_id  # type: ignore[method-assign]


def hide_tracebacks() -> None:
    """Replace Gradio's tracebacks by one log line without values, and send clients a generic sentence.

    For errors raised around a page's functions, Gradio 6.31 prints tracebacks that contain values sent by clients, and
    tells the client nothing. There is no option for either.
    """
    import gradio
    from gradio import queueing, routes, utils

    original = inspect.unwrap(utils.error_payload)

    @functools.wraps(original)
    def payload(error: BaseException | None, show_error: bool) -> dict[str, Any]:
        return original(error if isinstance(error, gradio.Error) else gradio.Error(GENERIC_ERROR), show_error)

    def log_location(*_: Any) -> None:
        if (error := sys.exception()) is not None:
            logger.error(error_location(error))

    queueing.error_payload = utils.error_payload = payload
    queueing.traceback = routes.traceback = SimpleNamespace(print_exc=log_location)  # type: ignore[assignment]


def error_location(error: BaseException) -> str:
    """Return an error's class, file and line: all of it that may be logged, since its text may quote user data."""
    frames = traceback.extract_tb(error.__traceback__)
    location = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return type(error).__name__ + location


def with_plain_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a page's function (or generator) so that its failures reach the user as a plain sentence.

    The log gets the location in the code and no text: Gradio would print a traceback whose last line may quote a file
    name or a header. `SystemExit` is caught too, since it would stop the server.
    """

    def to_gradio_error(error: BaseException) -> Exception:
        from gradio import Error

        if isinstance(error, Error):
            return error
        if isinstance(error, MedtlError):
            return Error(str(error), print_exception=False)
        logger.error(error_location(error))
        return Error(GENERIC_ERROR, print_exception=False)

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def wrapped_generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from function(*args, **kwargs)
            except GeneratorExit:
                raise
            except BaseException as error:
                problem = to_gradio_error(error)
            else:
                return
            raise problem  # outside `except`: no context that could be printed

        return wrapped_generator

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            problem = to_gradio_error(error)
        raise problem

    return wrapped
