"""README.md of a run: metadata for the Hub, prose written by hand, facts filled in by the run."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "Positive predictive value",
    "npv": "Negative predictive value",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "average_precision": "Average precision",
    "brier": "Brier score (lower is better)",
    "dice": "Dice",
    "iou": "IoU (Jaccard)",
    "precision": "Precision of pixels",
    "recall": "Recall of pixels",
    "hausdorff95": "95 % Hausdorff distance in pixels (lower is better)",
    "ece": "Expected calibration error (lower is better)",
}


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
    facts = facts | {"names": NAMES}
    written = templates().from_string(prose).render(facts)
    return f"---\n{metadata(facts).to_yaml()}\n---\n\n{page(facts['spec'].task, facts | {'prose': written})}"


def page(name: str, facts: dict[str, Any]) -> str:
    """Markdown of the template NAME.md.jinja beside this file."""
    text = templates().get_template(f"{name}.md.jinja").render(facts | {"names": NAMES})
    return re.sub(r"\n{3,}", "\n\n", text)  # what is left out leaves empty lines


def put_section(card: Path, name: str, text: str) -> None:
    """Replace what a card has between <!-- NAME --> and <!-- /NAME -->, or add both at its end."""
    old = card.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = old.partition(begin)
    after = rest.partition(end)[2] if found else "\n"
    between = "" if found else "\n"
    card.write_text(f"{before}{between}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def put_explanations(folder: Path, found: dict[str, Any], split: str) -> None:
    """Let a run's folder and card say what `explain.report.report` found."""
    (folder / "explanations.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    told = [*found["verdict"].items(), *found.get("energy", {"by_label": {}})["by_label"].items()]
    lines = [f"- {label}: {facts['summary']}" for label, facts in told]
    put_section(
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
        told = "; ".join(f"{NAMES[name]} {interval(its['metrics'][name])}" for name in shown if name in its["metrics"])
        where = "Its own test pictures:" if its["no_drop"] else "On other data:"
        lines.append(f"- {where} {its['title']} ({its['n']} pictures in {its['n_groups']} groups): {told}.")
        if its["slices"]:
            lines.append(f"  Subgroups by {', '.join(its['slices'])} are measured.")
        if "robustness" in its:
            fall = interval(its["robustness"]["mean_relative_drop"])
            lines.append(f"  Robustness: corrupted pictures lower balanced accuracy by a share of {fall} on average.")
    head = "Tested afterwards with the same model and threshold (`evaluations.json` has every number):\n\n"
    put_section(folder / "README.md", "evaluations", head + "\n".join(lines))


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
    put_section(card, "exports", page("exports", facts))


def templates(package: str = "hf_medtl.publish", autoescape: bool = False) -> Environment:
    """Where templates come from and what they can do."""
    environment = Environment(
        loader=PackageLoader(package, ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=autoescape,
    )
    environment.filters |= {"interval": interval, "spread": spread, "difference": difference}
    environment.filters |= {"linked": linked, "cell": cell, "bibtex": bibtex}
    return environment


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
                metric_name=NAMES[name],
                metric_value=round(metric["value"], 4),
            )
            for data, measured, revision in tested
            for name, metric in measured["metrics"].items()
            if metric["value"] is not None
        ],
    )


def spread(metric: dict[str, float | None]) -> str:
    """`0.953 (0.920 to 0.981)` of the folds' mean, lowest and highest, or `undefined`."""
    if metric["value"] is None:
        return "undefined"
    return f"{metric['value']:.3f} ({metric['lowest']:.3f} to {metric['highest']:.3f})"


def interval(metric: dict[str, float | None]) -> str:
    """`0.953 [0.871, 0.990]`, or `undefined`."""
    if metric["value"] is None:
        return "undefined"
    low, high = ("?" if metric[key] is None else rounded(metric[key], 3) for key in ("low", "high"))
    return f"{rounded(metric['value'], 3)} [{low}, {high}]"


def rounded(value: Any, digits: int) -> str:
    """`-0.001`, `0.000`; never `-0.000`."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def difference(metric: dict[str, float | None]) -> str:
    """`-0.0020 [-0.0100, +0.0060]`; without limits where there are none."""
    if metric["value"] is None:
        return "undefined"
    limits = "" if metric["low"] is None else f" [{metric['low']:+.4f}, {metric['high']:+.4f}]"
    return f"{metric['value']:+.4f}{limits}"


def linked(spec: Any) -> str:
    """A data set's title, as a link to where it can be read about if that is known."""
    return f"[{spec.title}]({spec.url})" if spec.url else spec.title


def cell(value: Any) -> str:
    """What stands in a cell of a table: a file's name may hold what would end it."""
    return " ".join(str(value).split()).replace("|", "\\|")


def bibtex(text: str) -> str:
    """Text as BibTeX takes it."""
    return re.sub(r"([&%#_$])", r"\\\1", text)
