"""Console for tables and text that may hold users' strings."""

import os
import sys
from typing import TYPE_CHECKING

from hf_medtl.common.progress import in_notebook

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

WIDTH_OF_LOGS = 120


def make_console() -> "Console":
    """Return a console on standard output that takes [brackets] and :colons: in labels and paths as they are.

    In files and pipes, which have no width, lines of tables have `WIDTH_OF_LOGS` characters.
    """
    from rich.console import Console

    has_width = sys.stdout.isatty() or in_notebook() or "COLUMNS" in os.environ
    return Console(markup=False, emoji=False, highlight=False, width=None if has_width else WIDTH_OF_LOGS)


def with_bold(before: str, bold: str, after: str) -> "Text":
    """Return text whose middle part is bold."""
    from rich.text import Text

    return Text.assemble(before, (bold, "bold"), after)
