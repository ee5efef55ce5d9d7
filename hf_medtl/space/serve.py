"""Starting the page: what Gradio is told, and nothing of what it would rather do."""

import os
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # asked when gradio is imported

import gradio as gr

from hf_medtl.space.examples import Example, drawn
from hf_medtl.space.page import asset, build
from hf_medtl.space.shelf import Shelf
from hf_medtl.space.uploads import MAX_ARCHIVE

FONT = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]  # no font is fetched from anywhere
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]


def space(models: Sequence[str], examples: Sequence[Example] | None = None, **launch: Any) -> gr.Blocks:
    """Serve models on a page until it is stopped.

    Args:
        models: run folders or ids on the Hub; with none small models of drawn pictures are made.
        examples: pictures to try; drawn ones if not given.
        launch: of `gradio.Blocks.launch`.

    Raises:
        MedtlError: a model can't be loaded.
    """
    if not models:
        from hf_medtl.space.demo import demo_models

        models = demo_models()
    page = build(Shelf(models), drawn() if examples is None else examples)
    page.launch(
        theme=gr.themes.Base(font=FONT, font_mono=MONO, primary_hue="blue"), css=asset("space.css"),
        head=f"<script>{asset('viewer.js')}</script>", footer_links=["api", "settings"],
        max_file_size=MAX_ARCHIVE, ssr_mode=False, enable_monitoring=False, pwa=False,
        **launch,
    )  # fmt: skip
    return page
