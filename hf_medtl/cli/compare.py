"""The command `hf-medtl compare`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.cli.options import DataDir, Figures, Seed, check_runs


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of two or more finished runs or cross-validations.", callback=check_runs),
    ],
    out: Annotated[Path, typer.Option(help="Folder for README.md, comparison.json and figures/.")] = Path("comparison"),
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Metric to test; can be repeated, the first one ranks. Default: ROC AUC and accuracy, or Dice."
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Run that the others are compared with, or 'best'; the first run by default.")
    ] = None,
    data_dir: DataDir = None,
    device: Annotated[str, typer.Option(help="Device for measuring latency: cpu, cuda, ...")] = "cpu",
    no_latency: Annotated[bool, typer.Option("--no_latency", help="Do not measure the latency of one image.")] = False,
    figures: Figures = "png",
    seed: Seed = 0,
) -> None:
    """Compare runs: metrics, paired differences with corrected p-values, costs and disagreements."""
    from hf_medtl.evaluation.matplotlib_backend import figure_formats
    from hf_medtl.runs.compare import compare_runs, measure_costs
    from hf_medtl.runs.compare_page import COMPARISON, show_comparison, write_comparison
    from hf_medtl.runs.output_folder import check_new

    check_new(out, earlier=COMPARISON)
    comparison = compare_runs(runs, metric or (), reference, seed)
    costs = measure_costs(comparison.runs, None if no_latency else device)
    with figure_formats(figures):
        show_comparison(comparison, costs, out, write_comparison(comparison, costs, out, data_dir))
