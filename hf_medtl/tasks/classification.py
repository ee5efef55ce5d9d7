"""Image classification: one label per image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from transformers import EvalPrediction, Pipeline, PreTrainedModel

from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.images import read_image
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import plots
from hf_medtl.evaluation import probability_charts as charts
from hf_medtl.evaluation.calibration import fit_temperature
from hf_medtl.evaluation.decisions import (
    DecisionRule,
    choose_threshold,
    conformal_quantiles,
    conformal_results,
    parse_rule,
)
from hf_medtl.evaluation.evaluate import classification_results, predict_probabilities, temperature_effect
from hf_medtl.evaluation.metrics import classification_metrics, decide
from hf_medtl.evaluation.probability_charts import Scores
from hf_medtl.evaluation.run_scores import RunScores
from hf_medtl.models.build import build_classifier
from hf_medtl.models.heads import fold_temperature
from hf_medtl.models.stock_processor import parse_statistics
from hf_medtl.tasks.base import Reader, Score, Task
from hf_medtl.training.losses import LOSSES, ClassificationLoss, MultiLabelLoss, class_weights
from hf_medtl.training.recipe import Recipe


class Classification(Task):
    """One label per image, with a softmax over the labels. Predictions are probabilities (n, K)."""

    name = "classification"
    pipeline = "image-classification"
    main_metric = "roc_auc"
    has_probabilities = True
    supports_robustness = True
    search_space: ClassVar = {"head_dropout": [0.0, 0.5], "mixup": [0.0, 0.4]}
    loss_class: type[ClassificationLoss] | type[MultiLabelLoss] = ClassificationLoss

    def check_recipe(self, recipe: Recipe) -> None:
        """Check the loss, the threshold rule and alpha, and refuse options for masks."""
        recipe.refuse(
            (
                *("encoder", "encoder_weights", "mask_values", "largest_components", "fill_holes"),
                *("surface_tolerance", "tile"),
            ),
            "only for --task image-segmentation. Remove the option, or add --task image-segmentation.",
        )
        if recipe.loss not in LOSSES:
            raise MedtlError(f"--loss must be one of {', '.join(LOSSES)} for classification, but is {recipe.loss!r}.")
        parse_rule(recipe.threshold)
        parse_statistics(recipe.image_mean, recipe.image_std)
        if not 0 < recipe.conformal_alpha < 1:
            raise MedtlError(f"--conformal_alpha must be between 0 and 1, but is {recipe.conformal_alpha:g}.")

    def output_labels(self, recipe: Recipe, loaded: LoadedDataset) -> tuple[str, ...]:
        """Return the (K,) labels of the data set."""
        return loaded.labels

    def build(self, recipe: Recipe, labels: tuple[str, ...]) -> tuple[PreTrainedModel, Any]:
        """Return the classifier and its image processor."""
        mean, std = parse_statistics(recipe.image_mean, recipe.image_std)
        model, processor = build_classifier(
            recipe.model_name_or_path,
            labels,
            from_scratch=recipe.from_scratch,
            revision=recipe.model_revision,
            steps=recipe.steps,
            fit=recipe.fit,
            lung_model=recipe.lung_model,
            head_dropout=recipe.head_dropout,
            image_size=recipe.sizes.last,
            pooling=recipe.pooling,
            mean=mean,
            std=std,
        )
        recipe.sizes.check(model)
        # The backbone may have been a multilabel model, and pipeline() applies the sigmoid that its config names.
        model.config.problem_type = None
        return model, processor

    def describe_initial_weights(self, recipe: Recipe, model: PreTrainedModel) -> str:
        """Name the backbone, or say that the weights are random."""
        return "random weights" if recipe.from_scratch else recipe.base_model

    def base_model(self, recipe: Recipe) -> tuple[str, str | None] | None:
        """Return the backbone and its revision; None for random weights."""
        return None if recipe.from_scratch else (recipe.model_name_or_path, recipe.model_revision)

    def targets(self, loaded: LoadedDataset, split: str) -> Any:
        """Return the (n,) class index of each image of a split."""
        return self._true_labels(loaded, split).tolist()

    def _true_labels(self, loaded: LoadedDataset, split: str) -> NDArray[Any]:
        """Return the (n,) class index of each image of a split."""
        return loaded.rows(split)["label"].map(loaded.labels.index).to_numpy(np.int64)

    def loss(self, recipe: Recipe, labels: tuple[str, ...], targets: Any) -> Callable[..., torch.Tensor]:
        """Return the cross entropy or focal loss, with class weights from the training split."""
        weights = None
        if recipe.class_weights != "none":
            weights = torch.tensor(self._class_weights(recipe, labels, targets), dtype=torch.float32)
        gamma = recipe.focal_gamma if recipe.loss == "focal" else 0.0
        return self.loss_class(weights, gamma, recipe.label_smoothing_factor)

    def _class_weights(self, recipe: Recipe, labels: tuple[str, ...], targets: Any) -> Sequence[float] | NDArray:
        """Return the (K,) weight of each class."""
        counts = np.bincount(targets, minlength=len(labels)).tolist()
        return class_weights(recipe.class_weights, counts, labels, recipe.effective_beta)

    def validation_metrics(self, prediction: EvalPrediction, positive: int | None = None) -> dict[str, float]:
        """Return the metrics of each epoch on the validation split, with the threshold 0.5 or argmax."""
        logits = torch.as_tensor(np.asarray(prediction.predictions))
        probabilities = logits.double().softmax(dim=1).numpy()
        output = logits.shape[1] - 1 if positive is None else positive
        values = classification_metrics(np.asarray(prediction.label_ids), probabilities, positive=output)
        return {name: float(value) for name, value in values.items()}

    def ideal_prediction(self, loaded: LoadedDataset) -> EvalPrediction:
        """Return a right prediction of the validation split."""
        labels = self._true_labels(loaded, "validation")
        return EvalPrediction(10.0 * np.eye(len(loaded.labels))[labels], labels)

    def backbone_options(self, recipe: Recipe, name: str) -> dict[str, Any]:
        """Return the option that names the backbone."""
        return {"model_name_or_path": name}

    def random_weight_options(self, recipe: Recipe) -> dict[str, Any]:
        """Return --from_scratch, with the only strategy that makes sense then."""
        return {} if recipe.from_scratch else {"from_scratch": True, "strategy": "full"}

    def predict(self, model: Path | Pipeline, loaded: LoadedDataset, split: str, read: Reader = read_image) -> Any:
        """Return the probabilities (n, K) of a split's original files."""
        paths = [loaded.root / path for path in loaded.rows(split)["path"]]
        return predict_probabilities(model, paths, read, self.pipeline, f"Predicting the {split} split")

    def dummy_predictions(self, loaded: LoadedDataset, labels: tuple[str, ...]) -> tuple[Any, DecisionRule]:
        """Return equal probabilities, and a rule with the threshold 0.5."""
        threshold = None if loaded.positive is None else 0.5
        conformal = {"alpha": 0.1, "lowest": dict.fromkeys(labels, 0.5), "pictures": [1] * len(labels)}
        rule = DecisionRule(
            labels,
            positive=loaded.positive,
            threshold=threshold,
            threshold_rule=None if threshold is None else "0.5",
            temperature=1.0,
            conformal=conformal,
        )
        return np.full((len(loaded.rows("test")), len(labels)), 1 / len(labels)), rule

    def calibrate(
        self,
        model: PreTrainedModel | None,
        loaded: LoadedDataset,
        predictions: NDArray[np.float64],
        rule: str,
        alpha: float,
    ) -> DecisionRule:
        """Divide the head's weights by a temperature; return it with thresholds (and conformal sets)."""
        logits, temperature = self._fit_temperature(loaded, predictions)
        if model is not None:
            fold_temperature(model, temperature)
        return replace(self._fit_decisions(loaded, logits / temperature, rule, alpha), temperature=temperature)

    def _fit_temperature(
        self, loaded: LoadedDataset, probabilities: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float]:
        """Return logits (n, K) of the validation split and the temperature to divide them by."""
        logits = np.log(probabilities.clip(1e-12))  # the logits up to a constant, which softmax does not see
        return logits, fit_temperature(logits, self._true_labels(loaded, "validation"))

    def _fit_decisions(
        self, loaded: LoadedDataset, logits: NDArray[np.float64], rule: str, alpha: float
    ) -> DecisionRule:
        """Return the decision rule, fitted on calibrated logits (n, K) of the validation split."""
        labels, positive = self._true_labels(loaded, "validation"), loaded.positive_index
        probabilities = softmax(logits, axis=1)
        threshold = None
        if positive is not None:
            threshold = choose_threshold(rule, probabilities[:, positive], labels == positive)
        lowest = conformal_quantiles(probabilities, labels, alpha)
        return DecisionRule(
            loaded.labels,
            positive=loaded.positive,
            threshold=threshold,
            threshold_rule=None if threshold is None else rule,
            conformal={
                "alpha": alpha,
                "lowest": dict(zip(loaded.labels, lowest.tolist(), strict=True)),
                "pictures": np.bincount(labels, minlength=len(loaded.labels)).tolist(),
            },
        )

    def feature_strata(self, loaded: LoadedDataset, split: str) -> NDArray[np.int64]:
        """Return the (n,) class index: images of one label have similar features."""
        return self._true_labels(loaded, split)

    def measure(self, loaded: LoadedDataset, predictions: NDArray[np.float64], rule: DecisionRule) -> dict[str, Any]:
        """Measure the test split: metrics, effect of the temperature and conformal sets."""
        labels = self._true_labels(loaded, "test")
        groups = loaded.rows("test")["group"].tolist()
        measured = classification_results(labels, predictions, groups, loaded.labels, loaded.positive, rule.threshold)
        measured |= {"threshold_rule": rule.threshold_rule, "temperature": rule.temperature}
        if loaded.positive is not None:
            measured["positive_label_source"] = loaded.spec.positive_source
        if rule.temperature is not None:
            measured["calibration"] = temperature_effect(labels, predictions, groups, rule.temperature)
        if rule.conformal is None:  # a model that was trained elsewhere
            return measured
        lowest = np.array([rule.conformal["lowest"][label] for label in loaded.labels])  # config.json sorts its keys
        correct = rule.decide(predictions)[np.arange(len(labels)), labels]
        return {**measured, "conformal": {**rule.conformal, **conformal_results(predictions, labels, lowest, correct)}}

    def prediction_table(self, loaded: LoadedDataset, predictions: NDArray[np.float64]) -> pd.DataFrame:
        """Return image_id, label, group and the probability of each label of the test split."""
        rows = loaded.rows("test")[["image_id", "label", "group"]]
        return rows.assign(**{f"p_{label}": predictions[:, i] for i, label in enumerate(loaded.labels)})

    def prediction_rows(
        self, config: Any, loaded: LoadedDataset, rows: list[int], predictions: Sequence[Any]
    ) -> pd.DataFrame:
        """Return image_id, label, group and the probability of each label, from `Prediction` objects."""
        columns = {f"p_{label}": [each.probabilities[label] for each in predictions] for label in loaded.labels}
        return loaded.table.loc[rows, ["image_id", "label", "group"]].assign(**columns)

    def worst_images(self, table: pd.DataFrame, results: dict[str, Any], number: int) -> list[dict[str, str]]:
        """Return the wrong decisions with the lowest probability of the true label."""
        names, true, probabilities = _read_table(table, results)
        output = _positive_output(names, results["positive_label"])
        decided = decide(probabilities, output, results["threshold"])
        of_true = probabilities[np.arange(len(true)), true]
        wrong = np.flatnonzero(decided != true)
        return [
            {
                "image": table["image_id"].iloc[row],
                "true": names[true[row]],
                "decided": names[decided[row]],
                "probability of the true label": f"{of_true[row]:.3f}",
            }
            for row in wrong[of_true[wrong].argsort(kind="stable")][:number]
        ]

    def draw_figures(
        self,
        model: Path | Pipeline,
        figures: Path,
        loaded: LoadedDataset,
        predictions: NDArray[np.float64],
        results: dict[str, Any],
        title: str = "test split",
    ) -> None:
        """Draw the figures of `_draw_metrics` and, if there are conformal sets, the risk-coverage curve."""
        labels = self._true_labels(loaded, "test")
        self._draw_metrics(labels, predictions, loaded.rows("test")["group"].tolist(), results, figures, title)
        if "conformal" in results:
            output = _positive_output(loaded.labels, loaded.positive)
            correct = decide(predictions, output, results["threshold"]) == labels
            abstained = results["conformal"]["abstained"]["value"]
            count = f"{len(correct):,} images"
            plot = charts.risk_coverage_plot(predictions.max(axis=1), correct, 1 - abstained, count)
            plots.save_plot(plot, figures / "risk_coverage.png", title)

    def _draw_metrics(
        self,
        labels: NDArray,
        probabilities: NDArray,
        groups: Sequence[str],
        results: dict[str, Any],
        figures: Path,
        title: str,
    ) -> None:
        """Draw the confusion matrix, and the ROC and reliability curves with intervals over groups."""
        names, positive, threshold = results["labels"], results["positive_label"], results["threshold"]
        scores = [Scores(name, labels == k, probabilities[:, k], groups) for k, name in enumerate(names)]
        plots.confusion_matrix(results["confusion_matrix"], names, figures / "confusion_matrix.png", title)
        point, calibrated = None, charts.top_label_scores(labels, probabilities, groups)
        if positive is not None:
            index = names.index(positive)
            scores = [scores[index]]
            calibrated = scores[0]._replace(name="the positive label")
            common_threshold = None if isinstance(threshold, np.ndarray) else threshold
            decided = decide(probabilities, index, threshold) == index
            point = charts.operating_point(decided, labels == index, common_threshold)
        plots.save_plot(charts.roc_plot(scores, point), figures / "roc.png", title)
        plots.save_plot(charts.reliability_plot(calibrated), figures / "reliability.png", title)

    def pool_folds(self, table: pd.DataFrame, folds: list[dict[str, Any]], figures: Path, title: str) -> dict[str, Any]:
        """Measure all folds' test images, each decided with the threshold of its fold's own model."""
        names, labels, probabilities = _read_table(table, folds[0])
        positive, threshold, groups = folds[0]["positive_label"], self._threshold(table, folds), table["group"].tolist()
        pooled = classification_results(labels, probabilities, groups, names, positive, threshold)
        self._draw_metrics(labels, probabilities, groups, pooled | {"threshold": threshold}, figures, title)
        source = "positive_label_source"
        return pooled | {key: folds[0][key] for key in (source,) if key in folds[0]}

    def score(self, table: pd.DataFrame, results: dict[str, Any]) -> tuple[list[str], Score]:
        """Return the labels as strata and the ROC AUC as a function of weights."""
        names, labels, probabilities = _read_table(table, results)
        output = _positive_output(names, results["positive_label"])

        def roc_auc(weights: NDArray | None) -> NDArray[np.float64]:
            only = [self.main_metric]
            values = classification_metrics(labels, probabilities, output, None, weights, names=only)
            return np.asarray(values[self.main_metric])

        return table["label"].tolist(), roc_auc

    def run_scores(self, table: pd.DataFrame, folds: list[dict[str, Any]]) -> RunScores:
        """Return a run with each image decided by the threshold of the model that was tested on it."""
        return RunScores.from_labels(
            table, folds[0]["labels"], folds[0]["positive_label"], self._threshold(table, folds)
        )

    def _threshold(self, table: pd.DataFrame, folds: list[dict[str, Any]]) -> float | NDArray[np.float64] | None:
        if folds[0]["positive_label"] is None:
            return None
        return threshold_by_fold([fold["threshold"] for fold in folds], table)

    def mean_thresholds(self, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the mean threshold; None if a run has none."""
        thresholds = [run["threshold"] for run in runs]
        return {"threshold": None if None in thresholds else float(np.mean(thresholds))}

    def decision_rule(self, results: Mapping[str, Any], fitted: bool = True) -> DecisionRule:
        """Return the rule with the threshold; with none if it is not `fitted`."""
        threshold = results["threshold"] if fitted else None
        return DecisionRule(tuple(results["labels"]), positive=results["positive_label"], threshold=threshold)

    def is_binary(self, labels: Sequence[str]) -> bool:
        """Return True for two labels."""
        return len(labels) == 2


def threshold_by_fold(thresholds: list[float], table: pd.DataFrame) -> float | NDArray[np.float64]:
    """Return the (n,) threshold of each image's fold, or the only one."""
    return thresholds[0] if len(thresholds) == 1 else np.array(thresholds)[table["fold"]]


def _positive_output(labels: Sequence[str], positive: str | None) -> int:
    """Return the output of the positive label, or the last one, as `decide` takes it."""
    return len(labels) - 1 if positive is None else list(labels).index(positive)


def _read_table(
    table: pd.DataFrame, results: dict[str, Any]
) -> tuple[list[str], NDArray[np.int64], NDArray[np.float64]]:
    """Return the labels' names, the (n,) class indices and the (n, K) probabilities of predictions.csv."""
    names = results["labels"]
    probabilities = table[[f"p_{name}" for name in names]].to_numpy(np.float64)
    return names, table["label"].map(names.index).to_numpy(np.int64), probabilities
