"""Building blocks of a report: sections of prose, tables, plots and images, independent of the output format.

All text is plain. The page, the slides and the PDF escape it themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_medtl.evaluation.marks import Plot

NOTICE = (
    "For research and education only. Not a medical device: not for diagnosis, and not for any decision about a person."
)


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

    def __post_init__(self) -> None:
        # A name in results.json that is no text stands in the table as it is.
        object.__setattr__(self, "rows", [[str(cell) for cell in row] for row in self.rows])


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: counts (K, K), with a row for each true label and a column for each predicted label."""

    title: str
    labels: Sequence[str]
    counts: Sequence[Sequence[int]]
    note: str = ""

    def __post_init__(self) -> None:
        shape = [len(row) for row in self.counts]
        if shape != [len(self.labels)] * len(self.labels) or {type(x) for row in self.counts for x in row} - {int}:
            raise ValueError(f"expected counts of {len(self.labels)} × {len(self.labels)} labels, found {self.counts}")


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
