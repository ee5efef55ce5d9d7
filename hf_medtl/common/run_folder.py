"""RunFolder: the only reader and writer of a run's files."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from hf_medtl.common.checksums import CHECKSUMS, recording, write_checksums
from hf_medtl.common.csv_cells import original_cells
from hf_medtl.common.files import encode, read_object, write_atomic
from hf_medtl.common.links import check_link, check_links
from hf_medtl.errors import MedtlError

UNFINISHED = "UNFINISHED"
# Columns that are text even where every value is a number.
TEXT_COLUMNS = ("group", "image_id", "label", "path", "patient", "sha256", "source", "split")


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV file of a run: ids and labels as text, and the label of an image without labels as an empty one.

    Raises:
        MedtlError: The file is damaged.
    """
    try:
        return original_cells(pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False))
    except ValueError as error:  # of pandas' parser, or bytes that are not UTF-8
        raise MedtlError(f"{path} is damaged ({str(error).strip()}). Restore it from a copy of the run.") from error


class RunFolder:
    """The files of a run, of all folds of a cross-validation, or of an ensemble.

    Files are read once, when asked for. A missing file is an empty dict, or None for an optional table.

    Args:
        path: The folder; it need not exist.

    Example:
        >>> run = RunFolder("runs/vit").check_finished()  # doctest: +SKIP
        >>> run.results["metrics"]["roc_auc"]["value"]  # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def is_finished(self) -> bool:
        """True if the folder holds a run that has ended."""
        return (self.path / "results.json").exists() and not self.is_marked

    @property
    def is_marked(self) -> bool:
        """True if the folder is marked as that of an unfinished run."""
        return (self.path / UNFINISHED).exists()

    def check_finished(self) -> "RunFolder":
        """Return this folder, of a finished run or of all folds of one.

        Raises:
            MedtlError: The run is not finished, or the folder holds none, or links to files elsewhere.
        """
        if not self.is_finished or not (self.path / "predictions.csv").is_file():
            raise MedtlError(
                f"{self.path} is not a finished run: results.json or predictions.csv is missing, or it is marked as "
                "unfinished. Give the folder of a finished run, or of all folds of one."
            )
        check_links(self.path)
        return self

    @cached_property
    def results(self) -> dict[str, Any]:
        """results.json."""
        results = self._json("results.json")
        for key, kind in (("task", str), ("dataset", str), ("metrics", dict), ("folds", list), ("fitted", dict)):
            if not isinstance(results.get(key, kind()), kind):
                raise MedtlError(f"{self.path / 'results.json'} is damaged: {key} is {str(results[key])[:100]!r}.")
        for fold in results.get("folds", ()):
            if not isinstance(fold, dict) or not str(fold.get("fold")).isdecimal():
                raise MedtlError(f"{self.path / 'results.json'} is damaged: {str(fold)[:100]!r} is no fold.")
        return results

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of the model."""
        return self._json("config.json")

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """recipe.yaml: the options that differ from the defaults."""
        path = self._file("recipe.yaml")
        try:
            recipe = (yaml.safe_load(path.read_text("utf-8")) or {}) if path.is_file() else {}
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise MedtlError(f"{path} is damaged ({' '.join(str(error).split())}).") from error
        if not isinstance(recipe, dict):
            raise MedtlError(f"{path} is damaged: expected options with values, found {type(recipe).__name__}.")
        return recipe

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """predictions.csv, of the test split."""
        return read_table(self._file("predictions.csv"))

    @cached_property
    def external(self) -> pd.DataFrame | None:
        """external.csv: predictions on the external data set."""
        return self._table("external.csv")

    @cached_property
    def splits(self) -> pd.DataFrame | None:
        """splits.csv: images, groups and splits."""
        return self._table("splits.csv")

    @property
    def task(self) -> str:
        """Name of the task's pipeline, such as image-classification.

        Raises:
            MedtlError: results.json does not give it.
        """
        if not isinstance(task := self.results.get("task"), str):
            raise MedtlError(f"{self.path / 'results.json'} is damaged: it does not name the task of the run.")
        return task

    @cached_property
    def folds(self) -> list["RunFolder"]:
        """The runs of a cross-validation, in order; empty for a single run."""
        return [RunFolder(self.path / f"fold-{fold['fold']}") for fold in self.results.get("folds", ())]

    @property
    def only_measures(self) -> bool:
        """True if the run measured an encoder and has no model: --strategy knn, or all folds of it."""
        return (self.folds or [self])[0].results.get("fitted", {}).get("strategy") == "knn"

    def check_has_model(self) -> None:
        """Raise MedtlError if the run only measured an encoder."""
        if not (self.path / "config.json").is_file() and self.only_measures:
            raise MedtlError(
                f"{self.path} is a run of --strategy knn, which measures an encoder and has no model. Give a run of "
                "another strategy, such as linear_probe."
            )

    @property
    def models(self) -> list["RunFolder"]:
        """The folders that have weights: those of the folds, or this one."""
        return self.folds or [self]

    def history(self) -> tuple[list[dict[str, Any]], int | None]:
        """Return the Trainer's log and the best step from the newest checkpoint; an empty log if none was kept."""
        states = self.path.glob("checkpoint-*/trainer_state.json")
        newest = max(states, key=lambda path: int(path.parent.name.removeprefix("checkpoint-")), default=None)
        if newest is None:
            return [], None
        state = json.loads(newest.read_text("utf-8"))  # not `read_json`: a loss may have been NaN
        return state["log_history"], state.get("best_global_step")

    def write(self, name: str, content: str | bytes | dict[str, Any]) -> None:
        """Write text, bytes, or a dict as JSON, so that the file is either complete or as it was."""
        data = encode(content)
        with recording(self.path, name, data):
            write_atomic(self.path / name, data)
        self.__dict__ = {"path": self.path}  # forgets what was read

    def mark_unfinished(self) -> None:
        """Mark the folder as that of an unfinished run, whose files may change."""
        (self.path / CHECKSUMS).unlink(missing_ok=True)
        self.write(
            UNFINISHED, "This run is not finished. To go on: the same command with --resume_from_checkpoint auto\n"
        )

    def mark_finished(self) -> None:
        """Write the checksums of all files, and remove the mark: all files are there."""
        write_checksums(self.path)
        (self.path / UNFINISHED).unlink(missing_ok=True)

    def _json(self, name: str) -> dict[str, Any]:
        path = self._file(name)
        return read_object(path) if path.is_file() else {}

    def _table(self, name: str) -> pd.DataFrame | None:
        path = self._file(name)
        return read_table(path) if path.is_file() else None

    def _file(self, name: str) -> Path:
        check_link(self.path / name, self.path)
        return self.path / name
