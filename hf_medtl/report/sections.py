"""Sections and tables of a run's report that do not depend on the task."""

import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from hf_medtl.common.files import read_json
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.audit_page import verdicts
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.specs import DATASETS, DatasetSpec, split_labels
from hf_medtl.data.splits import SPLITS
from hf_medtl.evaluation.metric_charts import fold_plot, history_plots
from hf_medtl.evaluation.names import METRIC_NAMES, short_name
from hf_medtl.explain.report import TITLES
from hf_medtl.publish.templates import card_sections, format_interval, format_range
from hf_medtl.report.blocks import Block, Code, Gallery, GalleryImage, Prose, Section, Table
from hf_medtl.report.images import REENCODED, to_jpeg
from hf_medtl.runs.finished import run_splits
from hf_medtl.tasks import task_for_results

RECIPE_FACTS = ("strategy", "num_train_epochs", "learning_rate", "head_learning_rate", "augmentation",
                "preprocessing", "loss", "seed")  # fmt: skip
EXPLANATION_WIDTH = 1200  # pixels of a page of heatmaps
FOLD_METRICS = ("roc_auc", "accuracy", "sensitivity", "specificity", "dice", "iou")


def number(value: float | None) -> str:
    """Return a number with three decimals, or "undefined"."""
    return "undefined" if value is None or not np.isfinite(value) else f"{value:.3f}"


def image_count(results: dict[str, Any]) -> str:
    """Return such as `51 images in 39 groups`."""
    return f"{results['n']:,} images in {results['n_groups']:,} groups"


def main_metric(run: RunFolder) -> str:
    """Return the metric that is shown first."""
    return task_for_results(run.results).main_metric


def dataset_spec(run: RunFolder) -> DatasetSpec | None:
    """Return the row of DATASETS; None for a data set from the Hub or a folder."""
    return DATASETS.get(run.results["dataset"])


def initial_weights(run: RunFolder) -> str:
    """Describe the weights that training started from, by recipe.yaml."""
    name = str(run.recipe.get("model_name_or_path", "the default model"))
    if "encoder_weights" in run.recipe:
        return f"{name}, encoder {run.recipe['encoder_weights']}"
    return f"{name}, random weights" if run.recipe.get("from_scratch") else name


def metrics_table(results: dict[str, Any], title: str) -> Table:
    """Return all metrics, with the methods of their intervals.

    Args:
        results: results.json, or its external part.
        title: of the table.
    """
    columns: dict[str, Any] = {}
    for key, column in (
        ("postprocessing_gain", "change by postprocessing"),
        ("drop", "lower than on the test split by"),
    ):
        if results.get(key):
            columns[column] = results[key]
    rows = []
    for name, metric in results["metrics"].items():
        undefined = "reason" in metric and metric["value"] is None
        value = f"undefined: {metric['reason']}" if undefined else format_interval(metric)
        rows.append((METRIC_NAMES[name], value, *(format_interval(metrics[name]) for metrics in columns.values())))
    methods: dict[str, list[str]] = {}
    for name, method in results.get("interval_methods", {}).items():
        methods.setdefault(method, []).append(short_name(name))
    words = "; ".join(f"{method} ({', '.join(names)})" for method, names in methods.items())
    note = f"{image_count(results)}. 95 % intervals over groups (patients or copies)"
    note += f": {words}." if words else "; the run's results.json does not name their method."
    return Table(title, ("metric", "value [95 % interval]", *columns), rows, note)


def external_intro(results: dict[str, Any]) -> list[Prose]:
    """Introduce the external test: the data set, and images that were excluded."""
    return [
        Prose(f"{results['dataset']}. None of its images is a copy of a training image."),
        *(Prose(f"{n:,} of its images are excluded: {kind}.") for kind, n in results.get("excluded", {}).items()),
    ]


def folds_blocks(run: RunFolder) -> list[Block]:
    """Return each fold's results and the mean over folds; nothing for a single run."""
    results, metric = run.results, main_metric(run)
    if "folds" not in results:
        return []
    shown = [name for name in FOLD_METRICS if name in results["metrics"]]
    rows = [
        (
            str(fold["fold"]),
            str(fold["n"]),
            str(fold["n_groups"]),
            *(format_interval(fold["metrics"][name]) for name in shown),
        )
        for fold in results["folds"]
    ]
    means = [(METRIC_NAMES[name], format_range(values)) for name, values in results["mean_over_folds"].items()]
    of_fold = {f"fold {fold['fold']}": fold["metrics"][metric] for fold in results["folds"]}
    return [
        Prose(
            "Each image was tested once, by the model of a fold whose training data contain neither it nor a copy of "
            "it nor, where patients are known, another image of its patient. Pooled metrics are those of all "
            "predictions together, each decided with the threshold of its own fold's model. They describe the recipe, "
            "not a single model."
        ),
        Table("Each fold", ("fold", "images", "groups", *map(short_name, shown)), rows,
              "Value [95 % interval over groups] on each fold's test images."),
        fold_plot(of_fold, results["metrics"][metric], metric, image_count(results)),
        Table("Mean over folds", ("metric", "mean (lowest to highest)"), means, "From the folds' own values."),
    ]  # fmt: skip


def training_section(run: RunFolder) -> Section:
    """Return the loss and the main metric by epoch, and the training options."""
    blocks = _history_plots(run) or _history_image(run)
    facts = {"initial weights": initial_weights(run)}
    facts |= {name.replace("_", " "): str(run.recipe[name]) for name in RECIPE_FACTS if name in run.recipe}
    if "train_seconds" in run.results:
        facts["training time"] = f"{run.results['train_seconds']:,.0f} s"
    if "peak_memory_mb" in run.results:
        facts["peak memory"] = f"{run.results['peak_memory_mb']:,.0f} MB"
    environment = run.results.get("environment", {})
    if "device" in environment:
        facts["hardware"] = f"{environment['device']}, {environment.get('processes', 1)} process(es)"
    note = "Options that differ from the defaults, from recipe.yaml, and measurements, from results.json."
    return Section("Training", [*blocks, Table("Training", ("", "value"), list(facts.items()), note)])


def _history_plots(run: RunFolder) -> list[Block]:
    """Loss and main metric by epoch, from the newest checkpoint's trainer_state.json; nothing if none was kept."""
    metric, keeps_best = main_metric(run), run.recipe.get("load_best_model_at_end", True)
    histories = {}
    for member in run.models:
        log, best_step = member.history()
        histories[member.path.name if run.folds else "validation"] = log, best_step if keeps_best else None
    if not any("eval_loss" in row for log, _ in histories.values() for row in log):
        return []
    counts = [_validation_count(member) for member in run.models if member.splits is not None]
    count = f"{', '.join(dict.fromkeys(counts))} validation images" if counts else "Validation images"
    method = f"After each epoch; from trainer_state.json. {_no_band(metric)}"
    return [*history_plots(histories, metric, count, method)]


def _history_image(run: RunFolder) -> list[Block]:
    """The figure that the run has drawn, if no checkpoint has the numbers."""
    path = run.path / "figures" / "history.png"
    if not path.is_file():
        return [Prose("No training history: the run's folder has neither a checkpoint nor its figure.", "note")]
    jpeg = to_jpeg(Image.open(path).convert("RGB"))
    count = "" if run_splits(run) is None else f"{_validation_count(run)} "
    caption = (
        "The figure saved by the run; without a checkpoint there is no trainer_state.json with the numbers. "
        f"{count}validation images, after each epoch. {_no_band(main_metric(run))}"
    )
    return [Gallery("Training history", [GalleryImage(jpeg, "", "Loss and validation metric by epoch.", "figure")],
                    caption)]  # fmt: skip


def _no_band(metric: str) -> str:
    return f"No band: {short_name(metric)} serves at most to select the epoch here, and is not a result."


def _validation_count(run: RunFolder) -> str:
    splits = run_splits(run)
    return "" if splits is None else str((splits["split"] == "validation").sum())


def explanation_section(run: RunFolder, loaded: LoadedDataset | None, missing: str) -> Section:
    """Return the verdict on the run's heatmaps, their mean and pages of them, from `hf-medtl explain`.

    Args:
        run: finished run.
        loaded: its data set; without one only what shows no single image.
        missing: why there is no data set.
    """
    explanations = read_json(run.path / "explanations.json") if (run.path / "explanations.json").is_file() else None
    if explanations is None:
        text = (
            "The run's heatmaps were not examined. For a classifier with one label per image, `hf-medtl explain RUN` "
            "does so, and the next report shows them."
        )
        return Section("Explanations", [Prose(text, "note")])
    verdict, energy = explanations["verdict"], explanations.get("energy", {"by_label": {}})
    rows = [
        (label, f"{len(facts['checks']) - len(facts['failed'])} of {len(facts['checks'])}", facts["summary"])
        for label, facts in verdict.items()
    ]
    note = f"From explanations.json: {explanations['method']} on {explanations['n']:,} test images."
    blocks: list[Block] = [Table("Verdict on the heatmaps", ("label", "checks passed", "meaning"), rows, note)]
    blocks += [Prose(f"{label}: {facts['summary']}") for label, facts in energy["by_label"].items()]
    folder = run.path / "explanations"
    shown = {"mean_maps": "Mean heatmap of each label", **(TITLES if loaded is not None else {})}
    for name, title in shown.items():
        if (folder / f"{name}.png").is_file():
            image = Image.open(folder / f"{name}.png").convert("RGB")
            image.thumbnail((EXPLANATION_WIDTH, EXPLANATION_WIDTH), Image.Resampling.LANCZOS)
            figure = GalleryImage(to_jpeg(image), "", f"{title}, by {explanations['method']}.", "figure")
            blocks.append(Gallery(title, [figure], REENCODED, large=True))
    if loaded is None:
        blocks.append(Prose(f"No images with heatmaps: {missing}", "note"))
    return Section("Explanations", blocks)


def use_section(run: RunFolder) -> Section:
    """Return intended use and limits, as on the run's model card, and the licences of the data and of the weights."""
    card = run.path / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    # The paragraphs and list items of the Markdown, as plain text.
    paragraphs = re.split(r"\n\s*\n|\n(?=[-*] )", card_sections(text))
    plain = [" ".join(re.sub(r"[*`#]", "", paragraph).split()).removeprefix("- ") for paragraph in paragraphs]
    blocks: list[Block] = [Prose(paragraph) for paragraph in plain if paragraph]
    if not blocks:
        blocks.append(Prose("The model card states neither the intended use nor the limits.", "note"))
    spec = dataset_spec(run)
    rows = [("data", spec.licence if spec else "not known to hf_medtl"),
            ("this model", ModelCard(text).data.to_dict().get("license", "not stated"))]  # fmt: skip
    note = "The card names what each licence allows. Whether it fits a use is for the user to judge."
    return Section("Use and licence", [*blocks, Table("Licences", ("of", "licence"), rows, note)])


def data_section(run: RunFolder) -> Section:
    """Return the counts of each split, excluded files, the data audit and known problems of the data."""
    blocks: list[Block] = []
    splits = run_splits(run)
    if splits is not None:
        tables = {"all": splits} if run.folds else {split: splits[splits["split"] == split] for split in SPLITS}
        labels = [
            Counter(label for cell in table["label"] for label in split_labels(cell)) for table in tables.values()
        ]
        patients = [table.loc[table["patient"] != "", "patient"].nunique() for table in tables.values()]
        rows = [(label, *(f"{count[label]:,}" for count in labels)) for label in sorted(set().union(*labels))]
        rows += [
            ("images", *(f"{len(table):,}" for table in tables.values())),
            ("groups", *(f"{table['group'].nunique():,}" for table in tables.values())),
            ("known patients", *(f"{count:,}" if count else "none" for count in patients)),
        ]
        note = "From splits.csv. A group is never divided: copies, near-duplicates and images of one patient."
        blocks.append(Table("Images", ("", *tables), rows, note))
    if (run.path / "excluded.csv").is_file():
        reasons = Counter(pd.read_csv(run.path / "excluded.csv", dtype=str, keep_default_na=False)["kind"])
        if reasons:
            counts = "; ".join(f"{kind}: {count:,}" for kind, count in reasons.items())
            blocks.append(Prose(f"Files in no split: {counts}."))
    audits = [path for path in (run.path / "audit.json", run.path / "audit" / "audit.json") if path.is_file()]
    if audits:
        audit = read_json(audits[0])
        note = f"From audit.json: {audit['n']:,} images."
        blocks.append(Table("Data audit", ("severity", "finding"), list(verdicts(audit)), note))
    else:
        blocks.append(
            Prose("The run's folder has no data audit. "
                  f"`hf-medtl data audit {run.results['dataset']} --out RUN/audit` adds one, and the next report "
                  "summarises it.")
        )  # fmt: skip
    spec = dataset_spec(run)
    if spec and spec.problems:
        rows = [(str(index), problem) for index, problem in enumerate(spec.problems, 1)]
        blocks.append(Table("Known problems of the data", ("", "problem"), rows))
    return Section("Data", blocks)


def reproduce_section(run: RunFolder) -> Section:
    """Return the recipe and the environment of the run."""
    environment = run.results.get("environment", {})
    rows = [(key.replace("_", " "), str(value)) for key, value in environment.items() if not isinstance(value, dict)]
    rows += list(environment.get("packages", {}).items())
    if "splits_sha256" in run.results:
        rows.append(("SHA-256 of splits.csv", run.results["splits_sha256"]))
    blocks: list[Block] = [Code("recipe.yaml: options that differ from the defaults", yaml.safe_dump(run.recipe))]
    if rows:
        blocks.append(Table("Environment", ("", "value"), rows))
    return Section("Reproduce", blocks)
