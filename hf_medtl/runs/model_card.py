"""Model card of a run: its facts, a rehearsal before training, and writing it, also again."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_medtl.common.code_version import citation
from hf_medtl.common.files import read_json
from hf_medtl.common.licences import UNKNOWN
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.common.system import is_disk_full
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.specs import DatasetSpec
from hf_medtl.data.splits import SPLITS
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.subgroups import generalization_gap
from hf_medtl.models.preprocessing import describe_processor
from hf_medtl.publish.base_model import BaseModel, find_base_model
from hf_medtl.publish.card import render_card
from hf_medtl.publish.licences import (
    FACTS,
    asked_licence,
    check_licence,
    check_waiver,
    choose_licence,
    find_problem,
    list_sources,
)
from hf_medtl.publish.prose import read_prose
from hf_medtl.publish.sentences import finding_sentences
from hf_medtl.publish.templates import copy_sections
from hf_medtl.tasks import Task
from hf_medtl.training.options import MODEL_OPTIONS
from hf_medtl.training.recipe import Recipe
from hf_medtl.training.runtime import environment

logger = logging.getLogger("hf_medtl")

SECTIONS = ("explanations", "evaluations", "exports", "waived")  # of other commands on a card


def collect_facts(
    recipe: Recipe,
    task: Task,
    loaded: LoadedDataset,
    external: LoadedDataset | None,
    model: PreTrainedModel,
    processor: Any,
) -> dict[str, Any]:
    """Return the facts of `render_card` that are known before training.

    Args:
        recipe: The options of the run.
        task: Its task.
        loaded: The data set, split.
        external: The external test set, or None.
        model: The model, before or after training.
        processor: Its image processor.
    """
    base, (findings, prose) = task.base_model(recipe), read_prose(recipe.model_card)
    weights = {
        "base_model": find_base_model(*base) if base else None,
        "lung_model": find_base_model(recipe.lung_model) if recipe.lung_model else None,
    }
    sources = list_sources({"spec": loaded.spec} | weights)
    return {
        "findings": findings,
        "prose": prose,
        "spec": loaded.spec,
        "external_spec": (external or loaded).spec,
        "counts": loaded.counts(),
        "excluded": count_excluded(loaded),
        "sizes": _split_sizes(loaded),
        "found": describe_data_checks(loaded),
        "split_rule": loaded.rule,
        "name": model_name(recipe),
        **weights,
        "start": task.describe_initial_weights(recipe, model),
        "license": choose_licence(sources, recipe.model_license, recipe.license_waiver),
        "license_waiver": recipe.license_waiver,
        "model_class": type(model).__name__,
        "parameters": model.num_parameters(),
        "processor": describe_processor(processor),
        "recipe_yaml": recipe.to_yaml(),
        "repeat": repeat_command(recipe),
        "software": citation(),
    }


def model_name(recipe: Recipe) -> str:
    """Return the name of the model: that of its repository, if it is published, or of its folder."""
    published = recipe.push_to_hub and recipe.hub_model_id
    return str(published or Path(str(recipe.output_dir)).resolve().name)


def repeat_command(recipe: Recipe, splits: bool = True) -> dict[str, Any]:
    """Return the command that repeats a run from its recipe.yaml, which has no paths of this machine.

    Args:
        recipe: The options of the run.
        splits: Repeat its split, too.

    Returns:
        command; and placeholders: a word of the command -> what to give for it.
    """
    options: list[str] = []
    placeholders: dict[str, str] = {}
    if splits and recipe.train_fraction == 1:
        options.append("--splits splits.csv")
    for option, placeholder, meaning in (
        ("data_dir", "DATA", "the folder or file of the data"),
        ("external_data_dir", "EXTERNAL_DATA", "the folder or file of the external data"),
        ("model_name_or_path", "BASE_MODEL", "the folder of the weights before training"),
        ("encoder_weights", "ENCODER_WEIGHTS", "the folder of the encoder's weights"),
        ("lung_model", "LUNG_MODEL", "the folder of the lung segmentation model"),
    ):
        value = getattr(recipe, option)
        if value and (option not in MODEL_OPTIONS or Path(value).exists()):
            options.append(f"--{option} {placeholder}")
            folder = f" ({Path(value).resolve().name})" if option in MODEL_OPTIONS else ""
            placeholders[placeholder] = meaning + folder
    if recipe.push_to_hub:
        options += ["--push_to_hub false", "--hub_strategy end"]
    command = " ".join(("hf-medtl train recipe.yaml", *options, "--output_dir runs/again"))
    return {"command": command, "placeholders": placeholders}


def render_with_dummy_results(
    recipe: Recipe, task: Task, loaded: LoadedDataset, external: LoadedDataset | None, facts: Mapping[str, Any]
) -> str:
    """Render the card before training, with made-up results of the right form, so that nothing of it fails later.

    Args:
        recipe: The options of the run.
        task: Its task.
        loaded: The data set, split.
        external: The external test set, or None.
        facts: Those of `collect_facts`.

    Raises:
        MedtlError: The prose of --model_card does not fit this run.
    """
    results = _dummy_results(recipe, task, loaded)
    if external:
        measured = _dummy_results(recipe, task, external)
        gap = generalization_gap(results["metrics"], measured["metrics"])
        results["external"] = measured | {"drop": gap, "excluded": count_excluded(external)}
    results["environment"] = environment("no", recipe.world_size, recipe.device)
    made_up = {
        "results": results,
        "procedure": [],
        "worst": [],
        "own_code": [],
        "wording": finding_sentences(facts["findings"], results, loaded.spec.title),
    }
    return render_card({**facts, **made_up}, facts["prose"])


def _dummy_results(recipe: Recipe, task: Task, loaded: LoadedDataset) -> dict[str, Any]:
    """Return results.json as of a model that has learned nothing, measured on a few test images."""
    rows = loaded.rows("test")
    kept = rows.index[~rows.duplicated(["label", "source"])]
    few = loaded.select(loaded.table.index.isin(kept))
    predictions, rule = task.dummy_predictions(few, task.output_labels(recipe, loaded))
    return task.measure(few, predictions, rule) | {
        "dataset": loaded.spec.name,
        "task": loaded.spec.task,
        "split": "test",
        "n": len(rows),
        "n_groups": rows["group"].nunique(),
        "train_seconds": 0.0,
        "peak_memory_mb": 0.0,
        "splits_sha256": "",
        **({"fitted": {"strategy": recipe.strategy}} if recipe.plan.is_fitted else {}),
    }


def write_card(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the card of a finished run, and card.json, from which `rewrite_card` makes it again.

    Args:
        folder: Run folder, with results.json and recipe.yaml.
        facts: Those of `collect_facts` and of training.
    """
    saved = {
        key: dataclasses.asdict(value) if isinstance(value, (DatasetSpec, BaseModel)) else value
        for key, value in facts.items()
    }
    RunFolder(folder).write(FACTS, saved)
    rewrite_card(folder)


def rewrite_card(
    folder: Path,
    model_card: str | Path | None = None,
    model_license: str | None = None,
    license_waiver: str | None = None,
) -> None:
    """Write the card of a finished run again; sections that other commands have written on it are kept.

    Args:
        folder: Run folder.
        model_card: File with the author's prose; that of the run if omitted.
        model_license: Licence of the model; that of the run if omitted.
        license_waiver: What the author states about permissions beyond the licences of data and base model.

    Raises:
        MedtlError: The folder has no card.json, the prose does not fit the run, or the licence allows more than those
            of data and base model.
    """
    if model_license is not None:
        check_licence(model_license)
    check_waiver(license_waiver)
    run, card = RunFolder(folder), folder / "README.md"
    if not run.results or not (folder / FACTS).is_file():
        raise MedtlError(f"{folder} has no results.json or no {FACTS}, from which its card could be written.")
    facts = read_json(folder / FACTS)
    if model_card:
        facts["findings"], facts["prose"] = read_prose(model_card)
        run.write(FACTS, facts)
    _choose_again(facts, model_license, license_waiver)
    if model_license or license_waiver:
        run.write(FACTS, facts)
    for key, kind in (
        ("spec", DatasetSpec),
        ("external_spec", DatasetSpec),
        ("base_model", BaseModel),
        ("lung_model", BaseModel),
    ):
        names = {field.name for field in dataclasses.fields(kind)}
        if value := facts.get(key):
            facts[key] = kind(**{name: value for name, value in value.items() if name in names})
    wording = finding_sentences(facts["findings"], run.results, facts["spec"].title)
    if wording and run.config and run.config.get("wording") != wording:  # for Predictor and the Space
        run.write("config.json", run.config | {"wording": wording})
    text = render_card(facts | {"results": run.results, "wording": wording}, facts["prose"])
    run.write("README.md", copy_sections(card.read_text("utf-8"), text, SECTIONS) if card.exists() else text)


def _choose_again(facts: dict[str, Any], model_license: str | None, license_waiver: str | None) -> None:
    """Set the licence and the waiver among the facts of a card."""
    facts["license_waiver"] = license_waiver or facts.get("license_waiver")
    sources, before = list_sources(facts), facts["license"]
    asked = model_license or (None if before == UNKNOWN else before)
    facts["license"] = choose_licence(sources, asked, facts["license_waiver"])
    problem = find_problem(sources, asked_licence(sources, asked), facts["license_waiver"])
    if model_license and problem:
        raise MedtlError(f"{problem} The card was not written.")


@contextmanager
def warn_instead(what: str, folder: Path, command: str) -> Iterator[None]:
    """Turn an error after training into a warning, because the run is complete without `what`.

    Args:
        what: What is made.
        folder: Run folder.
        command: The command that makes it again.
    """
    try:
        yield
    except Exception as error:
        if is_disk_full(error, folder):
            raise
        logger.warning(
            "%s could not be made (%s: %s). The results are complete in %s. Make it again: %s",
            *(what, type(error).__name__, error, folder, command),
        )


def count_excluded(loaded: LoadedDataset) -> dict[str, int]:
    """Return the number of files in no split by the reason for their exclusion."""
    return {str(kind): int(number) for kind, number in loaded.excluded["kind"].value_counts().items()}


def _split_sizes(loaded: LoadedDataset) -> dict[str, dict[str, int]]:
    """Split -> number of groups and, as far as known, patients."""
    return {
        split: {"groups": rows["group"].nunique(), "patients": rows.loc[rows["patient"] != "", "patient"].nunique()}
        for split, rows in ((split, loaded.rows(split)) for split in SPLITS)
    }


def describe_data_checks(loaded: LoadedDataset) -> list[str]:
    """Return sentences about copies, unknown patients and sources in a data set."""
    table = loaded.table
    total, copies = len(table), int(table["sha256"].duplicated(keep=False).sum())
    grouped = total - int((table["group"].value_counts() == 1).sum())
    unknown = int((table["patient"] == "").sum())
    sentences = [
        f"{grouped} of {total} images are in a group with another image; {copies} are the same file as another."
    ]
    if unknown:
        sentences.append(f"The patient is unknown for {unknown} of {total} images.")
    sources = table["source"].value_counts()
    if len(sources) > 1:
        sentences.append(f"Sources: {', '.join(f'{name} ({number} images)' for name, number in sources.items())}.")
    return sentences
