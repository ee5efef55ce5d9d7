"""The `hf-medtl` command: assembles the subcommands."""

import logging
import sys

import typer

from hf_medtl.cli import card, data, metric, space
from hf_medtl.cli.compare import compare
from hf_medtl.cli.ensemble import ensemble
from hf_medtl.cli.evaluate import evaluate
from hf_medtl.cli.explain import explain
from hf_medtl.cli.export import export
from hf_medtl.cli.options import CONTEXT
from hf_medtl.cli.predict import predict
from hf_medtl.cli.push import push
from hf_medtl.cli.report import report
from hf_medtl.errors import MedtlError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
    help="Transfer learning on medical images. For research and education: not a medical device.",
)
for command in (predict, explain, evaluate, compare, ensemble, report, export, push):
    app.command()(command)
for group in (data, card, metric, space):
    app.add_typer(group.app, name=group.__name__.rpartition(".")[2])


def main() -> None:
    """Run the command; print errors that the user can fix without a traceback, with exit code 1."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("hf_medtl").setLevel(logging.INFO)
    try:
        app()
    except MedtlError as error:
        sys.exit(f"Error: {error}")
