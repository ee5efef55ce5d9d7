"""The command `hf-medtl export`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.cli.options import EXPORT_FORMATS, check_exists, one_of


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run or ensemble.", callback=check_exists)],
    format: Annotated[
        str, typer.Option(help="onnx or openvino.", callback=one_of("--format", EXPORT_FORMATS))
    ] = "onnx",
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Quantise to 8 bits, calibrated on the validation split: smaller and often faster."
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="New folder; by default RUN/export/FORMAT, which the card then describes.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data_dir",
            help="The run's data; downloaded if not given. Any images for a run without splits.csv.",
            callback=check_exists,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Keep an export whose decisions differ from the run's.")
    ] = False,
) -> None:
    """Export a run for ONNX Runtime or OpenVINO, and compare it with the run on the test images.

    preprocessing.json beside the model describes the preprocessing of images and the postprocessing of logits. An
    export that changes the decision on more than 0.5 % of the images is discarded (exit code 1).
    """
    from hf_medtl.export.export import export_run

    folder, record = export_run(run, format, int8, out, data_dir, force)
    times, changed = record["milliseconds"], 100 * record["decisions_changed"]
    print(
        f"{folder}: {record['megabytes']} MB. On {record['pictures']} images logits differ by up to "
        f"{record['largest_logit_difference']:.2g} and {changed:.2g} % of the decisions change; "
        f"{times['exported']:.1f} ms an image, {times['torch']:.1f} ms with torch."
    )
