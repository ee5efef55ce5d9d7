"""Comparison of finished runs: metrics, paired differences, costs, and the images on which the runs disagree."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from hf_medtl.common.run_folder import RunFolder
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.paired import (
    LOWER_IS_BETTER,
    check_comparable,
    disagreements,
    paired_differences,
    shared_metrics,
)
from hf_medtl.evaluation.run_scores import RunScores
from hf_medtl.models.benchmark import count_macs, example_input, measure_latencies
from hf_medtl.predict import Predictor
from hf_medtl.publish.neutral_files import neutral_table
from hf_medtl.runs.finished import read_runs, reading
from hf_medtl.tasks import task_for_results

BEST = "best"
MAX_IMAGES = 12  # shown of those on which the runs disagree


@dataclass(frozen=True)
class Comparison:
    """Metrics and differences of finished runs on the same images.

    Attributes:
        runs: name -> finished run or cross-validation.
        scores: name -> its test images, metrics and decisions.
        reference: name of the run that the others are compared with.
        reference_is_best: True if it was selected because it is the best on these images.
        tested: metrics whose differences are tested, the one to rank by first.
        differences: run, metric, value, low, high (of run minus reference), p_value, p_holm, test.
    """

    runs: Mapping[str, RunFolder]
    scores: Mapping[str, RunScores]
    reference: str
    reference_is_best: bool
    tested: tuple[str, ...]
    differences: pd.DataFrame

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Data set, counts and methods, as they are saved in comparison.json.

        Keys: dataset, task, split, n (images), n_groups, folds (their number, 0 for single runs), part_kind (kind of
        `parts`), decides (True if the runs disagree in decisions, False if in the quality of masks), interval_methods
        (metric -> description), tested (metrics) and n_tests (number of tests that Holm's method corrects for).
        """
        first = next(iter(self.runs))
        results, scores = self.runs[first].results, self.scores[first]
        with reading(self.runs[first]):
            named = {key: results[key] for key in ("dataset", "task", "split")}
        return named | {
            "n": len(scores.table),
            "n_groups": int(scores.table["group"].nunique()),
            "folds": len(results.get("folds", ())),
            "part_kind": scores.part_kind,
            "decides": scores.decisions is not None,
            "interval_methods": scores.methods,
            "tested": list(self.tested),
            "n_tests": int(self.differences["p_holm"].notna().sum()),
        }

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Columns run, metric, value, low, high."""
        return pd.DataFrame(
            [(run, metric, *value) for run, scores in self.scores.items() for metric, value in scores.metrics.items()],
            columns=["run", "metric", "value", "low", "high"],
        )

    @cached_property
    def parts(self) -> pd.DataFrame:
        """Columns run, part (label, class or source), metric, value, low, high."""
        return pd.DataFrame(
            [
                (run, part, metric, *value)
                for run, scores in self.scores.items()
                for part, values in scores.parts.items()
                for metric, value in values.items()
            ],
            columns=["run", "part", "metric", "value", "low", "high"],
        )

    @cached_property
    def disagreements(self) -> pd.DataFrame:
        """Columns image_id, label, group, gap, answers (run -> words), the widest gap first."""
        return disagreements(self.scores)

    @property
    def shown_disagreements(self) -> pd.DataFrame:
        """The widest disagreements, one image of each group: copies of an image would fill the table."""
        return self.disagreements.drop_duplicates("group").head(MAX_IMAGES)

    def with_identifiers(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return some of `disagreements` with neutral identifiers, unless the file names of the data are public."""
        return neutral_table(next(iter(self.runs.values())), table)

    @property
    def label_title(self) -> str:
        """The heading of the labels: the truth of decisions, but only a description of an image with masks."""
        return "true" if self.facts["decides"] else "label"


class Costs(NamedTuple):
    """Costs of runs, and the device on which latencies were measured (empty: not measured).

    The table has a row for each run, with NaN where a value is unknown: train_seconds, peak_memory_mb, trained_on,
    energy_kwh, parameters, macs, weights_mb, latency_ms, latency_lower and latency_upper (quartiles).
    """

    table: pd.DataFrame
    device: str


def compare_runs(
    folders: Sequence[str | Path], metrics: Sequence[str] = (), reference: str | None = None, seed: int = 0
) -> Comparison:
    """Compare finished runs, or cross-validations, that were tested on the same images.

    Metrics and intervals are computed from each predictions.csv, so that runs of all versions use the same method.

    Args:
        folders: of two or more runs.
        metrics: to test, the one to rank by first; by default roc_auc and accuracy, or dice and iou.
        reference: name or folder of the run to compare the others with, or "best"; the first by default.
        seed: of the bootstrap and of the blocks of groups.

    Raises:
        MedtlError: Fewer than two runs, an unfinished run, runs with other test images, labels or tasks, an unknown
            metric or reference.
    """
    runs = read_runs(folders)
    if len(runs) < 2:
        raise MedtlError(f"A comparison needs two or more different runs, but got {len(runs)}. Give their folders.")
    scores = {name: run_scores(run) for name, run in runs.items()}
    check_same_task_and_images(runs, scores)
    return compare_scores(runs, scores, metrics, reference, seed)


def compare_scores(
    runs: Mapping[str, RunFolder],
    scores: Mapping[str, RunScores],
    metrics: Sequence[str] = (),
    reference: str | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare runs that pass `check_same_task_and_images`; arguments as for `compare_runs`.

    Raises:
        MedtlError: An unknown metric or reference.
    """
    scores = shared_metrics(scores)
    tested = tuple(metrics) or next(iter(scores.values())).default_metrics
    base = _reference(reference, runs, scores, tested[0])
    rows = [(row.run, row.metric, *row.difference, row.p_holm, row.test)
            for row in paired_differences(scores, base, tested, seed)]  # fmt: skip
    columns = ["run", "metric", "value", "low", "high", "p_value", "p_holm", "test"]
    return Comparison(runs, scores, base, reference == BEST, tested, pd.DataFrame(rows, columns=columns))


def check_same_task_and_images(runs: Mapping[str, RunFolder], scores: Mapping[str, RunScores]) -> None:
    """Check that runs are of one task and were tested on the same images.

    Raises:
        MedtlError: What differs, between which runs.
    """
    first, *others = runs
    for name in others:
        if task_for_results(runs[name].results) is not task_for_results(runs[first].results):
            raise MedtlError(f"{first} and {name} have different tasks. Compare runs of one task.")
    check_comparable(scores)


def run_scores(run: RunFolder) -> RunScores:
    """Return a finished run or cross-validation in the form in which runs are compared.

    Raises:
        MedtlError: A fold of a cross-validation is missing, or a file is damaged.
    """
    models = _finished_models(run)
    with reading(run):
        table = run.predictions.sort_values("image_id", ignore_index=True)
        if models[0].splits is not None:  # an ensemble may have none
            table = table.assign(sha256=table["image_id"].map(image_files(run)["sha256"]))
        return task_for_results(run.results).run_scores(table, [model.results for model in models])


def image_files(run: RunFolder) -> pd.DataFrame:
    """Return path and sha256 of every image of a run's data set, by image_id.

    Raises:
        KeyError: The run has no splits.csv.
    """
    splits = run.models[0].splits  # each fold's has all images
    if splits is None:
        raise KeyError("splits.csv")
    return splits.set_index("image_id")[["path", "sha256"]]


def _finished_models(run: RunFolder) -> list[RunFolder]:
    for model in run.models:
        if not model.is_finished:
            raise MedtlError(f"{model.path} is not a finished run. A cross-validation needs the folders of its folds.")
    return run.models


def _reference(
    requested: str | None, runs: Mapping[str, RunFolder], scores: Mapping[str, RunScores], metric: str
) -> str:
    """Return the name of the run to compare the others with."""
    if requested is None:
        return next(iter(runs))
    if requested == BEST:
        sign = -1 if metric in LOWER_IS_BETTER else 1
        return max(scores, key=lambda name: sign * scores[name].metrics[metric].value)
    for name, run in runs.items():
        if requested == name or Path(requested).resolve() == run.path.resolve():
            return name
    raise MedtlError(f"--reference must be {BEST} or one of {', '.join(runs)}, but is {requested!r}.")


def measure_costs(runs: Mapping[str, RunFolder], device: str | None = "cpu") -> Costs:
    """Return the costs of training, and measure the models' size and latency.

    Of a cross-validation the model is that of the first fold, and the training is that of all folds.

    Args:
        runs: name -> finished run or cross-validation.
        device: where to measure latencies; None skips them.

    Raises:
        MedtlError: A fold of a cross-validation is missing.
    """
    rows, models = [], {}
    for name, run in runs.items():
        folder = _finished_models(run)[0].path
        of_model: dict[str, float] = dict.fromkeys(("parameters", "macs", "weights_mb"), float("nan"))
        if not run.only_measures:
            predictor = Predictor.from_pretrained(folder, device="cpu")
            models[name] = predictor.model, example_input(predictor.processor)
            of_model = {
                "parameters": predictor.model.num_parameters(),
                "macs": count_macs(*models[name]),
                "weights_mb": sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6,
            }
        rows.append(
            {
                "run": name,
                "train_seconds": run.results.get("train_seconds"),
                "peak_memory_mb": run.results.get("peak_memory_mb"),
                "trained_on": _hardware(run.results.get("environment", {})),
                "energy_kwh": run.results.get("energy_kwh"),
                **of_model,
            }
        )
    table = pd.DataFrame(rows).set_index("run")
    table = table.astype({column: float for column in table if column != "trained_on"})
    latency_columns = ["latency_ms", "latency_lower", "latency_upper"]
    table = table.assign(**dict.fromkeys(latency_columns, float("nan")))
    if device is None or not models:
        return Costs(table, "")
    table.loc[[*models], latency_columns] = measure_latencies(
        [model.to(device) for model, _ in models.values()],
        [{key: tensor.to(device) for key, tensor in batch.items()} for _, batch in models.values()],
    )
    kind = torch.device(device).type
    if kind == "cpu":
        return Costs(table, f"CPU ({platform.machine()}), {torch.get_num_threads()} thread(s)")
    return Costs(table, torch.cuda.get_device_name(device) if kind == "cuda" else kind)


def _hardware(environment: dict[str, Any]) -> str:
    """Describe what a run was trained on; empty if unknown."""
    if not environment.get("device"):
        return ""
    on_cpu = str(environment["device"]).startswith("CPU")
    cores = f", {environment['cpu_cores']} core(s)" if on_cpu and "cpu_cores" in environment else ""
    processes = f", {environment['processes']} processes" if environment.get("processes", 1) > 1 else ""
    return f"{environment['device']}{cores}{processes}, {environment.get('mixed_precision', 'float32')}"
