"""The commands `hf-medtl space` and `hf-medtl space push`."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hf_medtl.cli.options import (
    AllowWord,
    Device,
    DryRun,
    Private,
    PublishNames,
    TrustRemoteCode,
    Waive,
    check_models,
    parse_waivers,
    print_files,
)
from hf_medtl.common.extras import require


def repeat_models_option(arguments: list[str]) -> list[str]:
    """Rewrite `--models a b` as `--models a --models b`, which click understands."""
    rewritten, is_model = list[str](), False
    for argument in arguments:
        if argument.startswith("-"):
            is_model = argument == "--models"
            rewritten += [] if is_model else [argument]
        else:
            rewritten += ["--models", argument] if is_model else [argument]
    return rewritten


class _Group(TyperGroup):
    """Accept several values after --models; for the subcommands, too, since a group sees their arguments first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, repeat_models_option(args))


Models = Annotated[
    list[str] | None,
    typer.Option(
        "--models",
        metavar="MODEL ...",
        help="One or more run folders or Hub ids; small models trained on generated images by default.",
        callback=check_models,
    ),
]
McpServer = Annotated[
    bool,
    typer.Option(
        "--mcp_server",
        help="Also offer the actions as tools for language models (Model Context Protocol) at /gradio_api/mcp.",
    ),
]
app = typer.Typer(cls=_Group)


@app.callback(invoke_without_command=True)
def space(
    context: typer.Context,
    models: Models = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 allows other machines.")] = "127.0.0.1",
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed_host",
            help="Host name to answer to besides local ones, such as that of a reverse proxy; repeatable.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 7860,
    trust_remote_code: TrustRemoteCode = False,
    mcp_server: McpServer = False,
    device: Device = None,
) -> None:
    """Serve a web page to try models on images: classify, explain, segment, compare, batch. Stop it with Ctrl-C."""
    if context.invoked_subcommand:
        return
    require("gradio", "space", "hf-medtl space")
    from hf_medtl.space.serve import check_port, create_app, serve

    check_port(host, port)
    guarded = create_app(
        models or [],
        trust_remote_code=trust_remote_code,
        mcp_server=mcp_server,
        host=host,
        allowed_hosts=allowed_host or [],
        device=device,
    )
    print(f"Open http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port} in a browser. Ctrl-C stops it.", flush=True)
    serve(guarded, host, port)


@app.command()
def push(
    repo: Annotated[str, typer.Argument(help="Target Space, new or pushed before: OWNER/NAME.")],
    models: Models = None,
    title: Annotated[str, typer.Option(help="Title of the Space.")] = "Look at what a model sees",
    requirement: Annotated[
        str | None,
        typer.Option(
            help="How pip installs hf_medtl there: a wheel, which is uploaded, or a line such as 'hf_medtl[...] @ URL'"
            "; name and version by default."
        ),
    ] = None,
    waive: Waive = None,
    mcp_server: McpServer = False,
    private: Private = False,
    publish_names: PublishNames = False,
    allow_word: AllowWord = None,
    dry_run: DryRun = False,
    out: Annotated[Path | None, typer.Option(help="Keep the files in this new folder.")] = None,
) -> None:
    """Publish the page as a Space in one commit: Hub models are referenced, the files of a run are uploaded."""
    from hf_medtl.publish.private_names import allowed_words
    from hf_medtl.runs.output_folder import filling
    from hf_medtl.space.publish import push_space, write_space

    with filling(out, "writes a Space") if out else tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = write_space(
            folder,
            models or [],
            title=title,
            repo=repo,
            requirement=requirement,
            waive=parse_waivers(waive),
            mcp_server=mcp_server,
            publish_names=publish_names,
            allowed=allowed_words(allow_word),
        )
        print_files(files)
        if dry_run:
            print(f"Dry run: {len(files)} files would go to the Space {repo}. Nothing was sent.")
        else:
            print(f"Pushed to {push_space(folder, repo, private=private)}")
