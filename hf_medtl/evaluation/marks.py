"""Plots as data: lines, bands and points on two axes, independent of the library that draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Values = Sequence[Any] | NDArray[Any]

# Names of colours in the colour-blind-safe palette of Okabe and Ito. Every output has its own values for them.
SERIES = ("blue", "orange", "green", "purple", "sky", "yellow")
# Dashes and symbols differ, too, so that no plot depends on colour alone.
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = dict(
    zip((*SERIES, "grey"), ("circle", "diamond", "square", "triangle-up", "cross", "star", "circle"), strict=True)
)


def line_style(index: int) -> dict[str, Any]:
    """Return the colour and dash of the index-th line of a plot."""
    return {"colour": SERIES[index % len(SERIES)], "dash": DASHES[index % len(DASHES)]}


@dataclass(frozen=True)
class Axis:
    """An axis of a plot from `low` to `high` (None: from the data); `ticks` name the positions 0, 1, 2, ..."""

    title: str
    low: float | None = None
    high: float | None = None
    ticks: Sequence[str] = ()


@dataclass(frozen=True)
class Line:
    """A line through x and y (n,), with a marker at each point if `markers`. An empty name omits it from the legend."""

    name: str
    x: Values
    y: Values
    colour: str = "blue"
    dash: str = "solid"
    markers: bool = False


@dataclass(frozen=True)
class Band:
    """The area between low and high (n,) along x."""

    x: Values
    low: Values
    high: Values
    colour: str = "blue"


@dataclass(frozen=True)
class Points:
    """Markers at x and y (n,) with optional error bars from `low` to `high` (NaN: no bar) and texts shown on hover.

    The error bars are vertical, or horizontal if `horizontal`.
    """

    name: str
    x: Values
    y: Values
    low: Values = ()
    high: Values = ()
    colour: str = "blue"
    horizontal: bool = False
    small: bool = False
    texts: Sequence[str] = ()


Mark = Line | Band | Points


@dataclass(frozen=True)
class Plot:
    """Marks on two axes.

    Attributes:
        title: of the plot.
        marks: drawn in this order.
        x: horizontal axis.
        y: vertical axis.
        count: number of images, and of groups if known, as text.
        method: the meaning of bands and bars, and the method.
        alt: alternative text, which describes what can be seen.
        wide: use the full width of the page.
    """

    title: str
    marks: Sequence[Mark]
    x: Axis
    y: Axis
    count: str
    method: str
    alt: str
    wide: bool = False

    @property
    def caption(self) -> str:
        """The count and the method."""
        return f"{self.count}. {self.method}"
