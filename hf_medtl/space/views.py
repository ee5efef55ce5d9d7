"""Answers as HTML. Names and labels come from strangers: templates escape all of them."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Template
from markdown_it import MarkdownIt
from markupsafe import Markup

from hf_medtl.evaluation.names import NAMES
from hf_medtl.publish.templates import interval, templates
from hf_medtl.space.registry import METHOD_NAMES
from hf_medtl.space.rendering import CLASSES

FEW = 5  # labels


@cache
def template() -> Template:
    """The macros of views.html.jinja."""
    environment = templates("hf_medtl.space", autoescape=True)
    environment.globals |= {"names": NAMES, "colour": colour, "ordered": ordered}
    environment.filters |= {
        "interval": interval,
        "percent": percent,
        "markdown": markdown,
        "plain": plain,
        "method": METHOD_NAMES.get,
    }
    return environment.get_template("views.html.jinja")


def show(macro: str, *values: Any) -> str:
    """One macro of the template as HTML."""
    return str(getattr(template().module, macro)(*values))


def viewer(pictures: Sequence[Mapping[str, Any]], caption: str) -> str:
    """Pictures side by side, each with layers over it: zoom, opacity and swipe are those of viewer.js.

    Args:
        pictures: each with `title`, `src` (data URI) and `layers`: each with `name` and `src`.
        caption: for all of them, and for those who can't see them.
    """
    return show("viewer", pictures, caption)


def colour(index: int) -> str:
    """Of a class, from 1, as CSS."""
    return "rgb({}, {}, {})".format(*CLASSES[(index - 1) % len(CLASSES)])


def percent(value: float) -> str:
    """`12.3 %`; never 0 or 100 that are none."""
    if 0 < value < 0.0005:
        return "< 0.1 %"
    if 0.9995 < value < 1:
        return "> 99.9 %"
    return f"{100 * value:.1f} %"


def plain(label: str) -> str:
    """A label as people would write it."""
    return label.replace("_", " ")


def markdown(text: str) -> Markup:
    """Markdown of a card, without any HTML that it holds."""
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))


def ordered(probabilities: Mapping[str, float]) -> list[tuple[str, float]]:
    """Labels with their probabilities: few in the model's order, many by probability."""
    pairs = list(probabilities.items())
    return pairs if len(pairs) <= FEW else sorted(pairs, key=lambda pair: -pair[1])
