"""The command `hf-medtl report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, or of all folds.")],
    out: Annotated[Path, typer.Option(help="Page to write, .html: one file that needs no network.")],
    slides: Annotated[Path | None, typer.Option(help="Slides to write, too, .pptx.")] = None,
    pdf: Annotated[Path | None, typer.Option(help="The same content as .pdf.")] = None,
    data_dir: Annotated[
        list[str] | None,
        typer.Option(
            "--data_dir",
            "--data-dir",
            help="Data of the runs, for pictures, as DIR or DATASET=DIR; can be given again.",
        ),
    ] = None,
) -> None:
    """What runs are worth, to be read: curves with bands, tables with intervals, pictures, differences."""
    from hf_medtl.report.build import write_report

    for path in write_report(runs, out, slides, pdf, data_dir or []):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
