"""Jinja templates for cards and pages, and their filters."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_medtl.evaluation.names import METRIC_NAMES


def format_interval(metric: dict[str, float | None]) -> str:
    """`0.953 [0.871, 0.990]`, or `undefined`."""
    if metric["value"] is None:
        return "undefined"
    low, high = ("?" if metric[key] is None else format_number(metric[key], 3) for key in ("low", "high"))
    return f"{format_number(metric['value'], 3)} [{low}, {high}]"


def format_range(metric: dict[str, float | None]) -> str:
    """`0.953 (0.920 to 0.981)` of the folds' mean, lowest and highest, or `undefined`."""
    if metric["value"] is None:
        return "undefined"
    return f"{metric['value']:.3f} ({metric['lowest']:.3f} to {metric['highest']:.3f})"


def format_difference(metric: dict[str, float | None]) -> str:
    """`-0.0020 [-0.0100, +0.0060]`; without limits where there are none."""
    if metric["value"] is None:
        return "undefined"
    limits = "" if metric["low"] is None else f" [{metric['low']:+.4f}, {metric['high']:+.4f}]"
    return f"{metric['value']:+.4f}{limits}"


def format_number(value: Any, digits: int) -> str:
    """`-0.001`, `0.000`; never `-0.000`."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def dataset_link(spec: Any) -> str:
    """A data set's title, as a link to where it can be read about if that is known."""
    return f"[{spec.title}]({spec.url})" if spec.url else spec.title


def escape_cell(value: Any) -> str:
    """What stands in a cell of a table: a file's name may hold what would end it."""
    return " ".join(str(value).split()).replace("|", "\\|")


def escape_bibtex(text: str) -> str:
    """Text as BibTeX takes it."""
    return re.sub(r"([&%#_$])", r"\\\1", text)


def template_environment(package: str = "hf_medtl.publish", autoescape: bool = False) -> Environment:
    """Where templates come from and what they can do."""
    environment = Environment(
        loader=PackageLoader(package, ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=autoescape,
    )
    environment.filters |= {"interval": format_interval, "spread": format_range, "difference": format_difference}
    environment.filters |= {"linked": dataset_link, "cell": escape_cell, "bibtex": escape_bibtex}
    return environment


def render(name: str, facts: dict[str, Any]) -> str:
    """Markdown of the template NAME.md.jinja beside this file."""
    text = template_environment().get_template(f"{name}.md.jinja").render(facts | {"names": METRIC_NAMES})
    return re.sub(r"\n{3,}", "\n\n", text)  # what is left out leaves empty lines


def replace_section(card: Path, name: str, text: str) -> None:
    """Replace what a card has between <!-- NAME --> and <!-- /NAME -->, or add both at its end."""
    old = card.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = old.partition(begin)
    after = rest.partition(end)[2] if found else "\n"
    between = "" if found else "\n"
    card.write_text(f"{before}{between}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")
