"""The `hf-medtl` command: assembles the subcommands."""

import logging
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hf_medtl.cli import card, data, metric, space
from hf_medtl.cli.compare import compare
from hf_medtl.cli.embed import embed
from hf_medtl.cli.ensemble import ensemble
from hf_medtl.cli.evaluate import evaluate
from hf_medtl.cli.explain import explain
from hf_medtl.cli.export import export
from hf_medtl.cli.import_ import import_
from hf_medtl.cli.options import CONTEXT
from hf_medtl.cli.predict import predict
from hf_medtl.cli.push import push
from hf_medtl.cli.report import report
from hf_medtl.cli.train import CONTEXT as ANY_OPTIONS
from hf_medtl.cli.train import train
from hf_medtl.cli.verify import verify
from hf_medtl.common.messages import exit_with_message, show_messages, start_logging
from hf_medtl.common.system import wait_passively
from hf_medtl.version import __version__

PANELS: dict[str, tuple[Any, ...]] = {
    "Data": (data,),
    "Train": (train, import_, ensemble),
    "Judge": (evaluate, compare, explain, report, verify, metric),
    "Publish": (card, push, export),
    "Serve": (predict, embed, space),
}
EXAMPLES = {
    "data list": "hf-medtl data list",
    "data fetch": "hf-medtl data fetch brain-phantoms",
    "data audit": "hf-medtl data audit imagefolder --data_dir DIR --out audit",
    "data preview": "hf-medtl data preview imagefolder --data_dir DIR --augmentation chest --out preview.png",
    "data push": "hf-medtl data push imagefolder OWNER/NAME --data_dir DIR --rights_held --dry_run",
    "import": "hf-medtl import torchxrayvision:densenet121-res224-all --out xrv",
    "ensemble": "hf-medtl ensemble runs/a runs/b --output_dir runs/both",
    "evaluate": "hf-medtl evaluate runs/demo --data_dir DIR --by sex",
    "compare": "hf-medtl compare runs/a runs/b --metric roc_auc --out comparison",
    "explain": "hf-medtl explain runs/demo --data_dir DIR --method gradcam",
    "report": "hf-medtl report runs/demo --out report.html --pdf report.pdf",
    "verify": "hf-medtl verify runs/demo",
    "metric push": "hf-medtl metric push clinical_metrics OWNER/clinical_metrics --dry_run",
    "card check": "hf-medtl card check runs/demo",
    "card new": "hf-medtl card new card.md",
    "card write": "hf-medtl card write runs/demo --model_card card.md",
    "push": "hf-medtl push runs/demo OWNER/NAME --private --dry_run",
    "export": "hf-medtl export runs/demo --format onnx",
    "predict": "hf-medtl predict runs/demo scans/ --out predictions.csv --maps maps --explain gradcam",
    "embed": "hf-medtl embed runs/demo scans/ --out embeddings.parquet",
    "space": "hf-medtl space --models runs/demo",
    "space push": "hf-medtl space push OWNER/NAME --models OWNER/MODEL --dry_run",
}


class _Commands(TyperGroup):
    """The commands; ~ is the home folder in their arguments, which shells replace only at the start of a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [expand_home(word) for word in args])

    def list_commands(self, ctx: Any) -> list[str]:
        return [_name(command) for commands in PANELS.values() for command in commands]


app = typer.Typer(
    cls=_Commands,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
    help="Transfer learning on medical images. For research and education: not a medical device.",
    epilog="Begin with: hf-medtl train demo",
)


@app.callback()
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Show the version, or the help if there is no command."""
    if version:
        print(f"hf_medtl {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def expand_home(word: str) -> str:
    """Replace ~ at the start of a word, or after its first =, by the home folder: --out=~/x, NAME=~/x."""
    name, start, rest = re.fullmatch(r"([^=~]*=|)(~(?=[/\\]|$)|)(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{name}{Path.home() if start else ''}{rest}"


def _name(command: Any) -> str:
    return command.__name__.rpartition(".")[2].removesuffix("_")  # import_


def _add(command: Any, panel: str) -> None:
    name = _name(command)
    example = EXAMPLES.get(name, "")
    epilog = f"Example: {example}" if example else None
    if not hasattr(command, "app"):
        settings = ANY_OPTIONS if command is train else None
        app.command(name, rich_help_panel=panel, epilog=epilog, context_settings=settings)(command)
        return
    app.add_typer(command.app, name=name, rich_help_panel=panel, epilog=epilog)
    for info in command.app.registered_commands:
        info.epilog = f"Example: {EXAMPLES.get(f'{name} {info.name or info.callback.__name__}', '')}"


for _panel, _commands in PANELS.items():
    for _command in _commands:
        _add(_command, _panel)


def main() -> None:
    """Run the command; print errors that the user can fix without a traceback, with exit code 1."""
    start_logging()
    show_messages(logging.INFO)
    wait_passively()
    with exit_with_message():
        app(prog_name="hf-medtl")
