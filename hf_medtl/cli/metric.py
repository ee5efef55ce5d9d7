"""The command `hf-medtl metric push`."""

from typing import Annotated

import typer

from hf_medtl.cli.options import DryRun, Private, make_group, print_files

app = make_group("Metrics for evaluate.load.")


@app.command()
def push(
    name: Annotated[str, typer.Argument(help="clinical_metrics or segmentation_metrics.")],
    repo: Annotated[str, typer.Argument(help="Target Space: OWNER/NAME, with the name of the metric.")],
    private: Private = False,
    dry_run: DryRun = False,
) -> None:
    """Publish a metric as a Space, from which evaluate.load("OWNER/NAME") loads it."""
    from hf_medtl.publish.metric_spaces import plan_metric, push_metric

    print_files(plan_metric(name, repo))
    if dry_run:
        print(f"Dry run: nothing was sent to {repo}.")
    else:
        print(f"Pushed to {push_metric(name, repo, private=private)}")
