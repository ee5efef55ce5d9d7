"""A report as slides: title, comparison, each run's main figures and metrics, limits. Needs python-pptx."""

import io
from collections.abc import Sequence
from typing import Any

from pptx import Presentation
from pptx.dml.color import RGBColor
from pptx.enum.text import PP_ALIGN
from pptx.util import Inches, Pt

from hf_medtl.evaluation.marks import Plot
from hf_medtl.evaluation.matplotlib_backend import plot_png
from hf_medtl.report.blocks import NOTICE, Prose, Report, Section, Table

WIDTH, HEIGHT, MARGIN = 13.333, 7.5, 0.6  # inches
MAX_PLOTS, MAX_ROWS = 3, 11  # on one slide
PLOTTED_SECTIONS = ("Ranking", "Calibration", "Decisions", "By image and source")
INK, SOFT, WHITE = "1B2430", "55616E", "FFFFFF"


def render_slides(report: Report) -> bytes:
    """Return the .pptx file. Its tables can be edited, and its figures have alternative text."""
    presentation = Presentation()
    presentation.slide_width, presentation.slide_height = Inches(WIDTH), Inches(HEIGHT)
    presentation.core_properties.title, presentation.core_properties.author = report.title, "hf_medtl"
    title = _add_slide(presentation, report.title, 34, top=1.9, height=1.4)
    _add_text(title, [report.subtitle], 18, 3.4, 0.8)
    _add_text(title, [f"{name}: {value}" for name, value in list(report.facts.items())[:6]], 16, 4.2, 2.0)
    for section in report.sections:
        if section.title == "Comparison":
            for subsection in section.subsections:
                _add_comparison(presentation, subsection)
        elif section.summary:
            _add_run(presentation, section)
    limits = [f"• {block.text}" for block in report.sections[-1].blocks if isinstance(block, Prose)]
    _add_text(_add_slide(presentation, "Limits"), limits, 16, 1.4, 4.8)
    stream = io.BytesIO()
    presentation.save(stream)
    return stream.getvalue()


def _add_run(presentation: Any, section: Section) -> None:
    """Add a slide with the run's summary and main plots, and one with its metrics."""
    slide = _add_slide(presentation, section.title)
    _add_text(slide, [section.summary], 16, 1.15, 0.5)
    plotted = [subsection for subsection in section.subsections if subsection.title in PLOTTED_SECTIONS]
    _add_plots(slide, [block for part in plotted for block in part.blocks if isinstance(block, Plot)], 1.8)
    metrics = next(block for block in section.all_blocks if isinstance(block, Table))
    _add_table(_add_slide(presentation, f"{section.title}: {metrics.title.lower()}"), metrics, 1.3)


def _add_comparison(presentation: Any, section: Section) -> None:
    """Add a slide for each table of a comparison, and one with its plots."""
    for block in section.blocks:
        if isinstance(block, Table):
            _add_table(_add_slide(presentation, block.title), block, 1.3)
    plots = [block for block in section.blocks if isinstance(block, Plot)]
    if plots:
        _add_plots(_add_slide(presentation, section.title), plots, 1.6)


def _add_slide(presentation: Any, title: str, size: int = 28, top: float = 0.4, height: float = 0.8) -> Any:
    """Add a slide with a title, in the layout's title placeholder for screen readers, and the notice at the bottom."""
    slide = presentation.slides.add_slide(presentation.slide_layouts[5])
    shape = slide.shapes.title
    shape.left, shape.top, shape.width, shape.height = map(Inches, (MARGIN, top, WIDTH - 2 * MARGIN, height))
    shape.text_frame.text = title
    shape.text_frame.paragraphs[0].alignment = PP_ALIGN.LEFT
    _format(shape.text_frame.paragraphs[0].runs, size, INK, bold=True)
    _add_text(slide, [NOTICE], 11, 7.0, 0.4)
    return slide


def _add_text(slide: Any, lines: Sequence[str], size: int, top: float, height: float) -> None:
    """Add a text box with a paragraph for each line."""
    frame = slide.shapes.add_textbox(*map(Inches, (MARGIN, top, WIDTH - 2 * MARGIN, height))).text_frame
    frame.word_wrap = True
    for number, line in enumerate(lines):
        paragraph = frame.paragraphs[0] if number == 0 else frame.add_paragraph()
        paragraph.text = line
        paragraph.space_after = Pt(6)
        _format(paragraph.runs, size, SOFT if size < 16 else INK)


def _format(runs: Sequence[Any], size: int, colour: str, bold: bool = False) -> None:
    """Set the font of text runs: size in points, colour and weight."""
    for run in runs:
        run.font.size, run.font.bold, run.font.color.rgb = Pt(size), bold, RGBColor.from_string(colour)


def _add_plots(slide: Any, plots: Sequence[Plot], top: float) -> None:
    """Add at most MAX_PLOTS plots beside each other, each with its title and caption."""
    plots = plots[:MAX_PLOTS]
    width = min((WIDTH - 2 * MARGIN - 0.25 * (len(plots) - 1)) / max(1, len(plots)), 6.0)
    height = min(0.86 * width, 4.0)
    for number, plot in enumerate(plots):
        left = MARGIN + number * (width + 0.25)
        png = io.BytesIO(plot_png(plot, width, height))
        shape = slide.shapes.add_picture(png, *map(Inches, (left, top, width, height)))
        shape.name = plot.title
        shape._element.nvPicPr.cNvPr.set("descr", f"{plot.title}. {plot.alt}")
        frame = slide.shapes.add_textbox(*map(Inches, (left, top + height, width, 1.2))).text_frame
        frame.word_wrap = True
        paragraph = frame.paragraphs[0]
        paragraph.text = f"{plot.title}. {plot.caption}"
        paragraph.space_after = Pt(0)
        _format(paragraph.runs, 10 if len(plots) > 2 else 11, SOFT)


def _add_table(slide: Any, table: Table, top: float) -> None:
    """Add the first MAX_ROWS rows of a table, and its note below."""
    rows = [list(table.columns), *map(list, table.rows[:MAX_ROWS])]
    width = min(WIDTH - 2 * MARGIN, 4 + 2.6 * (len(rows[0]) - 1))
    shape = slide.shapes.add_table(len(rows), len(rows[0]), *map(Inches, (MARGIN, top, width, 0.36 * len(rows))))
    shape.name = table.title
    grid, size = shape.table, 13 if len(rows[0]) < 5 else 10
    for i, row in enumerate(rows):
        grid.rows[i].height = Inches(0.36)
        for j, text in enumerate(row):
            cell = grid.cell(i, j)
            cell.text = str(text)
            cell.margin_top = cell.margin_bottom = Inches(0.03)
            _format(cell.text_frame.paragraphs[0].runs, size, INK if i else WHITE, bold=not i)
    more = f" The report has {len(table.rows) - MAX_ROWS} more rows." if len(table.rows) > MAX_ROWS else ""
    _add_text(slide, [table.note + more], 11, top + 0.36 * len(rows) + 0.35, 0.8)
