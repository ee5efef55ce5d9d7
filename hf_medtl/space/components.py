"""The parts of the page, each with its components."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from hf_medtl.publish.sentences import NOTICE
from hf_medtl.space import views
from hf_medtl.space.examples import Example
from hf_medtl.space.registry import HEAD, METHOD_NAMES, Shelf
from hf_medtl.space.rendering import data_uri

HELP = "PNG, JPEG, TIFF, WebP, DICOM or NIfTI, of 8 or 16 bits; several at once. Drop, choose or paste."
PRIVACY = (
    "An uploaded file is on disk until it is read, which takes moments (one that is never asked about, a quarter of an "
    "hour), and in no log. Its picture is then in memory alone, and forgotten when the page is closed, or a quarter of "
    "an hour after the last answer."
)
PICK = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-example]");
  if (button) trigger("click", { index: +button.dataset.example });
});"""


def heading() -> None:
    """What stands above all tabs."""
    gr.HTML(f"<p><strong>{NOTICE}</strong> Not a medical device.</p>", elem_id="notice")
    gr.HTML(
        "<h1>Look at what a model sees</h1><p>Calibrated probabilities, maps with their evidence, and “I can’t say” "
        "where a picture does not allow an answer.</p>",
        elem_id="title",
    )


@dataclass(frozen=True)
class Given:
    """The left column: pictures come in, and one of them is chosen, with its frame and window."""

    column: gr.Column
    upload: gr.File
    gallery: gr.HTML
    chosen: gr.Radio
    frame: gr.Slider
    windowing: gr.Group
    preset: gr.Dropdown
    level: gr.Slider
    width: gr.Slider

    @classmethod
    def build(cls, examples: Sequence[Example]) -> "Given":
        """Within a row."""
        with gr.Column(scale=1, min_width=280, elem_id="picture") as column:
            upload = gr.File(label="Pictures", file_count="multiple", elem_id="upload", height=130)
            gr.HTML(views.show("help", HELP), elem_id="help")
            small = [{"caption": its.caption, "src": data_uri(Image.fromarray(its.picture))} for its in examples]
            gallery = gr.HTML(
                views.show("examples", small), js_on_load=PICK, elem_id="examples", visible=bool(examples)
            )
            chosen = gr.Radio([], label="Picture in hand", type="value", visible=False, elem_id="chosen")
            frame = gr.Slider(0, 1, step=1, buttons=[], label="Frame or slice", visible=False, elem_id="frame")
            with gr.Group(visible=False, elem_classes="window") as windowing:
                preset = gr.Dropdown([], label="Window (what becomes black and white)", elem_id="preset")
                level = gr.Slider(0, 1, buttons=[], label="Level", elem_id="level")
                width = gr.Slider(0, 1, buttons=[], label="Width", elem_id="width")
        return cls(column, upload, gallery, chosen, frame, windowing, preset, level, width)

    @property
    def of_picture(self) -> list[Any]:
        """What `hand.held` updates; all but the first by `hand.windows`."""
        return [self.chosen, self.frame, self.windowing, self.preset, self.level, self.width]


@dataclass(frozen=True)
class Looking:
    """The tab of labels and maps."""

    tab: gr.Tab
    model: gr.Dropdown
    method: gr.Dropdown
    label: gr.Dropdown
    layer: gr.Slider
    head: gr.Slider

    @classmethod
    def build(cls, names: Sequence[str]) -> "Looking":
        """Within tabs."""
        with gr.Tab("Classify", visible=bool(names)) as tab, gr.Row(elem_classes="choices"):
            return cls(
                tab,
                gr.Dropdown(list(names), label="Model", elem_id="classifier", min_width=150),
                gr.Dropdown([], label="Map by", elem_id="method", min_width=150),
                gr.Dropdown([], label="Map of", elem_id="label", min_width=150),
                gr.Slider(1, 2, step=1, buttons=[], label="Layer", visible=False, elem_id="layer", min_width=150),
                gr.Slider(1, 2, step=1, buttons=[], label="Head", visible=False, elem_id="head", min_width=150),
            )

    @property
    def of_map(self) -> list[Any]:
        """What `describe` updates; all but the first by `of_method`."""
        return [self.method, self.label, self.layer, self.head]


def describe(shelf: Shelf, name: str | None, now: str | None) -> list[Any]:
    """Updates of the map's controls to what a classifier has; its method stays where it can."""
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
    """Updates of label, layer and head: a head attends whatever the label."""
    seen = method == HEAD
    return [gr.Dropdown(visible=not seen), gr.Slider(visible=seen), gr.Slider(visible=seen)]


@dataclass(frozen=True)
class Segmenting:
    """The tab of outlines."""

    tab: gr.Tab
    model: gr.Dropdown

    @classmethod
    def build(cls, names: Sequence[str]) -> "Segmenting":
        """Within tabs."""
        with gr.Tab("Segment", visible=bool(names)) as tab, gr.Row(elem_classes="choices"):
            return cls(tab, gr.Dropdown(list(names), label="Model", elem_id="segmenter"))


@dataclass(frozen=True)
class Comparing:
    """The tab of two models."""

    tab: gr.Tab
    one: gr.Dropdown
    other: gr.Dropdown

    @classmethod
    def build(cls, alike: Sequence[Sequence[str]]) -> "Comparing":
        """Within tabs; `alike` are the models of each kind that has at least two."""
        with gr.Tab("Compare", visible=bool(alike)) as tab, gr.Row(elem_classes="choices"):
            return cls(
                tab,
                gr.Dropdown([name for its in alike for name in its], label="One", elem_id="one", min_width=150),
                gr.Dropdown(list(alike[0][1:]) if alike else [], label="The other", elem_id="other", min_width=150),
            )


def others(shelf: Shelf, one: str, now: str | None) -> gr.Dropdown:
    """An update of the models that one can be compared with; the one that was chosen stays where it can."""
    names = [name for name in shelf.of(shelf[one].of_masks) if name != one]
    return gr.Dropdown(names, value=now if now in names else next(iter(names), None))


@dataclass(frozen=True)
class Batching:
    """The tab of many pictures."""

    tab: gr.Tab
    files: gr.File
    model: gr.Dropdown
    start: gr.Button
    stop: gr.Button
    answers: gr.HTML

    @classmethod
    def build(cls, names: Sequence[str]) -> "Batching":
        """Within tabs."""
        with gr.Tab("Batch") as tab:
            with gr.Row(equal_height=False):
                files = gr.File(
                    label="Many pictures, or a zip of them", file_count="multiple", height=150, elem_id="many"
                )
                with gr.Column():
                    model = gr.Dropdown(list(names), label="Model", elem_id="worker")
                    with gr.Row():
                        start = gr.Button("Answer all", variant="primary", elem_id="start", min_width=100)
                        stop = gr.Button("Stop", elem_id="stop", min_width=100, interactive=False)
            answers = gr.HTML(
                views.show("waiting", "A table with a row for each picture, and a CSV to keep."), elem_id="table"
            )
        return cls(tab, files, model, start, stop, answers)


def about(shelf: Shelf) -> gr.Tab:
    """The tab of what is known of the models."""
    with gr.Tab("About") as tab:
        gr.HTML(views.show("shelf", list(shelf), PRIVACY), elem_id="about")
    return tab


@dataclass(frozen=True)
class Answered:
    """Viewer and answer, below the controls of a tab."""

    row: gr.Row
    view: gr.HTML
    says: gr.HTML

    @classmethod
    def build(cls) -> "Answered":
        """Within a column."""
        with gr.Row(elem_id="answers", equal_height=False) as row:
            with gr.Column(scale=3, min_width=300):
                view = gr.HTML(views.show("nothing"), elem_id="view")
            with gr.Column(scale=2, min_width=280):
                says = gr.HTML(
                    views.show("waiting", "Give a picture, or take one of the examples: the answer comes here."),
                    elem_id="says",
                )
        return cls(row, view, says)
