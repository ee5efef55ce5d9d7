"""The page: its parts, and what happens on which event."""

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import gradio as gr

from hf_medtl.space import handlers as acts
from hf_medtl.space import views
from hf_medtl.space import window_controls as hand
from hf_medtl.space.api import BATCH, MODEL, add_api
from hf_medtl.space.components import (
    Answered,
    Batching,
    Comparing,
    Given,
    Looking,
    Segmenting,
    about,
    describe,
    heading,
    of_method,
    others,
)  # fmt: skip
from hf_medtl.space.examples import Example
from hf_medtl.space.inference import Look
from hf_medtl.space.registry import Shelf
from hf_medtl.space.security.middleware import gone
from hf_medtl.space.sessions import FORGOTTEN, Hand, Hands


class Turn:
    """Which of a visitor's questions is the last one.

    Two are answered at a time, so that the answer to an earlier one may come after that to a later one.
    """

    def __init__(self) -> None:
        self.last: object = None


QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
WORK: dict[str, Any] = {"api_visibility": "private", **MODEL}
# Values as they come. After quick changes one may be none of what Gradio takes for the choices, and it would say so.
RAW = {"preprocess": False}


def build(shelf: Shelf, examples: Sequence[Example] = ()) -> gr.Blocks:
    """The whole page with its API."""
    classifiers, segmenters = shelf.of(masks=False), shelf.of(masks=True)
    alike = [its for its in (classifiers, segmenters) if len(its) > 1]
    every = [model.name for model in shelf]
    with gr.Blocks(title="hf_medtl", analytics_enabled=False, fill_width=True) as page:
        heading()
        hands = Hands()
        pictures = gr.State(Hand())
        turn = gr.State(Turn())
        mode = gr.State("classify" if classifiers else "segment")
        with gr.Row(equal_height=False, elem_id="desk"):
            given = Given.build(examples)
            with gr.Column(scale=3, min_width=320, elem_id="work"):
                with gr.Tabs():
                    looking, segmenting = Looking.build(classifiers), Segmenting.build(segmenters)
                    comparing, batching = Comparing.build(alike), Batching.build(every)
                    telling = about(shelf)
                answered = Answered.build()

        ask = asking(shelf, hands, turn, pictures, mode, given, looking, segmenting, comparing, answered)
        on_pictures(examples, hands, pictures, given, answered, ask)
        on_controls(shelf, page, pictures, given, looking, segmenting, comparing, ask)
        for tab, name in (
            (looking.tab, "classify"), (segmenting.tab, "segment"), (comparing.tab, "compare"),
            (batching.tab, ""), (telling, ""),
        ):  # fmt: skip
            on_tab(tab, name, mode, given, answered, ask)
        on_batch(shelf, batching)
        page.unload(hands.leave)
        add_api(shelf)
    page.queue(max_size=100, default_concurrency_limit=2)
    return page


def asking(
    shelf: Shelf, hands: Hands, turn: gr.State, pictures: gr.State, mode: gr.State, given: Given,
    looking: Looking, segmenting: Segmenting, comparing: Comparing, answered: Answered,
) -> dict[str, Any]:  # fmt: skip
    """The event that answers all that is chosen, as arguments of a listener."""

    def asked(
        turn: Turn, found: Hand, number: int | None, frame: int, preset: str | None, level: float, width: float,
        mode: str, classifier: str | None, method: str | None, label: str | None, layer: int, head: int,
        segmenter: str | None, one: str | None, other: str | None, request: gr.Request,
    ) -> tuple[Any, Any]:  # fmt: skip
        turn.last = mine = object()
        hands.use(request.session_hash)
        if found.forgotten or (not found.uploads and number is not None):  # or Gradio has forgotten the visitor
            return views.show("nothing"), views.show("problem", FORGOTTEN)
        if not found.uploads or mode not in acts.ACTS:
            return gr.skip(), gr.skip()
        item = found[number]
        wish = acts.Wish(
            mode, classifier, segmenter, one, other,
            Look(method or "gradcam", label or None, int(layer), int(head)),
            hand.window_of(item, preset, level, width), int(frame) - 1 if item.frames > 1 else None,
        )  # fmt: skip
        view, says = acts.answer(shelf, item, wish)
        if turn.last is not mine:
            return gr.skip(), gr.skip()
        return view or views.show("nothing"), says

    return {
        "fn": asked,
        "inputs": [
            turn, pictures, given.chosen, given.frame, given.preset, given.level, given.width, mode,
            looking.model, looking.method, looking.label, looking.layer, looking.head,
            segmenting.model, comparing.one, comparing.other,
        ],
        "outputs": [answered.view, answered.says],
        "show_progress_on": [answered.view],
        "trigger_mode": "always_last",
    } | WORK | RAW  # fmt: skip


def on_pictures(
    examples: Sequence[Example], hands: Hands, pictures: gr.State, given: Given, answered: Answered,
    ask: dict[str, Any],
) -> None:  # fmt: skip
    """Pictures that come."""

    def come(paths: list[str] | None, request: gr.Request) -> list[Any]:
        found, problems = hand.received(paths or [])
        for problem in problems if found.uploads else problems[1:]:
            gr.Warning(escape(problem))
        hands.hold(request.session_hash, found)
        if found.uploads:
            return [found, *hand.held(found), gr.skip(), gr.skip(), None]
        problem = views.show("problem", problems[0] if problems else "No file came.")
        return [found, *hand.held(found), views.show("nothing"), problem, None]

    def taken(event: gr.EventData, request: gr.Request) -> list[Any]:
        found = Hand([examples[event._data["index"]].upload()])
        hands.hold(request.session_hash, found)
        return [found, *hand.held(found)]

    came = [pictures, *given.of_picture]
    given.upload.upload(
        come, given.upload, [*came, *ask["outputs"], given.upload], show_progress_on=[answered.view], **WORK
    ).then(**ask)
    given.gallery.click(taken, None, came, **QUIET).then(**ask)


def on_controls(
    shelf: Shelf, page: gr.Blocks, pictures: gr.State, given: Given, looking: Looking, segmenting: Segmenting,
    comparing: Comparing, ask: dict[str, Any],
) -> None:  # fmt: skip
    """Another choice among pictures, frames, windows, models and maps."""

    def described(name: str | None, method: str | None) -> list[Any]:
        return describe(shelf, name, method)

    def like(one: str, other: str | None) -> gr.Dropdown:
        return others(shelf, one, other)

    in_hand = [pictures, given.chosen]
    sliders = [given.level, given.width]
    raw = QUIET | RAW
    given.chosen.input(hand.windows, in_hand, given.of_picture[1:], **raw).then(**ask)
    given.preset.input(hand.preset_to_sliders, [*in_hand, given.preset], sliders, **raw).then(**ask)
    gr.on([its.release for its in sliders], lambda: None, None, given.preset, **QUIET).then(**ask)
    page.load(described, [looking.model, looking.method], looking.of_map, **raw)
    looking.model.input(described, [looking.model, looking.method], looking.of_map, **raw).then(**ask)
    comparing.one.input(like, [comparing.one, comparing.other], comparing.other, **raw).then(**ask)
    looking.method.input(of_method, looking.method, looking.of_map[1:], **raw).then(**ask)
    gr.on(
        [given.frame.release, looking.label.input, looking.layer.release, looking.head.release,
         segmenting.model.input, comparing.other.input],
        **ask,
    )  # fmt: skip


def on_tab(tab: gr.Tab, name: str, mode: gr.State, given: Given, answered: Answered, ask: dict[str, Any]) -> None:
    """Another tab; one without a name has no use for the pictures in hand."""
    seen = bool(name)
    changed = tab.select(
        lambda: (name, gr.Column(visible=seen), gr.Row(visible=seen)),
        None,
        [mode, given.column, answered.row],
        **QUIET,
    )
    if seen:
        changed.then(**ask)


def on_batch(shelf: Shelf, batching: Batching) -> None:
    """Many pictures, until they are answered or somebody stops it: what was answered until then stays."""
    running = set[str | None]()  # sessions

    def all_of(paths: list[str] | None, name: str, request: gr.Request) -> Iterator[tuple[str, Any]]:
        session = request.session_hash
        try:
            if not paths:
                yield views.show("problem", "No pictures were given. Drop some, or a zip of them, first."), gr.skip()
                return
            with gone(paths):
                for html in acts.batch(shelf[name], paths, lambda: session not in running):
                    yield html, gr.skip()
            yield html, None
        finally:
            running.discard(session)

    def begin(request: gr.Request) -> tuple[str, gr.Button]:
        running.add(request.session_hash)
        return views.show("batch", [], [], 0, 0, None), gr.Button(interactive=True)

    def stop(request: gr.Request) -> None:
        running.discard(request.session_hash)

    batching.start.click(begin, None, [batching.answers, batching.stop], **QUIET).then(
        all_of, [batching.files, batching.model], [batching.answers, batching.files], **WORK | BATCH
    ).then(lambda: gr.Button(interactive=False), None, batching.stop, **QUIET)
    batching.stop.click(stop, **QUIET)


def asset(name: str) -> str:
    """Text of a file beside this one."""
    return files("hf_medtl.space").joinpath(name).read_text(encoding="utf-8")
