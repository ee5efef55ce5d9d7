"""Space server: models, page, middleware and uvicorn, for `hf-medtl space` and for the app.py of a Space on the Hub."""

import asyncio
import atexit
import contextlib
import ctypes
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_medtl.common.extras import require
from hf_medtl.errors import MedtlError
from hf_medtl.space.security.hardening import secure_page
from hf_medtl.space.security.middleware import SecurityMiddleware
from hf_medtl.space.security.origins import LOCAL_HOSTS
from hf_medtl.space.security.upload_store import upload_folder

if TYPE_CHECKING:
    from uvicorn import Server

FOLDER_PREFIX = "hf_medtl-space-"
FONT = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]  # local fonts: none is downloaded
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]


def create_app(
    models: Sequence[str],
    *,
    examples: Path | None = None,
    trust_remote_code: bool = False,
    limits: dict[str, Any] | None = None,
    mcp_server: bool = False,
    host: str = "127.0.0.1",
    allowed_hosts: Sequence[str] = (),
    device: str | None = None,
) -> SecurityMiddleware:
    """Return the ASGI app of a Space, to be served by itself or mounted in another app.

    Args:
        models: run folders or Hub ids. If empty, small demonstration models of synthetic images are trained.
        examples: folder of example images. If None, synthetic ones.
        trust_remote_code: run code from the models' repositories. Models of hf_medtl need none.
        limits: keyword arguments of `SecurityMiddleware`.
        mcp_server: also offer the endpoints as tools to language models (Model Context Protocol).
        host: address the server will listen on. If it is local, requests for other host names are refused.
        allowed_hosts: host names that are answered nevertheless, such as that of a reverse proxy.
        device: of the models, see `hf_medtl.models.device.select_device`.

    Raises:
        MedtlError: a model cannot be loaded, or `mcp_server` is set and the package mcp is missing.
    """
    limit_malloc_arenas()
    folder = create_temp_folder()  # before any component is made
    import gradio

    from hf_medtl.space.app import build_page, read_asset
    from hf_medtl.space.demo import demo_models
    from hf_medtl.space.examples import generate_examples, load_examples
    from hf_medtl.space.mcp_tools import create_mcp_app
    from hf_medtl.space.registry import ModelRegistry
    from hf_medtl.space.sessions import SESSION_SECONDS

    if mcp_server:
        require("mcp", "mcp", "--mcp_server")
    registry = ModelRegistry(models or demo_models(), trust_remote_code, device)
    is_local = host in {"127.0.0.1", "localhost", "::1"} and "SPACE_ID" not in os.environ
    hosts = {*LOCAL_HOSTS, *map(str.lower, allowed_hosts)} if is_local else None
    return secure_page(
        build_page(registry, load_examples(examples) if examples else generate_examples()),
        {"allow_eval": True, "max_age": SESSION_SECONDS, "hosts": hosts} | (limits or {}),
        create_mcp_app(registry, upload_folder(folder), host) if mcp_server else None,
        theme=gradio.themes.Base(font=FONT, font_mono=MONO, primary_hue="blue"),
        css=read_asset("space.css"),
        js=f"() => {{{read_asset('viewer.js')}}}",
        footer_links=[],  # Gradio's drawers: one records the screen
    )


def serve(app: SecurityMiddleware, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve an app until Ctrl-C or SIGTERM, then remove its upload folder."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises both again when it has stopped
    try:
        with contextlib.suppress(KeyboardInterrupt):
            create_server(app, host, port).run()
    finally:
        shutil.rmtree(app.uploads, ignore_errors=True)


def main(models: Sequence[str], examples: Path | None = None, mcp_server: bool = False) -> None:
    """Serve where GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say, or exit with an error message. Called by app.py."""
    host, port = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    try:
        check_port(host, port)
        serve(create_app(models, examples=examples, mcp_server=mcp_server, host=host), host, port)
    except MedtlError as error:
        sys.exit(f"Error: {error}")


def check_port(host: str, port: int) -> None:
    """Raise a MedtlError if the port cannot be listened on: before models are loaded, not after."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise MedtlError(
                f"Cannot listen on {host}:{port} ({error.strerror}). Give another port, or another host."
            ) from error


def create_server(app: SecurityMiddleware, host: str = "127.0.0.1", port: int = 7860) -> "Server":
    """Return a uvicorn server for an app; `run()` blocks until interrupted.

    Requests are not logged, and responses do not name the server.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http="h11",  # httptools, the default where installed, keeps headers of any length in memory
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the middleware evaluates X-Forwarded-For itself
        limit_concurrency=500,  # an open page holds one or two connections
        timeout_graceful_shutdown=2,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_worth_logging)
    return uvicorn.Server(config)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Return False for uvicorn's records about pages (connections) that were still open at shutdown."""
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and "graceful shutdown exceeded" not in record.getMessage()


def limit_malloc_arenas() -> None:
    """Make all threads share two malloc arenas (glibc only). Call before there are many threads.

    By default each thread has its own arena and returns little: a minute of requests by 20 users took a gigabyte.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(-8, 2)  # M_ARENA_MAX of malloc.h


# Temporary folder


def create_temp_folder() -> Path:
    """Create this process's folder for uploads, removed at exit. Call before the first component is made."""
    remove_abandoned_folders(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    lock_folder(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    # Otherwise Gradio remembers ten thousand events, and tabulates all of them whenever one fails.
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
    return folder


def lock_folder(folder: Path) -> bool:
    """Lock a folder until this process ends. Return False if another holds the lock, or the system has no locks."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except (ImportError, OSError):  # Windows; a link, or another user's folder
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    return True


def remove_abandoned_folders(parent: Path) -> None:
    """Remove the folders left by killed processes: they may contain visitors' images."""
    for path in parent.glob(f"{FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError):  # removed meanwhile, or another user's
            is_new = time.time() - path.lstat().st_mtime < 60  # perhaps not locked yet
            if not is_new and lock_folder(path):
                shutil.rmtree(path)
