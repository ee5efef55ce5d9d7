"""Controls for a visitor's images: choice of image and frame, window presets, level and width."""

import math
from collections.abc import Sequence
from typing import Any

import gradio as gr

from hf_medtl.errors import MedtlError
from hf_medtl.space.security.upload_store import deleting, pop_name
from hf_medtl.space.sessions import Session
from hf_medtl.space.uploads import Upload, detect_format, display_name, load_upload

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
    low, high, step = windowing.slider_range()
    level, width = windowing.level_and_width(windowing.window)
    return [
        frame,
        gr.Group(visible=True),
        gr.Dropdown([(DEFAULT_WINDOW, ""), *((name, name) for name in windowing.presets)], value=""),
        gr.Slider(low, high, value=level, step=step, label=f"Level{unit}"),
        gr.Slider(step, math.ceil((high - low) / step) * step, value=width, step=step, label=f"Width{unit}"),
    ]


def preset_updates(session: Session, index: int | None, preset: str | None) -> list[Any]:
    """Return updates of level and width for a preset."""
    windowing = session[index].windowing if session.uploads else None
    if windowing is None:
        return [gr.skip(), gr.skip()]
    return list(windowing.level_and_width(windowing.presets.get(preset or "", windowing.window)))


def selected_window(upload: Upload, preset: str | None, level: float, width: float) -> tuple[float, float] | None:
    """Return the window (low, high) of the controls, or None for the default one.

    The preset "" stands for the default window, as in training, which the sliders may only approximate.
    """
    return None if upload.windowing is None or preset == "" else (level - width / 2, level + width / 2)
