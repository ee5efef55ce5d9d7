"""What a run folder holds, read for a report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from hf_medtl.data.loading import Loaded, load
from hf_medtl.data.specs import DATASETS, DatasetSpec
from hf_medtl.errors import MedtlError
from hf_medtl.runs.cross_validation import read_predictions
from hf_medtl.runs.folder import is_finished
from hf_medtl.tasks import task_of_results

TEXT = {"image_id": str, "label": str, "group": str, "source": str, "patient": str}


@dataclass(frozen=True)
class Run:
    """A finished run, or all folds of one.

    Attributes:
        folder: where it lies.
        name: for people, different from those of the other runs.
        result: results.json.
        table: predictions.csv.
        external: external.csv, or None.
        recipe: recipe.yaml, which has what differs from the defaults; empty where there is none.
        splits: splits.csv; of folds that of the first, whose column split is not that of the others; None if there is
            none.
        folds: the runs of the folds, in order.
    """

    folder: Path
    name: str
    result: dict[str, Any]
    table: pd.DataFrame
    external: pd.DataFrame | None
    recipe: dict[str, Any]
    splits: pd.DataFrame | None
    folds: Sequence["Run"] = field(default_factory=tuple)

    @property
    def spec(self) -> DatasetSpec | None:
        """The row of DATASETS, for what is known of the data; None for those of the Hub."""
        return DATASETS.get(self.result["dataset"])

    @property
    def task(self) -> str:
        """The pipeline's, or several-labels."""
        return "several-labels" if "per_label" in self.result else self.result["task"]

    @property
    def watched(self) -> str:
        """The metric to look at first."""
        return task_of_results(self.result).watched

    @property
    def learns(self) -> str:
        """The model that it started from, by recipe.yaml."""
        name = str(self.recipe.get("model_name_or_path", "the default model"))
        if "encoder_weights" in self.recipe:
            return f"{name}, encoder {self.recipe['encoder_weights']}"
        return f"{name}, random weights" if self.recipe.get("from_scratch") else name

    def history(self) -> tuple[list[dict[str, Any]], int | None]:
        """The Trainer's log and the best step, from the newest checkpoint; an empty log where none is kept."""
        states = self.folder.glob("checkpoint-*/trainer_state.json")
        newest = sorted(states, key=lambda path: int(path.parent.name.removeprefix("checkpoint-")))[-1:]
        for path in newest:
            state = json.loads(path.read_text("utf-8"))
            return state["log_history"], state.get("best_global_step")
        return [], None

    def audit(self) -> dict[str, Any] | None:
        """audit.json of the run's data, where one was put into its folder."""
        for path in (self.folder / "audit.json", self.folder / "audit" / "audit.json"):
            if path.is_file():
                return json.loads(path.read_text("utf-8"))
        return None

    def config(self) -> dict[str, Any]:
        """config.json, of the first fold if there are folds; empty where there is none."""
        path = (self.folds[0].folder if self.folds else self.folder) / "config.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}

    def data(self, data_dir: Path | None) -> Loaded:
        """The data set with the run's split; downloaded if no folder is given.

        Raises:
            MedtlError: it is not there, or holds other pictures than the run's.
        """
        if self.splits is None:
            raise MedtlError(f"{self.folder} has no splits.csv, so nobody knows which pictures it has seen.")
        return load(
            self.result["dataset"],
            data_dir,
            splits=(self.folds[0].folder if self.folds else self.folder) / "splits.csv",
            positive=self.recipe.get("positive_label"),
            task=self.result["task"],
            sources=[word.strip() for word in self.recipe.get("sources", "").split(",") if word.strip()],
        )


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Finished runs, or folders of all folds.

    Raises:
        MedtlError: a folder is given twice, or holds no finished run.
    """
    places = [folder.resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise MedtlError(f"A run is given twice among {', '.join(map(str, folders))}. Give each once.")
    return [read_run(folder, name) for folder, name in zip(folders, short_names(places), strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """A finished run, or all folds of one.

    Raises:
        MedtlError: the folder holds none.
    """
    if not is_finished(folder) or not (folder / "predictions.csv").is_file():
        raise MedtlError(
            f"{folder} is no finished run: it has no results.json and predictions.csv, or is marked as unfinished. "
            "Give the folder of a finished run, or of all its folds."
        )
    result = json.loads((folder / "results.json").read_text("utf-8"))
    inner = [folder / f"fold-{fold['fold']}" for fold in result.get("folds", [])]
    folds = tuple(read_run(its, its.name) for its in inner if is_finished(its))
    recipe, splits, external = (folder / its for its in ("recipe.yaml", "splits.csv", "external.csv"))
    return Run(
        folder,
        name,
        result,
        read_predictions(folder),
        _table(external) if external.is_file() else None,
        (yaml.safe_load(recipe.read_text("utf-8")) or {}) if recipe.is_file() else {},
        _table(splits) if splits.is_file() else folds[0].splits if folds else None,
        folds,
    )


def short_names(places: Sequence[Path]) -> list[str]:
    """The ends of paths, each as long as needed to be no other's and to say more than a number or a fold."""
    found = []
    for place in places:
        ends = ["/".join(place.parts[-length:]) for length in range(1, len(place.parts) + 1)]
        bare = place.name.isdigit() or place.name.startswith("fold-")
        others = [f"/{other.as_posix()}" for other in places if other != place]
        own = (end for end in ends[bare:] if not any(other.endswith(f"/{end}") for other in others))
        found.append(next(own, place.as_posix()))
    return found


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=TEXT, keep_default_na=False)
