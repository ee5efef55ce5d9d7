"""The command `hf-medtl evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.errors import MedtlError


def evaluate(
    model: Annotated[str, typer.Argument(help="Run folder, or id of a model on the Hub.")],
    dataset: Annotated[
        str | None,
        typer.Option(
            help="A name of `hf-medtl data list`, or an id on the Hub; imagefolder if only --data_dir is given."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data_dir", "--data-dir", help="Its folder or file; downloaded if not given.")
    ] = None,
    split: Annotated[str, typer.Option(help="all, or one of the data set's own: train, validation, test.")] = "all",
    labels: Annotated[
        str | None,
        typer.Option(help="Its labels in the model's, where names differ: viral=pneumonia,a=b; a= leaves a out."),
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="Column of its metadata to slice by: source, sex, age; can be given again.")
    ] = None,
    drop_overlap: Annotated[
        bool, typer.Option("--drop_overlap", "--drop-overlap", help="Leave out what the model has learnt from.")
    ] = False,
    training_data: Annotated[
        Path | None,
        typer.Option("--training_data", "--training-data", help="What it has learnt from, to recognise near copies."),
    ] = None,
    sources: Annotated[str, typer.Option(help="Hospitals or collections to test on, with commas.")] = "",
    positive_label: Annotated[
        str | None,
        typer.Option("--positive_label", "--positive-label", help="Of two labels, where the model does not say."),
    ] = None,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Test on nine corruptions at five levels, too: 46 times the work.")
    ] = False,
    baseline: Annotated[
        str | None, typer.Option(help="Model that robustness is relative to; clean pictures if not given.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder; evaluations/MODEL-on-DATASET if not given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry_run", "--dry-run", help="Check everything, write nothing.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; an accelerator where there is one.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust_remote_code", "--trust-remote-code", help="Run code of the model's repository.")
    ] = False,
) -> None:
    """What a model is worth on another data set: metrics, the drop, slices; overlap with training is refused."""
    from hf_medtl.common.text import parse_label_map, split_commas
    from hf_medtl.runs.console import show_evaluation
    from hf_medtl.runs.evaluate import SHOWN, evaluate_model

    if not dataset and not data_dir:
        raise MedtlError("Give the data to test on: --dataset NAME (see hf-medtl data list), --data_dir DIR, or both.")
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
        positive=positive_label,
        robust=robustness,
        baseline=baseline,
        dry_run=dry_run,
        revision=revision,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    if result:
        show_evaluation(folder, result, SHOWN)
