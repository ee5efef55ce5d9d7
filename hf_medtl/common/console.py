"""Console for tables and text that may hold users' strings."""

import os
import sys
from typing import TYPE_CHECKING, Any

from hf_medtl.common.progress import in_notebook
from hf_medtl.errors import escape_controls

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

WIDTH_OF_LOGS = 120


def make_console() -> "Console":
    """Return a console on standard output that takes [brackets] and :colons: in labels and paths as they are.

    Control characters, which a terminal would obey, are printed as escapes. In files and pipes, which have no width,
    lines of tables have `WIDTH_OF_LOGS` characters.
    """
    from rich.console import Console

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> "Text":
            return super().render_str(escape_controls(text), **options)

    has_width = sys.stdout.isatty() or in_notebook() or "COLUMNS" in os.environ
    return PlainConsole(markup=False, emoji=False, highlight=False, width=None if has_width else WIDTH_OF_LOGS)


def with_bold(before: str, bold: str, after: str) -> "Text":
    """Return text whose middle part is bold."""
    from rich.text import Text

    return Text.assemble(escape_controls(before), (escape_controls(bold), "bold"), escape_controls(after))
