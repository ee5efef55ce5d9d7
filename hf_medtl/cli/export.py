"""The command `hf-medtl export`."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or of an ensemble.")],
    format: Annotated[str, typer.Option(help="onnx or openvino.")] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="In 8 bits, calibrated on the validation split: smaller and often faster.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="New folder; RUN/export/FORMAT, which the card then tells of, if not given.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data_dir",
            "--data-dir",
            help="The run's data; downloaded if not given. Without splits.csv: any pictures.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Keep it although it decides otherwise than the run.")] = False,
) -> None:
    """Write a run for ONNX Runtime or OpenVINO, and compare it with the run on its test pictures.

    Beside the model is preprocessing.json: what must be done to a picture before it and to the logits after it. What
    changes the decision on more than 0.5 % of the pictures is not kept (exit code 1).
    """
    from hf_medtl.export.verification import export

    folder, found = export(run, format, int8, out, data_dir, force)
    times, changed = found["milliseconds"], 100 * found["decisions_changed"]
    print(
        f"{folder}: {found['megabytes']} MB. On {found['pictures']} pictures logits differ by up to "
        f"{found['largest_logit_difference']:.2g} and {changed:.2g} % of the decisions change; "
        f"{times['exported']:.1f} ms a picture, {times['torch']:.1f} with torch."
    )
