"""The command `hf-medtl evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.cli.options import (
    Columns,
    Device,
    Figures,
    Model,
    Revision,
    TrustRemoteCode,
    UpdateCard,
    check_exists,
    check_known_dataset,
    one_of,
)
from hf_medtl.errors import MedtlError


def evaluate(
    model: Model,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Name from `hf-medtl data list`, or id on the Hub; imagefolder if only --data_dir is given.",
            callback=check_known_dataset,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data_dir", help="Folder or file of the dataset; downloaded if not given.", callback=check_exists
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="all, or one of the dataset's own splits: train, validation, test.",
            callback=one_of("--split", ("all", "train", "validation", "test")),
        ),
    ] = "all",
    labels: Annotated[
        str | None,
        typer.Option(
            help="The dataset's labels as the model's, if names differ: viral=pneumonia,a=b; a= excludes label a."
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Metadata column for subgroup results, such as source, sex or age; can be repeated."),
    ] = None,
    drop_overlap: Annotated[
        bool, typer.Option("--drop_overlap", help="Exclude images that the model was trained on, and near-duplicates.")
    ] = False,
    training_data: Annotated[
        Path | None,
        typer.Option(
            "--training_data", help="The model's training data, to detect near-duplicates.", callback=check_exists
        ),
    ] = None,
    sources: Annotated[str, typer.Option(help="Hospitals or collections to test on, separated by commas.")] = "",
    columns: Columns = "",
    positive_label: Annotated[
        str | None,
        typer.Option("--positive_label", help="Positive label of a binary model that does not name it."),
    ] = None,
    robustness: Annotated[
        bool,
        typer.Option("--robustness", help="Test on nine corruptions at five levels, too: 46 times the computation."),
    ] = False,
    baseline: Annotated[
        str | None, typer.Option(help="Model that robustness is relative to; the clean images by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder; evaluations/MODEL-on-DATASET by default.")] = None,
    figures: Figures = "png",
    dry_run: Annotated[bool, typer.Option("--dry_run", help="Check everything; write nothing.")] = False,
    revision: Revision = None,
    device: Device = None,
    trust_remote_code: TrustRemoteCode = False,
    update_card: UpdateCard = False,
) -> None:
    """Evaluate a model on another dataset: metrics, generalization gap, subgroups.

    Images that overlap with the training data are refused. The folder and card of a run keep the results, unless --out
    is given.
    """
    from hf_medtl.common.text import parse_label_map, split_commas
    from hf_medtl.data.columns import parse_columns
    from hf_medtl.evaluation.matplotlib_backend import figure_formats
    from hf_medtl.runs.console import show_evaluation
    from hf_medtl.runs.evaluate import SHOWN, evaluate_model

    if not dataset and not data_dir:
        raise MedtlError("Give the data to test on: --dataset NAME (see hf-medtl data list), --data_dir DIR, or both.")
    with figure_formats(figures):
        folder, result = evaluate_model(
            model,
            dataset or "imagefolder",
            data_dir,
            out=out,
            split=split,
            labels=parse_label_map(labels, "--labels"),
            by=by or (),
            drop_overlap=drop_overlap,
            training_data=training_data,
            sources=split_commas(sources),
            columns=parse_columns(columns),
            positive=positive_label,
            robust=robustness,
            baseline=baseline,
            dry_run=dry_run,
            revision=revision,
            device=device,
            trust_remote_code=trust_remote_code,
            update_card=update_card,
        )
    if result:
        show_evaluation(folder, result, SHOWN)
