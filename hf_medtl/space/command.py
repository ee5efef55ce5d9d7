"""The commands `hf-medtl space` and `hf-medtl space push`."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup


def spread(arguments: list[str]) -> list[str]:
    """`--models a b` as `--models a --models b`, which is what click knows."""
    found, within = list[str](), False
    for argument in arguments:
        if argument == "--models" or argument.startswith("-"):
            within = argument == "--models"
            found += [] if within else [argument]
        else:
            found += ["--models", argument] if within else [argument]
    return found


class Group(TyperGroup):
    """Knows several values after --models."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


class Command(TyperCommand):
    """Knows several values after --models."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


Models = Annotated[
    list[str] | None,
    typer.Option("--models", help="Run folders or ids on the Hub; with none, small models of drawn pictures."),
]
app = typer.Typer(cls=Group, help="A page to try models on pictures.")


@app.callback(invoke_without_command=True)
def space(
    context: typer.Context,
    models: Models = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 7860,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust_remote_code", "--trust-remote-code", help="Run code of the models' repositories.")
    ] = False,
) -> None:
    """Serve a page where models are tried on pictures: classify, look, segment, compare, batch. Stop it with Ctrl-C."""
    if context.invoked_subcommand:
        return
    from hf_medtl.space.server import free
    from hf_medtl.space.site import serve, site

    free(host, port)
    guard = site(models or [], trust_remote_code=trust_remote_code)
    print(f"Open http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port} in a browser. Ctrl-C stops it.")
    serve(guard, host, port)


@app.command(cls=Command)
def push(
    repo: Annotated[str, typer.Argument(help="Where to: owner/name of a Space on the Hub.")],
    models: Models = None,
    title: Annotated[str, typer.Option(help="Of the Space.")] = "Look at what a model sees",
    requirement: Annotated[
        str | None, typer.Option(help="How pip gets hf_medtl there, such as 'hf_medtl[...] @ URL'; else by name.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the Space private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry_run", "--dry-run", help="Say what would go; upload nothing.")] = False,
    out: Annotated[Path | None, typer.Option(help="Keep the files in this new folder.")] = None,
) -> None:
    """Publish the page as a Space. Models on the Hub are named in it; the files of a run folder go along."""
    from hf_medtl.space.publish import push_space, write_space

    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        names = write_space(folder, models or [], title, requirement)
        for name in names:
            print(f"{(folder / name).stat().st_size:>12,}  {name}")
        if dry_run:
            print(f"Dry run: nothing was uploaded to {repo}.")
        else:
            print(push_space(folder, repo, private=private))
