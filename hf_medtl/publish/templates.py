"""Jinja environment and filters for cards and pages."""

import functools
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from hf_medtl.common.run_folder import RunFolder
from hf_medtl.common.text import escape_cell
from hf_medtl.data.positive_label import describe_positive
from hf_medtl.evaluation.names import METRIC_NAMES


def format_interval(metric: dict[str, float | None]) -> str:
    """Format a value with its 95 % interval as `0.953 [0.871, 0.990]`; `undefined` without a value."""
    if metric["value"] is None:
        return "undefined"
    low, high = ("?" if metric[key] is None else format_number(metric[key], 3) for key in ("low", "high"))
    return f"{format_number(metric['value'], 3)} [{low}, {high}]"


def format_range(metric: dict[str, float | None]) -> str:
    """Format mean, lowest and highest value of folds as `0.953 (0.920 to 0.981)`; `undefined` without a value."""
    if metric["value"] is None:
        return "undefined"
    return f"{metric['value']:.3f} ({metric['lowest']:.3f} to {metric['highest']:.3f})"


def format_difference(metric: dict[str, float | None]) -> str:
    """Format a difference as `-0.0020 [-0.0100, +0.0060]`; without an interval if it has none."""
    if metric["value"] is None:
        return "undefined"
    limits = "" if metric["low"] is None else f" [{metric['low']:+.4f}, {metric['high']:+.4f}]"
    return f"{metric['value']:+.4f}{limits}"


def format_number(value: Any, digits: int) -> str:
    """Format a number with a fixed number of decimals; zero has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def dataset_link(spec: Any) -> str:
    """Return the title of a data set, as a Markdown link if its URL is known."""
    title = escape_cell(spec.title)
    label = re.sub(r"[\[\]]", r"\\\g<0>", title)
    return f"[{label}]({spec.url})" if spec.url else title


def explain_surface_dice(tolerance: str) -> str:
    """Say what surface Dice is at a tolerance such as `2 pixels`."""
    return (
        f"Surface Dice is the fraction of the true and the predicted outline that is within {tolerance} of the other."
    )


def escape_bibtex(text: str) -> str:
    """Escape the special characters of BibTeX."""
    return re.sub(r"([&%#_$])", r"\\\1", text)


@functools.cache  # a run renders its card three times, and compiling takes longer
def template_environment(package: str = "hf_medtl.publish", autoescape: bool = False) -> Environment:
    """Return the Jinja environment for the templates of a package, with our filters.

    Texts of --model_card are rendered with it, too, and may be somebody else's, so it is one that runs no code.
    """
    environment = SandboxedEnvironment(
        loader=PackageLoader(package, ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=autoescape,
    )
    environment.filters |= {
        "interval": format_interval,
        "value_range": format_range,
        "difference": format_difference,
        "dataset_link": dataset_link,
        "cell": escape_cell,
        "quote": shlex.quote,
        "positive_label": describe_positive,
        "bibtex": escape_bibtex,
        "surface_dice": explain_surface_dice,
        "linked": dataset_link,  # the names of 0.1.0, for prose that users wrote
        "spread": format_range,
    }
    return environment


def render(name: str, facts: dict[str, Any]) -> str:
    """Render the Markdown template NAME.md.jinja of this package."""
    text = template_environment().get_template(f"{name}.md.jinja").render(facts | {"names": METRIC_NAMES})
    return re.sub(r"\n{3,}", "\n\n", text)  # skipped blocks leave empty lines


def copy_sections(old: str, new: str, names: Iterable[str]) -> str:
    """Return a new card with the sections between <!-- NAME --> and <!-- /NAME --> of an old one."""
    for name in names:
        section = re.search(f"<!-- {name} -->.*?<!-- /{name} -->\n?", old, flags=re.DOTALL)
        if section and f"<!-- {name} -->" in new:
            before, _, rest = new.partition(f"<!-- {name} -->")
            new = before + section[0].rstrip("\n") + rest.partition(f"<!-- /{name} -->")[2]
        elif section:
            new = f"{new.rstrip()}\n\n{section[0]}"
    return new


def replace_section(card: Path, name: str, text: str) -> None:
    """Replace the text between <!-- NAME --> and <!-- /NAME --> on a card; append both if they are missing."""
    old = card.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, marker, rest = old.partition(begin)
    after = rest.partition(end)[2] if marker else "\n"
    gap = "" if marker else "\n"
    RunFolder(card.parent).write(card.name, f"{before}{gap}{begin}\n{text.strip()}\n{end}{after}")


def card_sections(card: str) -> str:
    """Return the sections of a Markdown card about intended use and limits."""
    parts = re.split(r"^(?=#{1,2} )", card, flags=re.MULTILINE)
    titles = ("Intended use", "Limits")
    return "\n".join(part for part in parts if part.partition("\n")[0].removeprefix("## ").strip() in titles)
