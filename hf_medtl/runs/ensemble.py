"""Finished runs -> one folder: their probabilities averaged, or their weights."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.models.timm_wrapper import TimmWrapperImageProcessor

from hf_medtl.common.files import write
from hf_medtl.data.loading import load
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.names import NAMES
from hf_medtl.models.ensemble import EnsembleConfig, EnsembleForImageClassification
from hf_medtl.models.preprocessing import describe_processor, normalisation, shared_processor
from hf_medtl.publish.templates import page
from hf_medtl.runs.cross_validation import read_predictions
from hf_medtl.runs.folder import check_folder, is_finished
from hf_medtl.tasks import task_of, task_of_results

logger = logging.getLogger("hf_medtl")

CLASSIFICATION = "image-classification"


def ensemble(runs: Sequence[Path], folder: Path, soup: bool = False, data_dir: Path | None = None) -> dict[str, Any]:
    """Write the ensemble of runs to a folder; return its results, without metrics where no honest number is known.

    The mean of calibrated probabilities is decided with the mean of the runs' thresholds. It is measured where all runs
    have the same test pictures, which then no member has seen: folds do not.

    A soup has the mean of the weights (and of the statistics of batch norm, which are not measured anew). It is a model
    of its own: neither temperature nor threshold of the members fit it. With the data and with runs of one split they
    are fitted anew on validation and it is tested; otherwise it has none.

    Args:
        runs: folders of finished runs; one of all folds stands for its folds.
        folder: where to; new or empty.
        soup: average weights instead of probabilities (Wortsman et al. 2022, Model soups,
            https://arxiv.org/abs/2203.05482).
        data_dir: the data set of the runs, for a soup.

    Raises:
        MedtlError: fewer than two runs, an unfinished one, one of masks; runs of other labels, another preprocessing
            (for a soup: another architecture) or another positive label than the first.
    """
    check_folder(folder, resuming=False)
    places = [place for run in runs for place in (sorted(run.glob("fold-*")) or [run])]
    names = [f"{place.resolve().parent.name}/{place.resolve().name}" for place in places]
    if len(places) < 2:
        raise MedtlError(f"An ensemble has two or more runs, found {len(places)}. Give the folders of finished runs.")
    singles = [read_results(place) for place in places]
    processors = [AutoImageProcessor.from_pretrained(place) for place in places]
    models = [AutoModelForImageClassification.from_pretrained(place, dtype=torch.float32).eval() for place in places]
    refuse_others(names, singles, models)
    processor = shared_processor(processors, names)
    make = average_weights if soup else side_by_side
    model, processor = make(models, names, processors, processor)
    model.config.update(decision(singles, soup))
    folder.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        model.save_pretrained(folder)
        if not isinstance(processor, TimmWrapperImageProcessor):
            processor.save_pretrained(folder)

    save()
    (folder / "figures").mkdir(exist_ok=True)
    same_split = len({split_of(place) for place in places}) == 1
    tables = [read_predictions(place) for place in places]
    facts = ["image_id", "label", "group"]
    result = {"dataset": singles[0]["dataset"], "task": CLASSIFICATION, "split": "test"}
    if soup and same_split and data_dir:
        loaded = load(singles[0]["dataset"], data_dir, splits=places[0] / "splits.csv",
                      positive=singles[0]["positive_label"])  # fmt: skip
        task = task_of(loaded)
        rules = singles[0].get("threshold_rule") or "youden", singles[0].get("conformal", {}).get("alpha", 0.1)
        answers = task.answer(folder, loaded, "validation")
        model.config.update(task.calibrate(model, loaded, answers, *rules))  # type: ignore[misc]
        save()
        answers = task.answer(folder, loaded, "test")
        result |= task.measure(loaded, answers, model.config)
        write(folder / "predictions.csv", task.predictions(loaded, answers).to_csv(index=False))
        task.draw(folder, folder / "figures", loaded, answers, result)
    elif not soup and all(table[facts].equals(tables[0][facts]) for table in tables):
        table = averaged(tables)
        merged = singles[0] | mean_thresholds(singles)
        result |= task_of_results(merged).pool(table, [merged], folder / "figures", "test split")
        write(folder / "predictions.csv", table.to_csv(index=False))
    else:
        logger.warning("No results are written: %s", why_not(soup, same_split))
    if "metrics" in result:
        result["temperature"] = model.config.folded_temperature
        write(folder / "results.json", result)
        if same_split:  # else the members agree in the test pictures alone
            shutil.copyfile(places[0] / "splits.csv", folder / "splits.csv")
    write_card(folder, places, names, model, processor, singles, result, soup, same_split)
    return result


def read_results(place: Path) -> dict[str, Any]:
    """results.json of a finished run of labels.

    Raises:
        MedtlError: it is none.
    """
    if not is_finished(place):
        raise MedtlError(f"{place} is not a finished run: it has no results.json, or is marked as unfinished.")
    found = json.loads((place / "results.json").read_text("utf-8"))
    if found["task"] != CLASSIFICATION:
        raise MedtlError(f"{place} is a run of {found['task']}: only classifiers can be averaged.")
    return found


def refuse_others(names: Sequence[str], singles: Sequence[dict[str, Any]], models: Sequence[PreTrainedModel]) -> None:
    """Raise MedtlError where a run learnt something else than the first."""
    for name, single, model in zip(names, singles, models, strict=True):
        pairs = {
            "labels": (singles[0]["labels"], single["labels"]),
            "the positive label": (singles[0]["positive_label"], single["positive_label"]),
            "problem_type": (models[0].config.problem_type, model.config.problem_type),
        }
        for what, (first, its) in pairs.items():
            if first != its:
                raise MedtlError(
                    f"{names[0]} and {name} differ in {what}: {first} and {its}. Members learn the same, in one order."
                )


def side_by_side(
    models: Sequence[PreTrainedModel], names: Sequence[str], processors: Sequence[Any], processor: Any
) -> tuple[PreTrainedModel, Any]:
    """All members in one model, and the processor for it."""

    def scaled(its: Any) -> dict[str, list[float]]:
        pairs = zip(("mean", "std"), normalisation(its), strict=True)
        return {key: (values.double().flatten() / 255).tolist() for key, values in pairs}

    members = [
        {"name": name, "config": plain_config(model), **scaled(its)}
        for name, model, its in zip(names, models, processors, strict=True)
    ]
    first = models[0].config
    config = EnsembleConfig(
        members,
        **scaled(processor),
        id2label=first.id2label,
        label2id=first.label2id,
        problem_type=first.problem_type,
        dtype="float32",
    )
    whole = EnsembleForImageClassification(config)
    for own, model in zip(whole.members, models, strict=True):
        own.load_state_dict(model.state_dict(), strict=True)
    return whole.eval(), processor


def plain_config(model: PreTrainedModel) -> dict[str, Any]:
    """A member's configuration without places, and without what belongs to its own folder."""
    aside = ("_name_or_path", "auto_map", "image_processor_type")
    return {key: value for key, value in model.config.to_dict().items() if key not in aside}


def average_weights(
    models: Sequence[PreTrainedModel], names: Sequence[str], processors: Sequence[Any], processor: Any
) -> tuple[PreTrainedModel, Any]:
    """The first model with the mean of all weights, and its own processor.

    Raises:
        MedtlError: another class, other tensors or another normalisation than the first.
    """
    states = [model.state_dict() for model in models]
    shapes = [{key: tuple(tensor.shape) for key, tensor in state.items()} for state in states]
    for name, model, shape, its in zip(names, models, shapes, processors, strict=True):
        unlike = sorted(key for key in {**shapes[0], **shape} if shapes[0].get(key) != shape.get(key))
        if type(model) is not type(models[0]) or unlike:
            raise MedtlError(
                f"The weights of {names[0]} ({type(models[0]).__name__}) and {name} ({type(model).__name__}) can't be "
                f"averaged: {len(unlike)} tensors differ in name or shape{', such as ' + unlike[0] if unlike else ''}. "
                "Without --soup their probabilities can."
            )
        if any(not torch.equal(*pair) for pair in zip(normalisation(its), normalisation(processors[0]), strict=True)):
            raise MedtlError(
                f"{names[0]} and {name} normalise with other means and standard deviations, which weights can't share. "
                "Without --soup their probabilities can be averaged."
            )
    for key, tensor in states[0].items():
        each = torch.stack([state[key] for state in states])
        tensor.copy_(each.mean(dim=0) if tensor.is_floating_point() else each[0])
    return models[0], processors[0]


def decision(singles: Sequence[dict[str, Any]], soup: bool) -> dict[str, Any]:
    """What config.json says of temperature and thresholds; None where a soup has none."""
    means, none = mean_thresholds(singles), None
    found: dict[str, Any] = {"positive_label": singles[0]["positive_label"], "folded_temperature": none}
    if "per_label" not in means:
        return found | {"threshold": none if soup else means["threshold"]}
    per_label = means["per_label"]
    return found | {
        "thresholds": {label: 0.5 if soup else its["threshold"] for label, its in per_label.items()},
        "unfitted_thresholds": [label for label, its in per_label.items() if soup or not its["threshold_fitted"]],
    }


def mean_thresholds(singles: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The keys of results.json that hold thresholds, with the runs' means."""
    if "per_label" in singles[0]:
        return {
            "per_label": {
                label: {
                    "threshold": float(np.mean([single["per_label"][label]["threshold"] for single in singles])),
                    "threshold_fitted": all(single["per_label"][label]["threshold_fitted"] for single in singles),
                }
                for label in singles[0]["labels"]
            }
        }
    each = [single["threshold"] for single in singles]
    return {"threshold": None if None in each else float(np.mean(each))}


def averaged(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """predictions.csv of the mean of probabilities of runs on the same pictures."""
    columns = [column for column in tables[0].columns if str(column).startswith("p_")]
    mean = tables[0].copy()
    mean[columns] = np.mean([table[columns].to_numpy(np.float64) for table in tables], axis=0)
    return mean


def split_of(place: Path) -> str:
    """Which picture is on which side in a run, as text."""
    return pd.read_csv(place / "splits.csv", dtype=str)[["sha256", "split"]].sort_values("sha256").to_csv(index=False)


def why_not(soup: bool, same_split: bool) -> str:
    """Why an ensemble has no results, for people."""
    if not soup or not same_split:
        return (
            "the members were not tested on the same pictures, so some member may have learnt from the test pictures "
            "of another. Only pictures that none has seen can tell what the ensemble is worth: test it on another set."
        )
    return "a soup is another model than its members. Give --data_dir to fit its temperature and threshold and test it."


def write_card(
    folder: Path,
    places: Sequence[Path],
    names: Sequence[str],
    model: PreTrainedModel,
    processor: Any,
    singles: Sequence[dict[str, Any]],
    result: dict[str, Any],
    soup: bool,
    same_split: bool,
) -> None:
    """README.md, with metadata that the Hub accepts."""
    recipes = [yaml.safe_load((place / "recipe.yaml").read_text("utf-8")) for place in places]
    licences = {recipe.get("model_license", "apache-2.0") for recipe in recipes}
    metrics = result.get("metrics", {})
    data = ModelCardData(
        license=licences.pop() if len(licences) == 1 else "other",
        datasets=[singles[0]["dataset"]] if "/" in singles[0]["dataset"] else None,
        pipeline_tag=CLASSIFICATION,
        library_name="transformers",
        tags=["medical", "hf_medtl", "model-soup" if soup else "ensemble"],
        model_name=folder.name,
        eval_results=[
            EvalResult(
                task_type=CLASSIFICATION,
                dataset_type=singles[0]["dataset"],
                dataset_name=singles[0]["dataset"],
                dataset_split="test",
                metric_type=name,
                metric_name=NAMES[name],
                metric_value=round(metric["value"], 4),
            )
            for name, metric in metrics.items()
            if metric["value"] is not None
        ]
        or None,
    )
    config = AutoConfig.from_pretrained(folder)
    facts = {
        "name": folder.name,
        "soup": soup,
        "model_class": type(model).__name__,
        "parameters": model.num_parameters(),
        "members": [
            {
                "name": name,
                "model": recipe.get("model_name_or_path", "default"),
                "seed": recipe.get("seed", 42),
                "auc": single["metrics"]["roc_auc"],
            }
            for name, recipe, single in zip(names, recipes, singles, strict=True)
        ],
        "labels": singles[0]["labels"],
        "dataset": singles[0]["dataset"],
        "processor": describe_processor(processor),
        "threshold": getattr(config, "threshold", None),
        "thresholds": getattr(config, "thresholds", {}),
        "fitted": soup and "metrics" in result,
        "results": result,
        "why_not": why_not(soup, same_split),
        "own_code": sorted(path.name for path in folder.glob("*.py")),
    }
    write(folder / "README.md", f"---\n{data.to_yaml()}\n---\n\n{page('ensemble', facts)}")
