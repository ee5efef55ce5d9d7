"""The commands `hf-medtl push`, `hf-medtl metric push` and `hf-medtl card check`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.errors import MedtlError

Run = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
Private = Annotated[bool, typer.Option("--private", help="If the repository is new, only you see it.")]
DryRun = Annotated[bool, typer.Option("--dry_run", "--dry-run", help="Check everything, send nothing.")]
card = typer.Typer(no_args_is_help=True, help="Model cards.")
metric = typer.Typer(no_args_is_help=True, help="Metrics for evaluate.load.")


@card.command()
def check(run: Run) -> None:
    """What a card should say, by CLAIM, TRIPOD+AI and Model Facts, and does not. Exit code 1: it can't be published."""
    from hf_medtl.publish.check import FIELDS, check_card, check_exports, missing

    try:
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        text = (run / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise MedtlError(f"{run} has no results.json and README.md that can be read: it is no finished run.") from error
    check_card(run)
    lacking = missing(text, results)
    for name, field in FIELDS.items():
        state = "given  " if name not in lacking else "MISSING" if field.required else "not yet"
        print(f"{state}  {name}: {field.words}")
    check_exports(run)
    raise typer.Exit(int(any(field.required for field in lacking.values())))


@metric.command("push")
def push_metric(
    name: Annotated[str, typer.Argument(help="clinical_metrics or segmentation_metrics.")],
    repo: Annotated[str, typer.Argument(help="Where to: OWNER/NAME, with the metric's name.")],
    private: Private = False,
    dry_run: DryRun = False,
) -> None:
    """Publish a metric as a Space, from which evaluate.load("OWNER/NAME") takes it."""
    from hf_medtl.publish.metric_spaces import plan_module, push_module

    show(plan_module(name, repo))
    print(
        f"Dry run: nothing was sent to {repo}." if dry_run else f"Pushed to {push_module(name, repo, private=private)}"
    )


def push(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, of all folds, or of a study.")],
    repo: Annotated[str, typer.Argument(help="Where to: OWNER/NAME, or NAME; of several models how they begin.")],
    private: Private = False,
    waive: Annotated[
        list[str] | None, typer.Option(help="FIELD=REASON why the card lacks it, to be written there; can be repeated.")
    ] = None,
    collection: Annotated[str | None, typer.Option(help="Title of a Collection for what is pushed.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Publish a finished run on the Hub: one commit, tagged v1, v2, ... Nothing is sent if anything is wrong.

    Of all folds each is a model, OWNER/NAME-fold-0, ...; of a study each arm, by its cell with most training pictures.
    """
    from hf_medtl.publish import hub
    from hf_medtl.publish.collections import collect, models_of

    reasons = {name: reason for name, _, reason in (text.partition("=") for text in waive or ())}
    models = {f"{repo}{end}": folder for end, folder in models_of(run).items()}
    for name, folder in models.items():
        files = hub.plan_upload(folder, reasons)
        show(files)
        if dry_run:
            print(f"Dry run: {len(files)} files would go to {name}. Nothing was sent.")
    if dry_run:
        if collection:
            print(f"Dry run: {len(models)} models would be in the Collection {collection!r}. Nothing was sent.")
        return
    sent = []
    for name, folder in models.items():
        sent.append(hub.send(folder, name, private=private, waive=reasons))
        print(f"Pushed to {sent[-1]}")
    if collection:
        print(f"Collected in {collect(collection, sent, private=private)}")


def show(files: Mapping[str, Path]) -> None:
    """Print names and sizes."""
    for name, path in files.items():
        print(f"{path.stat().st_size / 1e6:9.2f} MB  {name}")
