"""HTML views of answers. Names and labels are untrusted: the templates escape all of them."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Template
from markdown_it import MarkdownIt
from markupsafe import Markup

from hf_medtl.evaluation.names import METRIC_NAMES
from hf_medtl.publish.templates import format_interval, template_environment
from hf_medtl.space.registry import METHOD_NAMES
from hf_medtl.space.rendering import CLASS_COLORS

MAX_UNSORTED_LABELS = 5


@cache
def _macros() -> Template:
    """Return the template with the macros."""
    environment = template_environment("hf_medtl.space", autoescape=True)
    environment.globals |= {"metric_names": METRIC_NAMES, "class_color": class_color, "order_labels": order_labels}
    environment.filters |= {
        "interval": format_interval,
        "percent": percent,
        "markdown": render_markdown,
        "plain": display_label,
        "method": METHOD_NAMES.get,
    }
    return environment.get_template("views.html.jinja")


def render(macro: str, *values: Any) -> str:
    """Return the HTML of a macro of views.html.jinja."""
    return str(getattr(_macros().module, macro)(*values))


def class_color(index: int) -> str:
    """Return the CSS color of a class, from 1."""
    return "rgb({}, {}, {})".format(*CLASS_COLORS[(index - 1) % len(CLASS_COLORS)])


def percent(value: float) -> str:
    """Return `12.3 %`; values near 0 and 1 are never rounded to 0 or 100."""
    if 0 < value < 0.0005:
        return "< 0.1 %"
    if 0.9995 < value < 1:
        return "> 99.9 %"
    return f"{100 * value:.1f} %"


def display_label(label: str) -> str:
    """Return a label with spaces instead of underscores."""
    return label.replace("_", " ")


def render_markdown(text: str) -> Markup:
    """Return the HTML of Markdown, with HTML in it escaped."""
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))


def order_labels(probabilities: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return labels with their probabilities: few in the model's order, many by probability."""
    pairs = list(probabilities.items())
    return pairs if len(pairs) <= MAX_UNSORTED_LABELS else sorted(pairs, key=lambda pair: -pair[1])
