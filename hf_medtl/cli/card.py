"""The command `hf-medtl card check`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.errors import MedtlError

app = typer.Typer(no_args_is_help=True, help="Model cards.")


@app.command()
def check(run: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """List what a card should say by CLAIM, TRIPOD+AI and Model Facts, and what is missing.

    Exit code 1: the run cannot be published.
    """
    from hf_medtl.common.run_folder import RunFolder
    from hf_medtl.publish.card_fields import CARD_FIELDS, missing_fields
    from hf_medtl.publish.check import check_card, check_exports

    results = RunFolder(run).results
    if not results or not (run / "README.md").is_file():
        raise MedtlError(f"{run} is not a finished run: it has no results.json or no README.md.")
    check_card(run)
    missing = missing_fields((run / "README.md").read_text(encoding="utf-8"), results)
    for name, field in CARD_FIELDS.items():
        state = "given  " if name not in missing else "MISSING" if field.required else "not yet"
        print(f"{state}  {name}: {field.description}")
    check_exports(run)
    raise typer.Exit(int(any(field.required for field in missing.values())))
