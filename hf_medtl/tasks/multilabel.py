"""Multilabel image classification: any number of labels per image, with a sigmoid for each."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit
from transformers import EvalPrediction, PreTrainedModel

from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.specs import split_labels
from hf_medtl.evaluation import plots
from hf_medtl.evaluation import probability_charts as charts
from hf_medtl.evaluation.calibration import fit_multilabel_temperature
from hf_medtl.evaluation.decisions import DecisionRule, choose_threshold
from hf_medtl.evaluation.evaluate import multilabel_results
from hf_medtl.evaluation.metrics import classification_metrics
from hf_medtl.evaluation.probability_charts import Scores
from hf_medtl.evaluation.run_scores import RunScores
from hf_medtl.tasks.base import Score
from hf_medtl.tasks.classification import Classification, threshold_by_fold
from hf_medtl.training.losses import MultiLabelLoss, class_weights
from hf_medtl.training.recipe import Recipe

logger = logging.getLogger("hf_medtl")


class MultiLabelClassification(Classification):
    """Any number of labels per image, each decided with a threshold of its own. Predictions as in `Classification`."""

    name = "multilabel"
    multilabel = True
    supports_robustness = False
    loss_class = MultiLabelLoss

    def build(self, recipe: Recipe, labels: tuple[str, ...]) -> tuple[PreTrainedModel, Any]:
        """Return the classifier, to whose outputs stock `pipeline()` applies a sigmoid, and its image processor."""
        recipe.refuse(("conformal_alpha",), "not for multilabel classification. Remove the option.")
        model, processor = super().build(recipe, labels)
        model.config.problem_type = "multi_label_classification"
        return model, processor

    def targets(self, loaded: LoadedDataset, split: str) -> Any:
        """Return (n, K) float32: 1 for each label that an image of the split has, else 0."""
        return self._true_labels(loaded, split).astype(np.float32)

    def _true_labels(self, loaded: LoadedDataset, split: str) -> NDArray[Any]:
        """Return which image of a split has which label, (n, K)."""
        return loaded.label_matrix()[loaded.table["split"] == split]

    def _class_weights(self, recipe: Recipe, labels: tuple[str, ...], targets: Any) -> Sequence[float]:
        """Return the (K,) weights of each label's positives relative to its negatives.

        Raises:
            MedtlError: a label that no training image has, or that all have.
        """
        weights = []
        for label, positives in zip(labels, targets.sum(axis=0), strict=True):
            counts, names = (len(targets) - int(positives), int(positives)), (f"the absence of {label}", label)
            absence, presence = class_weights(recipe.class_weights, counts, names, recipe.effective_beta)
            weights.append(presence / absence)
        return weights

    def validation_metrics(self, prediction: EvalPrediction, positive: int | None = None) -> dict[str, float]:
        """Return the metrics of each epoch with thresholds of 0.5: means over the labels where they are defined.

        `auc_labels` is the number of labels with both positive and negative validation images, those of roc_auc.
        """
        probabilities = expit(np.asarray(prediction.predictions, np.float64))
        by_label = pd.DataFrame(
            [
                classification_metrics(has.astype(np.int64), np.column_stack([1 - p, p]))
                for has, p in zip(np.asarray(prediction.label_ids).T, probabilities.T, strict=True)
            ],
            dtype=np.float64,
        )
        means = {str(name): float(value) for name, value in by_label.mean().items()}
        return {**means, "auc_labels": float(by_label["roc_auc"].notna().sum())}

    def ideal_prediction(self, loaded: LoadedDataset) -> EvalPrediction:
        """Return a right prediction of the validation split."""
        labels = self._true_labels(loaded, "validation")
        return EvalPrediction(20.0 * labels - 10.0, labels)

    def dummy_predictions(self, loaded: LoadedDataset, labels: tuple[str, ...]) -> tuple[Any, DecisionRule]:
        """Return probabilities of 0.5, and a rule with the threshold 0.5 for each label."""
        thresholds = dict.fromkeys(labels, 0.5)
        rule = DecisionRule(labels, multilabel=True, thresholds=thresholds, temperature=1.0)
        return np.full((len(loaded.rows("test")), len(labels)), 0.5), rule

    def _fit_temperature(
        self, loaded: LoadedDataset, probabilities: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float]:
        logits = logit(probabilities.clip(1e-7, 1 - 1e-7))  # as near to 1 as float32 can tell
        return logits, fit_multilabel_temperature(logits, self._true_labels(loaded, "validation"))

    def _fit_decisions(
        self, loaded: LoadedDataset, logits: NDArray[np.float64], rule: str, alpha: float
    ) -> DecisionRule:
        """Return the threshold of each label; there are no conformal sets."""
        true = self._true_labels(loaded, "validation")
        thresholds = {
            label: choose_threshold(rule, scores, positive)
            for label, scores, positive in zip(loaded.labels, expit(logits).T, true.T, strict=True)
            if positive.any() and not positive.all()
        }
        unfitted = [label for label in loaded.labels if label not in thresholds]
        if unfitted:
            logger.warning(
                "No threshold can be fitted for %s: the validation split has no positive or no negative images. "
                "The threshold 0.5 is used.",
                ", ".join(unfitted),
            )
        return DecisionRule(
            loaded.labels,
            multilabel=True,
            thresholds={label: thresholds.get(label, 0.5) for label in loaded.labels},
            unfitted=tuple(unfitted),
        )

    def feature_strata(self, loaded: LoadedDataset, split: str) -> NDArray[np.int64]:
        """Return (n,) zeros: combinations of labels are too many to be strata."""
        return np.zeros(len(loaded.rows(split)), np.int64)

    def measure(self, loaded: LoadedDataset, predictions: NDArray[np.float64], rule: DecisionRule) -> dict[str, Any]:
        """Measure the test split: means over labels, and each label alone."""
        groups = loaded.rows("test")["group"].tolist()
        saved = rule.thresholds or {}
        thresholds = {label: saved.get(label, 0.5) for label in loaded.labels}  # config.json sorts keys
        measured = multilabel_results(self._true_labels(loaded, "test"), predictions, groups, thresholds)
        for label in rule.unfitted:
            measured["per_label"][label]["threshold_fitted"] = False
        return {**measured, "temperature": rule.temperature}

    def worst_images(self, table: pd.DataFrame, results: dict[str, Any], number: int) -> list[dict[str, str]]:
        """Return the wrong decisions on single labels whose probability is farthest from the label's threshold."""
        wrong, by_label = [], results["per_label"]
        for label, has in zip(by_label, _read_labels(table, by_label).T, strict=True):
            probabilities, threshold = table[f"p_{label}"].to_numpy(np.float64), by_label[label]["threshold"]
            for row in np.flatnonzero((probabilities >= threshold) != has):
                wrong.append((abs(probabilities[row] - threshold), row, label, has[row], probabilities[row]))
        return [
            {
                "image": table["image_id"].iloc[row],
                "label": label,
                "true": "present" if has else "absent",
                "probability": f"{probability:.3f}",
            }
            for _, row, label, has, probability in sorted(wrong, key=lambda entry: -entry[0])[:number]
        ]

    def _draw_metrics(
        self,
        labels: NDArray,
        probabilities: NDArray,
        groups: Sequence[str],
        results: dict[str, Any],
        figures: Path,
        title: str,
    ) -> None:
        """Draw the ROC curve of each label, and the reliability curve of all labels together."""
        columns = zip(results["labels"], labels.T, probabilities.T, strict=True)
        scores = [Scores(name, has, probability, groups) for name, has, probability in columns]
        pooled = charts.reliability_plot(charts.pool_labels(scores), f"labels of {len(labels):,} images")
        plots.save_plot(charts.roc_plot(scores), figures / "roc.png", title)
        plots.save_plot(pooled, figures / "reliability.png", title)

    def pool_folds(self, table: pd.DataFrame, folds: list[dict[str, Any]], figures: Path, title: str) -> dict[str, Any]:
        """Measure all folds' test images, each decided with the thresholds of its fold's own model."""
        names = folds[0]["labels"]
        true, thresholds = _read_table(table, folds)
        probabilities = table[[f"p_{name}" for name in names]].to_numpy(np.float64)
        groups = table["group"].tolist()
        pooled = multilabel_results(true, probabilities, groups, thresholds)
        for name in names:
            pooled["per_label"][name]["threshold_fitted"] = _all_fitted(folds, name)
        self._draw_metrics(true, probabilities, groups, pooled, figures, title)
        return pooled

    def score(self, table: pd.DataFrame, results: dict[str, Any]) -> tuple[list[str], Score]:
        """Return one stratum for all, and the mean ROC AUC of the labels that have positives and negatives."""
        labels = []
        for name, has in zip(results["labels"], _read_labels(table, results["labels"]).T, strict=True):
            if has.any() and not has.all():
                probabilities = table[f"p_{name}"].to_numpy(np.float64)
                labels.append((has.astype(np.int64), np.column_stack([1 - probabilities, probabilities])))

        def mean_auc(weights: NDArray | None) -> NDArray[np.float64]:
            only = [self.main_metric]
            each = [classification_metrics(*label, 1, None, weights, names=only)[only[0]] for label in labels]
            return np.mean(np.array(each), axis=0)

        return [""] * len(table), mean_auc

    def run_scores(self, table: pd.DataFrame, folds: list[dict[str, Any]]) -> RunScores:
        """Return a run with each image decided by the thresholds of the model that was tested on it."""
        return RunScores.from_multilabel(table, *_read_table(table, folds))

    def label_results(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Return `per_label` of results.json."""
        return results["per_label"]

    def mean_thresholds(self, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the mean threshold of each label."""
        return {
            "per_label": {
                label: {
                    "threshold": float(np.mean([run["per_label"][label]["threshold"] for run in runs])),
                    "threshold_fitted": _all_fitted(runs, label),
                }
                for label in runs[0]["labels"]
            }
        }

    def decision_rule(self, results: Mapping[str, Any], fitted: bool = True) -> DecisionRule:
        """Return the rule with the threshold of each label, 0.5 if not `fitted`."""
        by_label = results["per_label"].items()
        return DecisionRule(
            tuple(results["labels"]),
            multilabel=True,
            thresholds={label: part["threshold"] if fitted else 0.5 for label, part in by_label},
            unfitted=tuple(label for label, part in by_label if not (fitted and part["threshold_fitted"])),
        )

    def is_binary(self, labels: Sequence[str]) -> bool:
        """Return False: each label has a threshold of its own."""
        return False


def _all_fitted(runs: Sequence[dict[str, Any]], label: str) -> bool:
    return all(run["per_label"][label]["threshold_fitted"] for run in runs)


def _read_labels(table: pd.DataFrame, names: Iterable[str]) -> NDArray[np.bool_]:
    """Return which image of predictions.csv has which label, (n, K)."""
    return np.array([[name in split_labels(cell) for name in names] for cell in table["label"]])


def _read_table(
    table: pd.DataFrame, folds: list[dict[str, Any]]
) -> tuple[NDArray[np.bool_], dict[str, float | NDArray[np.float64]]]:
    """Return which image of predictions.csv has which label (n, K), and label -> threshold of each image's model."""
    thresholds = {
        name: threshold_by_fold([fold["per_label"][name]["threshold"] for fold in folds], table)
        for name in folds[0]["labels"]
    }
    return _read_labels(table, thresholds), thresholds
