"""The command `hf-medtl explain`; `hf_medtl.runs.explain` does the work."""

from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.cli.options import (
    MAP_METHODS,
    DataDir,
    Device,
    Figures,
    Model,
    Seed,
    UpdateCard,
    check_known_dataset,
    one_of,
)


def explain(
    model: Model,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pages and explanations.json; MODEL/explanations by default.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Name from `hf-medtl data list`; the run's dataset by default.", callback=check_known_dataset
        ),
    ] = None,
    data_dir: DataDir = None,
    method: Annotated[
        str,
        typer.Option(
            help="gradcam, gradcam++, eigencam, scorecam (slow), rollout or integrated_gradients.",
            callback=one_of("--method", MAP_METHODS),
        ),
    ] = "gradcam",
    layer: Annotated[str | None, typer.Option(help="Name of a module; chosen automatically by default.")] = None,
    split: Annotated[
        str,
        typer.Option(
            help="Split of the run: test, validation or train.",
            callback=one_of("--split", ("test", "validation", "train")),
        ),
    ] = "test",
    number: Annotated[int, typer.Option(help="Maximum number of images on a page.")] = 12,
    sample: Annotated[int, typer.Option(help="Maximum number of images for the verdict on each label.")] = 12,
    masks: Annotated[
        bool,
        typer.Option("--masks", help="Fail if the dataset has no masks; where it has, the energy inside is measured."),
    ] = False,
    lung_model: Annotated[
        str | None,
        typer.Option("--lung_model", help="As --masks, with lungs segmented by this model: Hub id or run folder."),
    ] = None,
    figures: Figures = "png",
    seed: Seed = 0,
    device: Device = None,
    update_card: UpdateCard = False,
) -> None:
    """Draw heatmaps of what a classifier looks at, and test whether they can be trusted.

    The verdict on a run's test split is saved in its folder (explanations.json) and on its card, unless --out is given.
    """
    from hf_medtl.common.console import make_console, with_bold
    from hf_medtl.evaluation.matplotlib_backend import figure_formats
    from hf_medtl.runs.explain import explain_model

    with figure_formats(figures):
        out, result = explain_model(
            *(model, out, dataset, data_dir, method, layer, split, number, sample, masks, lung_model, seed, device),
            update_card=update_card,
        )
    console = make_console()
    energy = result.get("energy", {"by_label": {}})["by_label"]
    for label, facts in [*result["verdict"].items(), *energy.items()]:
        console.print(with_bold("", label, f": {facts['summary']}"), soft_wrap=True)
    print(f"\nSee {out}: pages of images, and all numbers in explanations.json.")
