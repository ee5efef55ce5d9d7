"""The commands `hf-medtl space` and `hf-medtl space push`."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hf_medtl.cli.publish import DryRun, show


def spread(arguments: list[str]) -> list[str]:
    """`--models a b` as `--models a --models b`, which is what click knows."""
    found, within = list[str](), False
    for argument in arguments:
        if argument.startswith("-"):
            within = argument == "--models"
            found += [] if within else [argument]
        else:
            found += ["--models", argument] if within else [argument]
    return found


class Group(TyperGroup):
    """Knows several values after --models; for its commands, too, since it sees their arguments first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


Models = Annotated[
    list[str] | None,
    typer.Option(
        "--models",
        metavar="MODEL ...",
        help="Run folders or ids on the Hub, one or several; with none, small models of drawn pictures.",
    ),
]
Tools = Annotated[
    bool,
    typer.Option(
        "--mcp_server",
        "--mcp-server",
        help="Offer the actions as tools to language models (Model Context Protocol) at /gradio_api/mcp, too.",
    ),
]
app = typer.Typer(cls=Group)


@app.callback(invoke_without_command=True)
def space(
    context: typer.Context,
    models: Models = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 7860,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust_remote_code",
            "--trust-remote-code",
            help="Run code of the models' repositories; those of hf_medtl need none.",
        ),
    ] = False,
    mcp_server: Tools = False,
) -> None:
    """Serve a page to try models on pictures: classify, look, segment, compare, batch. Stop it with Ctrl-C."""
    if context.invoked_subcommand:
        return
    from hf_medtl.space.serve import check_port, create_app, serve

    check_port(host, port)
    page = create_app(models or [], trust_remote_code=trust_remote_code, mcp_server=mcp_server, host=host)
    print(f"Open http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port} in a browser. Ctrl-C stops it.", flush=True)
    serve(page, host, port)


@app.command()
def push(
    repo: Annotated[str, typer.Argument(help="Where to: OWNER/NAME of a Space, new or pushed before.")],
    models: Models = None,
    title: Annotated[str, typer.Option(help="Of the Space.")] = "Look at what a model sees",
    requirement: Annotated[
        str | None,
        typer.Option(
            help="How pip gets hf_medtl there: a wheel, which goes along, or a line such as 'hf_medtl[...] @ URL'; "
            "if not given, by name and version."
        ),
    ] = None,
    waive: Annotated[
        list[str] | None,
        typer.Option(help="FIELD=REASON why the card of a run lacks it, to be written there; can be repeated."),
    ] = None,
    mcp_server: Tools = False,
    private: Annotated[bool, typer.Option("--private", help="If the Space is new, only you see it.")] = False,
    dry_run: DryRun = False,
    out: Annotated[Path | None, typer.Option(help="Keep the files in this folder, which is new.")] = None,
) -> None:
    """Publish the page as a Space: one commit. Models on the Hub are named in it; the files of a run go along."""
    from hf_medtl.space.publish import push_space, write_space

    reasons = {name: reason for name, _, reason in (text.partition("=") for text in waive or ())}
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        files = write_space(
            folder, models or [], title=title, repo=repo, requirement=requirement, waive=reasons, mcp_server=mcp_server
        )
        show(files)
        if dry_run:
            print(f"Dry run: {len(files)} files would go to the Space {repo}. Nothing was sent.")
        else:
            print(f"Pushed to {push_space(folder, repo, private=private)}")
