"""The commands `hf-medtl card new | write | check`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.cli.options import LicenseWaiver, ModelLicense, check_exists, make_group
from hf_medtl.errors import MedtlError

app = make_group("Model cards.")


@app.command()
def new(file: Annotated[Path, typer.Argument(help="Markdown file to write.")] = Path("model_card.md")) -> None:
    """Write the headings of a model card that only its author can fill in, with questions.

    The filled-in file goes to --model_card of a run, or to `hf-medtl card write` after one.
    """
    from hf_medtl.common.files import write_atomic
    from hf_medtl.publish.prose import blank_prose

    if file.exists():
        raise MedtlError(f"{file} exists. Give the name of a new file.")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, blank_prose(guided=True))
    print(f"Wrote {file}. Fill it in; then: hf-medtl card check {file}")


@app.command()
def write(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", callback=check_exists)],
    model_card: Annotated[
        Path | None,
        typer.Option(
            "--model_card", help="Markdown file with the author's text; the run's if not given.", callback=check_exists
        ),
    ] = None,
    model_license: ModelLicense = None,
    license_waiver: LicenseWaiver = None,
    figures: Annotated[
        str | None, typer.Option(help="Draw the figures again, too, in formats separated by commas: png, pdf, svg.")
    ] = None,
) -> None:
    """Write the card of a finished run again, such as with a text that was not there when it trained.

    Sections by evaluate, explain, export and push are kept; other changes of README.md by hand are not.
    """
    from hf_medtl.runs.model_card import rewrite_card

    if figures is not None:
        from hf_medtl.runs.redrawing import redraw_figures

        redraw_figures(run, figures)
        print(f"Drew {run / 'figures'}; outlines of masks and risk-coverage curves there are as they were.")
    rewrite_card(run, model_card, model_license, license_waiver)
    print(f"Wrote {run / 'README.md'}. Missing fields: hf-medtl card check {run}")


@app.command()
def check(
    run: Annotated[
        Path, typer.Argument(help="Folder of a finished run, or Markdown file for --model_card.", callback=check_exists)
    ],
) -> None:
    """List what a card should say by CLAIM, TRIPOD+AI and Model Facts, and what is missing.

    Exit code 1: the run cannot be published, or the file lacks what that needs.
    """
    from hf_medtl.common.run_folder import RunFolder
    from hf_medtl.publish.card_fields import AUTHOR_FIELDS, CARD_FIELDS, missing_fields
    from hf_medtl.publish.check import check_card, check_exports
    from hf_medtl.publish.licences import check_chain
    from hf_medtl.publish.prose import read_prose

    if run.is_file():
        fields, text, results = AUTHOR_FIELDS, read_prose(run)[1], {}
    else:
        fields, results = CARD_FIELDS, RunFolder(run).results
        if not results or not (run / "README.md").is_file():
            raise MedtlError(
                f"{run} is neither a finished run, with results.json and README.md, nor a Markdown file for "
                "--model_card."
            )
        card = check_card(run)
        text = (run / "README.md").read_text(encoding="utf-8")
    missing = missing_fields(text, results, fields)
    for name, field in fields.items():
        state = "given  " if name not in missing else "MISSING" if field.required else "not yet"
        print(f"{state}  {name}: {field.description}")
    if not run.is_file():
        check_exports(run)
        check_chain(run, card)
    raise typer.Exit(int(any(field.required for field in missing.values())))
