"""The command `hf-medtl report`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.cli.options import PublishNames, check_runs, check_suffix


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs or cross-validations.", callback=check_runs)
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Page to write (.html): one file that works offline.", callback=check_suffix("--out", ".html")
        ),
    ],
    slides: Annotated[
        Path | None, typer.Option(help="Slides to write, too (.pptx).", callback=check_suffix("--slides", ".pptx"))
    ] = None,
    pdf: Annotated[
        Path | None, typer.Option(help="PDF with the same content (.pdf).", callback=check_suffix("--pdf", ".pdf"))
    ] = None,
    data_dir: Annotated[
        list[str] | None,
        typer.Option("--data_dir", help="Data of the runs, to show images: DIR or DATASET=DIR; can be repeated."),
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the report; by default the titles of the datasets.")] = "",
    publish_names: PublishNames = False,
) -> None:
    """Write a report on runs: curves with bands, tables with intervals, images, differences."""
    from hf_medtl.report.build import write_report

    for path in write_report(runs, out, slides, pdf, data_dir or [], title, publish_names):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
