"""API endpoints for gradio_client, plain HTTP and the MCP tools."""

from collections.abc import Callable
from typing import Any

import gradio as gr
from PIL import Image

from hf_medtl.errors import MedtlError
from hf_medtl.explain.gallery import overlay
from hf_medtl.predict import prediction_columns
from hf_medtl.space import inference
from hf_medtl.space.handlers import mask_image, predict_rows, to_csv
from hf_medtl.space.registry import ModelRegistry
from hf_medtl.space.rendering import data_uri, heatmap_overlay, mask_overlay
from hf_medtl.space.security.upload_store import deleting, pop_name
from hf_medtl.space.uploads import load_upload

# Separate queues, so that a visitor's batch does not block the other visitors.
MODEL_QUEUE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 2}
BATCH_QUEUE: dict[str, Any] = {"concurrency_id": "batch", "concurrency_limit": 1}


class Api:
    """Endpoints that answer with JSON. The methods' docstrings describe the MCP tools, too.

    Args:
        registry: the models. If a call names none, the first one of the right task answers.
        load_image: returns the image of a `file` argument.
        encode_image: returns the value of an image in an answer. By default PNG in a data URI, so that none is stored.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        load_image: Callable[[str], Image.Image],
        encode_image: Callable[[Image.Image], Any] = data_uri,
    ) -> None:
        self.registry, self.load_image, self.encode_image = registry, load_image, encode_image

    def classify(self, file: str, model: str) -> dict[str, Any]:
        """Return probabilities, decision, prediction set, and whether the model abstains with its reasons."""
        image = self.load_image(file)
        return inference.classify(self.registry[model or self._default_model(segmentation=False)], image)

    def explain(self, file: str, model: str, method: str, label: str) -> dict[str, Any]:
        """Return a heatmap of what the answer depends on, alone and over the image, and whether it was validated."""
        image = self.load_image(file)
        served = self.registry[model or self._default_model(segmentation=False)]
        request = inference.HeatmapRequest(method or served.methods[0], label or None)
        values, description = inference.heatmap(served, image, request)
        images = {"map": heatmap_overlay(values), "overlay": overlay(image, values)}
        return description | {name: self.encode_image(image) for name, image in images.items()}

    def segment(self, file: str, model: str) -> dict[str, Any]:
        """Return areas of the regions, the mask, and where the model is uncertain."""
        image = self.load_image(file)
        served = self.registry[model or self._default_model(segmentation=True)]
        mask, uncertainty, answer = inference.segment(served, image)
        layer = mask_overlay(mask).resize(image.size, Image.Resampling.NEAREST)
        layer.putalpha(layer.getchannel("A").point(lambda alpha: alpha // 2))
        blended = Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")
        images = {"mask": mask_image(mask), "uncertainty": heatmap_overlay(uncertainty), "overlay": blended}
        return answer | {name: self.encode_image(image) for name, image in images.items()}

    def compare(self, file: str, one: str, other: str) -> dict[str, Any]:
        """Return two models' answers to one image, and where they disagree."""
        image = self.load_image(file)
        comparison = inference.compare(self.registry[one], self.registry[other], image)
        masks = comparison.pop("masks", ())
        return comparison | {"masks": [self.encode_image(mask_image(mask)) for mask in masks]}

    def batch(self, files: list[str], model: str) -> dict[str, Any]:
        """Return a row for each image of several files and zips, and all rows as CSV."""
        with deleting(files or []):
            if not files:
                raise MedtlError("No files were given. Give some: [handle_file('one.png'), handle_file('many.zip')].")
            served = self.registry[model or next(iter(self.registry)).name]
            rows = list(predict_rows(served, files))
        # gradio_client, and perhaps Gradio, would download a dict with a "path".
        named = [{"name": row["path"]} | {key: row[key] for key in row if key != "path"} for row in rows]
        return {"rows": named, "csv": to_csv(rows, prediction_columns(served.predictor))}

    def _default_model(self, segmentation: bool) -> str:
        names = self.registry.names(segmentation)
        if not names:
            raise MedtlError(f"This Space has no {'segmentation model' if segmentation else 'classifier'}.")
        return names[0]


def read_upload(file: str | None) -> Image.Image:
    """Return the image of an uploaded file, and delete the file."""
    if not file:
        raise MedtlError("No file was given. Give one: handle_file('image.png').")
    return load_upload(file, name=pop_name(file)).image()


def add_endpoints(registry: ModelRegistry) -> None:
    """Add `/classify`, `/explain`, `/segment`, `/compare` and `/batch` to the page that is being built."""
    api = Api(registry, read_upload)
    with gr.Group(visible=False):
        file, files = gr.File(label="file"), gr.File(label="files", file_count="multiple")
        answer = gr.JSON(label="answer")
        model, one, other = (gr.Textbox("", label=name) for name in ("model", "one", "other"))
        method, label = gr.Textbox("", label="method"), gr.Textbox("", label="label")
        for endpoint, inputs in (
            (api.classify, [file, model]),
            (api.explain, [file, model, method, label]),
            (api.segment, [file, model]),
            (api.compare, [file, one, other]),
        ):
            name = endpoint.__name__
            gr.Button(name).click(endpoint, inputs, answer, api_name=name, **MODEL_QUEUE)
        gr.Button("batch").click(api.batch, [files, model], answer, api_name="batch", **BATCH_QUEUE)
