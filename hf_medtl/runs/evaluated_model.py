"""Finished or published models to evaluate: predictor, decision rule, results and training images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_medtl.data.columns import parse_columns
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.leakage import training_footprint
from hf_medtl.data.positive_label import check_positive, guess_positive, warn_of_guess
from hf_medtl.data.specs import DATASETS
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.decisions import DecisionRule
from hf_medtl.predict import Predictor
from hf_medtl.runs.finished import fetch_run
from hf_medtl.tasks import task_for_predictor
from hf_medtl.training.options import strip_path


@dataclass(frozen=True)
class EvaluatedModel:
    """A model and the provenance that its folder records.

    Attributes:
        name: name of the folder, or Hub id.
        predictor: the model.
        rule: its complete decision rule.
        results: its results.json; empty if there is none.
        seen: the data it was trained on, as far as known.
        unsure: why copies of its training images may not be recognised, or "".
    """

    name: str
    predictor: Predictor
    rule: DecisionRule
    results: dict[str, Any]
    seen: LoadedDataset
    unsure: str

    @classmethod
    def read(
        cls,
        model: str | Path,
        training_data: str | Path | None = None,
        positive: str | None = None,
        revision: str | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> "EvaluatedModel":
        """Read a model from a run folder or the Hub; arguments as for `evaluate_model`.

        Raises:
            MedtlError: As `Predictor.from_pretrained` and `training_footprint`; a positive label that the model lacks.
        """
        predictor = Predictor.from_pretrained(model, revision, device, trust_remote_code)
        rule, source = _complete_rule(predictor, positive)
        run, name = fetch_run(model, revision), strip_path(str(model))
        source = source or run.results.get("positive_label_source") or "model"
        warn_of_guess(name, str(rule.positive), source, predictor.labels)
        dataset = run.results.get("dataset") or run.recipe.get("dataset") or name
        spec = DATASETS.get(dataset, replace(DATASETS["imagefolder"], name=dataset, title=dataset))
        spec = task_for_predictor(predictor).dataset_spec(spec, predictor.labels)
        columns = spec.columns | parse_columns(run.recipe.get("columns"))
        spec = replace(spec, positive=rule.positive, positive_source=source, columns=columns)
        has_splits = (run.path / "splits.csv").is_file()
        if training_data and not has_splits:
            raise MedtlError(
                f"{name} has no splits.csv, so it is not known which of these images it was trained on. Remove "
                "--training_data."
            )
        seen = training_footprint(spec, run.path / "splits.csv" if has_splits else None, training_data)
        unsure = ""
        if not has_splits:
            unsure = "the model has no splits.csv, so it is not known whether it was trained on these images"
        elif number := _count_without_thumbnail(seen):
            unsure = (
                f"for {number} training images of the model only identical files can be recognised, no cropped, scaled "
                "or re-encoded copies. Give these images with --training_data"
            )
        return cls(name, predictor, rule, run.results, seen, unsure)

    @property
    def overlap(self) -> dict[str, Any]:
        """Number of its training images, how many of them have no thumbnail to recognise copies by, and `unsure`."""
        return {
            "seen": int((self.seen.table["split"] != "test").sum()),
            "without_thumbnail": _count_without_thumbnail(self.seen),
            "unsure": self.unsure,
        }


def _count_without_thumbnail(seen: LoadedDataset) -> int:
    return sum(
        split != "test" and not item.thumbnail
        for split, item in zip(seen.table["split"], seen.fingerprints, strict=True)
    )


def _complete_rule(predictor: Predictor, positive: str | None = None) -> tuple[DecisionRule, str]:
    """Return the decision rule of a model, with defaults for what a model trained elsewhere does not record.

    The positive one of two labels is chosen by their names, with a threshold of 0.5; each label of a multilabel model
    has a threshold of 0.5. There are no conformal sets, and masks are not postprocessed.

    Args:
        predictor: the model.
        positive: the positive one of two labels.

    Returns:
        The rule, and the key of `positive_label.SOURCES` by which the positive label was chosen; "" if the model
        records it.

    Raises:
        MedtlError: A positive label that is not one of two, or another than the model records.
    """
    rule, labels = DecisionRule.from_config(predictor.config), predictor.labels
    is_binary = task_for_predictor(predictor).is_binary(labels)
    if positive:
        check_positive(task_for_predictor(predictor).dataset_spec(DATASETS["imagefolder"], labels), positive, labels)
        if not is_binary:
            raise MedtlError("--positive_label is for classifiers of two labels. Remove it.")
    if positive and rule.positive and positive != rule.positive:
        raise MedtlError(f"The model's threshold is for {rule.positive}. Remove --positive_label {positive}.")
    if not is_binary:
        return rule if rule.thresholds else replace(rule, unfitted=labels), ""
    label, source = (positive, "option") if positive else guess_positive(labels)
    label, source = (rule.positive, "") if rule.positive else (label, source)
    return replace(rule, positive=label, threshold=0.5 if rule.threshold is None else rule.threshold), source
