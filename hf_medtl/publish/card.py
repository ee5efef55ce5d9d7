"""Model cards: Hub metadata, the author's prose, and the facts of the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_medtl.common.files import read_json
from hf_medtl.common.licences import card_metadata
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.common.text import escape_cell
from hf_medtl.evaluation.names import METRIC_NAMES
from hf_medtl.publish.licences import describe_licences, list_sources
from hf_medtl.publish.prose import render_prose
from hf_medtl.publish.templates import format_interval, render, replace_section


def render_card(facts: dict[str, Any], prose: str = "") -> str:
    """Render a model card: Markdown with YAML front matter that the Hub accepts.

    Args:
        facts: `results` (content of results.json), `spec` and `external_spec` (rows of DATASETS), `counts` (split ->
            label -> number), `excluded` (kind -> number), `name`, `base_model` (`BaseModel`; None for random weights),
            `start` (description of the weights before training), `license` (as chosen by `choose_licence`), maybe
            `license_waiver` and `lung_model` (`BaseModel`), `model_class`, `parameters`, `processor`,
            `own_code` (names of code files beside the weights), `recipe_yaml`, `worst` (rows of a table of test images,
            worst first), and the provenance that `hf_medtl.runs.artifacts` collects.
        prose: Markdown by the author (intended use, limits), maybe a template with the same facts (`render_prose`).

    Raises:
        MedtlError: The prose is a template that can't be filled in.
    """
    facts = facts | {"names": METRIC_NAMES, "origin": facts["base_model"]}  # origin: for prose written for 0.1.0
    written = render_prose(prose, facts)
    more = {"prose": written, "licences": describe_licences(facts), "license_waiver": facts.get("license_waiver")}
    return f"---\n{_metadata(facts).to_yaml()}\n---\n\n{render(facts['spec'].task, facts | more)}"


def write_explanations(folder: Path, report: dict[str, Any], split: str) -> None:
    """Save the report of `explain.report` in a run folder, and its verdicts on the card.

    Args:
        folder: Run folder.
        report: Content of explanations.json.
        split: Split of the explained images.
    """
    RunFolder(folder).write("explanations.json", report)
    verdicts = [*report["verdict"].items(), *report.get("energy", {"by_label": {}})["by_label"].items()]
    replace_section(
        folder / "README.md",
        "explanations",
        f"Heatmaps by {report['method']} for {report['n']} images of the {split} split, tested for their dependence on "
        "the learned weights, on the image and on noise (`explanations.json` has all numbers):\n\n"
        + "\n".join(f"- {escape_cell(label)}: {facts['summary']}" for label, facts in verdicts),
    )


EVALUATION_KEYS = (
    *("dataset", "split", "n", "n_groups", "metrics", "drop"),
    *("slices", "overlap", "excluded", "robustness", "no_drop"),
)


def write_evaluation(folder: Path, result: dict[str, Any], title: str, shown: Sequence[str]) -> None:
    """Add the result of `hf-medtl evaluate` to evaluations.json and the card of a run.

    Args:
        folder: Run folder.
        result: Result of the evaluation.
        title: Title of its data set.
        shown: Metrics for the card.
    """
    path = folder / "evaluations.json"
    evaluations = read_json(path) if path.exists() else {}
    kept = {key: result[key] for key in EVALUATION_KEYS if key in result}
    evaluations[f"{result['dataset']}, {result['split']}"] = {"title": title} | kept
    RunFolder(folder).write("evaluations.json", evaluations)
    lines = []
    for evaluation in evaluations.values():
        metrics = evaluation["metrics"]
        values = "; ".join(
            f"{METRIC_NAMES[name]} {format_interval(metrics[name])}" for name in shown if name in metrics
        )
        # `check` looks for "- On other data: ", "  Subgroups by " and "  Robustness:".
        where = "Its own test images:" if evaluation["no_drop"] else "On other data:"
        size = f"{evaluation['n']} images in {evaluation['n_groups']} groups"
        lines.append(f"- {where} {escape_cell(evaluation['title'])} ({size}): {values}.")
        if evaluation["slices"]:
            lines.append(f"  Subgroups by {', '.join(evaluation['slices'])} are measured.")
        if "robustness" in evaluation:
            drop = format_interval(evaluation["robustness"]["mean_relative_drop"])
            lines.append(
                f"  Robustness: on corrupted images balanced accuracy is lower by a fraction of {drop} on average."
            )
    head = "Tested after training, with the same model and threshold (`evaluations.json` has all numbers):\n\n"
    replace_section(folder / "README.md", "evaluations", head + "\n".join(lines))


def write_export_section(folder: Path) -> None:
    """Describe the exports in a run folder on its card: a row for each export/*/export.json."""
    card = folder / "README.md"
    exports = {path.parent.name: read_json(path) for path in sorted(folder.glob("export/*/export.json"))}
    facts = {
        "exports": exports,
        "specs": {kind: read_json(folder / "export" / kind / "preprocessing.json") for kind in exports},
        "name": ModelCard.load(card).data.model_name or folder.name,
        "own_processor": (folder / "processor.py").exists(),
    }
    replace_section(card, "exports", render("exports", facts))


def _metadata(facts: dict[str, Any]) -> ModelCardData:
    """Return the front matter: licence, base model, data, task, library, tags, and the model-index with the results."""
    spec, results, base_model = facts["spec"], facts["results"], facts["base_model"]
    # The revision distinguishes two data sets of the same name, such as two tables.
    tested = [(spec, results, results["splits_sha256"])]
    tested += [(facts["external_spec"], results["external"], None)] if "external" in results else []
    published = None if base_model is None or base_model.is_local else base_model.name
    has_model = results.get("fitted", {}).get("strategy") != "knn"
    return ModelCardData(
        **card_metadata(facts["license"], list_sources(facts)),
        base_model=published,
        base_model_relation="finetune" if published and has_model else None,
        # Only ids on the Hub, which links them; the model-index names other data sets.
        datasets=[spec.hub_id] if spec.hub_id else None,
        metrics=[name for name, metric in results["metrics"].items() if metric["value"] is not None],
        pipeline_tag=spec.task if has_model else None,
        library_name="transformers" if has_model else None,
        tags=["medical", "hf_medtl", *(["synthetic-data"] if spec.phantom else [])],
        model_name=facts["name"],
        eval_results=[
            result
            for data, measured, revision in tested
            for result in eval_results(measured, data.id, data.title, revision)
        ],
    )


def eval_results(results: Mapping[str, Any], dataset: str, title: str, revision: str | None = None) -> list[EvalResult]:
    """Return the entries of a model-index.

    Args:
        results: Content of results.json, or its part about an external data set.
        dataset: Id of the data set.
        title: Its title.
        revision: Distinguishes two data sets of the same name.
    """
    return [
        EvalResult(
            task_type=results["task"],
            dataset_type=dataset,
            dataset_name=title,
            dataset_split=results["split"],
            dataset_revision=revision,
            metric_type=name,
            metric_name=METRIC_NAMES[name],
            metric_value=round(metric["value"], 4),
        )
        for name, metric in results.get("metrics", {}).items()
        if metric["value"] is not None
    ]
