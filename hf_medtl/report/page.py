"""A report as one HTML page that needs no other file and no network."""

import base64
import hashlib
import importlib.resources
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from hf_medtl.errors import MedtlError
from hf_medtl.publish.templates import templates
from hf_medtl.report.blocks import Block, Matrix, Plot, Report, Section
from hf_medtl.report.build import NOTICE
from hf_medtl.report.interactive import figures
from hf_medtl.version import __version__

MANY = 3  # columns from which a table is stacked on a phone
SHORT = 24  # letters up to which a cell stays on one line, such as a value with its interval


def page(report: Report) -> str:
    """The HTML. Scripts and styles are in it, and its policy lets it load nothing else and run no other script.

    Raises:
        MedtlError: plotly is not installed.
    """
    places = [(f"plot-{number}", plot) for number, plot in enumerate(plots(report.sections))]
    scripts = {"library": library(), "ours": resource("report.js")}
    environment = templates("hf_medtl.report", autoescape=True)
    environment.filters |= {"anchor": anchor, "data_uri": data_uri, "kind": kind, "share": share}
    return environment.get_template("report.html.jinja").render(
        report=report,
        notice=NOTICE,
        version=__version__,
        places={id(plot): name for name, plot in places},
        id=id,
        figures=figures(places),
        many=MANY,
        short=SHORT,
        style=Markup(resource("report.css")),
        scripts={name: Markup(text) for name, text in scripts.items()},  # not from a run: nothing to escape
        hashes=[checksum(text) for text in scripts.values()],
    )


def plots(sections: Sequence[Section]) -> list[Plot]:
    """All plots in order."""
    return [block for section in sections for block in section.all_blocks if isinstance(block, Plot)]


def library() -> str:
    """plotly.js, of the Python package's version.

    Raises:
        MedtlError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MedtlError('A report needs plotly: pip install "hf_medtl[report]".') from error
    return get_plotlyjs()


def resource(name: str) -> str:
    """A file beside this one."""
    return importlib.resources.files("hf_medtl.report").joinpath(name).read_text(encoding="utf-8")


def checksum(text: str) -> str:
    """Of a script, as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def anchor(text: str) -> str:
    """A title as part of an address."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"


def data_uri(jpeg: bytes) -> str:
    """`data:image/jpeg;base64,...`."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def kind(block: Block) -> str:
    """Which macro of the template draws it."""
    return type(block).__name__.lower()


def share(matrix: Matrix, row: int, column: int) -> float:
    """Share of a row's pictures, 0 to 1."""
    total: Any = sum(matrix.counts[row])
    return matrix.counts[row][column] / total if total else 0.0
