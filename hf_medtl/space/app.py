"""Layout and events of the page."""

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import gradio as gr

from hf_medtl.space import handlers, views, window_controls
from hf_medtl.space.api import BATCH_QUEUE, MODEL_QUEUE, add_endpoints
from hf_medtl.space.components import Layout, build_header, comparison_updates, heatmap_updates, method_updates
from hf_medtl.space.examples import Example
from hf_medtl.space.inference import HeatmapRequest
from hf_medtl.space.registry import ModelRegistry
from hf_medtl.space.security.upload_store import deleting
from hf_medtl.space.sessions import EXPIRED, Session, SessionStore

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
QUEUED: dict[str, Any] = {"api_visibility": "private", **MODEL_QUEUE}
# Values as sent by the browser. After quick changes one may no longer be among a component's choices, and Gradio would
# raise an error.
RAW = {"preprocess": False}


class LatestRequest:
    """The latest request of a visitor.

    Two requests run at a time, so an earlier one may finish after a later one; its answer is then discarded.
    """

    def __init__(self) -> None:
        self.token: object = None


def build_page(registry: ModelRegistry, examples: Sequence[Example] = ()) -> gr.Blocks:
    """Build the page with its API endpoints."""
    with gr.Blocks(title="hf_medtl", analytics_enabled=False, fill_width=True) as page:
        build_header()
        store = SessionStore()
        session = gr.State(Session())
        mode = gr.State("classify" if registry.names(segmentation=False) else "segment")
        layout = Layout.build(registry, examples)

        analyze = _analysis_event(registry, store, session, mode, layout)
        _add_upload_events(examples, store, session, layout, analyze)
        _add_control_events(registry, page, session, layout, analyze)
        for tab, name in (
            (layout.classify.tab, "classify"), (layout.segment.tab, "segment"), (layout.compare.tab, "compare"),
            (layout.batch.tab, ""), (layout.about, ""),
        ):  # fmt: skip
            _add_tab_event(tab, name, mode, layout, analyze)
        _add_batch_events(registry, layout)
        page.unload(store.on_page_closed)
        add_endpoints(registry)
    page.queue(max_size=100, default_concurrency_limit=2)
    return page


def _analysis_event(
    registry: ModelRegistry, store: SessionStore, session: gr.State, mode: gr.State, layout: Layout
) -> dict[str, Any]:
    """Return the arguments of a listener that analyzes the selected image with the selected controls."""

    def analyze(
        latest: LatestRequest, session: Session, index: int | None, frame: int, preset: str | None, level: float,
        width: float, mode: str, classifier: str | None, method: str | None, label: str | None, layer: int, head: int,
        segmenter: str | None, one: str | None, other: str | None, request: gr.Request,
    ) -> tuple[Any, Any]:  # fmt: skip
        latest.token = token = object()
        store.touch(request.session_hash)
        # Without images but with a selected one, Gradio has dropped the visitor's state.
        if session.expired or (not session.uploads and index is not None):
            return views.render("nothing"), views.render("problem", EXPIRED)
        if not session.uploads or mode not in handlers.HANDLERS:
            return gr.skip(), gr.skip()
        upload = session[index]
        analysis = handlers.AnalysisRequest(
            mode, classifier, segmenter, one, other,
            HeatmapRequest(method or "gradcam", label or None, int(layer), int(head)),
            window_controls.selected_window(upload, preset, level, width),
            int(frame) - 1 if upload.frames > 1 else None,
        )  # fmt: skip
        view, answer = handlers.handle_request(registry, upload, analysis)
        if latest.token is not token:
            return gr.skip(), gr.skip()
        return view or views.render("nothing"), answer

    inputs, classify, compare, area = layout.inputs, layout.classify, layout.compare, layout.answer
    return {
        "fn": analyze,
        "inputs": [
            gr.State(LatestRequest()), session, inputs.chosen, inputs.frame, inputs.preset, inputs.level, inputs.width,
            mode, classify.model, classify.method, classify.label, classify.layer, classify.head,
            layout.segment.model, compare.one, compare.other,
        ],
        "outputs": [area.view, area.answer],
        "show_progress_on": [area.view],
        "trigger_mode": "always_last",
    } | QUEUED | RAW  # fmt: skip


def _add_upload_events(
    examples: Sequence[Example], store: SessionStore, session: gr.State, layout: Layout, analyze: dict[str, Any]
) -> None:
    """Add the events of uploads and examples."""

    def receive(paths: list[str] | None, request: gr.Request) -> list[Any]:
        received, problems = window_controls.receive_uploads(paths or [])
        for problem in problems if received.uploads else problems[1:]:
            gr.Warning(escape(problem))
        store.put(request.session_hash, received)
        view = answer = gr.skip()
        if not received.uploads:
            view = views.render("nothing")
            answer = views.render("problem", problems[0] if problems else "No file was received.")
        return [received, *window_controls.image_updates(received), view, answer, None]

    def take_example(event: gr.EventData, request: gr.Request) -> list[Any]:
        received = Session([examples[event._data["index"]].upload()])
        store.put(request.session_hash, received)
        return [received, *window_controls.image_updates(received)]

    inputs = layout.inputs
    outputs = [session, *inputs.image_controls]
    inputs.upload.upload(
        receive, inputs.upload, [*outputs, *analyze["outputs"], inputs.upload], show_progress_on=[layout.answer.view],
        **QUEUED,
    ).then(**analyze)  # fmt: skip
    inputs.gallery.click(take_example, None, outputs, **QUIET).then(**analyze)


def _add_control_events(
    registry: ModelRegistry, page: gr.Blocks, session: gr.State, layout: Layout, analyze: dict[str, Any]
) -> None:
    """Add the events of images, frames, windows, models and heatmaps."""

    def update_heatmap(name: str | None, method: str | None) -> list[Any]:
        return heatmap_updates(registry, name, method)

    def update_comparison(one: str, other: str | None) -> gr.Dropdown:
        return comparison_updates(registry, one, other)

    inputs, classify, compare = layout.inputs, layout.classify, layout.compare
    selected = [session, inputs.chosen]
    sliders = [inputs.level, inputs.width]
    raw = QUIET | RAW
    inputs.chosen.input(window_controls.window_updates, selected, inputs.image_controls[1:], **raw).then(**analyze)
    inputs.preset.input(window_controls.preset_updates, [*selected, inputs.preset], sliders, **raw).then(**analyze)
    gr.on([slider.release for slider in sliders], lambda: None, None, inputs.preset, **QUIET).then(**analyze)
    page.load(update_heatmap, [classify.model, classify.method], classify.heatmap_controls, **raw)
    classify.model.input(
        update_heatmap, [classify.model, classify.method], classify.heatmap_controls, **raw
    ).then(**analyze)  # fmt: skip
    classify.method.input(method_updates, classify.method, classify.heatmap_controls[1:], **raw).then(**analyze)
    compare.one.input(update_comparison, [compare.one, compare.other], compare.other, **raw).then(**analyze)
    gr.on(
        [inputs.frame.release, classify.label.input, classify.layer.release, classify.head.release,
         layout.segment.model.input, compare.other.input],
        **analyze,
    )  # fmt: skip


def _add_tab_event(tab: gr.Tab, name: str, mode: gr.State, layout: Layout, analyze: dict[str, Any]) -> None:
    """Add the event of a tab. One without a name hides the images and the answer."""
    visible = bool(name)
    selected = tab.select(
        lambda: (name, gr.Column(visible=visible), gr.Row(visible=visible)),
        None,
        [mode, layout.inputs.column, layout.answer.row],
        **QUIET,
    )
    if visible:
        selected.then(**analyze)


def _add_batch_events(registry: ModelRegistry, layout: Layout) -> None:
    """Add the events of the tab Batch. A stopped batch keeps its rows."""
    running = set[str | None]()  # session hashes

    def run_batch(paths: list[str] | None, name: str, request: gr.Request) -> Iterator[tuple[str, Any]]:
        key = request.session_hash
        try:
            if not paths:
                yield views.render("problem", "No images were given. Drop some, or a zip of them, first."), gr.skip()
                return
            with deleting(paths):
                for html in handlers.batch_pages(registry[name], paths, lambda: key not in running):
                    yield html, gr.skip()
            yield html, None
        finally:
            running.discard(key)

    def start(request: gr.Request) -> tuple[str, gr.Button]:
        running.add(request.session_hash)
        return views.render("batch", [], [], 0, 0, None), gr.Button(interactive=True)

    def stop(request: gr.Request) -> None:
        running.discard(request.session_hash)

    tab = layout.batch
    tab.start.click(start, None, [tab.table, tab.stop], **QUIET).then(
        run_batch, [tab.files, tab.model], [tab.table, tab.files], **QUEUED | BATCH_QUEUE
    ).then(lambda: gr.Button(interactive=False), None, tab.stop, **QUIET)
    tab.stop.click(stop, **QUIET)


def read_asset(name: str) -> str:
    """Return the text of a file of this package."""
    return files("hf_medtl.space").joinpath(name).read_text(encoding="utf-8")
