"""The command `hf-medtl import`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.cli.options import ModelLicense


def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="torchxrayvision:densenet121-res224-all, open_clip:OWNER/NAME, or a file of weights (.pt, .pth, .bin, "
            ".safetensors)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the model.")],
    architecture: Annotated[
        str | None,
        typer.Option("--as", help="Of a file: timm's name of its architecture (resnet50), or eva_x_base_patch16."),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Of a file: what the names of the tensors begin with, such as backbone.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image_size", min=1, help="Of a file: height and width of its images in pixels.")
    ] = None,
    image_mean: Annotated[
        str | None, typer.Option("--image_mean", help="Mean of pixels in [0, 1], one or three numbers with commas.")
    ] = None,
    image_std: Annotated[str | None, typer.Option("--image_std", help="Standard deviation, likewise.")] = None,
    model_license: ModelLicense = None,
) -> None:
    """Convert weights of other libraries to a plain folder for --model_name_or_path. Nothing in a file is run."""
    from hf_medtl.models.stock_processor import parse_channels
    from hf_medtl.runs.importing import import_model

    mean = None if image_mean is None else parse_channels("image_mean", image_mean)
    std = None if image_std is None else parse_channels("image_std", image_std)
    record = import_model(
        source,
        out,
        architecture=architecture,
        prefix=prefix,
        image_size=image_size,
        image_mean=mean,
        image_std=std,
        model_license=model_license,
    )
    print(f"{out}: {record['architecture']} from {record['source']}. SHA-256 {record['sha256']}.")
    print(f"Licence: {record['licence']}. Fine-tune it: hf-medtl train --model_name_or_path {out}")
