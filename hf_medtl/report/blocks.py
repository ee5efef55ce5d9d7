"""What a report consists of, whatever it is drawn as: sections of prose, tables, plots and pictures.

All text is plain: whoever draws it escapes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = Sequence[Any] | NDArray[Any]

# Roles of Okabe and Ito's palette, told apart by the colour-blind; the page has lighter ones for a dark screen.
SERIES = ("blue", "orange", "green", "purple", "sky", "yellow")
# Beside colours, so that nothing depends on them alone.
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = dict(
    zip((*SERIES, "grey"), ("circle", "diamond", "square", "triangle-up", "cross", "star", "circle"), strict=True)
)


def style(index: int) -> dict[str, Any]:
    """Colour and dash of the index-th line of a plot."""
    return {"colour": SERIES[index % len(SERIES)], "dash": DASHES[index % len(DASHES)]}


@dataclass(frozen=True)
class Prose:
    """A paragraph. `kind` is plain, or note for what is to be noticed."""

    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    title: str
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells as text; the first cell names the row. `note` stands below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Matrix:
    """Counts (K, K), rows the true label, columns the decided one."""

    title: str
    labels: Sequence[str]
    counts: Sequence[Sequence[int]]
    note: str = ""


@dataclass(frozen=True)
class Axis:
    """One side of a plot: from `low` to `high`, None where the data say; `ticks` name the places 0, 1, 2, ..."""

    title: str
    low: float | None = None
    high: float | None = None
    ticks: Sequence[str] = ()


@dataclass(frozen=True)
class Line:
    """A line through x and y (n,), with a mark at each place if `marks`. Without a name it is not in the legend."""

    name: str
    x: Values
    y: Values
    colour: str = "blue"
    dash: str = "solid"
    marks: bool = False
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Band:
    """What lies between low and high (n,) along x."""

    x: Values
    low: Values
    high: Values
    colour: str = "blue"


@dataclass(frozen=True)
class Points:
    """Marks at x and y (n,) with limits of y, or of x if `across`; NaN for none. `texts` are shown on hovering."""

    name: str
    x: Values
    y: Values
    low: Values = ()
    high: Values = ()
    colour: str = "blue"
    across: bool = False
    small: bool = False
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Plot:
    """Marks on two axes. `caption` says n, what bands and bars are, and the method; `alt` what is to be seen."""

    title: str
    marks: Sequence[Line | Band | Points]
    x: Axis
    y: Axis
    caption: str
    alt: str
    wide: bool = False


@dataclass(frozen=True)
class Picture:
    """A JPEG without metadata, `kind` right, wrong, plain, or figure for what was drawn."""

    jpeg: bytes
    caption: str
    alt: str
    kind: str = "plain"


@dataclass(frozen=True)
class Gallery:
    """Pictures beside each other, `large` for those to be looked into."""

    title: str
    pictures: Sequence[Picture]
    caption: str
    large: bool = False


Block = Prose | Code | Table | Matrix | Plot | Gallery


@dataclass(frozen=True)
class Section:
    """Blocks under a heading, then sections under lower headings."""

    title: str
    blocks: Sequence[Block] = ()
    parts: Sequence["Section"] = ()
    short: str = ""  # for slides: one sentence

    @property
    def all_blocks(self) -> list[Block]:
        """Those of its parts, too."""
        return [*self.blocks, *(block for part in self.parts for block in part.all_blocks)]


@dataclass(frozen=True)
class Report:
    """Title, one line below it, facts (name -> value) to open with, sections; `runs` are the names of the runs."""

    title: str
    subtitle: str
    facts: dict[str, str]
    runs: Sequence[str]
    sections: Sequence[Section] = field(default_factory=tuple)


def numbers(values: ArrayLike) -> list[Any]:
    """For JSON: rounded to what a screen can show, None where undefined."""
    found = np.asarray(values, np.float64)
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in found.ravel()]
