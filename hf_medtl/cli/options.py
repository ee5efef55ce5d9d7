"""Options that several commands share, and the rule for their spelling."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_medtl.common.text import nearest
from hf_medtl.errors import MedtlError

# For the whole app, in click's terms: --data-dir is --data_dir, as recipes spell it. Help shows the latter alone.
CONTEXT: dict[str, Any] = {"token_normalize_func": lambda token: token.replace("-", "_")}


def check_model(name: str) -> str:
    """Return the name of a model; raise MedtlError if it can only be a folder, which does not exist."""
    path = Path(name).expanduser()
    local = path.is_absolute() or "\\" in name or name.startswith((".", "runs/")) or name.count("/") > 1
    if not path.exists() and (local or ("/" in name and path.parent.is_dir())):
        siblings = [f"{path.parent}/{child.name}" for child in path.parent.iterdir()] if path.parent.is_dir() else []
        raise MedtlError(
            f"The folder {name} does not exist.{nearest(name, siblings)} Give a run folder or an id on the Hub."
        )
    return name


Model = Annotated[str, typer.Argument(help="Run folder, or id of a model on the Hub.", callback=check_model)]
DatasetName = Annotated[
    str, typer.Argument(help="Name from `hf-medtl data list`, or id of a dataset on the Hub, such as owner/name.")
]
DataDir = Annotated[
    Path | None, typer.Option("--data_dir", help="Folder or file with the data; downloaded if not given.")
]
Columns = Annotated[
    str, typer.Option(help="Columns of a table by other names, such as file_name=Path,label=Finding,patient=PatientID.")
]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; an accelerator if there is one by default.")]
Figures = Annotated[
    str, typer.Option(help="Formats of figures, separated by commas: png (always written, 300 dpi), pdf, svg.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust_remote_code", help="Run code from the model's repository; hf_medtl's models need none.")
]
Private = Annotated[bool, typer.Option("--private", help="Create a private repository, if it does not exist yet.")]
DryRun = Annotated[bool, typer.Option("--dry_run", help="Check everything and list the files; upload nothing.")]
Waive = Annotated[
    list[str] | None,
    typer.Option(help="FIELD=REASON: why the card lacks a required field; written on the card. Can be repeated."),
]


def parse_waivers(waive: Sequence[str] | None) -> dict[str, str]:
    """Parse FIELD=REASON into a dict; `plan_upload` checks both."""
    return {name: reason for name, _, reason in (text.partition("=") for text in waive or ())}


def print_files(files: Mapping[str, Path]) -> None:
    """Print the size and name of each file."""
    for name, path in files.items():
        print(f"{path.stat().st_size / 1e6:9.2f} MB  {name}")


def make_group(text: str) -> typer.Typer:
    """Return a group of commands that shows its help if none is given."""
    group = typer.Typer(help=text, invoke_without_command=True)

    @group.callback()
    def show_help(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            print(context.get_help())

    return group
