"""The commands `hf-medtl push` and `hf-medtl card check`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.errors import MedtlError

Run = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
card = typer.Typer(no_args_is_help=True, help="Model cards.")


@card.command()
def check(run: Run) -> None:
    """What a card should say, by CLAIM, TRIPOD+AI and Model Facts, and does not. Exit code 1: it can't be published."""
    from hf_medtl.publish.check import FIELDS, check_card, check_exports, missing

    try:
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        text = (run / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise MedtlError(f"{run} has no results.json and README.md that can be read: it is no finished run.") from error
    check_card(run)
    lacking = missing(text, results)
    for name, field in FIELDS.items():
        state = "given  " if name not in lacking else "MISSING" if field.required else "not yet"
        print(f"{state}  {name}: {field.words}")
    check_exports(run)
    raise typer.Exit(int(any(field.required for field in lacking.values())))


def push(
    run: Run,
    repo: Annotated[str, typer.Argument(help="Where to: OWNER/NAME, or NAME.")],
    private: Annotated[bool, typer.Option("--private", help="If the repository is new, only you see it.")] = False,
    waive: Annotated[
        list[str] | None, typer.Option(help="FIELD=REASON why the card lacks it, to be written there; can be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry_run", "--dry-run", help="Check everything, send nothing.")] = False,
) -> None:
    """Publish a finished run on the Hub: one commit, tagged v1, v2, ... Nothing is sent if anything is wrong."""
    from hf_medtl.publish import hub

    reasons = {name: reason for name, _, reason in (text.partition("=") for text in waive or ())}
    files = hub.plan(run, reasons)
    for name, path in files.items():
        print(f"{path.stat().st_size / 1e6:9.2f} MB  {name}")
    if dry_run:
        print(f"Dry run: {len(files)} files would go to {repo}. Nothing was sent.")
        return
    print(f"Pushed to {hub.send(run, repo, private=private, waive=reasons)}")
