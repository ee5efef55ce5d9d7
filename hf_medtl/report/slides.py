"""A report as slides: a title, the comparison, one slide a run with its main figures, limits."""

import io
from collections.abc import Sequence
from typing import Any

from hf_medtl.errors import MedtlError
from hf_medtl.report.blocks import Plot, Report, Section, Table
from hf_medtl.report.build import LIMITS, NOTICE
from hf_medtl.report.matplotlib_backend import png

WIDTH, HEIGHT, MARGIN = 13.333, 7.5, 0.6  # inches
FIGURES, ROWS = 3, 11  # of a slide, at most
INK, SOFT = "1B2430", "55616E"


def presentation(report: Report) -> bytes:
    """The .pptx file, with tables that can be edited, and figures with alternative text.

    Raises:
        MedtlError: python-pptx is not installed.
    """
    try:
        from pptx import Presentation
        from pptx.util import Inches
    except ImportError as error:
        raise MedtlError('Slides need python-pptx: pip install "hf_medtl[report]".') from error
    show = Presentation()
    show.slide_width, show.slide_height = Inches(WIDTH), Inches(HEIGHT)
    show.core_properties.title, show.core_properties.author = report.title, "hf_medtl"
    title = slide_of(show, report.title, 34, top=1.9, height=1.4)
    text(title, [report.subtitle], 18, 3.4, 0.8)
    text(title, [f"{name}: {value}" for name, value in list(report.facts.items())[:6]], 16, 4.2, 2.0)
    for section in report.sections:
        if section.title == "Comparison":
            for part in section.parts:
                compared(show, part)
        elif section.short:
            of_run(show, section)
    text(slide_of(show, "Limits"), [f"• {limit}" for limit in LIMITS], 16, 1.4, 4.8)
    stream = io.BytesIO()
    show.save(stream)
    return stream.getvalue()


def of_run(show: Any, section: Section) -> None:
    """The run's main figures, one sentence, and a slide with its metrics."""
    slide = slide_of(show, section.title)
    text(slide, [section.short], 16, 1.15, 0.5)
    results = [part for part in section.parts if part.title in ("Ranking", "Calibration", "Decisions",
                                                               "By picture and source")]  # fmt: skip
    figures(slide, [block for part in results for block in part.blocks if isinstance(block, Plot)], 1.8)
    tables = [block for block in section.all_blocks if isinstance(block, Table)]
    grid(slide_of(show, f"{section.title}: {tables[0].title.lower()}"), tables[0], 1.3)


def compared(show: Any, part: Section) -> None:
    """Tables and figures of runs side by side."""
    for block in part.blocks:
        if isinstance(block, Table):
            grid(slide_of(show, block.title), block, 1.3)
    plots = [block for block in part.blocks if isinstance(block, Plot)]
    if plots:
        figures(slide_of(show, part.title), plots, 1.6)


def slide_of(show: Any, words: str, size: int = 28, top: float = 0.4, height: float = 0.8) -> Any:
    """A slide with a title, in the layout's own place for it, so that screen readers find it, and the notice below."""
    from pptx.enum.text import PP_ALIGN
    from pptx.util import Inches

    slide = show.slides.add_slide(show.slide_layouts[5])
    place = slide.shapes.title
    place.left, place.top, place.width, place.height = map(Inches, (MARGIN, top, WIDTH - 2 * MARGIN, height))
    place.text_frame.text = words
    place.text_frame.paragraphs[0].alignment = PP_ALIGN.LEFT
    dress(place.text_frame.paragraphs[0].runs, size, INK, bold=True)
    text(slide, [NOTICE], 11, 7.0, 0.4)
    return slide


def text(slide: Any, lines: Sequence[str], size: int, top: float, height: float) -> None:
    """Lines, one a paragraph."""
    from pptx.util import Inches, Pt

    box = slide.shapes.add_textbox(*map(Inches, (MARGIN, top, WIDTH - 2 * MARGIN, height)))
    frame = box.text_frame
    frame.word_wrap = True
    for number, line in enumerate(lines):
        paragraph = frame.paragraphs[0] if number == 0 else frame.add_paragraph()
        paragraph.text = line
        paragraph.space_after = Pt(6)
        dress(paragraph.runs, size, SOFT if size < 16 else INK)


def dress(runs: Sequence[Any], size: int, colour: str, bold: bool = False) -> None:
    """Size in points, colour and weight."""
    from pptx.dml.color import RGBColor
    from pptx.util import Pt

    for run in runs:
        run.font.size, run.font.bold, run.font.color.rgb = Pt(size), bold, RGBColor.from_string(colour)


def figures(slide: Any, plots: Sequence[Plot], top: float) -> None:
    """At most FIGURES beside each other, each with title and caption."""
    from pptx.util import Inches, Pt

    shown = plots[:FIGURES]
    width = (WIDTH - 2 * MARGIN - 0.25 * (len(shown) - 1)) / max(1, len(shown))
    width = min(width, 6.0)
    height = min(0.86 * width, 4.0)
    for number, plot in enumerate(shown):
        left = MARGIN + number * (width + 0.25)
        picture = slide.shapes.add_picture(io.BytesIO(png(plot, width, height)), Inches(left), Inches(top),
                                           Inches(width), Inches(height))  # fmt: skip
        picture.name = plot.title
        picture._element.nvPicPr.cNvPr.set("descr", f"{plot.title}. {plot.alt}")
        box = slide.shapes.add_textbox(*map(Inches, (left, top + height, width, 1.2)))
        box.text_frame.word_wrap = True
        paragraph = box.text_frame.paragraphs[0]
        paragraph.text = f"{plot.title}. {plot.caption}"
        paragraph.space_after = Pt(0)
        dress(paragraph.runs, 10 if len(shown) > 2 else 11, SOFT)


def grid(slide: Any, table: Table, top: float) -> None:
    """The first ROWS rows of a table, and its note."""
    from pptx.util import Inches

    rows = [list(table.columns), *map(list, table.rows[:ROWS])]
    width = min(WIDTH - 2 * MARGIN, 4 + 2.6 * (len(rows[0]) - 1))
    place = slide.shapes.add_table(len(rows), len(rows[0]), *map(Inches, (MARGIN, top, width, 0.36 * len(rows))))
    place.name = table.title
    its = place.table
    for i, row in enumerate(rows):
        its.rows[i].height = Inches(0.36)
        for j, cell in enumerate(row):
            its.cell(i, j).text = str(cell)
            its.cell(i, j).margin_top = its.cell(i, j).margin_bottom = Inches(0.03)
            size = 13 if len(rows[0]) < 5 else 10
            dress(its.cell(i, j).text_frame.paragraphs[0].runs, size, INK if i else "FFFFFF", bold=not i)
    more = f" {len(table.rows) - ROWS} more rows are in the report." if len(table.rows) > ROWS else ""
    text(slide, [table.note + more], 11, top + 0.36 * len(rows) + 0.35, 0.8)
