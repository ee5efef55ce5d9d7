"""A report as a PDF of A4 pages."""

import io
from collections.abc import Sequence
from itertools import groupby
from typing import Any
from xml.sax.saxutils import escape

from matplotlib import get_data_path

from hf_medtl.errors import MedtlError
from hf_medtl.report.blocks import Block, Code, Gallery, Matrix, Plot, Prose, Report, Section, Table
from hf_medtl.report.build import NOTICE
from hf_medtl.report.matplotlib_backend import png

WIDTH, MARGIN = 17.4, 1.8  # cm, of text and beside it
FONT, BOLD = "DejaVuSans", "DejaVuSans-Bold"  # matplotlib brings them, with the letters of most alphabets
INK, SOFT, LINE = "#1b2430", "#55616e", "#dde2e7"


def document(report: Report) -> bytes:
    """The PDF. Fonts are part of it; bookmarks are its contents.

    Raises:
        MedtlError: reportlab is not installed.
    """
    try:
        from reportlab.lib.units import cm
        from reportlab.pdfbase import pdfmetrics
        from reportlab.pdfbase.ttfonts import TTFont
        from reportlab.platypus import BaseDocTemplate, Frame, PageBreak, PageTemplate, Paragraph, Spacer
    except ImportError as error:
        raise MedtlError('A PDF needs reportlab: pip install "hf_medtl[report]".') from error
    for font in (FONT, BOLD):
        pdfmetrics.registerFont(TTFont(font, f"{get_data_path()}/fonts/ttf/{font}.ttf"))
    pdfmetrics.registerFontFamily(FONT, normal=FONT, bold=BOLD, italic=FONT, boldItalic=BOLD)
    styles = paragraph_styles()

    class Pages(BaseDocTemplate):
        """Headings become bookmarks."""

        def afterFlowable(self, flowable: Any) -> None:
            level = getattr(flowable, "level", None)
            if level is not None:
                key = f"h{id(flowable)}"
                self.canv.bookmarkPage(key)
                self.canv.addOutlineEntry(flowable.getPlainText(), key, level, closed=level > 0)

    def foot(canvas: Any, its: Any) -> None:
        canvas.setFont(FONT, 7)
        canvas.setFillColor(SOFT)
        canvas.drawString(MARGIN * cm, 1.1 * cm, NOTICE.split(":")[0] + ".")
        canvas.drawRightString((MARGIN + WIDTH) * cm, 1.1 * cm, str(its.page))

    stream = io.BytesIO()
    pages = Pages(stream, pagesize=(21 * cm, 29.7 * cm), title=f"{report.title}: {report.subtitle}", author="hf_medtl",
                  lang="en", invariant=1)  # fmt: skip
    body = Frame(MARGIN * cm, 1.7 * cm, WIDTH * cm, 26.2 * cm, 0, 0, 0, 0)
    pages.addPageTemplates(PageTemplate(frames=[body], onPage=foot))
    story: list[Any] = [
        Paragraph(escape(report.title), styles["title"]),
        Paragraph(escape(report.subtitle), styles["soft"]),
        Paragraph(f"<b>{escape(NOTICE)}</b>", styles["notice"]),
    ]
    for number, section in enumerate(report.sections):
        if number and (section.parts or number == len(report.sections) - 1):
            story.append(PageBreak())
        story += flow(section, styles, 0)
    story.append(Spacer(0, 1))
    pages.build(story)
    return stream.getvalue()


def paragraph_styles() -> dict[str, Any]:
    """Of headings, text, cells and captions."""
    from reportlab.lib.styles import ParagraphStyle

    text = ParagraphStyle("text", fontName=FONT, fontSize=9, leading=13, textColor=INK, spaceAfter=5, splitLongWords=1)

    def like(name: str, **its: Any) -> ParagraphStyle:
        return ParagraphStyle(name, parent=text, **its)

    return {
        "text": text,
        "title": like("title", fontName=BOLD, fontSize=20, leading=25, spaceAfter=6),
        "h0": like("h0", fontName=BOLD, fontSize=15, leading=19, spaceBefore=14, spaceAfter=8, keepWithNext=1),
        "h1": like("h1", fontName=BOLD, fontSize=11.5, leading=15, spaceBefore=12, spaceAfter=5, keepWithNext=1),
        "name": like("name", fontName=BOLD, spaceBefore=6, spaceAfter=3, keepWithNext=1),
        "soft": like("soft", fontSize=7.5, leading=10.5, textColor=SOFT, spaceBefore=3, spaceAfter=8),
        "cell": like("cell", fontSize=7.6, leading=10, spaceAfter=0),
        "head": like("head", fontSize=7, leading=9.5, spaceAfter=0, textColor=SOFT),
        "code": like("code", fontSize=7.6, leading=10.5, backColor="#f4f6f8", borderPadding=5, leftIndent=5,
                     spaceAfter=10),
        "notice": like("notice", backColor="#fdf3e3", textColor="#5f3d00", borderPadding=7, spaceBefore=10,
                       spaceAfter=16, leftIndent=7, rightIndent=7),
    }  # fmt: skip


def flow(section: Section, styles: dict[str, Any], level: int) -> list[Any]:
    """What reportlab sets of a section."""
    from reportlab.platypus import Paragraph

    heading = Paragraph(escape(section.title), styles[f"h{min(level, 1)}"])
    heading.level = level
    found: list[Any] = [heading]
    for kind, same in groupby(section.blocks, type):
        if kind is Plot:
            found += plots([block for block in same if isinstance(block, Plot)], styles)
        else:
            found += [part for block in same for part in DRAWN[kind](block, styles)]
    for part in section.parts:
        found += flow(part, styles, level + 1)
    return found


def prose(block: Prose, styles: dict[str, Any]) -> list[Any]:
    """A paragraph."""
    from reportlab.platypus import Paragraph

    return [Paragraph(escape(block.text), styles["text"])]


def code(block: Code, styles: dict[str, Any]) -> list[Any]:
    """Lines as they are."""
    from reportlab.platypus import Paragraph

    lines = "<br/>".join(escape(line).replace(" ", "&nbsp;") for line in block.text.strip().splitlines())
    return [Paragraph(escape(block.title), styles["name"]), Paragraph(lines, styles["code"])]


def table(block: Table, styles: dict[str, Any]) -> list[Any]:
    """Cells that wrap; the head is repeated on the next page."""
    rows = [[str(name) for name in block.columns], *(list(map(str, row)) for row in block.rows)]
    return grid(block.title, rows, block.note, styles)


def matrix(block: Matrix, styles: dict[str, Any]) -> list[Any]:
    """Counts as a table."""
    rows = [["true \\ decided", *block.labels]]
    for label, counts in zip(block.labels, block.counts, strict=True):
        total = max(1, sum(counts))
        rows.append([label, *(f"{count:,} ({count / total:.1%})" for count in counts)])
    return grid(block.title, rows, block.note, styles)


def grid(title: str, rows: list[list[str]], note: str, styles: dict[str, Any]) -> list[Any]:
    """A table with title and note, as wide as its longest cells need, at most as the page."""
    from reportlab.lib.units import cm
    from reportlab.pdfbase.pdfmetrics import stringWidth
    from reportlab.platypus import Paragraph, Spacer
    from reportlab.platypus import Table as Grid

    wanted = [max(stringWidth(cell, FONT, 7.8) for cell in column) + 12 for column in zip(*rows, strict=True)]
    whole = WIDTH * cm
    if sum(wanted) > whole:  # narrow columns keep what they need, wide ones share the rest
        fair = whole / len(wanted)
        spare = whole - sum(width for width in wanted if width <= fair)
        share = spare / max(1e-9, sum(width for width in wanted if width > fair))
        wanted = [width if width <= fair else width * share for width in wanted]
    cells = [
        [Paragraph(escape(cell), styles["cell" if number else "head"]) for cell in row]
        for number, row in enumerate(rows)
    ]
    rules = [
        ("LINEBELOW", (0, 0), (-1, 0), 0.8, SOFT),
        ("LINEBELOW", (0, 1), (-1, -1), 0.4, LINE),
        ("LEFTPADDING", (0, 0), (-1, -1), 0),
        ("RIGHTPADDING", (0, 0), (-1, -1), 8),
        ("TOPPADDING", (0, 0), (-1, -1), 2.5),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 2.5),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
    ]
    drawn = Grid(cells, colWidths=wanted, repeatRows=1, hAlign="LEFT", style=rules)
    below = [Paragraph(escape(note), styles["soft"])] if note else [Spacer(0, 8)]
    return [Paragraph(escape(title), styles["name"]), drawn, *below]


def plots(blocks: Sequence[Plot], styles: dict[str, Any]) -> list[Any]:
    """Pictures with their captions, two in a row, a wide one by itself; a row is never cut."""
    from reportlab.lib.units import cm
    from reportlab.platypus import Image, Paragraph
    from reportlab.platypus import Table as Grid

    rows: list[list[Plot]] = []
    for block in blocks:
        if rows and len(rows[-1]) == 1 and not (block.wide or rows[-1][0].wide):
            rows[-1].append(block)
        else:
            rows.append([block])
    found = []
    for row in rows:
        width, height = (WIDTH, 9.6) if row[0].wide else (WIDTH / 2, 7.2)
        cells = []
        for block in row:
            drawn = png(block, (width - 0.3) / 2, height / 2, dpi=180)
            image = Image(io.BytesIO(drawn), (width - 0.3) * cm, height * cm, hAlign="LEFT")
            cells.append([Paragraph(escape(block.title), styles["name"]), image,
                          Paragraph(escape(block.caption), styles["soft"])])  # fmt: skip
        plain = [("LEFTPADDING", (0, 0), (-1, -1), 0), ("VALIGN", (0, 0), (-1, -1), "TOP")]
        found.append(Grid([cells], colWidths=[width * cm] * len(cells), hAlign="LEFT", style=plain))
    return found


def gallery(block: Gallery, styles: dict[str, Any]) -> list[Any]:
    """Rows of pictures."""
    from reportlab.lib.units import cm
    from reportlab.lib.utils import ImageReader
    from reportlab.platypus import Image, Paragraph
    from reportlab.platypus import Table as Grid

    columns = 1 if block.pictures[0].kind == "figure" else 4
    side = WIDTH / columns * cm
    cells: list[Any] = []
    for picture in block.pictures:
        wide, high = ImageReader(io.BytesIO(picture.jpeg)).getSize()
        scale = (side - 8) / max(wide, high)
        first, *rest = picture.caption.split("\n")
        kind = f"<b>{picture.kind}</b> · " if picture.kind in ("right", "wrong") else ""
        lines = [f"{kind}{escape(first)}", *map(escape, rest)]
        image = Image(io.BytesIO(picture.jpeg), wide * scale, high * scale)
        cells.append([image, Paragraph("<br/>".join(lines), styles["head"])])
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    rows[-1] += [""] * (columns - len(rows[-1]))
    drawn = Grid(rows, colWidths=[side] * columns, hAlign="LEFT",
                 style=[("LEFTPADDING", (0, 0), (-1, -1), 0), ("VALIGN", (0, 0), (-1, -1), "TOP")])  # fmt: skip
    return [Paragraph(escape(block.title), styles["name"]), drawn, Paragraph(escape(block.caption), styles["soft"])]


DRAWN: dict[type[Block], Any] = {Prose: prose, Code: code, Table: table, Matrix: matrix, Gallery: gallery}
