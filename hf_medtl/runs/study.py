"""Learning-curve study: a resumable grid of ordinary runs over backbones, strategies, training fractions and seeds."""

import contextlib
import logging
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from tqdm import tqdm

from hf_medtl.common.checksums import CHECKSUMS
from hf_medtl.common.console import make_console
from hf_medtl.common.files import write_atomic
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.images import read_image
from hf_medtl.data.splits import SPLITS
from hf_medtl.errors import Interrupted, MedtlError
from hf_medtl.evaluation.matplotlib_backend import figure_formats
from hf_medtl.evaluation.names import METRIC_NAMES
from hf_medtl.models.preprocessing import to_uint8
from hf_medtl.publish.templates import format_interval
from hf_medtl.runs.preflight import build
from hf_medtl.runs.study_cells import StudyCell, count_passes, list_cells
from hf_medtl.runs.study_grid import Grid
from hf_medtl.runs.study_summary import summarise
from hf_medtl.runs.sweep import Sweep, check_same_run, check_sweep_folder, lock_sweep
from hf_medtl.runs.train import run
from hf_medtl.tasks import task_for_dataset
from hf_medtl.training.recipe import Recipe

logger = logging.getLogger("hf_medtl")

STUDY_FILES = ("cells", CHECKSUMS, "figures", "README.md", "grid.yaml", "recipe.yaml", "study.json")
OVERHEAD = 15.0  # seconds of a run that do not depend on its images: figures, intervals, loading what was saved


def study(recipe: Recipe, grid: Grid, run: Callable[[Recipe], Path] = run) -> int:
    """Run the cells that are missing, then summarise all cells.

    Cells are runs in OUTPUT_DIR/cells. One that was interrupted resumes from its newest complete checkpoint; one that
    failed is tried again when the study is. Each has a NAME.log and, when it ended, a NAME.json beside it.

    Args:
        recipe: What all cells have in common.
        grid: What they differ in.
        run: Makes one run.

    Returns:
        How many cells failed.

    Raises:
        MedtlError: Options that do not go with a study, a folder that holds something else or cells of another recipe,
            or as `load`.
        Interrupted: A signal during training. The same study resumes.
    """
    folder = Path(str(recipe.output_dir))
    recipe.refuse(("fold", "folds", "push_to_hub", "search", "train_fraction"), "not with a study. Leave it out.")
    if recipe.world_size > 1:
        raise MedtlError("A study runs in one process: python recipes/study.py ..., or accelerate launch with one.")
    check_sweep_folder(folder, STUDY_FILES, "a study")
    cells = list_cells(recipe, grid)
    for cell in cells:
        check_same_run(cell.run, cell.recipe, cell.loaded)
    _show_plan(cells, folder)
    if recipe.dry_run:
        logger.info("Dry run: data, models and flags are fine. Nothing was written.")
        return 0
    with lock_sweep(folder, "study"):
        output = RunFolder(folder)
        output.write("recipe.yaml", recipe.to_yaml())
        output.write("grid.yaml", grid.to_yaml())
        (folder / "cells").mkdir(exist_ok=True)
        _run_missing(Sweep(cells, "cells"), run)
        with figure_formats(recipe.figures):
            summarise(output, recipe, grid, cells)
        output.mark_finished()
    return sum(not cell.is_finished for cell in cells)


def _run_missing(sweep: Sweep[StudyCell], run: Callable[[Recipe], Path]) -> None:
    """Run what is not finished; a cell that fails is noted and does not stop the others."""
    number = len(sweep.cells)
    with tqdm(total=number, initial=number - len(sweep.missing), unit="cell", desc="Study", disable=None) as bar:

        def run_cell(cell: StudyCell) -> None:
            bar.set_postfix_str(cell.name)
            started = time.monotonic()
            note: dict[str, Any] = {}
            try:
                with _redirect_output(cell.beside(".log")):
                    run(cell.recipe)
                note["seconds"] = round(time.monotonic() - started, 1)
                metric = task_for_dataset(cell.loaded).main_metric
                value = format_interval(cell.run.results["metrics"][metric])
                tqdm.write(f"{cell.name}: {METRIC_NAMES[metric]} {value}, {note['seconds']:.0f} s")
            except Interrupted:
                raise
            except Exception as error:  # whatever model, data, disk and device raise: the next cell may succeed
                note["error"] = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
                tqdm.write(f"{cell.name} failed: {note['error']}")
            write_atomic(cell.beside(".json"), note)
            if cell.is_finished:
                for checkpoint in cell.run.path.glob("checkpoint-*"):
                    shutil.rmtree(checkpoint)
            bar.update()

        sweep.run_missing(run_cell)


@contextlib.contextmanager
def _redirect_output(path: Path) -> Iterator[None]:
    """Append what is printed and logged to a file, errors with their traceback."""
    with (
        path.open("a", encoding="utf-8") as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        handler = logging.StreamHandler(stream)
        logger.addHandler(handler)
        logger.propagate = False
        try:
            yield
        except BaseException:
            traceback.print_exc(file=stream)
            raise
        finally:
            logger.propagate = True
            logger.removeHandler(handler)


def estimate_seconds(cells: list[StudyCell]) -> dict[StudyCell, float]:
    """Estimate how many seconds each missing cell takes at most.

    Images times a timed forward pass of the cell's model, corrected by the time that finished cells of the same arm,
    or of all arms, took.
    """
    missing = [cell for cell in cells if not cell.is_finished]
    if not missing:
        return {}
    pass_seconds: dict[str, float] = {}
    estimates: dict[StudyCell, float] = {}
    for cell in cells:
        if cell.arm.name not in pass_seconds:
            pass_seconds[cell.arm.name] = time_forward_pass(cell)
        passes = count_passes(cell.recipe, *map(cell.count, SPLITS))
        estimates[cell] = OVERHEAD + pass_seconds[cell.arm.name] * passes
    measured = {cell: cell.note["seconds"] for cell in cells if cell not in missing and cell.note.get("seconds")}
    corrected = {}
    for cell in missing:
        similar = [other for other in measured if other.arm == cell.arm] or [*measured]
        factor = (
            sum(measured[other] for other in similar) / sum(estimates[other] for other in similar) if similar else 1
        )
        corrected[cell] = estimates[cell] * factor
    return corrected


@torch.no_grad()
def time_forward_pass(cell: StudyCell) -> float:
    """Return the seconds for one image through a cell's model, without gradients."""
    network, processor, _ = build(cell.recipe, cell.loaded)
    model: Any = network.eval()
    model.to(cell.recipe.device)
    first = to_uint8(processor, [read_image(cell.loaded.root / cell.loaded.table["path"].iloc[0])])
    pixels = torch.rand(4, 3, *first.shape[1:3], device=cell.recipe.device)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        float(model(pixel_values=pixels).logits.sum())  # waits for the device
        times.append(time.perf_counter() - started)
    return min(times) / len(pixels)


def _show_plan(cells: list[StudyCell], folder: Path) -> None:
    """Print the cells: which are finished, and how long the others may take."""
    left = estimate_seconds(cells)
    seeds = sorted({cell.seed for cell in cells})
    title = f"{cells[0].loaded.spec.title}: {len(cells)} cells, and about how long each takes at most"
    table = Table(title=title, title_justify="left")
    table.add_column("arm", overflow="fold")
    for column in ("fraction", "groups", "images", *(f"seed {seed}" for seed in seeds)):
        table.add_column(column, justify="right")
    for arm, percent in dict.fromkeys((cell.arm, cell.percent) for cell in cells):
        by_seed = {cell.seed: cell for cell in cells if (cell.arm, cell.percent) == (arm, percent)}
        numbers = [[cell.groups for cell in by_seed.values()], [cell.count("train") for cell in by_seed.values()]]
        sizes = ["-".join(map(str, sorted({min(values), max(values)}))) for values in numbers]
        status = (f"{left[by_seed[seed]]:.0f} s" if by_seed[seed] in left else "finished" for seed in seeds)
        table.add_row(arm.name, f"{percent:g} %", *sizes, *status)
    make_console().print(table)
    for cell in left:
        if error := cell.note.get("error"):
            logger.info("%s failed before: %s", cell.name, error)
    logger.info("%d cells to do in %s, about %.1f hours at most.", len(left), folder, sum(left.values()) / 3600)
