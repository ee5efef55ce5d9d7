"""Finished runs: short names for several of them, files of a published one, and the data set of one."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from pandas.errors import InvalidIndexError
from transformers.utils.hub import cached_file

from hf_medtl.common.run_folder import RunFolder
from hf_medtl.common.text import split_commas
from hf_medtl.data.columns import parse_columns
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.loading import load
from hf_medtl.errors import MedtlError

logger = logging.getLogger("hf_medtl")

# What computing with values of a damaged file ends in.
DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, InvalidIndexError)


@contextmanager
def reading(*runs: RunFolder) -> Iterator[None]:
    """Say that the files of runs are damaged where they lack values or have others than a run writes.

    Args:
        runs: finished runs whose files are used inside.

    Raises:
        MedtlError: the files are damaged.
    """
    try:
        yield
    except DAMAGE as error:
        names = ", ".join(str(run.path) for run in runs)
        logger.debug("Damaged files of %s", names, exc_info=True)
        raise MedtlError(
            f"{names}: results.json, recipe.yaml, splits.csv or predictions.csv has a value that no run writes "
            f"({type(error).__name__}: {error}). Find the file with hf-medtl verify RUN, and restore it from a copy."
        ) from error


def read_runs(folders: Sequence[str | Path]) -> dict[str, RunFolder]:
    """Return finished runs, or cross-validations, by a short name.

    Args:
        folders: of the runs.

    Raises:
        MedtlError: a folder is given twice, or holds no finished run.
    """
    paths = [Path(folder) for folder in folders]
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise MedtlError(f"A run is given twice: {', '.join(map(str, paths))}. Give different folders.")
    return {name: RunFolder(path).check_finished() for name, path in zip(_short_names(resolved), paths, strict=True)}


def fetch_run(model: str | Path, revision: str | None = None) -> RunFolder:
    """Return the results, recipe and split of a run folder or of a model on the Hub, as far as it has them.

    Args:
        model: run folder or Hub id.
        revision: branch, tag or commit on the Hub.
    """
    paths = [
        cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        for name in ("results.json", "recipe.yaml", "splits.csv")
    ]
    return RunFolder(next((Path(path).parent for path in paths if path), model))


def run_splits(run: RunFolder) -> pd.DataFrame | None:
    """Return splits.csv of a run, or of a cross-validation's first fold (whose column split is that fold's own)."""
    return next((table for table in (run.splits, *(fold.splits for fold in run.folds)) if table is not None), None)


def load_run_data(run: RunFolder, data_dir: Path | None = None) -> LoadedDataset:
    """Load the data set of a run with the run's split.

    Args:
        run: a finished run; of a cross-validation the split of the first fold is taken.
        data_dir: folder or file of the data; they are downloaded if it is None.

    Raises:
        MedtlError: the data are missing, or differ from those of the run.
    """
    folder = run.models[0].path
    if not (folder / "splits.csv").is_file():
        raise MedtlError(f"{run.path} has no splits.csv, so it is not known which images it was trained on.")
    return load(
        run.results["dataset"],
        data_dir,
        splits=folder / "splits.csv",
        positive=run.results.get("positive_label"),
        task=run.task,
        sources=split_commas(run.recipe.get("sources", "")),
        columns=parse_columns(run.recipe.get("columns")),
    )


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the end of each path, as long as needed to be unique and to be more than a number or a fold."""
    names = []
    for path in paths:
        ends = ["/".join(path.parts[-length:]) for length in range(1, len(path.parts) + 1)]
        uninformative = path.name.isdigit() or path.name.startswith("fold-")
        others = [f"/{other.as_posix()}" for other in paths if other != path]
        unique = (end for end in ends[uninformative:] if not any(other.endswith(f"/{end}") for other in others))
        names.append(next(unique, path.as_posix()))
    return names
