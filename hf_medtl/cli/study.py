"""The command line of recipes/study.py; `hf_medtl.runs.study` does the work."""

import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hf_medtl.cli.train import check_early
from hf_medtl.common.messages import exit_with_message, given_arguments, show_messages, start_logging
from hf_medtl.errors import Interrupted
from hf_medtl.runs.study_grid import Grid, make_parser
from hf_medtl.training.command_line import read_options


def main(defaults: Mapping[str, Any], grid: Mapping[str, Any], argv: Sequence[str] | None = None) -> None:
    """Run the command line of recipes/study.py.

    Exit codes: 0 all cells are finished, 1 some failed or an error that the message explains, 130 and 143 interrupted;
    after all of these the same command resumes the study.

    Args:
        defaults: Recipe options, which the command line overrides.
        grid: Options of the grid, which the command line overrides.
        argv: Command-line flags; by default those of the running script.
    """
    argv = given_arguments() if argv is None else argv
    start_logging()
    show_messages(logging.INFO)
    if {"-h", "--help", "--help_all"} & {*argv}:
        print(make_parser().format_help())
    try:
        with exit_with_message():
            cells, rest = Grid.from_cli(dict(grid), argv)
            check_early(read_options(defaults, rest)[0])
            from hf_medtl.runs.study import study  # after the checks, because it imports torch
            from hf_medtl.training.recipe import Recipe

            failed = study(Recipe.from_cli(dict(defaults), rest), cells)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"\nInterrupted. {stop}", file=sys.stderr)
        sys.exit(128 + (stop.signal if isinstance(stop, Interrupted) else signal.SIGINT))
    sys.exit(int(failed > 0))
