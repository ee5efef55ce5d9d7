"""Run folders at the start of a run: what may be in them, what is written first, and free disk space."""

import dataclasses
import os
import re
import shutil
import socket
import time
from pathlib import Path

import pandas as pd
import yaml

from hf_medtl.common.csv_cells import to_csv
from hf_medtl.common.files import is_partial, list_files, read_object, remove_partial_files
from hf_medtl.common.run_folder import UNFINISHED, RunFolder
from hf_medtl.data.dataset import COLUMNS
from hf_medtl.data.splits import pseudonymize_patients
from hf_medtl.errors import MedtlError
from hf_medtl.training.recipe import Recipe, default_value

SEARCH_DB = "search.db"
LOCK_FILE = re.compile(r"\..+\.lock(\.json)?")  # of `lock_folder`
GIGABYTE = 1e9
NOT_WRITABLE = "{} {} can't be written to. Give a folder that you have write access to."


def check_output_dir(folder: Path, resuming: bool, searching: bool = False) -> None:
    """Refuse an output folder whose contents a new run would spoil.

    Args:
        folder: The run's --output_dir; it need not exist.
        resuming: True if the run may go on from checkpoints in it.
        searching: True if the run is a hyperparameter search, which may go on from its database.

    Raises:
        MedtlError: It holds a finished run, checkpoints of an unfinished one (unless resuming), a search (unless
            searching), or something else.
    """
    existing = _existing_part(folder)
    if not existing.is_dir():
        raise MedtlError(f"--output_dir {folder}: {existing} is a file. Give a folder that is new or empty.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise MedtlError(NOT_WRITABLE.format("--output_dir", folder))
    if existing != folder.absolute():
        return
    if (folder / SEARCH_DB).exists():
        if searching:
            return
        raise MedtlError(f"{folder} holds a search. Give another --output_dir, or --search to go on with it.")
    run = RunFolder(folder)
    if run.is_finished:
        raise MedtlError(f"{folder} holds a finished run. Give another --output_dir, or move that one away.")
    if any(folder.glob("checkpoint-*")) and not resuming:
        raise MedtlError(
            f"{folder} holds the checkpoints of an unfinished run. Go on with it: --resume_from_checkpoint auto. "
            "Or start anew: give another --output_dir, or move that one away."
        )
    if not is_unused(folder) and not run.is_marked and not resuming:
        raise MedtlError(f"{folder} is not empty and holds no run. Give an --output_dir that is new or empty.")


def is_unused(folder: Path) -> bool:
    """Return True for a folder that is empty but for what a killed process left: locks, and files half written."""
    if not folder.is_dir():
        return False
    begun = list_begun(folder)
    names = {part for name in begun for part in Path(name).parts[:1]}
    for path in folder.iterdir():
        own = is_partial(path) or LOCK_FILE.fullmatch(path.name)
        if not own and (path.name not in names or path.is_symlink()):
            return False
    return all(name in begun or LOCK_FILE.fullmatch(name) for name in list_files(folder))


def list_begun(folder: Path) -> set[str]:
    """Return the files of a folder that a killed process made, by the list in `UNFINISHED`, and that list."""
    try:
        files = read_object(folder / UNFINISHED).get("files")
    except MedtlError:  # there is none, or it is the mark of a run
        return set()
    return {UNFINISHED, *files} if isinstance(files, list) and all(isinstance(name, str) for name in files) else set()


def _existing_part(folder: Path) -> Path:
    """Return the folder itself or the first of its parents that exists.

    Raises:
        MedtlError: The name is impossible, for example too long.
    """
    try:
        return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    except (OSError, ValueError) as error:
        raise MedtlError(f"--output_dir {folder} is no possible folder ({error}). Give another.") from error


def check_disk(folder: Path, needed: float) -> None:
    """Refuse a disk with less than `needed` free bytes for `folder`.

    Raises:
        MedtlError: Too little is free.
    """
    free = shutil.disk_usage(_existing_part(folder)).free
    if free < needed:
        raise MedtlError(
            f"The run needs about {needed / GIGABYTE:.2f} GB for checkpoints and results, {folder} has "
            f"{free / GIGABYTE:.2f} GB free. Make room, keep fewer checkpoints (--save_total_limit 1), "
            "or give an --output_dir on another disk."
        )


def disk_needed(parameters: int, save_total_limit: int | None, epochs: int, copies: int = 1) -> float:
    """Return how many bytes a run writes at most: checkpoints with float32 weights and Adam's two moments, and results.

    Args:
        parameters: Number of parameters of the model.
        save_total_limit: How many checkpoints are kept; None for all.
        epochs: Number of epochs.
        copies: Copies of the weights in a checkpoint (more with adapters or averaged weights).
    """
    checkpoints = min(save_total_limit or epochs, epochs) + 1  # a new one is written before an old one goes
    return 4 * parameters * ((2 + copies) * checkpoints + 2) + 20e6  # the old weights stay until the new are written


def start_run(folder: Path, recipe_yaml: str, table: pd.DataFrame, excluded: pd.DataFrame) -> None:
    """Make the folder, mark it as unfinished, and write recipe.yaml, splits.csv and excluded.csv.

    Args:
        folder: The run's --output_dir.
        recipe_yaml: Content of recipe.yaml.
        table: The images with the columns `COLUMNS`.
        excluded: The images left out; not written if empty.

    Raises:
        MedtlError: The folder can't be written to, or a resumed run had another split.
    """
    run = RunFolder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder)
        run.mark_unfinished()
        check_same_split(run, table)
        # A table of the user's own may call patients by their names.
        anonymous = table.assign(patient=pseudonymize_patients(table["patient"].tolist()))
        run.write("splits.csv", to_csv(anonymous[COLUMNS]))
        run.write("recipe.yaml", recipe_yaml)
        if len(excluded):
            run.write("excluded.csv", to_csv(excluded))
    except PermissionError as error:
        raise MedtlError(NOT_WRITABLE.format("--output_dir", folder)) from error


def check_same_split(run: RunFolder, table: pd.DataFrame) -> None:
    """Refuse other images, or another split of them, than those of a run's splits.csv, if it has one.

    Raises:
        MedtlError: They differ.
    """
    columns = ["sha256", "split"]
    if run.splits is not None and run.splits[columns].to_csv(index=False) != table[columns].to_csv(index=False):
        raise MedtlError(
            f"The images or their split differ from {run.path / 'splits.csv'}, so going on would mix test and "
            "training images. Restore the data and seed of that run, or give another --output_dir."
        )


def changed_options(run: RunFolder, recipe_yaml: str) -> dict[str, str]:
    """Return a description of each option whose value differs from a run's recipe.yaml; empty if the run has none.

    An option that is not in a recipe.yaml has its default.
    """
    if not (run.path / "recipe.yaml").exists():
        return {}
    before, now = run.recipe, yaml.safe_load(recipe_yaml)
    defaults = {f.name: default_value(f) for f in dataclasses.fields(Recipe)}
    return {
        key: f"--{key} was {before.get(key, 'not given')} in the run of {run.path} and is "
        f"{now.get(key, 'not given')} now"
        for key in sorted({*before, *now} & defaults.keys())  # an older version may have had others
        if before.get(key, defaults.get(key)) != now.get(key, defaults.get(key))
    }


def check_shared_folder(folder: Path, patience: float = 60) -> None:
    """Refuse a folder that the main process has made and this one does not see: processes share files through it.

    Args:
        folder: The run's --output_dir.
        patience: Seconds to wait; NFS may show a new file that much later.

    Raises:
        MedtlError: The folder is not visible.
    """
    until = time.monotonic() + patience
    while not RunFolder(folder).is_marked:
        if time.monotonic() > until:
            raise MedtlError(
                f"--output_dir {folder.absolute()} of the main process is not visible from {socket.gethostname()}. "
                "Give a folder on a disk that all machines share, by the same path."
            )
        time.sleep(0.5)
