"""A plot as plotly.js draws it."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_medtl.report.blocks import SYMBOLS, Axis, Band, Line, Plot, Points, numbers

LETTERS = 40  # of a name, at most: a phone has no room for more


def figure(plot: Plot) -> dict[str, Any]:
    """`data` and `layout` for Plotly.newPlot; colours are CSS variables, which the page replaces by their values."""
    return {
        "data": [trace(mark) for mark in plot.marks],
        "layout": {
            "xaxis": axis(plot.x),
            "yaxis": axis(plot.y),
            "showlegend": sum(bool(mark.name) for mark in plot.marks if not isinstance(mark, Band)) > 1,
        },
    }


def axis(of: Axis) -> dict[str, Any]:
    """Title, range and ticks."""
    found: dict[str, Any] = {"title": {"text": shown(of.title, LETTERS + 8)}}
    if of.low is not None or of.high is not None:
        found["range"] = [of.low, of.high]
    if of.ticks:
        found |= {"tickvals": list(range(len(of.ticks))), "ticktext": [shown(tick) for tick in of.ticks]}
    return found


def trace(mark: Line | Band | Points) -> dict[str, Any]:
    """What plotly.js calls a trace."""
    colour = f"var(--{mark.colour})"
    if isinstance(mark, Band):
        x = np.concatenate([np.asarray(mark.x), np.asarray(mark.x)[::-1]])
        y = np.concatenate([np.asarray(mark.high), np.asarray(mark.low)[::-1]])
        return {
            "type": "scatter",
            "x": numbers(x),
            "y": numbers(y),
            "fill": "toself",
            "fillcolor": f"var(--{mark.colour}-band)",
            "line": {"width": 0},
            "mode": "lines",
            "hoverinfo": "skip",
            "showlegend": False,
        }
    found: dict[str, Any] = {
        "type": "scatter",
        "name": shown(mark.name),
        "x": numbers(mark.x),
        "y": numbers(mark.y),
        "showlegend": bool(mark.name),
        "hovertemplate": "%{text}<extra></extra>" if mark.texts else "%{x:.3~f}, %{y:.3~f}<extra></extra>",
    }
    if mark.texts:
        found["text"] = [shown(text, 10 * LETTERS) for text in mark.texts]
    if isinstance(mark, Line):
        mode = "lines+markers" if mark.marks else "lines"
        line = {"color": colour, "dash": mark.dash, "width": 2}
        return found | {
            "mode": mode,
            "line": line,
            "marker": {"color": colour, "size": 6, "symbol": SYMBOLS[mark.colour]},
        }
    found |= {
        "mode": "markers",
        "marker": {"color": colour, "size": 5 if mark.small else 9, "symbol": SYMBOLS[mark.colour]},
    }
    if mark.small:
        found["marker"]["opacity"] = 0.65
    if len(mark.low):
        middle, low, high = (np.asarray(its, np.float64) for its in (mark.x if mark.across else mark.y,
                                                                      mark.low, mark.high))  # fmt: skip
        found["error_x" if mark.across else "error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": numbers(high - middle),
            "arrayminus": numbers(middle - low),
            "color": colour,
            "thickness": 1.5,
            "width": 4,
        }
    return found


def shown(text: str, most: int = LETTERS) -> str:
    """As it is: plotly.js would take <b> or <a> in a label's name for HTML, two $ for TeX. Cut to `most` letters."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return html.escape(cut, quote=False).replace("$", "&#36;")


def figures(plots: Sequence[tuple[str, Plot]]) -> dict[str, dict[str, Any]]:
    """Of all plots of a page, by the name of their place."""
    return {name: figure(plot) for name, plot in plots}
