"""Building blocks of a report: sections of prose, tables, plots and images, independent of the output format.

All text is plain. The page, the slides and the PDF escape it themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = Sequence[Any] | NDArray[Any]

NOTICE = (
    "For research and education only. Not a medical device: not for diagnosis, and not for any decision about a person."
)

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
class Prose:
    """A paragraph; `kind` is "plain", or "note" for one that explains why something is missing."""

    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class Code:
    """A block of preformatted text, such as YAML."""

    title: str
    text: str


@dataclass(frozen=True)
class Table:
    """A table of text cells. The first cell of a row is its header; `note` is printed below the table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: counts (K, K), with a row for each true label and a column for each predicted label."""

    title: str
    labels: Sequence[str]
    counts: Sequence[Sequence[int]]
    note: str = ""


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
    texts: Sequence[str] = ()


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


@dataclass(frozen=True)
class Plot:
    """Marks on two axes.

    Attributes:
        title: of the plot.
        marks: drawn in this order.
        x: horizontal axis.
        y: vertical axis.
        caption: n, the meaning of bands and bars, and the method.
        alt: alternative text, which describes what can be seen.
        wide: use the full width of the page.
    """

    title: str
    marks: Sequence[Line | Band | Points]
    x: Axis
    y: Axis
    caption: str
    alt: str
    wide: bool = False


@dataclass(frozen=True)
class GalleryImage:
    """A JPEG without metadata; `kind` is "correct", "wrong", "plain", or "figure" for a saved plot."""

    jpeg: bytes
    caption: str
    alt: str
    kind: str = "plain"


@dataclass(frozen=True)
class Gallery:
    """Images beside each other, shown larger if `large`."""

    title: str
    images: Sequence[GalleryImage]
    caption: str
    large: bool = False


Block = Prose | Code | Table | Matrix | Plot | Gallery


@dataclass(frozen=True)
class Section:
    """A heading with blocks and subsections; `summary` is one sentence for the slides."""

    title: str
    blocks: Sequence[Block] = ()
    subsections: Sequence["Section"] = ()
    summary: str = ""

    @property
    def all_blocks(self) -> list[Block]:
        """The blocks of the section and of all its subsections."""
        return [*self.blocks, *(block for section in self.subsections for block in section.all_blocks)]


@dataclass(frozen=True)
class Report:
    """A whole report: title, subtitle, key facts (name -> value), names of the runs, and sections."""

    title: str
    subtitle: str
    facts: dict[str, str]
    runs: Sequence[str]
    sections: Sequence[Section] = field(default_factory=tuple)


def json_numbers(values: ArrayLike) -> list[float | None]:
    """Return values for JSON: rounded to five significant digits, None where not finite."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in np.asarray(values, np.float64).ravel()]
