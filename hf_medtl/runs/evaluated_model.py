"""Finished or published models to evaluate: predictor, decision rule, results and training images."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.labels import NEGATIVE_LABELS
from hf_medtl.data.leakage import training_footprint
from hf_medtl.data.specs import DATASETS
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.decisions import DecisionRule
from hf_medtl.predict import Predictor
from hf_medtl.runs.finished import fetch_run
from hf_medtl.tasks import task_for_predictor
from hf_medtl.training.recipe import strip_path


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
        rule = _complete_rule(predictor, positive)
        run, name = fetch_run(model, revision), strip_path(str(model))
        dataset = run.results.get("dataset") or run.recipe.get("dataset") or name
        spec = DATASETS.get(dataset, replace(DATASETS["imagefolder"], name=dataset, title=dataset))
        spec = replace(task_for_predictor(predictor).dataset_spec(spec, predictor.labels), positive=rule.positive)
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


def _complete_rule(predictor: Predictor, positive: str | None = None) -> DecisionRule:
    """Return the decision rule of a model, with defaults for what a model trained elsewhere does not record.

    Of two labels the one whose name is not negative is positive, with a threshold of 0.5; each label of a multilabel
    model has a threshold of 0.5. There are no conformal sets, and masks are not postprocessed.

    Args:
        predictor: the model.
        positive: the positive one of two labels.

    Raises:
        MedtlError: A positive label that is not one of two.
    """
    rule, labels = DecisionRule.from_config(predictor.config), predictor.labels
    is_binary = task_for_predictor(predictor).is_binary(labels)
    if positive and not (is_binary and positive in labels):
        raise MedtlError(
            f"--positive_label must be one of the model's labels if it has two, but it has {', '.join(labels)}."
        )
    if positive and rule.positive and positive != rule.positive:
        raise MedtlError(f"The model's threshold is for {rule.positive}. Remove --positive_label {positive}.")
    if is_binary:
        not_negative = [label for label in labels if not re.fullmatch(NEGATIVE_LABELS, label)] or labels
        threshold = 0.5 if rule.threshold is None else rule.threshold
        return replace(rule, positive=rule.positive or positive or not_negative[-1], threshold=threshold)
    return rule if rule.thresholds else replace(rule, unfitted=labels)
