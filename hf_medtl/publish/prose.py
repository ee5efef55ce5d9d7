"""The author's prose on a model card: reading it, filling it in, and the sections of a card without it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from hf_medtl.errors import MedtlError
from hf_medtl.publish.card_fields import PROSE_FIELDS, missing_fields
from hf_medtl.publish.sentences import split_prose
from hf_medtl.publish.templates import render, template_environment

TAG = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
NAME = re.compile(r"(?<![\w.\"'])[a-z_]+")


def read_prose(path: str | Path | None) -> tuple[dict[str, str], str]:
    """Return the findings of the labels and the Markdown of a --model_card; nothing without one.

    Raises:
        MedtlError: The file can't be read as text, or its front matter is wrong.
    """
    if not path:
        return {}, ""
    try:
        return split_prose(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise MedtlError(
            f"--model_card {path} can't be read as text ({error}). Give a Markdown file, saved as UTF-8."
        ) from error


def render_prose(prose: str, facts: Mapping[str, Any]) -> str:
    """Return prose as it goes on a card: filled in if it is a template, and with what its author has not stated.

    A text is a Jinja template if a tag of it, {{ }} or {% %}, names one of the facts, such as results or counts. In any
    other text braces mean nothing: LaTeX stays as it is.

    Args:
        prose: Markdown by the author.
        facts: Name -> fact of the run.

    Raises:
        MedtlError: The template can't be filled in.
    """
    if {name for tag in TAG.findall(prose) for name in NAME.findall(tag)} & facts.keys():
        try:
            prose = template_environment().from_string(prose).render(facts)
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            line = f"line {error.lineno}: " if hasattr(error, "lineno") else ""
            raise MedtlError(
                f"The text of --model_card can't be filled in ({line}{error}). Its tags may use the facts of the run "
                f"({', '.join(sorted(facts))}); some exist only for some runs: test them with {{% if %}}. "
                "Put other braces between {% raw %} and {% endraw %}."
            ) from error
    if not prose.strip():
        return blank_prose()
    missing = missing_fields(prose, {}, PROSE_FIELDS)
    if not missing:
        return prose
    # `missing_fields` takes what follows UNSTATED as not given.
    lines = [f"- The author has not stated: {field.description}." for field in missing.values()]
    return "\n".join([prose.rstrip(), "", "## Not stated", "", *lines])


def blank_prose(guided: bool = False) -> str:
    """Return the sections that only an author can fill in, each saying that the author has not.

    Args:
        guided: Add comments that ask what to write, and the front matter for the findings.
    """
    return render("prose", {"guided": guided}).strip() + "\n"
