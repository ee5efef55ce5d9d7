"""Messages of the package on the console, and how notebooks differ from it."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_medtl.common.progress import in_notebook, shows_bars
from hf_medtl.common.quiet import quiet_libraries
from hf_medtl.common.system import explain_shortage
from hf_medtl.errors import MedtlError, escape_controls

KERNELS = ("ipykernel_launcher", "colab_kernel_launcher", "ipython", "ipython3", "__main__")

logger = logging.getLogger("hf_medtl")


class _MessageFormatter(logging.Formatter):
    """Formatter of the message alone, without the control characters that names of files and labels may have."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(super().format(record))


class _StderrHandler(logging.StreamHandler):
    """Handler for what is `sys.stderr` at the time of a message: notebooks replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(_MessageFormatter())

    @property
    def stream(self) -> object:
        """The stream to write to."""
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, above progress bars if there are any."""
        tqdm = sys.modules.get("tqdm")
        if tqdm is None or not shows_bars():
            super().emit(record)
        else:
            tqdm.tqdm.write(self.format(record), file=sys.stderr)


def given_arguments() -> list[str]:
    """Return the arguments of the running script; those of a notebook's kernel are not meant for it."""
    return [] if in_notebook() and Path(sys.argv[0]).stem in KERNELS else sys.argv[1:]


@contextmanager
def without_repeats(name: str) -> Iterator[None]:
    """Show each message of a logger's children once: the folds of a cross-validation read the same data.

    Args:
        name: of the logger, such as "hf_medtl.data".
    """
    shown = set[str]()

    def is_new(record: logging.LogRecord) -> bool:
        message = f"{record.name}: {record.getMessage()}"
        repeated = message in shown
        shown.add(message)
        return not repeated

    children = [logging.getLogger(child) for child in logging.root.manager.loggerDict if child.startswith(f"{name}.")]
    for child in children:
        child.addFilter(is_new)
    try:
        yield
    finally:
        for child in children:
            child.removeFilter(is_new)


@contextmanager
def exit_with_message() -> Iterator[None]:
    """End the process with exit code 1 and one sentence, without a traceback, after an error that the user can mend."""
    try:
        yield
    except MedtlError as error:
        sys.exit(f"Error: {error}")
    except Exception as error:
        if shortage := explain_shortage(error):
            sys.exit(f"Error: {shortage}")
        raise


def start_logging() -> None:
    """Print warnings of all packages on stderr, as a command does, unless handlers exist."""
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.root.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(_MessageFormatter())


def show_messages(level: int | None = None) -> None:
    """Show the messages of this package on stderr, each once, unless handlers for them exist.

    A notebook's own handlers show warnings alone, or put their format around messages, so they don't count.

    Args:
        level: of logging; INFO by default, unless the logger `hf_medtl` has one.
    """
    quiet_libraries()
    if level or logger.level == logging.NOTSET:
        logger.setLevel(level or logging.INFO)
    if any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        return
    if in_notebook() or not logger.hasHandlers():
        logger.addHandler(_StderrHandler())
        logger.propagate = False
