"""What programs can ask, through gradio_client or plain HTTP."""

from collections.abc import Callable
from typing import Any

import gradio as gr
from PIL import Image

from hf_medtl.errors import MedtlError
from hf_medtl.explain.gallery import overlay
from hf_medtl.predict import columns
from hf_medtl.space import handlers as acts
from hf_medtl.space import inference as answers
from hf_medtl.space.registry import Shelf
from hf_medtl.space.rendering import data_uri, fill, heat
from hf_medtl.space.security.middleware import gone, name_of
from hf_medtl.space.uploads import take

# Queues: many pictures of one visitor do not keep the others waiting.
MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 2}
BATCH: dict[str, Any] = {"concurrency_id": "batch", "concurrency_limit": 1}


class Api:
    """Answers as JSON to files of a kind.

    Args:
        shelf: the models. Where none is named, the first that fits answers.
        read: what stands for a file -> its picture.
        show: a picture -> what stands for it in an answer; PNG in a data URI by default, so that none is stored.
    """

    def __init__(
        self, shelf: Shelf, read: Callable[[str], Image.Image], show: Callable[[Image.Image], Any] = data_uri
    ) -> None:
        self.shelf, self.read, self.show = shelf, read, show

    def classify(self, file: str, model: str) -> dict[str, Any]:
        """Probabilities, decision, set of labels that can't be ruled out, and whether not to decide, and why."""
        picture = self.read(file)
        return answers.classify(self.shelf[model or self.first(masks=False)], picture)

    def explain(self, file: str, model: str, method: str, label: str) -> dict[str, Any]:
        """A map of what the answer rests on, alone and over the picture, with the verdict on such maps."""
        picture = self.read(file)
        its = self.shelf[model or self.first(masks=False)]
        values, facts = answers.look(its, picture, answers.Look(method or its.methods[0], label or None))
        return {**facts, "map": self.show(heat(values)), "overlay": self.show(overlay(picture, values))}

    def segment(self, file: str, model: str) -> dict[str, Any]:
        """Areas of the regions, the mask, and where the model is not sure."""
        picture = self.read(file)
        mask, unsure, facts = answers.segment(self.shelf[model or self.first(masks=True)], picture)
        over = picture.convert("RGBA")
        half = fill(mask).resize(picture.size, Image.Resampling.NEAREST)
        half.putalpha(half.getchannel("A").point(lambda alpha: alpha // 2))
        over.alpha_composite(half)
        pictures = {"mask": acts.mask_picture(mask), "uncertainty": heat(unsure), "overlay": over.convert("RGB")}
        return facts | {name: self.show(its) for name, its in pictures.items()}

    def compare(self, file: str, one: str, other: str) -> dict[str, Any]:
        """Two models' answers to one picture, and where they disagree."""
        picture = self.read(file)
        found = answers.compare(self.shelf[one], self.shelf[other], picture)
        masks = found.pop("masks", ())
        return found | {"masks": [self.show(acts.mask_picture(mask)) for mask in masks]}

    def batch(self, files: list[str], model: str) -> dict[str, Any]:
        """A row for each picture of many files and archives, and all of them as CSV."""
        with gone(files or []):
            if not files:
                raise MedtlError("No files came. Give some: [handle_file('one.png'), handle_file('many.zip')].")
            its = self.shelf[model or next(iter(self.shelf)).name]
            rows = list(acts.on_batch(its, files))
        # A row with a "path" is a file to be fetched for gradio_client, and maybe for Gradio.
        named = [{"name": row["path"]} | {key: row[key] for key in row if key != "path"} for row in rows]
        return {"rows": named, "csv": acts.table(rows, columns(its.predictor))}

    def first(self, masks: bool) -> str:
        """Name of the first model of a kind."""
        names = self.shelf.of(masks)
        if not names:
            raise MedtlError(f"This Space has no {'segmentation model' if masks else 'classifier'}.")
        return names[0]


def read(file: str | None) -> Image.Image:
    """The picture of an upload, which leaves the disk."""
    if not file:
        raise MedtlError("No file came. Give one: handle_file('picture.png').")
    return take(file, name=name_of(file)).picture()


def add_api(shelf: Shelf) -> None:
    """Endpoints `/classify`, `/explain`, `/segment`, `/compare` and `/batch` of the page that is being built."""
    api = Api(shelf, read)
    with gr.Group(visible=False):
        file, files, found = (
            gr.File(label="file"),
            gr.File(label="files", file_count="multiple"),
            gr.JSON(label="answer"),
        )
        model, one, other = (gr.Textbox("", label=name) for name in ("model", "one", "other"))
        method, label = gr.Textbox("", label="method"), gr.Textbox("", label="label")
        for act, inputs in (
            (api.classify, [file, model]),
            (api.explain, [file, model, method, label]),
            (api.segment, [file, model]),
            (api.compare, [file, one, other]),
        ):
            gr.Button(act.__name__).click(act, inputs, found, api_name=act.__name__, **MODEL)
        gr.Button("batch").click(api.batch, [files, model], found, api_name="batch", **BATCH)
