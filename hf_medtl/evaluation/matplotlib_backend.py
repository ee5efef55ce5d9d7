"""Plots as PNG, PDF and SVG files, for the figures of runs and for slides and PDFs."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure, SubFigure

from hf_medtl.common.files import replacing
from hf_medtl.common.text import split_commas, suggest
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.marks import SYMBOLS, Band, Line, Plot

FORMATS = ("png", "pdf", "svg")
DPI = 300  # the resolution that journals ask of figures
IMAGE_DPI = 150  # of pages of images, which have no more pixels

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7A828A"
COLOURS = {
    "blue": BLUE,
    "orange": ORANGE,
    "green": "#009E73",
    "purple": "#A34F80",
    "sky": "#3B8FC4",
    "yellow": "#B07C00",
    "grey": GREY,
}
MARKERS = {"circle": "o", "diamond": "D", "square": "s", "triangle-up": "^", "cross": "P", "star": "*"}
LINESTYLES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}

_formats: ContextVar[tuple[str, ...]] = ContextVar("figure formats", default=("png",))


def parse_formats(text: str) -> tuple[str, ...]:
    """Return the formats named in text such as "pdf,svg"; PNG is always one of them, since cards and reports show it.

    Raises:
        MedtlError: an unknown format.
    """
    names = [name.lower().lstrip(".") for name in split_commas(text)]
    for name in names:
        if name not in FORMATS:
            raise MedtlError(f"--figures takes {', '.join(FORMATS)}, but found {name!r}. {suggest(name, FORMATS)}")
    return tuple(dict.fromkeys(("png", *names)))


@contextmanager
def figure_formats(text: str) -> Iterator[None]:
    """Write the figures that are drawn inside this context in these formats, such as "png,pdf"."""
    token = _formats.set(parse_formats(text))
    try:
        yield
    finally:
        _formats.reset(token)


def write_figure(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Write a figure as PNG, and beside it in each other format of `figure_formats`; text in them stays text."""
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):
        for name in _formats.get():
            with replacing(path.with_suffix(f".{name}")) as partial:
                figure.savefig(partial, dpi=dpi, format=name)


def series_styles() -> Iterator[tuple[str, str]]:
    """Yield colours and markers for any number of series; both differ, so that a plot can be read in greyscale, too."""
    return zip(cycle(COLOURS.values()), cycle(MARKERS.values()), strict=False)


def save_figure(path: Path, plots: Sequence[Plot], titles: Sequence[str], width: float, height: float) -> None:
    """Write plots beside each other, each with a title, in a file; width and height of all are in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    for panel, plot, title in zip(figure.subfigures(1, len(plots), squeeze=False)[0], plots, titles, strict=True):
        _draw(panel, plot, title)
    write_figure(figure, path)


def plot_png(plot: Plot, width: float = 5.2, height: float = 3.9, dpi: int = 170) -> bytes:
    """Draw a plot without its title and caption; width and height are in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    _draw(figure, plot)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def _draw(figure: Figure | SubFigure, plot: Plot, title: str = "") -> None:
    """Draw a plot with its legend. No text is parsed as mathtext."""
    axes = figure.subplots()
    handles, names = [], []
    for mark in plot.marks:
        colour, marker = COLOURS[mark.colour], MARKERS[SYMBOLS[mark.colour]]
        if isinstance(mark, Band):
            axes.fill_between(mark.x, mark.low, mark.high, color=colour, alpha=0.18, linewidth=0)
            continue
        if isinstance(mark, Line):
            (handle,) = axes.plot(
                mark.x, mark.y, color=colour, linestyle=LINESTYLES[mark.dash], linewidth=1.8,
                marker=marker if mark.markers else None, markersize=4,
            )  # fmt: skip
        else:
            size, alpha = (3, 0.6) if mark.small else (6, 1.0)
            (handle,) = axes.plot(mark.x, mark.y, marker, color=colour, markersize=size, alpha=alpha)
            if len(mark.low):
                lines = axes.hlines if mark.horizontal else axes.vlines
                lines(mark.y if mark.horizontal else mark.x, mark.low, mark.high, color=colour, linewidth=1.5)
        if mark.name:
            handles.append(handle)
            names.append(mark.name)
    for set_limits, set_ticks, axis in (
        (axes.set_xlim, axes.set_xticks, plot.x),
        (axes.set_ylim, axes.set_yticks, plot.y),
    ):
        if axis.ticks:
            set_ticks(range(len(axis.ticks)), list(axis.ticks), fontsize=8)
        set_limits(axis.low, axis.high)
    axes.set_xlabel(plot.x.title, parse_math=False)
    axes.set_ylabel(plot.y.title, parse_math=False)
    axes.set_title(title, parse_math=False)
    axes.grid(color="#E3E7EB", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    texts = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    if len(names) > 1:
        # matplotlib omits names that begin with an underscore from a legend, hence the zero-width space.
        legend = figure.legend(
            handles, [f"\u200b{name}" if name.startswith("_") else name for name in names], loc="outside upper left",
            ncols=2, fontsize=8, frameon=False
        )  # fmt: skip
        texts += legend.get_texts()
    for text in texts:
        text.set_parse_math(False)
