"""Components of the page, grouped by column and tab."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from hf_medtl.publish.sentences import NOTICE
from hf_medtl.space import views
from hf_medtl.space.examples import Example
from hf_medtl.space.registry import ATTENTION_HEAD, METHOD_NAMES, ModelRegistry
from hf_medtl.space.rendering import data_uri

HELP = "PNG, JPEG, TIFF, WebP, DICOM or NIfTI, with 8 or 16 bits; up to 12 at once. Drop, choose or paste."
PRIVACY = (
    "An uploaded file is on disk until it is read, which takes moments (a quarter of an hour if it is never used), "
    "and in no log. Its image is then kept in memory only, and removed when the page is closed, or a quarter of an "
    "hour after the last answer."
)
EXAMPLE_CLICK = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-example]");
  if (button) trigger("click", { index: +button.dataset.example });
});"""


def build_header() -> None:
    """Build the notice and the title above all tabs."""
    gr.HTML(f"<p><strong>{NOTICE}</strong> Not a medical device.</p>", elem_id="notice")
    gr.HTML(
        "<h1>Look at what a model sees</h1><p>Calibrated probabilities, heatmaps with their validation, and “I can’t "
        "say” where an image does not allow an answer.</p>",
        elem_id="title",
    )


@dataclass(frozen=True)
class ImageInputs:
    """The left column: upload, examples, choice of image and frame, and window."""

    column: gr.Column
    upload: gr.File
    gallery: gr.HTML
    chosen: gr.Radio
    frame: gr.Slider
    window_group: gr.Group
    preset: gr.Dropdown
    level: gr.Slider
    width: gr.Slider

    @classmethod
    def build(cls, examples: Sequence[Example]) -> "ImageInputs":
        """Build the column inside a row."""
        with gr.Column(scale=1, min_width=280, elem_id="picture") as column:
            upload = gr.File(label="Images", file_count="multiple", elem_id="upload", height=130)
            gr.HTML(views.render("help", HELP), elem_id="help")
            thumbnails = [{"caption": each.caption, "src": data_uri(Image.fromarray(each.pixels))} for each in examples]
            gallery = gr.HTML(
                views.render("examples", thumbnails),
                js_on_load=EXAMPLE_CLICK,
                elem_id="examples",
                visible=bool(examples),
            )
            chosen = gr.Radio([], label="Selected image", type="value", visible=False, elem_id="chosen")
            frame = gr.Slider(0, 1, step=1, buttons=[], label="Frame or slice", visible=False, elem_id="frame")
            with gr.Group(visible=False, elem_classes="window") as window_group:
                preset = gr.Dropdown([], label="Window (grey values shown)", elem_id="preset")
                level = gr.Slider(0, 1, buttons=[], label="Level", elem_id="level")
                width = gr.Slider(0, 1, buttons=[], label="Width", elem_id="width")
        return cls(column, upload, gallery, chosen, frame, window_group, preset, level, width)

    @property
    def image_controls(self) -> list[Any]:
        """Outputs of `window_controls.image_updates`; all but the first are those of `window_updates`."""
        return [self.chosen, self.frame, self.window_group, self.preset, self.level, self.width]


@dataclass(frozen=True)
class ClassifyTab:
    """The tab of labels and heatmaps."""

    tab: gr.Tab
    model: gr.Dropdown
    method: gr.Dropdown
    label: gr.Dropdown
    layer: gr.Slider
    head: gr.Slider

    @classmethod
    def build(cls, names: Sequence[str]) -> "ClassifyTab":
        """Build the tab for the classifiers with these names."""
        with gr.Tab("Classify", visible=bool(names)) as tab, gr.Row(elem_classes="choices"):
            return cls(
                tab,
                gr.Dropdown(list(names), label="Model", elem_id="classifier", min_width=150),
                gr.Dropdown([], label="Heatmap by", elem_id="method", min_width=150),
                gr.Dropdown([], label="Heatmap for", elem_id="label", min_width=150),
                gr.Slider(1, 2, step=1, buttons=[], label="Layer", visible=False, elem_id="layer", min_width=150),
                gr.Slider(1, 2, step=1, buttons=[], label="Head", visible=False, elem_id="head", min_width=150),
            )

    @property
    def heatmap_controls(self) -> list[Any]:
        """Outputs of `heatmap_updates`; all but the first are those of `method_updates`."""
        return [self.method, self.label, self.layer, self.head]


def heatmap_updates(registry: ModelRegistry, name: str | None, method: str | None) -> list[Any]:
    """Return updates of the heatmap controls for a classifier. The method stays the same if the model has it."""
    if name is None:
        return [gr.skip()] * 4
    model = registry[name]
    method = method if method in model.methods else model.methods[0]
    labels = [(views.display_label(label), label) for label in model.predictor.labels]
    layers, heads = model.heads or (2, 2)
    is_head = method == ATTENTION_HEAD
    return [
        gr.Dropdown([(METHOD_NAMES.get(each, each), each) for each in model.methods], value=method),
        gr.Dropdown([("the most probable label", ""), *labels], value="", visible=not is_head),
        gr.Slider(1, layers, value=layers, visible=is_head),
        gr.Slider(1, heads, value=1, visible=is_head),
    ]


def method_updates(method: str) -> list[Any]:
    """Return updates of label, layer and head: the attention of a head does not depend on the label."""
    is_head = method == ATTENTION_HEAD
    return [gr.Dropdown(visible=not is_head), gr.Slider(visible=is_head), gr.Slider(visible=is_head)]


@dataclass(frozen=True)
class SegmentTab:
    """The tab of outlines."""

    tab: gr.Tab
    model: gr.Dropdown

    @classmethod
    def build(cls, names: Sequence[str]) -> "SegmentTab":
        """Build the tab for the segmentation models with these names."""
        with gr.Tab("Segment", visible=bool(names)) as tab, gr.Row(elem_classes="choices"):
            return cls(tab, gr.Dropdown(list(names), label="Model", elem_id="segmenter"))


@dataclass(frozen=True)
class CompareTab:
    """The tab of two models."""

    tab: gr.Tab
    one: gr.Dropdown
    other: gr.Dropdown

    @classmethod
    def build(cls, groups: Sequence[Sequence[str]]) -> "CompareTab":
        """Build the tab. `groups` has the names of the models of each task that has at least two."""
        with gr.Tab("Compare", visible=bool(groups)) as tab, gr.Row(elem_classes="choices"):
            names = [name for group in groups for name in group]
            return cls(
                tab,
                gr.Dropdown(names, label="One", elem_id="one", min_width=150),
                gr.Dropdown(list(groups[0][1:]) if groups else [], label="Other", elem_id="other", min_width=150),
            )


def comparison_updates(registry: ModelRegistry, one: str, other: str | None) -> gr.Dropdown:
    """Return an update of the models that `one` can be compared with. The selected one stays if it can."""
    names = [name for name in registry.names(registry[one].is_segmenter) if name != one]
    return gr.Dropdown(names, value=other if other in names else next(iter(names), None))


@dataclass(frozen=True)
class BatchTab:
    """The tab of many images."""

    tab: gr.Tab
    files: gr.File
    model: gr.Dropdown
    start: gr.Button
    stop: gr.Button
    table: gr.HTML

    @classmethod
    def build(cls, names: Sequence[str]) -> "BatchTab":
        """Build the tab for the models with these names."""
        with gr.Tab("Batch") as tab:
            with gr.Row(equal_height=False):
                files = gr.File(
                    label="Many images, or a zip of them", file_count="multiple", height=150, elem_id="many"
                )
                with gr.Column():
                    model = gr.Dropdown(list(names), label="Model", elem_id="worker")
                    with gr.Row():
                        start = gr.Button("Start", variant="primary", elem_id="start", min_width=100)
                        stop = gr.Button("Stop", elem_id="stop", min_width=100, interactive=False)
            table = gr.HTML(
                views.render("waiting", "A table with a row for each image, and a CSV to download."), elem_id="table"
            )
        return cls(tab, files, model, start, stop, table)


@dataclass(frozen=True)
class AnswerArea:
    """Viewer and answer, below the controls of a tab."""

    row: gr.Row
    view: gr.HTML
    answer: gr.HTML

    @classmethod
    def build(cls) -> "AnswerArea":
        """Build the area inside a column."""
        with gr.Row(elem_id="answers", equal_height=False) as row:
            with gr.Column(scale=3, min_width=300):
                view = gr.HTML(views.render("nothing"), elem_id="view")
            with gr.Column(scale=2, min_width=280):
                answer = gr.HTML(
                    views.render("waiting", "Upload an image, or choose an example: the answer appears here."),
                    elem_id="says",
                )
        return cls(row, view, answer)


@dataclass(frozen=True)
class Layout:
    """All columns and tabs of the page."""

    inputs: ImageInputs
    classify: ClassifyTab
    segment: SegmentTab
    compare: CompareTab
    batch: BatchTab
    about: gr.Tab
    answer: AnswerArea

    @classmethod
    def build(cls, registry: ModelRegistry, examples: Sequence[Example]) -> "Layout":
        """Build the columns and tabs inside a page."""
        classifiers, segmenters = registry.names(segmentation=False), registry.names(segmentation=True)
        with gr.Row(equal_height=False, elem_id="desk"):
            inputs = ImageInputs.build(examples)
            with gr.Column(scale=3, min_width=320, elem_id="work"):
                with gr.Tabs():
                    classify, segment = ClassifyTab.build(classifiers), SegmentTab.build(segmenters)
                    compare = CompareTab.build([names for names in (classifiers, segmenters) if len(names) > 1])
                    batch = BatchTab.build([model.name for model in registry])
                    with gr.Tab("About") as about:
                        gr.HTML(views.render("about_models", list(registry), PRIVACY), elem_id="about")
                answer = AnswerArea.build()
        return cls(inputs, classify, segment, compare, batch, about, answer)
