"""Finished runs side by side: metrics, paired differences, costs, and the pictures on which they disagree."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.paired import (
    LOWER_IS_BETTER,
    Rival,
    check_same,
    differences,
    disagreements,
)
from hf_medtl.models.benchmark import latencies, macs, one_picture
from hf_medtl.predict import Predictor
from hf_medtl.runs.cross_validation import read_predictions
from hf_medtl.runs.folder import is_finished
from hf_medtl.tasks import task_of_results

BEST = "best"


@dataclass(frozen=True)
class Comparison:
    """What finished runs are worth on the same pictures, and what they cost. Numbers that are not known are NaN.

    Attributes:
        runs: name -> folder.
        reference: name of the run that the others are compared with.
        chosen: whether it was chosen because it is the best on these pictures.
        facts: dataset, task, split, n (pictures), n_groups, folds (their number, 0 for single runs), part_kind (what
            `parts` are), decides (whether disagreements are those of decisions), interval_methods (metric -> in words),
            tested (metrics), n_tests (comparisons that Holm corrects for).
        metrics: run, metric, value, low, high.
        differences: run, metric, value, low, high (of run less reference), p_value, p_holm, test.
        parts: run, part (label, class or source), metric, value, low, high.
        costs: by run: train_seconds, peak_memory_mb, trained_on, energy_kwh, parameters, macs, weights_mb, latency_ms,
            latency_lower, latency_upper (quartiles).
        measured_on: device of the latencies; empty if they were not measured.
        disagreements: image_id, label, group, gap, answers (run -> words), the widest gap first.
    """

    runs: dict[str, Path]
    reference: str
    chosen: bool
    facts: dict[str, Any]
    metrics: pd.DataFrame
    differences: pd.DataFrame
    parts: pd.DataFrame
    costs: pd.DataFrame
    measured_on: str
    disagreements: pd.DataFrame


def comparison(
    folders: Sequence[str | Path],
    metrics: Sequence[str] = (),
    reference: str | None = None,
    latency: bool = True,
    device: str = "cpu",
    seed: int = 0,
) -> Comparison:
    """Compare finished runs, or cross-validations, that were tested on the same pictures.

    Metrics and limits are computed anew from each predictions.csv, so that one method is used for runs of all versions.

    Args:
        folders: of two or more runs.
        metrics: to test; the first is the one to rank by. roc_auc and accuracy, or dice and iou, if not given.
        reference: name or folder of the run to compare the others with, or "best"; the first if not given.
        latency: measure the time for one picture.
        device: where to measure it.
        seed: of the draws and blocks of groups.

    Raises:
        MedtlError: fewer than two runs, an unfinished one, runs with other test pictures, labels or tasks, an unknown
            metric or reference.
    """
    runs = named([Path(folder) for folder in folders])
    results = {name: read_results(folder) for name, folder in runs.items()}
    first = next(iter(results.values()))
    for name, its in results.items():
        if task_of_results(its) is not task_of_results(first):
            raise MedtlError(f"{next(iter(runs))} and {name} are of other tasks. Compare runs of one task.")
    rivals = {name: rival_of(folder, results[name]) for name, folder in runs.items()}
    check_same(rivals)
    one = next(iter(rivals.values()))
    tested = tuple(metrics) or one.usual
    base = reference_of(reference, runs, rivals, tested[0])
    paired = differences(rivals, base, tested, seed)
    costs, measured_on = costs_of(runs, results, device if latency else None)
    return Comparison(
        runs,
        base,
        reference == BEST,
        {key: first[key] for key in ("dataset", "task", "split")}
        | {
            "n": len(one.table),
            "n_groups": int(one.table["group"].nunique()),
            "folds": len(first.get("folds", ())),
            "part_kind": one.part_kind,
            "decides": one.decided is not None,
            "interval_methods": one.methods,
            "tested": list(tested),
            "n_tests": sum(row.p_holm == row.p_holm for row in paired),
        },
        pd.DataFrame(
            [(run, metric, *found) for run, rival in rivals.items() for metric, found in rival.metrics.items()],
            columns=["run", "metric", "value", "low", "high"],
        ),
        pd.DataFrame(
            [(row.run, row.metric, *row.difference, row.p_holm, row.test) for row in paired],
            columns=["run", "metric", "value", "low", "high", "p_value", "p_holm", "test"],
        ),
        pd.DataFrame(
            [
                (run, part, metric, *found)
                for run, rival in rivals.items()
                for part, values in rival.parts.items()
                for metric, found in values.items()
            ],
            columns=["run", "part", "metric", "value", "low", "high"],
        ),
        costs,
        measured_on,
        disagreements(rivals),
    )


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """Name -> folder: the last parts of their paths, as few as tell them apart.

    Raises:
        MedtlError: fewer than two, or one twice.
    """
    places = [folder.resolve() for folder in folders]
    if len(places) < 2 or len(set(places)) < len(places):
        raise MedtlError(f"Two or more different runs are compared, found {len(set(places))}. Give their folders.")
    for depth in range(1, max(len(place.parts) for place in places)):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, folders, strict=True))


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of a finished run, or of all folds.

    Raises:
        MedtlError: it is none.
    """
    if not is_finished(folder) or not (folder / "predictions.csv").is_file():
        raise MedtlError(
            f"{folder} is not a finished run: results.json or predictions.csv is missing, or it is marked as "
            "unfinished. Give the folder of a run, or of all folds, that has come to its end."
        )
    return json.loads((folder / "results.json").read_text("utf-8"))


def models_of(folder: Path, result: dict[str, Any]) -> list[Path]:
    """The folders with weights: of the folds, in order, or the run's own."""
    places = [folder / f"fold-{fold['fold']}" for fold in result.get("folds", ())] or [folder]
    absent = [place for place in places if not is_finished(place)]
    if absent:
        raise MedtlError(
            f"{absent[0]} is not a finished run. A cross-validation is compared with the folders of its folds."
        )
    return places


def rival_of(folder: Path, result: dict[str, Any]) -> Rival:
    """A finished run, or all folds, in the form in which runs are compared."""
    table = read_predictions(folder).sort_values("image_id", ignore_index=True)
    places = models_of(folder, result)
    if (places[0] / "splits.csv").exists():  # an ensemble has none
        table = table.assign(sha256=table["image_id"].map(pictures_of(folder, len(result.get("folds", ())))["sha256"]))
    return task_of_results(result).rival(table, [read_results(place) for place in places])


def pictures_of(folder: Path, folds: int) -> pd.DataFrame:
    """path and sha256 of every picture of a run's data set, by image_id; of folds all are in that of each."""
    place = folder / "fold-0" if folds else folder
    table = pd.read_csv(place / "splits.csv", dtype=str, keep_default_na=False)
    return table.set_index("image_id")[["path", "sha256"]]


def reference_of(asked: str | None, runs: dict[str, Path], rivals: dict[str, Rival], metric: str) -> str:
    """Name of the run to compare the others with.

    Raises:
        MedtlError: it is not among them.
    """
    if asked is None:
        return next(iter(runs))
    if asked == BEST:
        sign = -1 if metric in LOWER_IS_BETTER else 1
        return max(rivals, key=lambda name: sign * rivals[name].metrics[metric].value)
    found = [name for name, folder in runs.items() if asked == name or Path(asked).resolve() == folder.resolve()]
    if not found:
        raise MedtlError(f"--reference is {BEST} or one of {', '.join(runs)}; found {asked!r}.")
    return found[0]


def costs_of(runs: dict[str, Path], results: dict[str, dict[str, Any]], device: str | None) -> tuple[pd.DataFrame, str]:
    """Costs by run, of folds those of the first one's model, with the training of all; and the device measured on.

    Args:
        runs: name -> folder.
        results: name -> results.json.
        device: where to measure latencies; None not to.
    """
    rows, loaded = [], []
    for name, folder in runs.items():
        place, result = models_of(folder, results[name])[0], results[name]
        predictor = Predictor.from_pretrained(place, device="cpu")
        inputs = one_picture(predictor.processor)
        loaded.append((predictor.model, inputs))
        rows.append(
            {
                "run": name,
                "train_seconds": result.get("train_seconds"),
                "peak_memory_mb": result.get("peak_memory_mb"),
                "trained_on": hardware(result.get("environment", {})),
                "energy_kwh": result.get("energy_kwh"),
                "parameters": predictor.model.num_parameters(),
                "macs": macs(predictor.model, inputs),
                "weights_mb": sum(path.stat().st_size for path in place.glob("*.safetensors")) / 1e6,
            }
        )
    table = pd.DataFrame(rows).set_index("run")
    table = table.astype({column: float for column in table if column != "trained_on"})
    if device is None:
        return table.assign(latency_ms=float("nan"), latency_lower=float("nan"), latency_upper=float("nan")), ""
    models = [model.to(device) for model, _ in loaded]
    found = latencies(models, [{key: its.to(device) for key, its in inputs.items()} for _, inputs in loaded])
    table[["latency_ms", "latency_lower", "latency_upper"]] = found
    kind = torch.device(device).type
    if kind == "cpu":
        return table, f"CPU ({platform.machine()}), {torch.get_num_threads()} thread(s)"
    return table, torch.cuda.get_device_name(device) if kind == "cuda" else kind


def hardware(environment: dict[str, Any]) -> str:
    """What a run was trained on; empty where nobody knows."""
    if not environment.get("device"):
        return ""
    on_cpu = str(environment["device"]).startswith("CPU")
    cores = f", {environment['cpu_cores']} core(s)" if on_cpu and "cpu_cores" in environment else ""
    many = f", {environment['processes']} processes" if environment.get("processes", 1) > 1 else ""
    return f"{environment['device']}{cores}{many}, {environment.get('mixed_precision', 'float32')}"
