"""The command `hf-medtl embed`; `hf_medtl.runs.embed` does the work."""

from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.cli.options import Columns, DataDir, Device, Model, Revision, check_suffix


def embed(
    model: Model,
    data: Annotated[
        list[str],
        typer.Argument(
            help="Images and folders of images; or one folder with a folder for each label, one table of images, or a "
            "name from `hf-medtl data list` or the Hub."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Table to write: .parquet or .jsonl.", callback=check_suffix("--out", ".parquet", ".jsonl")),
    ],
    data_dir: DataDir = None,
    columns: Columns = "",
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Number of images in a batch.")] = 16,
    revision: Revision = None,
    device: Device = None,
) -> None:
    """Write the features of images before the classification head, for a classifier or an image encoder.

    Each row has the path of an image, its embedding, an error if it could not be read, and label, group (patient, by
    number) and split where the data have them. An interrupted command resumes when it is repeated. Exit code 1 if an
    image could not be read.
    """
    from hf_medtl.common.text import printable
    from hf_medtl.data.columns import parse_columns
    from hf_medtl.runs.embed import embed_images

    number, failed = embed_images(
        model,
        data,
        out,
        data_dir=data_dir,
        columns=parse_columns(columns),
        batch_size=batch_size,
        revision=revision,
        device=device,
    )
    print(f"{printable(out)}: {number} images{f', {failed} of them with an error' if failed else ''}")
    raise typer.Exit(int(failed > 0))
