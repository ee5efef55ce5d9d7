"""A report as a PDF of A4 pages. Importing this module needs reportlab."""

import io
from collections.abc import Sequence
from itertools import groupby
from typing import Any
from xml.sax.saxutils import escape

from matplotlib import get_data_path
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import cm
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import BaseDocTemplate, Frame, Image, PageBreak, PageTemplate, Paragraph, Spacer
from reportlab.platypus import Table as Grid

from hf_medtl.evaluation.marks import Plot
from hf_medtl.evaluation.matplotlib_backend import plot_png
from hf_medtl.report.blocks import NOTICE, Block, Code, Gallery, Matrix, Prose, Report, Section, Table

WIDTH, MARGIN = 17.4, 1.8  # cm, of the text and on either side of it
FONT, BOLD = "DejaVuSans", "DejaVuSans-Bold"  # come with matplotlib and cover most alphabets
INK, SOFT, LINE = "#1b2430", "#55616e", "#dde2e7"

_TEXT = ParagraphStyle("text", fontName=FONT, fontSize=9, leading=13, textColor=INK, spaceAfter=5, splitLongWords=1)
_CHANGES: dict[str, dict[str, Any]] = {
    "title": {"fontName": BOLD, "fontSize": 20, "leading": 25, "spaceAfter": 6},
    "h0": {"fontName": BOLD, "fontSize": 15, "leading": 19, "spaceBefore": 14, "spaceAfter": 8, "keepWithNext": 1},
    "h1": {"fontName": BOLD, "fontSize": 11.5, "leading": 15, "spaceBefore": 12, "spaceAfter": 5,
           "keepWithNext": 1},
    "name": {"fontName": BOLD, "spaceBefore": 6, "spaceAfter": 3, "keepWithNext": 1},
    "soft": {"fontSize": 7.5, "leading": 10.5, "textColor": SOFT, "spaceBefore": 3, "spaceAfter": 8},
    "cell": {"fontSize": 7.6, "leading": 10, "spaceAfter": 0},
    "head": {"fontSize": 7, "leading": 9.5, "spaceAfter": 0, "textColor": SOFT},
    "code": {"fontSize": 7.6, "leading": 10.5, "backColor": "#f4f6f8", "borderPadding": 5, "leftIndent": 5,
             "spaceAfter": 10},
    "notice": {"backColor": "#fdf3e3", "textColor": "#5f3d00", "borderPadding": 7, "spaceBefore": 10,
               "spaceAfter": 16, "leftIndent": 7, "rightIndent": 7},
}  # fmt: skip
STYLES = {"text": _TEXT} | {name: ParagraphStyle(name, parent=_TEXT, **changes) for name, changes in _CHANGES.items()}
CELL_PADDING: list[Any] = [("LEFTPADDING", (0, 0), (-1, -1), 0), ("VALIGN", (0, 0), (-1, -1), "TOP")]


class _Document(BaseDocTemplate):
    """A document whose headings become bookmarks."""

    def afterFlowable(self, flowable: Any) -> None:
        level = getattr(flowable, "level", None)
        if level is not None:
            key = f"h{id(flowable)}"
            self.canv.bookmarkPage(key)
            self.canv.addOutlineEntry(flowable.getPlainText(), key, level, closed=level > 0)


def render_pdf(report: Report) -> bytes:
    """Return the PDF, with embedded fonts and with bookmarks as its table of contents."""
    for font in (FONT, BOLD):
        pdfmetrics.registerFont(TTFont(font, f"{get_data_path()}/fonts/ttf/{font}.ttf"))
    pdfmetrics.registerFontFamily(FONT, normal=FONT, bold=BOLD, italic=FONT, boldItalic=BOLD)
    stream = io.BytesIO()
    document = _Document(stream, pagesize=(21 * cm, 29.7 * cm), title=f"{report.title}: {report.subtitle}",
                         author="hf_medtl", lang="en", invariant=1)  # fmt: skip
    body = Frame(MARGIN * cm, 1.7 * cm, WIDTH * cm, 26.2 * cm, 0, 0, 0, 0)
    document.addPageTemplates(PageTemplate(frames=[body], onPage=_draw_footer))
    story: list[Any] = [
        _paragraph(report.title, "title"),
        _paragraph(report.subtitle, "soft"),
        Paragraph(f"<b>{escape(NOTICE)}</b>", STYLES["notice"]),
    ]
    for number, section in enumerate(report.sections):
        if number and (section.subsections or number == len(report.sections) - 1):
            story.append(PageBreak())
        story += _section(section, 0)
    story.append(Spacer(0, 1))
    document.build(story)
    return stream.getvalue()


def _draw_footer(canvas: Any, document: Any) -> None:
    canvas.setFont(FONT, 7)
    canvas.setFillColor(SOFT)
    canvas.drawString(MARGIN * cm, 1.1 * cm, NOTICE.split(":")[0] + ".")
    canvas.drawRightString((MARGIN + WIDTH) * cm, 1.1 * cm, str(document.page))


def _paragraph(text: str, style: str) -> Paragraph:
    return Paragraph(escape(text), STYLES[style])


def _section(section: Section, level: int) -> list[Any]:
    heading = _paragraph(section.title, f"h{min(level, 1)}")
    heading.level = level
    flowables: list[Any] = [heading]
    for block_type, blocks in groupby(section.blocks, type):
        if block_type is Plot:
            flowables += _plots([block for block in blocks if isinstance(block, Plot)])
        else:
            flowables += [flowable for block in blocks for flowable in RENDERERS[block_type](block)]
    for subsection in section.subsections:
        flowables += _section(subsection, level + 1)
    return flowables


def _prose(block: Prose) -> list[Any]:
    return [_paragraph(block.text, "text")]


def _code(block: Code) -> list[Any]:
    lines = "<br/>".join(escape(line).replace(" ", "&nbsp;") for line in block.text.strip().splitlines())
    return [_paragraph(block.title, "name"), Paragraph(lines, STYLES["code"])]


def _table(block: Table) -> list[Any]:
    return _grid(block.title, [[str(cell) for cell in row] for row in (block.columns, *block.rows)], block.note)


def _matrix(block: Matrix) -> list[Any]:
    rows = [["true \\ predicted", *block.labels]]
    for label, counts in zip(block.labels, block.counts, strict=True):
        total = max(1, sum(counts))
        rows.append([label, *(f"{count:,} ({count / total:.1%})" for count in counts)])
    return _grid(block.title, rows, block.note)


def _grid(title: str, rows: list[list[str]], note: str) -> list[Any]:
    """A table with title and note, as wide as its longest cells need but at most as wide as the page.

    Cells wrap, and the header row is repeated on each page.
    """
    widths = [max(stringWidth(cell, FONT, 7.8) for cell in column) + 12 for column in zip(*rows, strict=True)]
    page_width = WIDTH * cm
    if sum(widths) > page_width:  # narrow columns keep the width they need, wide ones divide what remains
        even = page_width / len(widths)
        remaining = page_width - sum(width for width in widths if width <= even)
        scale = remaining / max(1e-9, sum(width for width in widths if width > even))
        widths = [width if width <= even else width * scale for width in widths]
    cells = [[_paragraph(cell, "cell" if i else "head") for cell in row] for i, row in enumerate(rows)]
    rules = [
        ("LINEBELOW", (0, 0), (-1, 0), 0.8, SOFT),
        ("LINEBELOW", (0, 1), (-1, -1), 0.4, LINE),
        ("RIGHTPADDING", (0, 0), (-1, -1), 8),
        ("TOPPADDING", (0, 0), (-1, -1), 2.5),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 2.5),
    ]
    grid = Grid(cells, colWidths=widths, repeatRows=1, hAlign="LEFT", style=CELL_PADDING + rules)
    below = _paragraph(note, "soft") if note else Spacer(0, 8)
    return [_paragraph(title, "name"), grid, below]


def _plots(plots: Sequence[Plot]) -> list[Any]:
    """Plots with their captions, two in a row, or one if it is wide; a row is never split over two pages."""
    rows: list[list[Plot]] = []
    for plot in plots:
        if rows and len(rows[-1]) == 1 and not (plot.wide or rows[-1][0].wide):
            rows[-1].append(plot)
        else:
            rows.append([plot])
    grids = []
    for row in rows:
        width, height = (WIDTH, 9.6) if row[0].wide else (WIDTH / 2, 7.2)
        cells = []
        for plot in row:
            png = plot_png(plot, (width - 0.3) / 2, height / 2, dpi=180)
            image = Image(io.BytesIO(png), (width - 0.3) * cm, height * cm, hAlign="LEFT")
            cells.append([_paragraph(plot.title, "name"), image, _paragraph(plot.caption, "soft")])
        grids.append(Grid([cells], colWidths=[width * cm] * len(cells), hAlign="LEFT", style=CELL_PADDING))
    return grids


def _gallery(block: Gallery) -> list[Any]:
    columns = 1 if block.images[0].kind == "figure" else 4
    side = WIDTH / columns * cm
    cells: list[Any] = []
    for image in block.images:
        width, height = ImageReader(io.BytesIO(image.jpeg)).getSize()
        scale = (side - 8) / max(width, height)
        first, *rest = image.caption.split("\n")
        kind = f"<b>{image.kind}</b> · " if image.kind in ("correct", "wrong") else ""
        caption = "<br/>".join([f"{kind}{escape(first)}", *map(escape, rest)])
        cells.append([Image(io.BytesIO(image.jpeg), width * scale, height * scale), Paragraph(caption, STYLES["head"])])
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    rows[-1] += [""] * (columns - len(rows[-1]))
    grid = Grid(rows, colWidths=[side] * columns, hAlign="LEFT", style=CELL_PADDING)
    return [_paragraph(block.title, "name"), grid, _paragraph(block.caption, "soft")]


RENDERERS: dict[type[Block], Any] = {Prose: _prose, Code: _code, Table: _table, Matrix: _matrix, Gallery: _gallery}
