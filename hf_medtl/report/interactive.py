"""Plots as plotly.js figures for the HTML page."""

import html
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hf_medtl.evaluation.marks import SYMBOLS, Axis, Band, Line, Mark, Plot

MAX_LETTERS = 40  # of a name in a plot; longer ones do not fit on a phone


def plotly_figure(plot: Plot) -> dict[str, Any]:
    """Return `data` and `layout` for Plotly.newPlot. Colours are CSS variables, which report.js resolves."""
    return {
        "data": [_trace(mark) for mark in plot.marks],
        "layout": {
            "xaxis": _axis(plot.x),
            "yaxis": _axis(plot.y),
            "showlegend": sum(bool(mark.name) for mark in plot.marks if not isinstance(mark, Band)) > 1,
        },
    }


def _axis(axis: Axis) -> dict[str, Any]:
    layout: dict[str, Any] = {"title": {"text": _plain(axis.title, MAX_LETTERS + 8)}}
    if axis.low is not None or axis.high is not None:
        layout["range"] = [axis.low, axis.high]
    if axis.ticks:
        layout |= {"tickvals": list(range(len(axis.ticks))), "ticktext": [_plain(tick) for tick in axis.ticks]}
    return layout


def _trace(mark: Mark) -> dict[str, Any]:
    colour = f"var(--{mark.colour})"
    if isinstance(mark, Band):
        return {
            "type": "scatter",
            "x": _json_numbers([*mark.x, *mark.x[::-1]]),
            "y": _json_numbers([*mark.high, *mark.low[::-1]]),
            "fill": "toself",
            "fillcolor": f"var(--{mark.colour}-band)",
            "line": {"width": 0},
            "mode": "lines",
            "hoverinfo": "skip",
            "showlegend": False,
        }
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": _plain(mark.name),
        "x": _json_numbers(mark.x),
        "y": _json_numbers(mark.y),
        "showlegend": bool(mark.name),
        "hovertemplate": "%{x:.3~f}, %{y:.3~f}<extra></extra>",
        "marker": {"color": colour, "symbol": SYMBOLS[mark.colour]},
    }
    if isinstance(mark, Line):
        trace |= {
            "mode": "lines+markers" if mark.markers else "lines",
            "line": {"color": colour, "dash": mark.dash, "width": 2},
        }
        trace["marker"]["size"] = 6
        return trace
    trace["mode"] = "markers"
    if mark.texts:
        trace["text"] = [_plain(text, 10 * MAX_LETTERS) for text in mark.texts]
        trace["hovertemplate"] = "%{text}<extra></extra>"
    trace["marker"] |= {"size": 5, "opacity": 0.65} if mark.small else {"size": 9}
    if len(mark.low):
        value = np.asarray(mark.x if mark.horizontal else mark.y, np.float64)
        trace["error_x" if mark.horizontal else "error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": _json_numbers(np.asarray(mark.high, np.float64) - value),
            "arrayminus": _json_numbers(value - np.asarray(mark.low, np.float64)),
            "color": colour,
            "thickness": 1.5,
            "width": 4,
        }
    return trace


def _plain(text: str, max_letters: int = MAX_LETTERS) -> str:
    """Truncate and escape text: plotly.js would render <b> or <a> in a label's name as HTML, and $...$ as TeX."""
    text = text if len(text) <= max_letters else text[: max_letters - 1] + "…"
    return html.escape(text, quote=False).replace("$", "&#36;")


def _json_numbers(values: ArrayLike) -> list[float | None]:
    """Return values for JSON: rounded to five significant digits, None where not finite."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in np.asarray(values, np.float64).ravel()]
