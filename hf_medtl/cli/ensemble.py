"""The command `hf-medtl ensemble`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.cli.options import LicenseWaiver, ModelLicense, check_exists, check_runs


def ensemble(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs or cross-validations.", callback=check_runs)
    ],
    output_dir: Annotated[Path, typer.Option("--output_dir", help="New folder for the ensemble.")],
    soup: Annotated[bool, typer.Option("--soup", help="Average the weights instead of the probabilities.")] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data_dir",
            help="The runs' data, to calibrate and test a model soup of runs on one split.",
            callback=check_exists,
        ),
    ] = None,
    model_license: ModelLicense = None,
    license_waiver: LicenseWaiver = None,
) -> None:
    """Combine runs into one model that returns the mean of their calibrated probabilities."""
    from hf_medtl.runs.console import show_results
    from hf_medtl.runs.ensemble import ensemble

    result = ensemble(runs, output_dir, soup, data_dir, model_license, license_waiver)
    if "metrics" in result:
        show_results(output_dir, result)
    print(f"{output_dir}: weights, and a README.md with all results.")
