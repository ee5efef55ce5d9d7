"""A report as one self-contained HTML page, which needs no other file and no network."""

import base64
import hashlib
import importlib.resources
import re

from markupsafe import Markup

from hf_medtl.evaluation.marks import Plot
from hf_medtl.publish.templates import template_environment
from hf_medtl.report.blocks import NOTICE, Block, Matrix, Report
from hf_medtl.report.interactive import plotly_figure
from hf_medtl.version import __version__

STACK_FROM = 3  # columns from which a table is stacked on a phone
MAX_NOWRAP = 24  # letters up to which a cell stays on one line, such as a value with its interval


def render_page(report: Report) -> str:
    """Return the HTML. Its content security policy lets it run its own scripts only and load nothing.

    Raises:
        ImportError: plotly is not installed.
    """
    from plotly.offline import get_plotlyjs

    plots = [block for section in report.sections for block in section.all_blocks if isinstance(block, Plot)]
    plot_ids = {id(plot): f"plot-{number}" for number, plot in enumerate(plots)}
    scripts = {"plotly": get_plotlyjs(), "report": _resource("report.js")}
    environment = template_environment("hf_medtl.report", autoescape=True)
    environment.filters |= {"anchor": _anchor, "data_uri": _data_uri, "type": _type, "row_fraction": _row_fraction}
    return environment.get_template("report.html.jinja").render(
        report=report,
        notice=NOTICE,
        version=__version__,
        plot_ids=plot_ids,
        id=id,
        figures={plot_ids[id(plot)]: plotly_figure(plot) for plot in plots},
        stack_from=STACK_FROM,
        max_nowrap=MAX_NOWRAP,
        style=Markup(_resource("report.css")),
        scripts={name: Markup(text) for name, text in scripts.items()},  # ours and plotly's: no run's text to escape
        script_hashes=[_csp_hash(text) for text in scripts.values()],
    )


def _resource(name: str) -> str:
    return importlib.resources.files("hf_medtl.report").joinpath(name).read_text(encoding="utf-8")


def _csp_hash(script: str) -> str:
    """Return the hash by which a content security policy allows a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _type(block: Block) -> str:
    """Return the name of the template's macro that renders the block."""
    return type(block).__name__.lower()


def _row_fraction(matrix: Matrix, row: int, column: int) -> float:
    """Return a cell's fraction of its row, 0 to 1."""
    return matrix.counts[row][column] / max(1, sum(matrix.counts[row]))
