"""Run folders -> the content of a report."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hf_medtl.data.loading import Loaded
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.names import NAMES
from hf_medtl.publish.templates import interval
from hf_medtl.report import classification as labels
from hf_medtl.report import multilabel as several
from hf_medtl.report import segmentation as masks
from hf_medtl.report.blocks import Prose, Report, Section, Table
from hf_medtl.report.comparison import comparison
from hf_medtl.report.tables import again_section, data_section, name_of, training_section
from hf_medtl.runs.loaded_run import Run, read_runs

logger = logging.getLogger("hf_medtl")

NOTICE = (
    "For research and education only. Not a medical device: not for diagnosis, and not for any decision about a person."
)
NOT_GIVEN = "the place of the data was not given (--data_dir)."
NOT_FOUND = "the data were not found where --data_dir says, or are not those of this run."

SECTIONS: dict[str, Callable[[Run, Loaded | None, str], list[Section]]] = {
    "image-classification": labels.sections,
    "several-labels": several.sections,
    "image-segmentation": masks.sections,
}
LIMITS = (
    "Intervals and bands say how the numbers of these very models would vary with other test pictures drawn as these "
    "were. They do not say what other training pictures, seeds or hospitals would give.",
    "Whole groups are resampled: pictures of one patient, copies and near copies. Where patients are unknown, pictures "
    "of one patient may be in several groups and in two splits, and then all numbers are too good.",
    "Thresholds, temperatures and conformal sets come from validation pictures, never from those that the numbers are "
    "of.",
    "Bands are 95 % at each place, not of a whole curve at once. Of many metrics, slices or comparisons some look "
    "notable by chance.",
    "Numbers hold for the test pictures' mix of labels and sources. Predictive values, precision and net benefit "
    "change with the share of positives.",
)


def build(folders: Sequence[Path], data: Mapping[str, Path]) -> Report:
    """Everything that a report says.

    Args:
        folders: of finished runs, or of all folds.
        data: name of a data set -> folder or file; "" -> that of all others.

    Raises:
        MedtlError: a folder holds no finished run.
    """
    runs = read_runs(folders)
    several_runs = comparison(runs)
    sections = [overview(runs), *([several_runs] if several_runs else [])]
    sections += [of_run(run, data) for run in runs]
    sections.append(Section("Limits and methods", [Prose(text) for text in LIMITS]))
    titles = dict.fromkeys(run.spec.title if run.spec else run.result["dataset"] for run in runs)
    return Report(
        ", ".join(titles), ", ".join(run.name for run in runs), facts(runs), [run.name for run in runs], sections
    )


def overview(runs: Sequence[Run]) -> Section:
    """A row a run."""
    rows = [
        (
            run.name,
            run.result["dataset"],
            run.learns,
            f"{run.result['n']:,} ({run.result['n_groups']:,})",
            f"{name_of(run.watched)} {interval(run.result['metrics'][run.watched])}",
        )
        for run in runs
    ]
    columns = ("run", "data", "started from", "test pictures (groups)", "result [95 % interval]")
    return Section("Overview", [Table("Runs", columns, rows, "From each run's results.json; intervals over groups.")])


def facts(runs: Sequence[Run]) -> dict[str, str]:
    """What to read first: of one run its numbers, of several how many there are."""
    first = runs[0]
    if len(runs) == 1:
        shown = [name for name in (first.watched, "accuracy", "sensitivity", "specificity", "iou", "hausdorff95")
                 if name in first.result["metrics"]]  # fmt: skip
        each = {name_of(name): interval(first.result["metrics"][name]) for name in dict.fromkeys(shown)}
        return {"test pictures": f"{first.result['n']:,} in {first.result['n_groups']:,} groups"} | each
    return {run.name: f"{name_of(run.watched)} {interval(run.result['metrics'][run.watched])}" for run in runs}


def of_run(run: Run, data: Mapping[str, Path]) -> Section:
    """All that is said of one run."""
    loaded, missing = pictures_of(run, data)
    parts = [*SECTIONS[run.task](run, loaded, missing), training_section(run), data_section(run), again_section(run)]
    metric = run.result["metrics"][run.watched]
    short = (
        f"{NAMES[run.watched]} {interval(metric)}, {run.result['n']:,} pictures in {run.result['n_groups']:,} groups"
    )
    if run.folds:
        short += f", {len(run.folds)} folds"
    return Section(f"Run {run.name}", [], parts, short)


def pictures_of(run: Run, data: Mapping[str, Path]) -> tuple[Loaded | None, str]:
    """The run's data set, or why there are no pictures; the place of the data stays out of that."""
    place = data.get(run.result["dataset"], data.get(""))
    if place is None:
        return None, NOT_GIVEN
    try:
        return run.data(place), ""
    except MedtlError as error:
        logger.warning("%s: its pictures are not shown: %s", run.name, error)
        return None, NOT_FOUND
