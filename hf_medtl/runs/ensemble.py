"""Ensembles of finished runs: averaged probabilities (deep ensemble) or averaged weights (model soup)."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from huggingface_hub import ModelCardData
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.models.timm_wrapper import TimmWrapperImageProcessor

from hf_medtl.common.checksums import SHOWN, check_unchanged
from hf_medtl.common.csv_cells import to_csv
from hf_medtl.common.files import adding_files
from hf_medtl.common.licences import card_metadata
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.common.text import first_line
from hf_medtl.data.columns import parse_columns
from hf_medtl.data.identifiers import IDENTIFIERS
from hf_medtl.data.loading import load
from hf_medtl.errors import MedtlError
from hf_medtl.models.build import load_trained
from hf_medtl.models.ensemble import EnsembleConfig, EnsembleForImageClassification
from hf_medtl.models.preprocessing import describe_processor, normalisation, shared_processor
from hf_medtl.models.untrusted import load_config, load_processor
from hf_medtl.publish.card import eval_results
from hf_medtl.publish.licences import (
    asked_licence,
    check_licence,
    check_waiver,
    choose_licence,
    describe_licence,
    find_problem,
    member_sources,
    own_source,
)
from hf_medtl.publish.templates import render
from hf_medtl.runs.folder import check_output_dir
from hf_medtl.runs.output_folder import filling
from hf_medtl.tasks import task_for_dataset, task_for_results

logger = logging.getLogger("hf_medtl")


def ensemble(
    runs: Sequence[Path],
    folder: Path,
    soup: bool = False,
    data_dir: Path | None = None,
    model_license: str | None = None,
    license_waiver: str | None = None,
) -> dict[str, Any]:
    """Write an ensemble of runs to a folder; return its results, without metrics if none would be unbiased.

    The mean of calibrated probabilities is decided with the mean of the runs' thresholds. It is evaluated if all runs
    have the same test images, which no member was then trained on; folds do not.

    A soup has the mean of the weights (and of the batch norm statistics, which are not recomputed). It is a new model:
    neither temperature nor threshold of the members fit it. Given the data, and runs with the same split, both are
    fitted again on validation and the soup is tested; otherwise it has none.

    Args:
        runs: folders of finished runs; a cross-validation stands for its folds.
        folder: to write to; new or empty.
        soup: average weights instead of probabilities (Wortsman et al. 2022, Model soups,
            https://arxiv.org/abs/2203.05482).
        data_dir: the data set of the runs, for a soup.
        model_license: licence of the ensemble; the strictest of the members' by default.
        license_waiver: sentence for the card about permissions beyond the licences of the members.

    Raises:
        MedtlError: Fewer than two runs, an unfinished run or a segmentation run; weights that are missing or not
            finite; runs with other labels, another positive label or other preprocessing (for a soup: another
            architecture) than the first; a licence that allows more than the members'.
    """
    check_output_dir(folder, resuming=False)
    members = [RunFolder(path) for run in runs for path in (sorted(run.glob("fold-*")) or [run])]
    licence = _choose_licence(members, model_license, license_waiver)
    with filling(folder, "writes an ensemble", "--output_dir") as staging:
        return _ensemble(members, staging, folder.name, soup, data_dir, licence)


def _choose_licence(members: Sequence[RunFolder], asked: str | None, waiver: str | None) -> dict[str, Any]:
    """Return the front matter about the licence of an ensemble, and what its card says of each member's."""
    if asked is not None:
        check_licence(asked)
    check_waiver(waiver)
    sources = [source for member in members for source in member_sources(member.path)]
    problem = find_problem(sources, asked_licence(sources, asked), waiver)
    if problem and asked:
        raise MedtlError(f"{problem} No ensemble was made.")
    if problem:
        logger.warning("%s It is not for publishing as it is.", problem)
    licence = choose_licence(sources, asked, waiver)
    lines = {source.title: describe_licence(source) for source in sources}
    lines["This model"] = describe_licence(own_source(licence, sources))
    return {"metadata": card_metadata(licence, sources), "licences": lines, "license_waiver": waiver}


def _ensemble(
    members: Sequence[RunFolder],
    folder: Path,
    model_name: str,
    soup: bool,
    data_dir: Path | None,
    licence: dict[str, Any],
) -> dict[str, Any]:
    names = [f"{member.path.resolve().parent.name}/{member.path.resolve().name}" for member in members]
    if len(members) < 2:
        raise MedtlError(
            f"An ensemble needs two or more runs, found {len(members)}. Give the folders of finished runs."
        )
    results = [_classification_results(member) for member in members]
    models, processors = zip(*map(_load_member, members), strict=True)
    _check_same_outputs(names, results, models)
    for member in members:
        check_unchanged(member.path, "No ensemble was made.", SHOWN)
    processor = shared_processor(processors, names)
    combine = _average_weights if soup else _join_members
    model, processor = combine(models, names, processors, processor)
    task = task_for_results(results[0])
    positive = results[0]["positive_label"]
    thresholds = task.mean_thresholds(results)
    model.config.update(task.decision_rule(results[0] | thresholds, fitted=not soup).to_config())
    output = RunFolder(folder)

    def save() -> None:
        with adding_files(folder) as staging:
            model.save_pretrained(staging)
            if not isinstance(processor, TimmWrapperImageProcessor):
                processor.save_pretrained(staging)

    save()
    figures = folder / "figures"
    figures.mkdir()
    same_split = len({_split_text(member) for member in members}) == 1
    columns = ["image_id", "label", "group"]
    same_test = all(member.predictions[columns].equals(members[0].predictions[columns]) for member in members)
    result = {"dataset": results[0]["dataset"], "task": task.pipeline, "split": "test"}
    if soup and same_split and data_dir:
        table_columns = parse_columns(members[0].recipe.get("columns"))
        splits = members[0].path / "splits.csv"
        loaded = load(results[0]["dataset"], data_dir, splits=splits, positive=positive, columns=table_columns)
        task = task_for_dataset(loaded)
        rule, alpha = results[0].get("threshold_rule") or "youden", results[0].get("conformal", {}).get("alpha", 0.1)
        fitted = task.calibrate(model, loaded, task.predict(folder, loaded, "validation"), rule, alpha)
        model.config.update(fitted.to_config())
        save()
        predictions = task.predict(folder, loaded, "test")
        result |= task.measure(loaded, predictions, fitted)
        result |= {key: results[0][key] for key in ("positive_label_source",) if key in results[0]}
        output.write("predictions.csv", to_csv(task.prediction_table(loaded, predictions)))
        task.draw_figures(folder, figures, loaded, predictions, result)
    elif not soup and same_test:
        table = _mean_predictions([member.predictions for member in members])
        result |= task.pool_folds(table, [results[0] | thresholds], figures, "test split")
        output.write("predictions.csv", to_csv(table))
    else:
        logger.warning("No results are written: %s", _why_no_results(soup, same_split))
    if "metrics" in result:
        result["temperature"] = model.config.folded_temperature
        output.write("results.json", result)
        if same_split:  # otherwise the members share only the test images
            for name in ("splits.csv", IDENTIFIERS):  # the latter as far as file names are not public
                if (members[0].path / name).is_file():
                    output.write(name, (members[0].path / name).read_bytes())
    facts = {
        "name": model_name,
        "members": [
            {
                "name": name,
                "model": member.recipe.get("model_name_or_path", "default"),
                "seed": member.recipe.get("seed", 42),
                "auc": member.results["metrics"]["roc_auc"],
            }
            for name, member in zip(names, members, strict=True)
        ],
        "soup": soup,
        "labels": results[0]["labels"],
        "dataset": results[0]["dataset"],
        "fitted": soup and "metrics" in result,
        "results": result,
        "why_not": _why_no_results(soup, same_split),
    }
    _write_card(folder, model, processor, facts | licence)
    output.mark_finished()
    return result


def _classification_results(run: RunFolder) -> dict[str, Any]:
    """Return results.json of a finished classification run."""
    if not task_for_results(run.check_finished().results).has_probabilities:
        raise MedtlError(f"{run.path} is a run of {run.task}: only classifiers can be averaged.")
    return run.results


def _load_member(member: RunFolder) -> tuple[PreTrainedModel, Any]:
    try:
        return load_trained(AutoModelForImageClassification, member.path).eval(), load_processor(member.path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise MedtlError(
            f"{member.path} can't be loaded as a classifier ({first_line(error)}). Train it again, or leave it out."
        ) from error


def _check_same_outputs(
    names: Sequence[str], results: Sequence[dict[str, Any]], models: Sequence[PreTrainedModel]
) -> None:
    """Raise MedtlError if the outputs of a run mean something else than those of the first."""
    for name, result, model in zip(names, results, models, strict=True):
        for what, (first, other) in {
            "labels": (results[0]["labels"], result["labels"]),
            "the positive label": (results[0]["positive_label"], result["positive_label"]),
            "problem_type": (models[0].config.problem_type, model.config.problem_type),
        }.items():
            if first != other:
                raise MedtlError(
                    f"{names[0]} and {name} differ in {what}: {first} and {other}. All members need the same, in the "
                    "same order."
                )


def _join_members(
    models: Sequence[PreTrainedModel], names: Sequence[str], processors: Sequence[Any], processor: Any
) -> tuple[PreTrainedModel, Any]:
    """Return one model that contains all members, and its processor."""

    def mean_and_std(processor: Any) -> dict[str, list[float]]:
        pairs = zip(("mean", "std"), normalisation(processor), strict=True)
        return {key: (values.double().flatten() / 255).tolist() for key, values in pairs}

    members = [
        {"name": name, "config": _portable_config(model), **mean_and_std(own)}
        for name, model, own in zip(names, models, processors, strict=True)
    ]
    first = models[0].config
    config = EnsembleConfig(
        members,
        **mean_and_std(processor),
        id2label=first.id2label,
        label2id=first.label2id,
        problem_type=first.problem_type,
        dtype="float32",
    )
    joined = EnsembleForImageClassification(config)
    for member, model in zip(joined.members, models, strict=True):
        member.load_state_dict(model.state_dict(), strict=True)
    return joined.eval(), processor


def _portable_config(model: PreTrainedModel) -> dict[str, Any]:
    """Return a member's configuration without paths and without keys that belong to its own folder."""
    excluded = ("_name_or_path", "auto_map", "image_processor_type")
    return {key: value for key, value in model.config.to_dict().items() if key not in excluded}


def _average_weights(
    models: Sequence[PreTrainedModel], names: Sequence[str], processors: Sequence[Any], processor: Any
) -> tuple[PreTrainedModel, Any]:
    """Return the first model with the mean of all weights, and its own processor.

    Raises:
        MedtlError: Another class, other tensors or another normalisation than the first.
    """
    states = [model.state_dict() for model in models]
    shapes = [{key: tuple(tensor.shape) for key, tensor in state.items()} for state in states]
    for name, model, shape, own in zip(names, models, shapes, processors, strict=True):
        unlike = sorted(key for key in {**shapes[0], **shape} if shapes[0].get(key) != shape.get(key))
        if type(model) is not type(models[0]) or unlike:
            raise MedtlError(
                f"The weights of {names[0]} ({type(models[0]).__name__}) and {name} ({type(model).__name__}) cannot be "
                f"averaged: {len(unlike)} tensors differ in name or shape{', such as ' + unlike[0] if unlike else ''}. "
                "Remove --soup to average their probabilities instead."
            )
        if any(not torch.equal(*pair) for pair in zip(normalisation(own), normalisation(processors[0]), strict=True)):
            raise MedtlError(
                f"{names[0]} and {name} normalise images with different means and standard deviations, so their "
                "weights cannot be averaged. Remove --soup to average their probabilities instead."
            )
    for key, tensor in states[0].items():
        stacked = torch.stack([state[key] for state in states])
        tensor.copy_(stacked.mean(dim=0) if tensor.is_floating_point() else stacked[0])
    return models[0], processors[0]


def _mean_predictions(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return predictions.csv with the mean probabilities of runs on the same images."""
    columns = [column for column in tables[0].columns if str(column).startswith("p_")]
    mean = tables[0].copy()
    mean[columns] = np.mean([table[columns].to_numpy(np.float64) for table in tables], axis=0)
    return mean


def _split_text(run: RunFolder) -> str:
    """Return the split of each image of a run as text."""
    if run.splits is None:
        raise MedtlError(f"{run.path} has no splits.csv, so the split of its images is unknown. Leave that run out.")
    return run.splits[["sha256", "split"]].sort_values("sha256").to_csv(index=False)


def _why_no_results(soup: bool, same_split: bool) -> str:
    """Explain why an ensemble has no results."""
    if not soup or not same_split:
        return (
            "the members were not tested on the same images, so a member may have been trained on test images of "
            "another. Only images that no member was trained on give an unbiased result: test it on another data set."
        )
    return "a soup is a new model. Give --data_dir to fit its temperature and threshold and to test it."


def _write_card(folder: Path, model: PreTrainedModel, processor: Any, facts: dict[str, Any]) -> None:
    """Write README.md with metadata that the Hub accepts."""
    dataset = facts["dataset"]
    metadata = ModelCardData(
        **facts["metadata"],
        datasets=[dataset] if "/" in dataset else None,
        pipeline_tag=facts["results"]["task"],
        library_name="transformers",
        tags=["medical", "hf_medtl", "model-soup" if facts["soup"] else "ensemble"],
        model_name=facts["name"],
        eval_results=eval_results(facts["results"], dataset, dataset) or None,
    )
    config = load_config(folder)
    facts = facts | {
        "model_class": type(model).__name__,
        "parameters": model.num_parameters(),
        "processor": describe_processor(processor),
        "threshold": getattr(config, "threshold", None),
        "thresholds": getattr(config, "thresholds", {}),
        "own_code": sorted(path.name for path in folder.glob("*.py")),
    }
    RunFolder(folder).write("README.md", f"---\n{metadata.to_yaml()}\n---\n\n{render('ensemble', facts)}")
