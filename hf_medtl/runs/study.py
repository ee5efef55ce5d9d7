"""A study of training sets: each backbone and way to train it on more and more pictures, and what that says."""

import contextlib
import json
import logging
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils.memory import clear_device_cache
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from tqdm import tqdm

from hf_medtl.common.files import write
from hf_medtl.data.images import read_image
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import plots
from hf_medtl.evaluation.guidelines import Contrast, Point, compare, statements
from hf_medtl.evaluation.intervals import plain
from hf_medtl.evaluation.metrics import BLOCK_CELLS
from hf_medtl.evaluation.names import NAMES
from hf_medtl.evaluation.resampling import group_draws, strata_of
from hf_medtl.models.preprocessing import to_uint8
from hf_medtl.publish.templates import interval, page
from hf_medtl.runs.cross_validation import read_predictions
from hf_medtl.runs.folder import changes, check_split, is_finished
from hf_medtl.runs.study_grid import Cell, Grid, cells_of, parser, passes
from hf_medtl.runs.train import Interrupted, build, run
from hf_medtl.tasks import task_of, task_of_results
from hf_medtl.training.recipe import Recipe

logger = logging.getLogger("hf_medtl")

OURS = ("cells", "figures", "README.md", "grid.yaml", "recipe.yaml", "study.json")
RESAMPLES = 2000
OVERHEAD = 15.0  # seconds of a run that do not depend on its pictures: figures, intervals, loading what was saved


def main(defaults: dict[str, Any], grid: dict[str, Any]) -> None:
    """The command line of recipes/study.py.

    Exit codes: 0 all cells are finished, 1 some failed or an error that the message explains, 130 and 143 interrupted;
    after all of these the same command goes on.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    if {"-h", "--help"} & {*sys.argv}:
        print(parser().format_help())
    try:
        wish, rest = Grid.from_cli(grid, sys.argv[1:])
        failed = study(Recipe.from_cli(defaults, rest), wish)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"\nInterrupted. {stop}", file=sys.stderr)
        sys.exit(128 + (stop.signal if isinstance(stop, Interrupted) else signal.SIGINT))
    except MedtlError as error:
        sys.exit(f"Error: {error}")
    sys.exit(int(failed > 0))


def study(recipe: Recipe, grid: Grid, run: Callable[[Recipe], Path] = run) -> int:
    """Run the cells that are missing, then write what all say together; return how many failed.

    Cells are runs in OUTPUT_DIR/cells. One that was cut short goes on from its newest whole checkpoint; one that failed
    is tried again when the study is. Each has a NAME.log and, when it ended, a NAME.json beside it.

    Args:
        recipe: what all cells have in common.
        grid: what they differ in.
        run: makes one run.

    Raises:
        MedtlError: options that do not go with a study, a folder that holds something else or cells of another recipe,
            or as `load`.
        Interrupted: a signal during training. The same study goes on.
    """
    folder = Path(str(recipe.output_dir))
    check(recipe, folder)
    cells = cells_of(recipe, grid)
    for cell in cells:
        check_cell(cell)
    show_plan(recipe, cells, folder)
    if recipe.dry_run:
        logger.info("Dry run: data, models and flags are fine. Nothing was written.")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".study.lock", timeout=0):  # the system lets go of it if the process is killed
            write(folder / "recipe.yaml", recipe.to_yaml())
            write(folder / "grid.yaml", grid.to_yaml())
            (folder / "cells").mkdir(exist_ok=True)
            run_missing(cells, run)
            summarise(folder, recipe, grid, cells)
    except Timeout as error:
        raise MedtlError(f"Another process studies in {folder}. Wait for it, or give another --output_dir.") from error
    return sum(not is_finished(cell.folder) for cell in cells)


def check(recipe: Recipe, folder: Path) -> None:
    """Refuse what does not go with a study, and a folder that holds something else.

    Raises:
        MedtlError: see above.
    """
    recipe.refuse(("fold", "folds", "push_to_hub", "search", "train_fraction"), "not with a study. Leave it out.")
    if recipe.world_size > 1:
        raise MedtlError("A study runs in one process: python recipes/study.py ..., or accelerate launch with one.")
    if folder.is_file():
        raise MedtlError(f"--output_dir {folder} is a file. Give a folder that is new, empty or holds a study.")
    others = [p.name for p in folder.iterdir() if p.name not in OURS and p.name[0] != "."] if folder.exists() else []
    if others:
        raise MedtlError(
            f"{folder} holds something else than a study ({', '.join(sorted(others)[:3])}). Give an --output_dir that "
            "is new, empty or holds a study."
        )


def check_cell(cell: Cell) -> None:
    """Refuse a finished or begun run that is not just what this study would make.

    Raises:
        MedtlError: another recipe, other pictures or another split.
    """
    if (cell.folder / "recipe.yaml").exists():
        if found := changes(cell.folder, cell.recipe.to_yaml()):
            raise MedtlError(
                f"{'; '.join(found.values())}. A study has one recipe: give what it was, or another --output_dir, or "
                f"move {cell.folder} away, and it is trained again."
            )
        if (cell.folder / "splits.csv").exists():
            check_split(cell.folder, cell.part.table)


def note_of(cell: Cell) -> dict[str, Any]:
    """What is written down beside a cell that ended: seconds, or the error; nothing if it did not end."""
    path = cell.folder.with_name(f"{cell.folder.name}.json")
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def run_missing(cells: list[Cell], run: Callable[[Recipe], Path]) -> None:
    """Run what is not finished; one that fails is noted and does not stop the others.

    Raises:
        Interrupted, KeyboardInterrupt: a signal; it says how far the study is.
    """
    done = sum(is_finished(cell.folder) for cell in cells)
    with tqdm(total=len(cells), initial=done, unit="cell", desc="Study") as bar:
        for cell in cells:
            if is_finished(cell.folder):
                continue
            bar.set_postfix_str(cell.name)
            started = time.monotonic()
            note: dict[str, Any] = {}
            try:
                with logged(cell.folder.with_name(f"{cell.folder.name}.log")):
                    run(cell.recipe)
                note["seconds"] = round(time.monotonic() - started, 1)
                metrics = json.loads((cell.folder / "results.json").read_text("utf-8"))["metrics"]
                metric = task_of(cell.part).watched
                tqdm.write(f"{cell.name}: {NAMES[metric]} {interval(metrics[metric])}, {note['seconds']:.0f} s")
            except (Interrupted, KeyboardInterrupt) as stop:
                words = f"{bar.n} of {len(cells)} cells are finished. Go on: the same command."
                if isinstance(stop, Interrupted):
                    raise Interrupted(words, stop.signal) from stop
                raise KeyboardInterrupt(words) from stop
            except Exception as error:  # whatever model, data, disk and device raise: the next cell may do
                note["error"] = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
                tqdm.write(f"{cell.name} failed: {note['error']}")
            write(cell.folder.with_name(f"{cell.folder.name}.json"), note)
            for checkpoint in cell.folder.glob("checkpoint-*"):
                if is_finished(cell.folder):
                    shutil.rmtree(checkpoint)
            # Trainer, model and callbacks refer to each other: without this, two cells' models are in memory.
            clear_device_cache(garbage_collection=True)
            bar.update()


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """What is printed and logged goes to a file, errors with their traceback."""
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


def seconds_left(recipe: Recipe, cells: list[Cell]) -> dict[Cell, float]:
    """About how long each missing cell takes at most: pictures times a timed pass of its model, corrected by the time
    that finished cells of the same arm, or of all, have taken."""
    single: dict[str, float] = {}
    guessed: dict[Cell, float] = {}
    arms = {cell.arm.name for cell in cells if not is_finished(cell.folder)}
    for cell in cells:
        if not arms:
            break
        if cell.arm.name not in single:
            single[cell.arm.name] = seconds_of_a_pass(cell)
        pictures = (cell.pictures(split) for split in ("train", "validation", "test"))
        guessed[cell] = OVERHEAD + single[cell.arm.name] * passes(cell.recipe, *pictures)
    taken = {cell: note_of(cell).get("seconds") for cell in guessed if is_finished(cell.folder)}
    known = {cell: its for cell, its in taken.items() if its}
    left = {}
    for cell in (cell for cell in guessed if cell not in taken):
        like = [its for its in known if its.arm == cell.arm] or [*known]
        factor = sum(known[its] for its in like) / sum(guessed[its] for its in like) if like else 1.0
        left[cell] = guessed[cell] * factor
    return left


@torch.no_grad()
def seconds_of_a_pass(cell: Cell) -> float:
    """Of one picture through a cell's model, without gradients."""
    network, processor, _ = build(cell.recipe, cell.part)
    model: Any = network.eval()
    model.to(cell.recipe.device)
    first = to_uint8(processor, [read_image(cell.part.root / cell.part.table["path"].iloc[0])])
    pixels = torch.rand(4, 3, *first.shape[1:3], device=cell.recipe.device)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        float(model(pixel_values=pixels).logits.sum())  # waits for the device
        times.append(time.perf_counter() - started)
    return min(times) / len(pixels)


def show_plan(recipe: Recipe, cells: list[Cell], folder: Path) -> None:
    """Print the cells: what is done, and how long the others may take."""
    left = seconds_left(recipe, cells)
    seeds = sorted({cell.seed for cell in cells})
    title = f"{cells[0].part.spec.title}: {len(cells)} cells, and about how long each takes at most"
    table = Table(title=title, title_justify="left")
    table.add_column("arm", overflow="fold")
    for column in ("share", "groups", "pictures", *(f"seed {seed}" for seed in seeds)):
        table.add_column(column, justify="right")
    for arm, percent in dict.fromkeys((cell.arm, cell.percent) for cell in cells):
        its = {cell.seed: cell for cell in cells if (cell.arm, cell.percent) == (arm, percent)}
        numbers = [[cell.groups for cell in its.values()], [cell.pictures("train") for cell in its.values()]]
        sizes = ["-".join(map(str, sorted({min(some), max(some)}))) for some in numbers]
        states = (f"{left[its[seed]]:.0f} s" if its[seed] in left else "finished" for seed in seeds)
        table.add_row(arm.name, f"{percent:g} %", *sizes, *states)
    Console().print(table)
    for cell in left:
        if error := note_of(cell).get("error"):
            logger.info("%s failed before: %s", cell.name, error)
    logger.info("%d cells to do in %s, about %.1f hours at most.", len(left), folder, sum(left.values()) / 3600)


def points_of(cells: list[Cell]) -> tuple[list[Point], int, int, str]:
    """Points of the finished cells with the same resamples of test groups for all; test groups, those of the rarest
    kind, and the metric's name.

    Raises:
        MedtlError: cells of a seed were tested on other pictures than each other.
    """
    scores: dict[Cell, Callable[[NDArray | None], NDArray[np.float64]]] = {}
    own: dict[Cell, tuple[float, float]] = {}
    tests: dict[int, pd.DataFrame] = {}
    for cell in cells:
        table, result = read_predictions(cell.folder), json.loads((cell.folder / "results.json").read_text("utf-8"))
        metric = task_of_results(result).watched
        kinds, scores[cell] = task_of_results(result).score(table, result)
        limits = (result["metrics"][metric][key] for key in ("low", "high"))
        own[cell] = tuple(np.nan if limit is None else limit for limit in limits)  # type: ignore[assignment]
        facts = table[["image_id", "group"]].assign(kind=kinds)
        if not tests.setdefault(cell.seed, facts).equals(facts):
            raise MedtlError(f"{cell.folder} was not tested on the same pictures as other cells of seed {cell.seed}.")
    union = pd.concat(tests.values()).drop_duplicates()
    kind, group = (pd.factorize(union[name])[0].astype(np.int64) for name in ("kind", "group"))
    place = pd.Series(group, index=union["image_id"])
    strata = strata_of(kind, group)
    drawn = group_draws(strata, RESAMPLES)
    points = []
    for arm, percent in dict.fromkeys((cell.arm, cell.percent) for cell in cells):
        its = [cell for cell in cells if (cell.arm, cell.percent) == (arm, percent)]
        draws = {}
        for cell in its:
            columns = place[tests[cell.seed]["image_id"]].to_numpy()
            step = max(1, BLOCK_CELLS // len(columns))
            blocks = [scores[cell](drawn[i : i + step, columns]) for i in range(0, len(drawn), step)]
            draws[cell.seed] = np.concatenate(blocks)
        points.append(
            Point(
                arm.name,
                arm.backbone,
                arm.scratch,
                percent,
                float(np.mean([cell.groups for cell in its])),
                {cell.seed: float(scores[cell](None)) for cell in its},
                draws,
                {cell.seed: own[cell] for cell in its},
            )
        )
    return points, len(strata), int(np.bincount(strata).min()), metric


def summarise(folder: Path, recipe: Recipe, grid: Grid, cells: list[Cell]) -> dict[str, Any]:
    """Write README.md, figures/learning_curve.png and, last, study.json of the finished cells; return what it holds.

    Raises:
        MedtlError: none is finished.
    """
    finished = [cell for cell in cells if is_finished(cell.folder)]
    failed = {cell.name: note_of(cell).get("error", "") for cell in cells if cell not in finished}
    if not finished:
        first = next(iter(failed.items()))
        raise MedtlError(f"None of {len(cells)} cells is finished. {first[0]}: {first[1]}. See {folder / 'cells'}.")
    points, n_groups, fewest, metric = points_of(finished)
    contrasts = compare(points, fewest)
    said = statements(points, contrasts, NAMES[metric], fewest)
    (folder / "figures").mkdir(exist_ok=True)
    plots.learning_curve(points, NAMES[metric], folder / "figures" / "learning_curve.png")
    result = {
        "dataset": cells[0].part.spec.name,
        "task": cells[0].part.spec.task,
        "metric": metric,
        "budget": grid.budget,
        "test_groups": n_groups,
        "test_groups_of_the_rarest_kind": fewest,
        "statements": said,
        "curve": [describe(point) for point in points],
        "contrasts": [in_json(contrast) for contrast in contrasts],
        "cells": [facts_of(cell) for cell in finished],
        "failed": failed,
    }
    facts = {
        "name": folder.name,
        "study": result,
        "spec": cells[0].part.spec,
        "metric": NAMES[metric],
        "percents": sorted({point.percent for point in points}),
        "rows": {arm: {p.percent: p for p in points if p.arm == arm} for arm in dict.fromkeys(p.arm for p in points)},
        "contrasts": contrasts,
        "recipe_yaml": recipe.to_yaml(),
        "grid_yaml": grid.to_yaml(),
    }
    write(folder / "README.md", page("study", facts))
    write(folder / "study.json", result)
    console = Console()
    console.print(Markdown("\n".join(f"- {line}" for line in said)))
    console.print(f"\nThe study is in {folder}: README.md, study.json, figures/learning_curve.png, cells/.",
                  highlight=False, soft_wrap=True)  # fmt: skip
    return result


def describe(point: Point) -> dict[str, Any]:
    """A point as study.json has it."""
    facts = {"arm": point.arm, "backbone": point.backbone, "scratch": point.scratch, "percent": point.percent}
    return (
        facts | {"groups": point.groups} | plain(point.mean) | {"by_seed": {str(k): v for k, v in point.values.items()}}
    )


def in_json(contrast: Contrast) -> dict[str, Any]:
    """A contrast as study.json has it; the p-value is Holm's."""
    ends = {"one": list(contrast.one), "other": list(contrast.other)}
    numbers = {key: getattr(contrast, key) for key in ("value", "low", "high", "p_value")}
    plain_numbers = {key: its if np.isfinite(its) else None for key, its in numbers.items()}
    return ends | plain_numbers | {"told": contrast.told, "by_seed": {str(k): v for k, v in contrast.by_seed.items()}}


def facts_of(cell: Cell) -> dict[str, Any]:
    """A finished cell as study.json has it."""
    result = json.loads((cell.folder / "results.json").read_text("utf-8"))
    facts = {"arm": cell.arm.name, "percent": cell.percent, "seed": cell.seed, "folder": f"cells/{cell.folder.name}"}
    facts |= {"groups": cell.groups, "pictures": cell.pictures("train"), "epochs": cell.recipe.num_train_epochs}
    return facts | {key: result[key] for key in ("metrics", "train_seconds", "splits_sha256")}
