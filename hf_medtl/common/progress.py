"""Progress of stages that take long: a bar on a terminal or in a notebook, one line of the log elsewhere."""

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

logger = logging.getLogger("hf_medtl")
T = TypeVar("T")


def in_notebook() -> bool:
    """Return True in IPython, so in Jupyter and Colab, too."""
    ipython = sys.modules.get("IPython")
    return bool(ipython and ipython.get_ipython())


def shows_bars() -> bool:
    """Return True if a progress bar can be seen: on a terminal or in a notebook, by the main process."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return (terminal or in_notebook()) and os.environ.get("RANK", "0") == "0"


def track(items: Iterable[T], stage: str, total: int, unit: str = "image") -> Iterator[T]:
    """Yield items, and show how far a stage is.

    Args:
        items: whatever the stage does one after the other.
        stage: what is done, such as "Calibrating".
        total: number of items.
        unit: what an item is.
    """
    if not shows_bars():
        logger.info("%s: %d %s%s", stage, total, unit, "" if total == 1 else "es" if unit[-2:] == "ch" else "s")
        yield from items
        return
    from tqdm.auto import tqdm  # only here, because it takes time to import

    yield from tqdm(items, stage, total, unit=unit, leave=False)
