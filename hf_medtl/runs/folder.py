"""The run folder: it has everything, or it says that it is unfinished."""

import dataclasses
import shutil
import socket
import time
from pathlib import Path

import pandas as pd
import yaml

from hf_medtl.common.files import write
from hf_medtl.common.system import no_room
from hf_medtl.data.loading import COLUMNS
from hf_medtl.data.splits import pseudonyms
from hf_medtl.errors import MedtlError
from hf_medtl.training.recipe import Recipe, default_of

MARK = "UNFINISHED"
SEARCH = "search.db"
# What decides which tensors a checkpoint and its optimizer have.
FIXED = (
    "ema_decay",
    "encoder",
    "encoder_weights",
    "from_scratch",
    "lora_rank",
    "model_name_or_path",
    "optim",
    "strategy",
    "task",
)
GIGABYTE = 1e9


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a run that came to its end."""
    return (folder / "results.json").exists() and not (folder / MARK).exists()


def check_folder(folder: Path, resuming: bool, searching: bool = False) -> None:
    """Refuse a folder whose contents a new run would spoil.

    Raises:
        MedtlError: it holds a finished run, checkpoints of an unfinished one (unless resuming), a search (unless
            searching), or something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise MedtlError(f"--output_dir {folder} is a file. Give a folder that is new or empty.")
    if (folder / SEARCH).exists():
        if searching:  # which goes on
            return
        raise MedtlError(f"{folder} holds a search. Give another --output_dir, or --search to go on with it.")
    if is_finished(folder):
        raise MedtlError(f"{folder} holds a finished run. Give another --output_dir, or move that one away.")
    if any(folder.glob("checkpoint-*")) and not resuming:
        raise MedtlError(
            f"{folder} holds the checkpoints of an unfinished run. Go on with it: --resume_from_checkpoint auto. "
            "Or start anew: give another --output_dir, or move that one away."
        )
    if any(folder.iterdir()) and not (folder / MARK).exists() and not resuming:
        raise MedtlError(f"{folder} is not empty and holds no run. Give an --output_dir that is new or empty.")


def check_disk(folder: Path, needed: float) -> None:
    """Refuse a disk without `needed` free bytes for `folder`.

    Raises:
        MedtlError: too little is free.
    """
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise MedtlError(
            f"The run needs about {needed / GIGABYTE:.2f} GB for checkpoints and results, {folder} has "
            f"{free / GIGABYTE:.2f} GB free. Make room, keep fewer checkpoints (--save_total_limit 1), "
            "or give an --output_dir on another disk."
        )


def disk_needed(parameters: int, save_total_limit: int | None, epochs: int, copies: int = 1) -> float:
    """Bytes that a run writes at most: float32 weights with Adam's two moments in each checkpoint, and the result.

    Args:
        copies: of the weights in a checkpoint (more with adapters or averaged weights).
    """
    checkpoints = min(save_total_limit or epochs, epochs) + 1  # a new one is written before an old one goes
    return 4 * parameters * ((2 + copies) * checkpoints + 1) + 20e6


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Whether an error came from a full disk."""
    full = not isinstance(error, MedtlError) and no_room(error)
    return full or (folder.exists() and shutil.disk_usage(folder).free < 1_000_000)


def begin(folder: Path, recipe_yaml: str, table: pd.DataFrame, excluded: pd.DataFrame) -> None:
    """Make the folder, mark it unfinished, and write what is known before training: recipe.yaml and splits.csv.

    Raises:
        MedtlError: the folder can't be written to, or a resumed run was split otherwise or trained something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(
            folder / MARK, "This run is not finished. To go on: the same command with --resume_from_checkpoint auto\n"
        )
        if (folder / "splits.csv").exists():
            check_split(folder, table)
        if (folder / "recipe.yaml").exists():
            for key, words in changes(folder, recipe_yaml).items():
                if key in FIXED:
                    raise MedtlError(f"{words}, so its checkpoints do not fit. Give what it was, or another "
                                     "--output_dir.")  # fmt: skip
        # A table of the user's own may call patients by their names.
        named = table.assign(patient=pseudonyms(table["patient"].tolist()))
        write(folder / "splits.csv", named[COLUMNS].to_csv(index=False))
        write(folder / "recipe.yaml", recipe_yaml)
        if len(excluded):
            write(folder / "excluded.csv", excluded.to_csv(index=False))
    except PermissionError as error:
        raise MedtlError(f"--output_dir {folder} can't be written to. Give a folder that is yours.") from error


def check_split(folder: Path, table: pd.DataFrame) -> None:
    """Refuse other pictures, or another split of them, than those of a run's splits.csv.

    Raises:
        MedtlError: they differ.
    """
    before = pd.read_csv(folder / "splits.csv", keep_default_na=False)[["sha256", "split"]]
    if before.to_csv(index=False) != table[["sha256", "split"]].to_csv(index=False):
        raise MedtlError(
            f"The pictures or their split differ from {folder / 'splits.csv'}, so going on would mix test and "
            "training pictures. Restore the data and seed of that run, or give another --output_dir."
        )


def changes(folder: Path, recipe_yaml: str) -> dict[str, str]:
    """Key -> words for each key of a recipe whose value is not what it was in a run's recipe.yaml.

    A key that is not there has its default.
    """
    then, now = (yaml.safe_load(text) for text in ((folder / "recipe.yaml").read_text("utf-8"), recipe_yaml))
    usual = {f.name: default_of(f) for f in dataclasses.fields(Recipe)}
    found = {}
    for key in sorted({*then, *now}):
        if then.get(key, usual.get(key)) != now.get(key, usual.get(key)):
            words = (str(its.get(key, "not given")) for its in (then, now))
            found[key] = f"--{key} was {next(words)} in the run of {folder} and is {next(words)} now"
    return found


def check_shared(folder: Path, patience: float = 60) -> None:
    """Refuse a folder that the main process has begun and this one does not see: weights and checkpoints go through it.

    Args:
        patience: seconds; NFS may show a new file so much later.

    Raises:
        MedtlError: it is not there.
    """
    until = time.monotonic() + patience
    while not (folder / MARK).exists():
        if time.monotonic() > until:
            raise MedtlError(
                f"--output_dir {folder.absolute()} of the main process is not seen from {socket.gethostname()}. Give a "
                "folder on a disk that all machines share, by the same path."
            )
        time.sleep(0.5)


def finish(folder: Path) -> None:
    """Take the mark away: everything is there."""
    (folder / MARK).unlink(missing_ok=True)
