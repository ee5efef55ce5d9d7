"""Controls for a visitor's images: choice of image and frame, window presets, level and width."""

import math
from collections.abc import Sequence
from typing import Any

import gradio as gr

from hf_medtl.errors import MedtlError
from hf_medtl.space.security.upload_store import deleting, pop_name
from hf_medtl.space.sessions import Session
from hf_medtl.space.uploads import Upload, Windowing, detect_format, display_name, load_upload

MAX_IMAGES = 12  # of a session; larger sets are for the tab Batch
DEFAULT_WINDOW = "as the model was trained"


def receive_uploads(paths: Sequence[str]) -> tuple[Session, list[str]]:
    """Read uploaded files into a session and delete them from disk.

    Returns:
        The session, and a sentence for each file that was rejected.
    """
    uploads, problems = [], []
    for path in paths[:MAX_IMAGES]:
        name = pop_name(path)
        try:
            uploads.append(load_upload(path, name=name))
        except MedtlError as error:
            problems.append(f"{display_name(name)}: {error}" if len(paths) > 1 else str(error))
    with deleting(paths[MAX_IMAGES:]):
        pass
    if len(paths) > MAX_IMAGES:
        problems.append(f"Only the first {MAX_IMAGES} images were loaded; for more use the tab Batch.")
    return Session(tuple(uploads)), problems


def image_updates(session: Session) -> list[Any]:
    """Return updates of the choice of images, followed by those of `window_updates`."""
    choices = [(f"{number}: {upload.name}", number - 1) for number, upload in enumerate(session.uploads, 1)]
    return [gr.Radio(choices, value=0 if choices else None, visible=len(choices) > 1), *window_updates(session, 0)]


def window_updates(session: Session, index: int | None) -> list[Any]:
    """Return updates of frame, window group, preset, level and width for the selected image."""
    if not session.uploads:
        return [gr.Slider(visible=False), gr.Group(visible=False), gr.skip(), gr.skip(), gr.skip()]
    upload = session[index]
    first = 1 if detect_format(upload.content) == "image" else upload.frames // 2 + 1  # the default of `Upload.image`
    frame = gr.Slider(1, max(2, upload.frames), value=first, visible=upload.frames > 1)
    windowing = upload.windowing
    if windowing is None:
        return [frame, gr.Group(visible=False), gr.skip(), gr.skip(), gr.skip()]
    unit = f" ({windowing.unit})" if windowing.unit else ""
    low, high, step = slider_range(windowing)
    level, width = level_and_width(windowing, windowing.window)
    return [
        frame,
        gr.Group(visible=True),
        gr.Dropdown([(DEFAULT_WINDOW, ""), *((name, name) for name in windowing.presets)], value=""),
        gr.Slider(low, high, value=level, step=step, label=f"Level{unit}"),
        gr.Slider(step, math.ceil((high - low) / step) * step, value=width, step=step, label=f"Width{unit}"),
    ]


def slider_range(windowing: Windowing) -> tuple[float, float, float]:
    """Return the lowest and highest grey value that the sliders need, and their step.

    Windows may exceed the values of the image, and Gradio rejects values outside the range of a slider.
    """
    ends = [(windowing.low, windowing.high), windowing.window, *windowing.presets.values()]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    span = max(high - low, 1e-6)
    step = 1.0 if span > 100 else 10.0 ** math.floor(math.log10(span / 100))
    first, last = math.floor(low / step), math.ceil(high / step)
    return first * step, max(last, first + 1) * step, step


def level_and_width(windowing: Windowing, window: tuple[float, float]) -> tuple[float, float]:
    """Return level and width of a window (low, high), rounded to the steps of the sliders."""
    low, high = window
    step = slider_range(windowing)[-1]
    return round((low + high) / 2 / step) * step, max(1, round((high - low) / step)) * step


def preset_updates(session: Session, index: int | None, preset: str | None) -> list[Any]:
    """Return updates of level and width for a preset."""
    windowing = session[index].windowing if session.uploads else None
    if windowing is None:
        return [gr.skip(), gr.skip()]
    return list(level_and_width(windowing, windowing.presets.get(preset or "", windowing.window)))


def selected_window(upload: Upload, preset: str | None, level: float, width: float) -> tuple[float, float] | None:
    """Return the window (low, high) of the controls, or None for the default one.

    The preset "" stands for the default window, as in training, which the sliders may only approximate.
    """
    return None if upload.windowing is None or preset == "" else (level - width / 2, level + width / 2)
