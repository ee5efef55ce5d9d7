"""Event handlers of the page: from values of its controls to HTML."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.common.csv_cells import harmless_text
from hf_medtl.data.dicom_writer import make_segmentation, read_header, write_dicom
from hf_medtl.errors import MedtlError
from hf_medtl.predict import prediction_columns
from hf_medtl.space import views
from hf_medtl.space.inference import HeatmapRequest, classify, compare, heatmap, segment
from hf_medtl.space.registry import METHOD_NAMES, ModelRegistry, ServedModel
from hf_medtl.space.rendering import data_uri, heatmap_overlay, mask_overlay, outline_overlay
from hf_medtl.space.security.upload_store import pop_name
from hf_medtl.space.uploads import RejectedFile, Upload, load_batch

MAX_TABLE_ROWS = 200  # of a batch on the page; the CSV has all


@dataclass(frozen=True)
class AnalysisRequest:
    """Values of the page's controls.

    Attributes:
        mode: "classify", "segment" or "compare".
        classifier, segmenter: names of models.
        one, other: names of the models to compare.
        heatmap: heatmap of a classifier.
        window: grey values (low, high); None for the default window.
        frame: from 0; None for the default.
    """

    mode: str
    classifier: str | None
    segmenter: str | None
    one: str | None
    other: str | None
    heatmap: HeatmapRequest = field(default_factory=HeatmapRequest)
    window: tuple[float, float] | None = None
    frame: int | None = None


def handle_request(registry: ModelRegistry, upload: Upload, request: AnalysisRequest) -> tuple[str, str]:
    """Return the HTML of viewer and answer. An error that the user can fix is shown as the answer."""
    try:
        image = upload.image(request.window, request.frame)
    except MedtlError as error:
        return "", views.render("problem", str(error))
    try:
        return HANDLERS[request.mode](registry, upload, image, request)
    except MedtlError as error:
        view = views.render("viewer", [_viewer_image(image, "The image")], "The image.")
        return view, views.render("problem", str(error))


def _show_classification(
    registry: ModelRegistry, upload: Upload, image: Image.Image, request: AnalysisRequest
) -> tuple[str, str]:
    """Show labels, and a heatmap of one."""
    model = registry[request.classifier or ""]
    answer = classify(model, image)
    values, description = heatmap(model, image, request.heatmap)
    alt = f"Heatmap by {METHOD_NAMES[request.heatmap.method]} of what the answer depends on"
    caption = f"{alt}: brighter is more. The numbers are for the image as shown here."
    layer = _viewer_layer("map", alt, heatmap_overlay(values))
    return (
        views.render("viewer", [_viewer_image(image, "The image", layer)], caption),
        views.render("classify", answer, description),
    )


def _show_segmentation(
    registry: ModelRegistry, upload: Upload, image: Image.Image, request: AnalysisRequest
) -> tuple[str, str]:
    """Show outlines, areas and downloads."""
    model = registry[request.segmenter or ""]
    mask, uncertainty, answer = segment(model, image)
    names = ", ".join(views.display_label(region["name"]) for region in answer["regions"])
    layers = [
        _viewer_layer("outline", f"Outline of {names}", outline_overlay(mask)),
        _viewer_layer("area", f"Area of {names}", mask_overlay(mask)),
        _viewer_layer("uncertainty", "Uncertainty of the model", heatmap_overlay(uncertainty)),
    ]
    caption = (
        f"{names[:1].upper()}{names[1:]} as segmented by {model.name}. In its uncertainty, brighter is less certain."
    )
    downloads = [{"name": "Mask as PNG", "file": "mask.png", "href": data_uri(mask_image(mask))}]
    try:
        content = _dicom_segmentation(model, upload, mask)
    except MedtlError as error:
        answer["remark"] = f"{error} The PNG is not affected."
    else:
        if content:
            href = "data:application/dicom," + quote(content)
            downloads.append({"name": "Mask as DICOM SEG (names the patient)", "file": "mask.dcm", "href": href})
    return (
        views.render("viewer", [_viewer_image(image, "The image", *layers)], caption),
        views.render("segment", answer, downloads),
    )


def _show_comparison(
    registry: ModelRegistry, upload: Upload, image: Image.Image, request: AnalysisRequest
) -> tuple[str, str]:
    """Show two models' answers, and where they differ."""
    models = [registry[name or ""] for name in (request.one, request.other)]
    comparison = compare(models[0], models[1], image)
    if "masks" in comparison:
        first, second = comparison["masks"]
        differing = mask_overlay((first != second).astype(np.uint8))
        layers = [
            [_viewer_layer("outline", f"Outline by {model.name}", outline_overlay(mask)),
             _viewer_layer("disagreement", "Where the two differ", differing)]
            for model, mask in zip(models, (first, second), strict=True)
        ]  # fmt: skip
        caption = "Outlines of both models."
    else:
        heatmaps = [heatmap(model, image, HeatmapRequest()) for model in models]
        layers = [
            [_viewer_layer("map", f"Heatmap of {description['model']}", heatmap_overlay(values))]
            for values, description in heatmaps
        ]
        caption = "Heatmaps of both models (Grad-CAM), each for the label that its model finds most probable."
    images = [_viewer_image(image, model.name, *own) for model, own in zip(models, layers, strict=True)]
    return views.render("viewer", images, caption), views.render("compare", comparison)


HANDLERS = {"classify": _show_classification, "segment": _show_segmentation, "compare": _show_comparison}


# Batches


def batch_pages(
    model: ServedModel, paths: Sequence[str], is_stopped: Callable[[], bool] = lambda: False
) -> Iterator[str]:
    """Yield the HTML table of a batch as it grows, and at the end, or once stopped, with a CSV.

    Args:
        model: model to predict with.
        paths: uploaded images and zips.
        is_stopped: called after each image; True ends the batch.
    """
    columns, rows, stopped = prediction_columns(model.predictor), list[dict[str, Any]](), False
    for row in predict_rows(model, paths):
        rows.append(row)
        if stopped := is_stopped():
            break
        if len(rows) % 5 == 1:
            yield views.render("batch", rows[-MAX_TABLE_ROWS:], columns, len(rows), 0, None)
    href = "data:text/csv;charset=utf-8," + quote(to_csv(rows, columns))
    failed = sum(bool(row["error"]) for row in rows)
    yield views.render("batch", rows[:MAX_TABLE_ROWS], columns, len(rows), failed, href, stopped)


def predict_rows(model: ServedModel, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each image of uploaded files and zips, one at a time. Files are deleted once read."""
    for path in paths:
        for item in load_batch(path, name=pop_name(path)):
            yield predict_row(model, item)


def predict_row(model: ServedModel, item: Upload | RejectedFile) -> dict[str, Any]:
    """Return the row of one file, as `Prediction.row` does; one with an error has only that and the name."""
    if isinstance(item, RejectedFile):
        return error_row(model, item.name, item.reason)
    try:
        image = item.image()
    except MedtlError as error:
        return error_row(model, item.name, str(error))
    with model.lock:
        prediction = model.predictor.predict([image])[0]
    return prediction.row() | {"path": item.name}


def error_row(model: ServedModel, name: str, error: str) -> dict[str, Any]:
    """Return a row with only a file name and an error."""
    return dict.fromkeys(prediction_columns(model.predictor)) | {"path": name, "error": error}


def to_csv(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Return CSV with formula-like cells escaped (OWASP, "CSV Injection")."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns)
    writer.writeheader()
    for row in rows:
        writer.writerow({key: harmless_text(value) if isinstance(value, str) else value for key, value in row.items()})
    return stream.getvalue()


# Images


def _viewer_image(image: Image.Image, title: str, *layers: dict[str, str]) -> dict[str, Any]:
    """Return an image with its layers as the macro `viewer` takes it."""
    return {
        "title": title,
        "src": data_uri(image),
        "width": image.width,
        "height": image.height,
        "layers": list(layers),
    }


def _viewer_layer(name: str, alt: str, overlay: Image.Image) -> dict[str, str]:
    return {"name": name, "alt": alt, "src": data_uri(overlay)}


def mask_image(mask: NDArray[np.uint8]) -> Image.Image:
    """Return a mask (H, W) as an image to download: 0 and 255 for a single class, otherwise class indices."""
    return Image.fromarray(mask * 255 if mask.max(initial=0) <= 1 else mask)


def _dicom_segmentation(model: ServedModel, upload: Upload, mask: NDArray[np.uint8]) -> bytes | None:
    """Return a DICOM Segmentation file, or None if the image is not DICOM.

    Raises:
        MedtlError: it cannot be created.
    """
    header = read_header(upload.content) if upload.dicom else None
    if header is None:
        return None
    stream = io.BytesIO()
    predictor = model.predictor
    write_dicom(make_segmentation(header, mask, predictor.labels, model.name, predictor.revision), stream)
    return stream.getvalue()
