"""The command `hf-medtl verify`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.errors import MedtlError


def verify(
    run: Annotated[Path, typer.Argument(help="Folder of a run, a cross-validation, a study, a search or an ensemble.")],
    accept: Annotated[
        bool, typer.Option("--accept", help="Take the files as they are now for right, and record their checksums.")
    ] = False,
) -> None:
    """Check that no file of a run is missing, damaged or changed since the run was finished.

    Files are compared with their SHA-256 in checksums.json (those of checkpoints in SHA256SUMS) and read. Prints a line
    for each that is not right; exit code 1 if there is one.
    """
    from hf_medtl.runs.verify import verify

    if not run.is_dir():
        raise MedtlError(f"{run} is not a folder. Give the folder of a run.")
    result = verify(run, accept)
    for note in result.notes:
        print(f"Note: {note}")
    for problem in result.problems:
        print(problem)
    number = len(result.problems)
    print(f"{run}: {result.files} files checked, {number or 'no'} problem{'' if number == 1 else 's'}.")
    raise typer.Exit(int(bool(result.problems)))
