"""The whole Space: models, page, guard and server, for the command line and for the app.py of a Space on the Hub."""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_medtl.errors import MedtlError
from hf_medtl.space.security.middleware import Guard, incoming
from hf_medtl.space.server import few_heaps, free, guarded, own_folder, server

FONT = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]  # none is fetched from anywhere
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]


def site(
    models: Sequence[str],
    *,
    examples: Path | None = None,
    trust_remote_code: bool = False,
    limits: dict[str, Any] | None = None,
    mcp_server: bool = False,
    host: str = "127.0.0.1",
) -> Guard:
    """The ASGI app of a Space.

    Args:
        models: run folders or ids of models on the Hub; with none, small models of drawn pictures are made.
        examples: folder of pictures to try; drawn ones if not given.
        trust_remote_code: run code of the models' repositories; those of hf_medtl need none.
        limits: of `Guard`.
        mcp_server: offer the actions as tools to language models, too, by the Model Context Protocol.
        host: address that will be listened at.

    Raises:
        MedtlError: a model can't be loaded, or the package mcp is missing and wanted.
    """
    few_heaps()
    folder = own_folder()  # before any component is made
    import gradio

    from hf_medtl.space.app import asset, build
    from hf_medtl.space.demo import demo_models
    from hf_medtl.space.examples import drawn, in_folder
    from hf_medtl.space.registry import Shelf
    from hf_medtl.space.sessions import KEPT
    from hf_medtl.space.tools import tools

    if mcp_server and find_spec("mcp") is None:
        raise MedtlError('Tools for language models need: pip install "hf_medtl[mcp]"')
    shelf = Shelf(models or demo_models(), trust_remote_code)
    return guarded(
        build(shelf, in_folder(examples) if examples else drawn()),
        {"evaluated": True, "keep": KEPT} | (limits or {}),
        tools(shelf, incoming(folder), host) if mcp_server else None,
        theme=gradio.themes.Base(font=FONT, font_mono=MONO, primary_hue="blue"),
        css=asset("space.css"),
        js=f"() => {{{asset('viewer.js')}}}",
        footer_links=["api", "settings"],
    )


def serve(app: Guard, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Answer until stopped, by Ctrl-C or SIGTERM; then the folder of uploads is gone."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises both again when it has stopped
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server(app, host, port).run()
    finally:
        shutil.rmtree(app.uploads, ignore_errors=True)


def main(models: Sequence[str], examples: Path | None = None, mcp_server: bool = False) -> None:
    """What app.py of a Space calls: serve where the Hub asks for it, or exit with a sentence that says why not."""
    host, port = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    try:
        free(host, port)
        serve(site(models, examples=examples, mcp_server=mcp_server, host=host), host, port)
    except MedtlError as error:
        sys.exit(f"Error: {error}")
