"""What the controls beside a visitor's pictures show for each."""

import math
from collections.abc import Sequence
from typing import Any

import gradio as gr

from hf_medtl.errors import MedtlError
from hf_medtl.space.security.middleware import gone, name_of
from hf_medtl.space.sessions import Hand
from hf_medtl.space.uploads import Depth, Upload, kind_of, shown, take

MOST = 12  # pictures in hand at once; more are for the tab Batch
AS_TRAINED = "as the model was trained"


def received(paths: Sequence[str]) -> tuple[Hand, list[str]]:
    """Uploaded files -> pictures in hand, and a sentence for each that is none; the files are gone from disk then."""
    found, problems = [], []
    for path in paths[:MOST]:
        name = name_of(path)
        try:
            found.append(take(path, name=name))
        except MedtlError as error:
            problems.append(f"{shown(name)}: {error}" if len(paths) > 1 else str(error))
    with gone(paths[MOST:]):
        pass
    if len(paths) > MOST:
        problems.append(f"The first {MOST} pictures are here; for more take the tab Batch.")
    return Hand(tuple(found)), problems


def held(hand: Hand) -> list[Any]:
    """Updates of the choice among the pictures, and of `windows`."""
    names = [(f"{number}: {its.name}", number - 1) for number, its in enumerate(hand.uploads, 1)]
    return [gr.Radio(names, value=0 if names else None, visible=len(names) > 1), *windows(hand, 0)]


def windows(hand: Hand, number: int | None) -> list[Any]:
    """Updates of frame, group of the window, preset, level and width, for the chosen picture."""
    if not hand.uploads:
        return [gr.Slider(visible=False), gr.Group(visible=False), gr.skip(), gr.skip(), gr.skip()]
    chosen = hand[number]
    first = 1 if kind_of(chosen.content) == "picture" else chosen.frames // 2 + 1  # as `Upload.picture` has it
    frame = gr.Slider(1, max(2, chosen.frames), value=first, visible=chosen.frames > 1)
    depth = chosen.depth
    if depth is None:
        return [frame, gr.Group(visible=False), gr.skip(), gr.skip(), gr.skip()]
    unit = f" ({depth.unit})" if depth.unit else ""
    low, high, step = reach(depth)
    level, width = middle(depth, depth.window)
    return [
        frame,
        gr.Group(visible=True),
        gr.Dropdown([(AS_TRAINED, ""), *((name, name) for name in depth.presets)], value=""),
        gr.Slider(low, high, value=level, step=step, label=f"Level{unit}"),
        gr.Slider(step, math.ceil((high - low) / step) * step, value=width, step=step, label=f"Width{unit}"),
    ]


def reach(depth: Depth) -> tuple[float, float, float]:
    """Lowest and highest grey value that the sliders need, and their step.

    Windows may go beyond the values of the picture, and Gradio refuses a value beyond the ends of its slider.
    """
    ends = [(depth.low, depth.high), depth.window, *depth.presets.values()]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    span = max(high - low, 1e-6)
    step = 1.0 if span > 100 else 10.0 ** math.floor(math.log10(span / 100))
    first, last = math.floor(low / step), math.ceil(high / step)
    return first * step, max(last, first + 1) * step, step


def middle(depth: Depth, window: tuple[float, float]) -> tuple[float, float]:
    """Level and width of a window (low, high), as near as the sliders come."""
    low, high = window
    step = reach(depth)[-1]
    return round((low + high) / 2 / step) * step, max(1, round((high - low) / step)) * step


def preset_to_sliders(hand: Hand, number: int | None, name: str | None) -> list[Any]:
    """Updates of level and width."""
    depth = hand[number].depth if hand.uploads else None
    return [gr.skip(), gr.skip()] if depth is None else list(middle(depth, depth.presets.get(name or "", depth.window)))


def window_of(upload: Upload, preset: str | None, level: float, width: float) -> tuple[float, float] | None:
    """What the controls ask for. The preset "" is the window of training, which the sliders may only come near to."""
    return None if upload.depth is None or preset == "" else (level - width / 2, level + width / 2)
