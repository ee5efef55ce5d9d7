"""The page: what stands where, and what happens on which event."""

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from hf_medtl.errors import MedtlError
from hf_medtl.publish.wording import NOTICE
from hf_medtl.space import acts, views
from hf_medtl.space.answers import Look
from hf_medtl.space.api import BATCH, MODEL, add_api
from hf_medtl.space.examples import Example
from hf_medtl.space.guards import gone, name_of
from hf_medtl.space.hands import FORGOTTEN, Hand, Hands
from hf_medtl.space.pictures import data_uri
from hf_medtl.space.shelf import HEAD, METHOD_NAMES, Shelf
from hf_medtl.space.uploads import Upload, kind_of, take

MOST = 12  # pictures in hand at once; more are for the tab Batch
HELP = "PNG, JPEG, TIFF, WebP, DICOM or NIfTI, of 8 or 16 bits; several at once. Drop, choose or paste."
PRIVACY = (
    "Pictures are read into memory, answered and not stored: not on disk, not in a log. They are forgotten when the "
    "page is closed, or a quarter of an hour after the last answer."
)
PICK = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-example]");
  if (button) trigger("click", { index: +button.dataset.example });
});"""
Choices = list[tuple[str, int]]


def build(shelf: Shelf, examples: Sequence[Example] = ()) -> gr.Blocks:
    """The whole page with its API."""
    classifiers, segmenters = shelf.of(masks=False), shelf.of(masks=True)
    modes = (["classify"] if classifiers else []) + (["segment"] if segmenters else [])
    first = modes[0]
    pair = classifiers if len(classifiers) > 1 else segmenters if len(segmenters) > 1 else []

    with gr.Blocks(title="hf_medtl", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(f"<p><strong>{NOTICE}</strong> Not a medical device.</p>", elem_id="notice")
        gr.HTML(
            "<h1>Look at what a model sees</h1><p>Calibrated probabilities, maps with their evidence, and “I can’t "
            "say” where a picture does not allow an answer.</p>",
            elem_id="title",
        )
        hands = Hands()
        hand, mode = gr.State(Hand()), gr.State(first)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=280, elem_id="picture") as left:
                upload = gr.File(label="Pictures", file_count="multiple", elem_id="upload", height=150)
                gr.HTML(f"<p>{HELP}</p>", elem_classes="answer soft")
                if examples:
                    small = [
                        {"caption": its.caption, "src": data_uri(Image.fromarray(its.picture))} for its in examples
                    ]
                    gallery = gr.HTML(views.show("examples", small), js_on_load=PICK, elem_id="examples")
                chosen = gr.Radio([], label="Picture in hand", type="value", visible=False, elem_id="chosen")
                frame = gr.Slider(0, 1, step=1, label="Frame or slice", visible=False, elem_id="frame")
                with gr.Group(visible=False, elem_id="window") as windowing:
                    preset = gr.Dropdown([], label="Window (what becomes black and white)", elem_id="preset")
                    level = gr.Slider(0, 1, label="Level", elem_id="level")
                    width = gr.Slider(0, 1, label="Width", elem_id="width")
            with gr.Column(scale=3, min_width=320, elem_id="work"):
                with gr.Tabs():
                    with gr.Tab("Classify and look", visible=bool(classifiers)) as classify_tab, gr.Row():
                        classifier = gr.Dropdown(classifiers, label="Model", elem_id="classifier")
                        method = gr.Dropdown([], label="Map by", elem_id="method")
                        label = gr.Dropdown([], label="Map of", elem_id="label")
                        layer = gr.Slider(1, 2, step=1, label="Layer", visible=False)
                        head = gr.Slider(1, 2, step=1, label="Head", visible=False)
                    with gr.Tab("Segment", visible=bool(segmenters)) as segment_tab, gr.Row():
                        segmenter = gr.Dropdown(segmenters, label="Model", elem_id="segmenter")
                    with gr.Tab("Compare", visible=bool(pair)) as compare_tab, gr.Row():
                        every = [model.name for model in shelf]
                        one = gr.Dropdown(every, value=(pair or every)[0], label="One", elem_id="one")
                        other = gr.Dropdown(every, value=(pair or every)[-1], label="The other", elem_id="other")
                    with gr.Tab("Batch") as batch_tab:
                        with gr.Row():
                            many = gr.File(
                                label="Many pictures, or a zip of them",
                                file_count="multiple",
                                height=150,
                                elem_id="many",
                            )
                            with gr.Column():
                                worker = gr.Dropdown(every, label="Model", elem_id="worker")
                                start = gr.Button("Answer all", variant="primary", elem_id="start")
                                stop = gr.Button("Stop", elem_id="stop")
                        answers = gr.HTML(
                            views.show("waiting", "A table with a row for each picture, and a CSV to keep.")
                        )
                    with gr.Tab("About") as about_tab:
                        gr.HTML("".join(views.about(model) for model in shelf) + views.show("privacy", PRIVACY))
                with gr.Row(elem_id="answers", equal_height=False) as results:
                    with gr.Column(scale=3, min_width=300):
                        view = gr.HTML(views.show("waiting", "Your picture will be here."), elem_id="view")
                    with gr.Column(scale=2, min_width=280):
                        says = gr.HTML(
                            views.show("waiting", "Give a picture, or take one of the examples."), elem_id="says"
                        )

        def describe(name: str | None, now: str | None = None) -> list[Any]:
            """Controls of the maps that a classifier has."""
            if name is None:
                return [gr.skip()] * 4
            model = shelf[name]
            kept = now if now in model.methods else model.methods[0]
            labels = [("the most probable label", ""), *((views.plain(its), its) for its in model.predictor.labels)]
            layers, heads = model.heads or (2, 2)
            seen = kept == HEAD
            return [
                gr.Dropdown([(METHOD_NAMES.get(its, its), its) for its in model.methods], value=kept),
                gr.Dropdown(labels, value="", visible=not seen),
                gr.Slider(1, layers, value=layers, visible=seen),
                gr.Slider(1, heads, value=1, visible=seen),
            ]

        def of_method(method: str) -> list[Any]:
            seen = method == HEAD
            return [gr.Dropdown(visible=not seen), gr.Slider(visible=seen), gr.Slider(visible=seen)]

        def come(paths: list[str] | None, request: gr.Request) -> list[Any]:
            """Files -> pictures in hand; they are gone from disk then."""
            found, problems = [], []
            for path in (paths or [])[:MOST]:
                try:
                    found.append(take(path, name=name_of(path)))
                except MedtlError as error:
                    problems.append(str(error))
            for path in (paths or [])[MOST:]:
                Path(path).unlink(missing_ok=True)
            if len(paths or []) > MOST:
                problems.append(f"The first {MOST} pictures are here; for more take the tab Batch.")
            for problem in problems if found else problems[1:]:
                gr.Warning(problem)
            if not found:
                sentence = problems[0] if problems else "No file came."
                return [Hand(), *held(()), "", views.show("problem", sentence), None]
            return [hands.hold(request.session_hash, found), *held(found), gr.skip(), gr.skip(), None]

        def taken(event: gr.EventData, request: gr.Request) -> list[Any]:
            found = (examples[event._data["index"]].upload(),)
            return [hands.hold(request.session_hash, found), *held(found)]

        def held(found: Sequence[Upload]) -> list[Any]:
            names: Choices = [(f"{number}: {its.name}", number - 1) for number, its in enumerate(found, 1)]
            return [gr.Radio(names, value=0 if found else None, visible=len(found) > 1), *windows(found, 0)]

        def windows(found: Sequence[Upload], number: int) -> list[Any]:
            """Controls of frame and window for the chosen picture."""
            depth, frames = (found[number].depth, found[number].frames) if found else (None, 1)
            middle = found and kind_of(found[number].content) != "picture"
            first = frames // 2 + 1 if middle else 1
            one = gr.Slider(1, max(2, frames), value=first, visible=frames > 1)
            if depth is None:
                return [one, gr.Group(visible=False), gr.Dropdown([], value=None), gr.skip(), gr.skip()]
            unit = f" ({depth.unit})" if depth.unit else ""
            low, high = depth.window
            span = max(depth.high - depth.low, 1e-6)
            step = 1 if span > 100 else span / 1000
            return [
                one,
                gr.Group(visible=True),
                gr.Dropdown([("as the model was trained", ""), *((name, name) for name in depth.presets)], value=""),
                gr.Slider(depth.low, depth.high, value=(low + high) / 2, step=step, label=f"Level{unit}"),
                gr.Slider(step, span, value=high - low, step=step, label=f"Width{unit}"),
            ]

        def preset_to_sliders(hand: Hand, number: int | None, name: str | None) -> list[Any]:
            depth = hand.uploads[number or 0].depth if hand.uploads else None
            if depth is None:
                return [gr.skip(), gr.skip()]
            low, high = depth.presets.get(name or "", depth.window)
            return [(low + high) / 2, high - low]

        def asked(
            hand: Hand, number: int | None, frame: int, preset: str | None, level: float, width: float, mode: str,
            classifier: str | None, method: str | None, label: str | None, layer: int, head: int,
            segmenter: str | None, one: str | None, other: str | None, request: gr.Request,
        ) -> tuple[Any, Any]:  # fmt: skip
            """The answer to all that is chosen."""
            hands.use(request.session_hash)
            if hand.forgotten:
                return "", views.show("problem", FORGOTTEN)
            found = hand.uploads
            if not found or mode not in acts.ACTS:
                return gr.skip(), gr.skip()
            item = found[min(number or 0, len(found) - 1)]
            # "" is the window of training, which the sliders may only come near to.
            window = None if item.depth is None or preset == "" else (level - width / 2, level + width / 2)
            wish = acts.Wish(
                mode, classifier, segmenter, one, other,
                Look(method or "gradcam", label or None, int(layer), int(head)),
                window, int(frame) - 1 if item.frames > 1 else None,
            )  # fmt: skip
            return acts.answer(shelf, item, wish)

        def all_of(paths: list[str] | None, name: str) -> Iterator[tuple[str, Any]]:
            if not paths:
                yield views.show("problem", "No pictures were given. Drop some, or a zip of them, first."), gr.skip()
                return
            with gone(paths):
                for html in acts.batch(shelf[name], paths):
                    yield html, gr.skip()
            yield html, None

        def leave(request: gr.Request) -> None:
            hands.forget(request.session_hash)

        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        work: dict[str, Any] = {"api_visibility": "private", **MODEL}
        inputs = [
            hand,
            chosen,
            frame,
            preset,
            level,
            width,
            mode,
            classifier,
            method,
            label,
            layer,
            head,
            segmenter,
            one,
            other,
        ]
        controls = [chosen, frame, windowing, preset, level, width]
        ask: dict[str, Any] = {
            "fn": asked, "inputs": inputs, "outputs": [view, says], "show_progress_on": [view],
            "trigger_mode": "always_last",
        } | work  # fmt: skip
        arrived = upload.upload(come, upload, [hand, *controls, view, says, upload], show_progress_on=[view], **work)
        arrived.then(**ask)
        if examples:
            gallery.click(taken, None, [hand, *controls], **quiet).then(**ask)
        chosen.input(
            lambda hand, number: windows(hand.uploads, number or 0), [hand, chosen], controls[1:], **quiet
        ).then(**ask)
        preset.input(preset_to_sliders, [hand, chosen, preset], [level, width], **quiet).then(**ask)
        gr.on([level.release, width.release], lambda: None, None, preset, **quiet).then(**ask)
        gr.on([frame.release, label.input, layer.release, head.release, segmenter.input, one.input, other.input], **ask)
        classifier.input(describe, [classifier, method], [method, label, layer, head], **quiet).then(**ask)
        method.input(of_method, method, [label, layer, head], **quiet).then(**ask)
        page.load(describe, [classifier, method], [method, label, layer, head], **quiet)
        for tab, name in ((classify_tab, "classify"), (segment_tab, "segment"), (compare_tab, "compare")):
            tab.select(
                lambda name=name: (name, gr.Column(visible=True), gr.Row(visible=True)),
                None,
                [mode, left, results],
                **quiet,
            ).then(**ask)
        for tab in (batch_tab, about_tab):
            tab.select(
                lambda: ("", gr.Column(visible=False), gr.Row(visible=False)), None, [mode, left, results], **quiet
            )
        running = start.click(all_of, [many, worker], [answers, many], **work | BATCH)
        stop.click(None, None, None, cancels=[running], queue=False)
        page.unload(leave)
        add_api(shelf)
    page.queue(max_size=100, default_concurrency_limit=2)
    return page


def asset(name: str) -> str:
    """Text of a file beside this one."""
    return files("hf_medtl.space").joinpath(name).read_text(encoding="utf-8")
