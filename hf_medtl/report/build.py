"""Reports of finished runs: an HTML page, slides and a PDF."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_medtl.common.extras import install_command
from hf_medtl.common.files import write_atomic
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.names import METRIC_NAMES, short_name
from hf_medtl.publish.neutral_files import neutral_data, neutral_run
from hf_medtl.publish.templates import format_interval
from hf_medtl.report import classification, multilabel, segmentation
from hf_medtl.report.blocks import Prose, Report, Section, Table
from hf_medtl.report.comparison import comparison_section
from hf_medtl.report.page import render_page
from hf_medtl.report.sections import (
    data_section,
    dataset_spec,
    explanation_section,
    image_count,
    initial_weights,
    main_metric,
    reproduce_section,
    training_section,
    use_section,
)
from hf_medtl.runs.finished import load_run_data, read_runs, reading
from hf_medtl.tasks import task_for_results

logger = logging.getLogger("hf_medtl")

SECTIONS = {
    "classification": classification.sections,
    "multilabel": multilabel.sections,
    "segmentation": segmentation.sections,
}
FACT_METRICS = ("accuracy", "sensitivity", "specificity", "iou", "hausdorff95")
LIMITS = (
    "Intervals and bands describe how the numbers of these trained models would vary with other test images from the "
    "same population. They do not include the variation between training sets, seeds or hospitals.",
    "Whole groups are resampled: images of one patient, copies and near-duplicates. Where patients are unknown, images "
    "of one patient may be in several groups and in two splits, and then all numbers are optimistic.",
    "Thresholds, temperatures and conformal sets were fitted on validation images, never on the images that the "
    "numbers are computed on.",
    "Bands are pointwise, 95 % at each point, not for a whole curve. Among many metrics, subgroups or comparisons some "
    "look notable by chance.",
    "Numbers hold for the mix of labels and sources in the test images. Predictive values, precision and net benefit "
    "change with the prevalence.",
)


def write_report(
    runs: Sequence[Path],
    out: Path,
    slides: Path | None = None,
    pdf: Path | None = None,
    data_dir: Sequence[str] = (),
    title: str = "",
    publish_names: bool = False,
) -> list[Path]:
    """Write a page and, if requested, slides and a PDF; return their paths.

    Args:
        runs: folders of finished runs or cross-validations.
        out: the page, .html. Existing files are replaced.
        slides: the slides, .pptx.
        pdf: the PDF, .pdf.
        data_dir: locations of the data, each DIR for all runs or DATASET=DIR; without it the report has no images.
        title: of the report; by default the titles of the data sets.
        publish_names: name images by their files, not by neutral identifiers.

    Raises:
        MedtlError: A folder holds no finished run, a file has another suffix, or plotly, python-pptx or reportlab is
            not installed.
    """
    for path, suffix in ((out, ".html"), (slides, ".pptx"), (pdf, ".pdf")):
        if path and path.suffix.lower() != suffix:
            raise MedtlError(f"Expected a file that ends with {suffix}, found {path}.")
    report = build_report(runs, _parse_data_dirs(data_dir), title, publish_names)
    try:
        contents: dict[Path, bytes] = {out: render_page(report).encode()}
        if slides:
            from hf_medtl.report.slides import render_slides

            contents[slides] = render_slides(report)
        if pdf:
            from hf_medtl.report.pdf import render_pdf

            contents[pdf] = render_pdf(report)
    except ImportError as error:
        raise MedtlError(
            f"{error.name} is not installed. A page needs plotly, slides python-pptx, a PDF reportlab: "
            f"{install_command('report')}"
        ) from error
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    return list(contents)


def build_report(
    folders: Sequence[Path], data_dirs: Mapping[str, Path], title: str = "", publish_names: bool = False
) -> Report:
    """Return the content of a report.

    Args:
        folders: of finished runs or cross-validations.
        data_dirs: name of a data set -> folder or file; "" -> that of all others.
        title: of the report; by default the titles of the data sets.
        publish_names: name images by their files, not by neutral identifiers.

    Raises:
        MedtlError: A folder holds no finished run, or a damaged one.
    """
    runs = read_runs(folders)
    with reading(*runs.values()):
        comparison = comparison_section(runs)
        sections = [_overview(runs), *([comparison] if comparison else [])]
        sections += [_run_section(name, run, data_dirs, publish_names) for name, run in runs.items()]
        sections.append(Section("Limits and methods", [Prose(text) for text in LIMITS]))
        specs = [(run.results["dataset"], dataset_spec(run)) for run in runs.values()]
        title = title or ", ".join(dict.fromkeys(spec.title if spec else dataset for dataset, spec in specs))
        return Report(title, ", ".join(runs), _key_facts(runs), list(runs), sections)


def _parse_data_dirs(values: Sequence[str]) -> dict[str, Path]:
    """Parse DIR ("" -> folder) and DATASET=DIR."""
    folders: dict[str, Path] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        dataset = name if equals else ""
        if dataset in folders:
            raise MedtlError(
                f"--data_dir gives two folders for {dataset or 'all runs'}. Name the data sets: DATASET=DIR."
            )
        folders[dataset] = Path(folder if equals else name)
    return folders


def _main_result(run: RunFolder) -> str:
    metric = main_metric(run)
    return f"{short_name(metric)} {format_interval(run.results['metrics'][metric])}"


def _overview(runs: Mapping[str, RunFolder]) -> Section:
    rows = [
        (
            name,
            run.results["dataset"],
            initial_weights(run),
            f"{run.results['n']:,} ({run.results['n_groups']:,})",
            _main_result(run),
        )
        for name, run in runs.items()
    ]
    columns = ("run", "data", "initial weights", "test images (groups)", "result [95 % interval]")
    return Section("Overview", [Table("Runs", columns, rows, "From each run's results.json; intervals over groups.")])


def _key_facts(runs: Mapping[str, RunFolder]) -> dict[str, str]:
    """The main metrics of a single run, or the main metric of each run."""
    if len(runs) > 1:
        return {name: _main_result(run) for name, run in runs.items()}
    run = next(iter(runs.values()))
    metrics = run.results["metrics"]
    shown = [name for name in dict.fromkeys((main_metric(run), *FACT_METRICS)) if name in metrics]
    count = f"{run.results['n']:,} in {run.results['n_groups']:,} groups"
    return {"test images": count} | {short_name(name): format_interval(metrics[name]) for name in shown}


def _run_section(name: str, run: RunFolder, data_dirs: Mapping[str, Path], publish_names: bool) -> Section:
    loaded, missing = _load_data(name, run, data_dirs)
    loaded, run = loaded and neutral_data(run, loaded, publish_names), neutral_run(run, publish_names)
    task_sections = SECTIONS[task_for_results(run.results).name](run, loaded, missing)
    metric = main_metric(run)
    summary = f"{METRIC_NAMES[metric]} {format_interval(run.results['metrics'][metric])}, {image_count(run.results)}"
    if run.folds:
        summary += f", {len(run.folds)} folds"
    sections = [*task_sections, *([] if run.folds else [explanation_section(run, loaded, missing)])]
    sections += [training_section(run), data_section(run), use_section(run), reproduce_section(run)]
    return Section(f"Run {name}", [], sections, summary)


def _load_data(name: str, run: RunFolder, data_dirs: Mapping[str, Path]) -> tuple[LoadedDataset | None, str]:
    """Return the run's data set, or why it is missing, without its location."""
    data_dir = data_dirs.get(run.results["dataset"], data_dirs.get(""))
    if data_dir is None:
        return None, "the location of the data was not given (--data_dir)."
    try:
        return load_run_data(run, data_dir), ""
    except MedtlError as error:
        logger.warning("%s: its images are not shown: %s", name, error)
        return None, "the data were not found in --data_dir, or are not those of this run."
