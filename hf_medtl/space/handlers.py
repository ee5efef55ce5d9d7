"""What the page does when somebody does something: from values of its controls to HTML."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.data.dicom_writer import read_header, segmentation_object, write_object
from hf_medtl.errors import MedtlError
from hf_medtl.predict import columns
from hf_medtl.space import views
from hf_medtl.space.inference import Look, classify, compare, look, segment
from hf_medtl.space.registry import METHOD_NAMES, Model, Shelf
from hf_medtl.space.rendering import data_uri, fill, heat, outline
from hf_medtl.space.security.middleware import name_of
from hf_medtl.space.uploads import Refusal, Upload, unpack

SHOWN = 200  # rows of a batch's table on the page; the CSV has all


@dataclass(frozen=True)
class Wish:
    """The controls of the page.

    Attributes:
        mode: "classify", "segment" or "compare".
        classifier, segmenter: names of models.
        one, other: names of the models to compare.
        look: the map of a classifier.
        window: grey values (low, high); None for the file's own.
        frame: from 0; None for the default.
    """

    mode: str
    classifier: str | None
    segmenter: str | None
    one: str | None
    other: str | None
    look: Look = field(default_factory=Look)
    window: tuple[float, float] | None = None
    frame: int | None = None


def answer(shelf: Shelf, upload: Upload, wish: Wish) -> tuple[str, str]:
    """Viewer and answer. What a person can mend is said in the answer's place."""
    try:
        picture = upload.picture(wish.window, wish.frame)
    except MedtlError as error:
        return "", views.show("problem", str(error))
    try:
        return ACTS[wish.mode](shelf, upload, picture, wish)
    except MedtlError as error:
        return views.viewer([sheet(picture, "The picture")], "The picture."), views.show("problem", str(error))


def on_classify(shelf: Shelf, upload: Upload, picture: Image.Image, wish: Wish) -> tuple[str, str]:
    """Labels, and a map of one."""
    model = shelf[wish.classifier or ""]
    facts = classify(model, picture)
    values, seen = look(model, picture, wish.look)
    alt = f"Map of what the answer rests on, by {METHOD_NAMES[wish.look.method]}"
    caption = f"{alt}: brighter colours are more. The numbers are for the picture as it is shown here."
    return (
        views.viewer([sheet(picture, "The picture", layer("map", alt, heat(values)))], caption),
        views.show("classify", facts, seen),
    )


def on_segment(shelf: Shelf, upload: Upload, picture: Image.Image, wish: Wish) -> tuple[str, str]:
    """Outlines, areas and downloads."""
    model = shelf[wish.segmenter or ""]
    mask, unsure, facts = segment(model, picture)
    names = ", ".join(views.plain(region["name"]) for region in facts["regions"])
    layers = [
        layer("outline", f"Outline of {names}", outline(mask)),
        layer("area", f"Area of {names}", fill(mask)),
        layer("uncertainty", "Where the model is not sure", heat(unsure)),
    ]
    caption = f"What {model.name} takes for {names}. In its uncertainty, brighter colours are less sure."
    found = [{"name": "Mask as PNG", "file": "mask.png", "href": data_uri(mask_picture(mask))}]
    try:
        content = dicom_seg(model, upload, mask)
    except MedtlError as error:
        facts["remark"] = f"{error} The PNG stands."
    else:
        if content:
            href = "data:application/dicom," + quote(content)
            found.append({"name": "Mask as DICOM SEG (names the patient)", "file": "mask.dcm", "href": href})
    return views.viewer([sheet(picture, "The picture", *layers)], caption), views.show("segment", facts, found)


def on_compare(shelf: Shelf, upload: Upload, picture: Image.Image, wish: Wish) -> tuple[str, str]:
    """Two models' answers, and where they differ."""
    models = [shelf[name or ""] for name in (wish.one, wish.other)]
    found = compare(models[0], models[1], picture)
    if "masks" in found:
        differing = (found["masks"][0] != found["masks"][1]).astype(np.uint8)
        layers = [
            [layer("outline", f"Outline by {model.name}", outline(mask)),
             layer("disagreement", "Where the two differ", fill(differing))]
            for model, mask in zip(models, found["masks"], strict=True)
        ]  # fmt: skip
        caption = "Both models' outlines."
    else:
        maps = [look(model, picture, Look(label=None)) for model in models]
        layers = [[layer("map", f"Map of {seen['model']}", heat(values))] for values, seen in maps]
        caption = "Both models' maps (Grad-CAM), each of the label that its model finds most probable."
    sheets = [sheet(picture, model.name, *its) for model, its in zip(models, layers, strict=True)]
    return views.viewer(sheets, caption), views.show("compare", found)


ACTS = {"classify": on_classify, "segment": on_segment, "compare": on_compare}


def on_batch(model: Model, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of answers to many files and archives of files, one after the other; each file is gone when it was read."""
    for path in paths:
        for item in unpack(path, name=name_of(path)):
            yield row(model, item)


def row(model: Model, item: Upload | Refusal) -> dict[str, Any]:
    """One row; see `Prediction.row`."""
    if isinstance(item, Refusal):
        return refusal(model, item.name, item.reason)
    try:
        picture = item.picture()
    except MedtlError as error:
        return refusal(model, item.name, str(error))
    with model.lock:
        found = model.predictor.predict([picture])[0]
    return found.row() | {"path": item.name}


def refusal(model: Model, name: str, sentence: str) -> dict[str, Any]:
    """A row with an error alone."""
    return dict.fromkeys(columns(model.predictor)) | {"path": name, "error": sentence}


def table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """CSV. A cell that a spreadsheet would take for a formula is told to be text."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names)
    writer.writeheader()
    for each in rows:
        writer.writerow({name: inert(value) for name, value in each.items()})
    return stream.getvalue()


def inert(value: Any) -> Any:
    """A text that no spreadsheet takes for a formula (OWASP, "CSV Injection")."""
    if isinstance(value, str) and (value[:1] in {"\t", "\r", "\n"} or value.lstrip()[:1] in set("=+-@＝＋－＠")):
        return f"'{value}"
    return value


def batch(model: Model, paths: Sequence[str], stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
    """The table as it grows, and then with its CSV: of all pictures, or of those until somebody stopped it."""
    names, rows, early = columns(model.predictor), list[dict[str, Any]](), False
    for found in on_batch(model, paths):
        rows.append(found)
        if early := stopped():
            break
        if len(rows) % 5 == 1:
            yield views.show("batch", rows[-SHOWN:], names, len(rows), 0, None)
    href = "data:text/csv;charset=utf-8," + quote(table(rows, names))
    failed = sum(bool(its["error"]) for its in rows)
    yield views.show("batch", rows[:SHOWN], names, len(rows), failed, href, early)


def sheet(picture: Image.Image, title: str, *layers: dict[str, str]) -> dict[str, Any]:
    """A picture for the viewer."""
    return {
        "title": title,
        "src": data_uri(picture),
        "width": picture.width,
        "height": picture.height,
        "layers": list(layers),
    }


def layer(name: str, alt: str, over: Image.Image) -> dict[str, str]:
    """What lies over it."""
    return {"name": name, "alt": alt, "src": data_uri(over)}


def mask_picture(mask: NDArray[np.uint8]) -> Image.Image:
    """A mask as a file to keep: 255 inside where there is one class, else the class indices."""
    return Image.fromarray(mask * 255 if mask.max(initial=0) <= 1 else mask)


def dicom_seg(model: Model, upload: Upload, mask: NDArray[np.uint8]) -> bytes | None:
    """A DICOM Segmentation; None where the picture is no DICOM.

    Raises:
        MedtlError: it can't be made.
    """
    header = read_header(upload.content) if upload.dicom else None
    if header is None:
        return None
    stream = io.BytesIO()
    predictor = model.predictor
    write_object(segmentation_object(header, mask, predictor.labels, model.name, predictor.revision), stream)
    return stream.getvalue()
