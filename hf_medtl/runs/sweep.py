"""Sweeps of runs: a lock, a plan of finished and missing cells, and resuming after an interruption or a failure."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from accelerate.utils.memory import clear_device_cache

from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.errors import Interrupted, MedtlError
from hf_medtl.runs.folder import changed_options, check_same_split
from hf_medtl.runs.lock import lock_folder
from hf_medtl.training.recipe import Recipe


class Cell(Protocol):
    """One run of a sweep: a fold, a trial of a search, a cell of a study."""

    @property
    def is_finished(self) -> bool:
        """True if the run need not be made again."""


C = TypeVar("C", bound=Cell)


@dataclass(frozen=True)
class Sweep(Generic[C]):
    """Runs that belong together; those that are not finished are made one after the other.

    Attributes:
        cells: The runs, in order.
        unit: What they are called, in the plural.
        resume: How the user goes on after an interruption.
    """

    cells: Sequence[C]
    unit: str
    resume: str = "the same command."

    @property
    def missing(self) -> list[C]:
        """The cells that are not finished."""
        return [cell for cell in self.cells if not cell.is_finished]

    def run_missing(self, run: Callable[[C], object]) -> None:
        """Run each cell that is not finished.

        Args:
            run: Makes one run.

        Raises:
            Interrupted, KeyboardInterrupt: A signal, with a message of how many cells are finished and how to go on.
            Exception: As `run`.
        """
        for cell in self.missing:
            try:
                run(cell)
            except (Interrupted, KeyboardInterrupt) as stop:
                finished = len(self.cells) - len(self.missing)
                progress = f"{finished} of {len(self.cells)} {self.unit} are finished. Go on: {self.resume}"
                if isinstance(stop, Interrupted):
                    raise Interrupted(progress, stop.signal) from stop
                raise KeyboardInterrupt(progress) from stop
            # Trainer, model and callbacks refer to each other: without this, two cells' models are in memory.
            clear_device_cache(garbage_collection=True)


def check_sweep_folder(folder: Path, allowed: Sequence[str], contents: str, advice: str = "") -> None:
    """Refuse an output folder that holds something else than this kind of sweep.

    Args:
        folder: The output folder; it need not exist.
        allowed: Patterns of the names of files and folders that a sweep may have; hidden ones are ignored.
        contents: What the folder may hold.
        advice: Ends the sentence that tells what to do.

    Raises:
        MedtlError: The folder holds other files, or is a file.
    """
    if folder.is_file():
        raise MedtlError(f"--output_dir {folder} is a file. Give a folder that is new, empty or holds {contents}.")
    paths = sorted(folder.iterdir()) if folder.exists() else []
    others = [path.name for path in paths if not any(map(path.match, (*allowed, ".*")))]
    if others:
        raise MedtlError(
            f"{folder} holds something else than {contents} ({', '.join(others[:3])}). Give an --output_dir that is "
            f"new, empty or holds {contents}{advice}."
        )


@contextlib.contextmanager
def lock_sweep(folder: Path, sweep: str) -> Iterator[None]:
    """Make the output folder, and keep other processes from running a sweep in it.

    Args:
        folder: The output folder.
        sweep: What the sweep is: search, study or cross-validation.

    Raises:
        MedtlError: Another process runs one, or the folder can't be written to.
    """
    with lock_folder(folder, f".{sweep}.lock", f"runs a {sweep}"):
        yield


def check_same_run(run: RunFolder, recipe: Recipe, loaded: LoadedDataset, ignored: Sequence[str] = ()) -> None:
    """Refuse a run that is not just what a sweep would make in its folder.

    Args:
        run: A run that was begun or finished; one without recipe.yaml passes.
        recipe: The recipe of the cell.
        loaded: Its data set.
        ignored: Options that may differ.

    Raises:
        MedtlError: It has another recipe, other images or another split.
    """
    changes = [text for option, text in changed_options(run, recipe.to_yaml()).items() if option not in ignored]
    if changes:
        raise MedtlError(
            f"{'; '.join(changes)}. All runs need one recipe: give what it was, or another --output_dir, or move "
            f"{run.path} away, and it is trained again."
        )
    check_same_split(run, loaded.table)
