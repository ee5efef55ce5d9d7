"""README.md of a run: metadata for the Hub, prose written by hand, facts filled in by the run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_medtl.evaluation.names import METRIC_NAMES
from hf_medtl.publish.templates import format_interval, render, replace_section, template_environment


def card(facts: dict[str, Any], prose: str = "") -> str:
    """Model card as Markdown with YAML front matter that the Hub accepts.

    Args:
        facts: `results` (of results.json), `spec` and `external_spec` (rows of DATASETS), `counts` (split -> label ->
            number), `excluded` (kind -> number), `name`, `origin` (an `Origin`, None for random weights), `start`
            (what the weights were before training), `license`, `model_class`, `parameters`, `processor`, `own_code`
            (names of the files with code beside the weights), `recipe_yaml`, `worst` (rows of a table of test pictures,
            worst first), and what `training.story.story` gives.
        prose: Markdown written by hand (intended use, limits); a jinja template that sees the same facts.
    """
    facts = facts | {"names": METRIC_NAMES}
    written = template_environment().from_string(prose).render(facts)
    return f"---\n{metadata(facts).to_yaml()}\n---\n\n{render(facts['spec'].task, facts | {'prose': written})}"


def put_explanations(folder: Path, found: dict[str, Any], split: str) -> None:
    """Let a run's folder and card say what `explain.report.report` found."""
    (folder / "explanations.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    told = [*found["verdict"].items(), *found.get("energy", {"by_label": {}})["by_label"].items()]
    lines = [f"- {label}: {facts['summary']}" for label, facts in told]
    replace_section(
        folder / "README.md",
        "explanations",
        f"Maps by {found['method']}, of {found['n']} pictures of the {split} split, and whether they depend on what "
        "was learnt, on the pictures, and on noise (`explanations.json` has every number):\n\n" + "\n".join(lines),
    )


def put_evaluation(folder: Path, result: dict[str, Any], title: str, shown: Sequence[str]) -> None:
    """Let a run's folder and card say what `hf-medtl evaluate` found on a data set.

    Args:
        folder: of the run.
        result: of the evaluation.
        title: of its data set.
        shown: metrics that the card says.
    """
    path = folder / "evaluations.json"
    every = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = (
        "dataset",
        "split",
        "n",
        "n_groups",
        "metrics",
        "drop",
        "slices",
        "overlap",
        "excluded",
        "robustness",
        "no_drop",
    )
    every[f"{result['dataset']}, {result['split']}"] = {"title": title} | {
        key: result[key] for key in kept if key in result
    }
    path.write_text(json.dumps(every, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    lines = []
    for its in every.values():
        told = "; ".join(
            f"{METRIC_NAMES[name]} {format_interval(its['metrics'][name])}" for name in shown if name in its["metrics"]
        )
        where = "Its own test pictures:" if its["no_drop"] else "On other data:"
        lines.append(f"- {where} {its['title']} ({its['n']} pictures in {its['n_groups']} groups): {told}.")
        if its["slices"]:
            lines.append(f"  Subgroups by {', '.join(its['slices'])} are measured.")
        if "robustness" in its:
            fall = format_interval(its["robustness"]["mean_relative_drop"])
            lines.append(f"  Robustness: corrupted pictures lower balanced accuracy by a share of {fall} on average.")
    head = "Tested afterwards with the same model and threshold (`evaluations.json` has every number):\n\n"
    replace_section(folder / "README.md", "evaluations", head + "\n".join(lines))


def put_exports(folder: Path) -> None:
    """Let a run's card say what the exports in its folder are worth: a row for each export/*/export.json."""
    found = {path.parent.name: json.loads(path.read_text("utf-8")) for path in folder.glob("export/*/export.json")}
    rows = dict(sorted(found.items()))
    contracts = {
        kind: json.loads((folder / "export" / kind / "preprocessing.json").read_text("utf-8")) for kind in rows
    }
    card = folder / "README.md"
    name = ModelCard.load(card).data.model_name or folder.name
    facts = {"exports": rows, "contracts": contracts, "name": name}
    facts["own_processor"] = (folder / "processor.py").exists()
    replace_section(card, "exports", render("exports", facts))


def metadata(facts: dict[str, Any]) -> ModelCardData:
    """Front matter: licence, base model, data, task, library, tags, and the model-index with the results."""
    spec, results, origin = facts["spec"], facts["results"], facts["origin"]
    # Two data sets of one name, such as two tables, are two data sets by their revisions.
    tested = [(spec, results, results["splits_sha256"])]
    tested += [(facts["external_spec"], results["external"], None)] if "external" in results else []
    published = None if origin is None or origin.is_local else origin.name
    return ModelCardData(
        license=facts["license"],
        base_model=published,
        base_model_relation="finetune" if published else None,
        # Ids on the Hub, which shows links: a set that is elsewhere is named in the model-index alone.
        datasets=[spec.hub_id] if spec.hub_id else None,
        metrics=[name for name, metric in results["metrics"].items() if metric["value"] is not None],
        pipeline_tag=spec.task,
        library_name="transformers",
        tags=["medical", "hf_medtl", *(["synthetic-data"] if spec.phantom else [])],
        model_name=facts["name"],
        eval_results=[
            EvalResult(
                task_type=data.task,
                dataset_type=data.id,
                dataset_name=data.title,
                dataset_split=measured["split"],
                dataset_revision=revision,
                metric_type=name,
                metric_name=METRIC_NAMES[name],
                metric_value=round(metric["value"], 4),
            )
            for data, measured, revision in tested
            for name, metric in measured["metrics"].items()
            if metric["value"] is not None
        ],
    )
