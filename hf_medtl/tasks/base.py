"""Abstract base class of the learning tasks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import EvalPrediction, Pipeline, PreTrainedModel

from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.images import read_image
from hf_medtl.data.specs import DatasetSpec
from hf_medtl.evaluation.decisions import DecisionRule
from hf_medtl.evaluation.run_scores import RunScores
from hf_medtl.training.recipe import Recipe

Reader = Callable[[Path], Image.Image]  # file -> RGB image
Score = Callable[[NDArray | None], NDArray[np.float64]]


class Task(ABC):
    """Everything that differs between kinds of learning: targets, model, loss, metrics, figures and reports.

    Nothing outside `hf_medtl.tasks` asks which task a run has; it calls a method of this class. `predictions` below are
    the output of `predict`, in a form that only the task itself looks into.

    Attributes:
        name: unique key of the task.
        pipeline: name of the `transformers` pipeline that runs its models.
        main_metric: metric that is plotted by epoch and shown first.
        has_probabilities: True if the model gives probabilities that `calibrate` can fit on validation data.
        multilabel: True if an image can have any number of labels.
        supports_robustness: True if robustness to image corruptions can be measured.
        search_space: options that --search tries besides learning rates, weight decay and the strategy's own.
    """

    name: ClassVar[str]
    pipeline: ClassVar[str]
    main_metric: ClassVar[str]
    has_probabilities: ClassVar[bool] = False
    multilabel: ClassVar[bool] = False
    supports_robustness: ClassVar[bool] = False
    search_space: ClassVar[dict[str, list[Any]]]

    # Before training

    @abstractmethod
    def check_recipe(self, recipe: Recipe) -> None:
        """Check the options before data are read.

        Raises:
            MedtlError: options that are not for this task, or values that it does not allow.
        """

    @abstractmethod
    def output_labels(self, recipe: Recipe, loaded: LoadedDataset) -> tuple[str, ...]:
        """Return the (K,) labels of the model's outputs, in order."""

    @abstractmethod
    def build(self, recipe: Recipe, labels: tuple[str, ...]) -> tuple[PreTrainedModel, Any]:
        """Return the model and the image processor of a recipe."""

    @abstractmethod
    def describe_initial_weights(self, recipe: Recipe, model: PreTrainedModel) -> str:
        """Describe the weights before training, for the plan and the model card."""

    @abstractmethod
    def base_model(self, recipe: Recipe) -> tuple[str, str | None] | None:
        """Return the folder or Hub id of the initial weights and their revision.

        Returns:
            None for random weights. The revision is None if it is not known.
        """

    def mask_options(self, config: Any, loaded: LoadedDataset) -> dict[str, Any]:
        """Return the arguments of `prepare` that concern masks; none if masks are not learned."""
        return {}

    def check_external(  # noqa: B027 - nothing to check by default
        self, config: Any, loaded: LoadedDataset
    ) -> None:
        """Check that a model can be evaluated on an external data set, so that a problem shows before the work.

        Raises:
            MedtlError: data that could not be measured, or something that the model's configuration lacks.
        """

    def check_data(self, config: Any, loaded: LoadedDataset) -> None:  # noqa: B027 - most tasks need nothing
        """Check that a data set has what training and testing a model need; by default nothing more than images.

        Args:
            config: configuration of the model.
            loaded: data set.

        Raises:
            MedtlError: something that is missing.
        """

    # Training

    @abstractmethod
    def targets(self, loaded: LoadedDataset, split: str) -> Any:
        """Return the training target of each image of a split."""

    def loss_targets(self, recipe: Recipe, config: Any, loaded: LoadedDataset) -> Any:
        """Return what class weights are computed from: the targets of the training split.

        Args:
            recipe: the run's options.
            config: configuration of the model, which assigns the values in masks to classes.
            loaded: data set.
        """
        return self.targets(loaded, "train")

    def training_presence(self, config: Any, loaded: LoadedDataset) -> NDArray[np.bool_]:
        """Return (n, K) True for each class that a training image shows, for oversampling of rare ones."""
        return loaded.label_matrix()[(loaded.table["split"] == "train").to_numpy()] > 0

    @abstractmethod
    def loss(self, recipe: Recipe, labels: tuple[str, ...], targets: Any) -> Callable[..., torch.Tensor]:
        """Return the loss of a recipe.

        Args:
            recipe: the run's options.
            labels: (K,) labels of the outputs.
            targets: of `loss_targets`, for class weights.

        Returns:
            A function of logits, targets and the number of targets as `Trainer` counts them.

        Raises:
            MedtlError: a class that cannot be weighted.
        """

    def reduce_logits(self, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reduce a batch's logits and targets to what `validation_metrics` needs."""
        return logits, targets

    @abstractmethod
    def validation_metrics(self, prediction: EvalPrediction, positive: int | None = None) -> dict[str, float]:
        """Return the metrics that each evaluation during training logs.

        Args:
            prediction: logits and targets of the validation split.
            positive: output of the positive one of two labels; None if there is none.
        """

    @abstractmethod
    def ideal_prediction(self, loaded: LoadedDataset) -> EvalPrediction:
        """Return a right prediction of the validation split: its `validation_metrics` are finite where defined."""

    @abstractmethod
    def backbone_options(self, recipe: Recipe, name: str) -> dict[str, Any]:
        """Return the options that start from the backbone `name`, an id or a folder."""

    @abstractmethod
    def random_weight_options(self, recipe: Recipe) -> dict[str, Any]:
        """Return the options that give the same network random weights; none if it already has them."""

    # Evaluation

    @abstractmethod
    def predict(self, model: Path | Pipeline, loaded: LoadedDataset, split: str, read: Reader = read_image) -> Any:
        """Predict a split through the saved folder's own pipeline.

        Args:
            model: run folder or pipeline.
            loaded: data set.
            split: name of the split.
            read: function that reads a file.

        Returns:
            Predictions, one row per image; every process gets all of them.
        """

    @abstractmethod
    def dummy_predictions(self, loaded: LoadedDataset, labels: tuple[str, ...]) -> tuple[Any, DecisionRule]:
        """Return predictions of the test split as of a model that has learned nothing, and a decision rule.

        Args:
            loaded: data set.
            labels: (K,) labels of the model's outputs.
        """

    def calibrate(
        self, model: PreTrainedModel | None, loaded: LoadedDataset, predictions: Any, rule: str, alpha: float
    ) -> DecisionRule:
        """Fit temperature and decision rule on the validation split; its `to_config` goes into config.json.

        Only for tasks with `has_probabilities`. It may change the model.

        Args:
            model: trained model; None if the predictions are of none.
            loaded: data set with the validation split.
            predictions: of the validation split.
            rule: rule of the decision threshold, see `parse_rule`.
            alpha: fraction of conformal sets that may miss the true label.
        """
        raise NotImplementedError

    def feature_strata(self, loaded: LoadedDataset, split: str) -> NDArray[np.int64]:
        """Return the (n,) stratum of each image: those in one have similar features; for out-of-distribution detection.

        Only for tasks with `has_probabilities`.
        """
        raise NotImplementedError

    @abstractmethod
    def measure(self, loaded: LoadedDataset, predictions: Any, rule: DecisionRule) -> dict[str, Any]:
        """Return the part of results.json about the test split.

        Args:
            loaded: data set.
            predictions: of its test split.
            rule: decision rule of the model.
        """

    @abstractmethod
    def prediction_table(self, loaded: LoadedDataset, predictions: Any) -> pd.DataFrame:
        """Return predictions.csv of the test split."""

    @abstractmethod
    def prediction_rows(
        self, config: Any, loaded: LoadedDataset, rows: list[int], predictions: Sequence[Any]
    ) -> pd.DataFrame:
        """Return the columns of predictions.csv that `run_scores` reads, for some images.

        Args:
            config: configuration of the model.
            loaded: data set.
            rows: (n,) rows of its table.
            predictions: (n,) a `Prediction` of each.
        """

    @abstractmethod
    def worst_images(self, table: pd.DataFrame, results: dict[str, Any], number: int) -> list[dict[str, str]]:
        """Return the test images that the model handles worst, worst first.

        Args:
            table: predictions.csv.
            results: results.json.
            number: how many at most.

        Returns:
            Rows of the model card's table: column -> cell.
        """

    @abstractmethod
    def draw_figures(
        self,
        model: Path | Pipeline,
        figures: Path,
        loaded: LoadedDataset,
        predictions: Any,
        results: dict[str, Any],
        title: str = "test split",
    ) -> None:
        """Draw the figures of the test split.

        Args:
            model: run folder or pipeline.
            figures: folder to write to.
            loaded: data set.
            predictions: of its test split.
            results: results.json.
            title: name of the images, for the titles.
        """

    @abstractmethod
    def pool_folds(self, table: pd.DataFrame, folds: list[dict[str, Any]], figures: Path, title: str) -> dict[str, Any]:
        """Measure the pooled predictions of all folds and draw their figures.

        Args:
            table: predictions.csv of all folds, with the column fold.
            folds: results.json of each fold.
            figures: folder to write to.
            title: name of the images, for the titles.

        Returns:
            The part of the common results.json that comes from predictions.
        """

    # Comparison of runs

    @abstractmethod
    def score(self, table: pd.DataFrame, results: dict[str, Any]) -> tuple[list[str], Score]:
        """Return the strata of resampling and the main metric as a function of weights.

        Args:
            table: predictions.csv.
            results: results.json.

        Returns:
            (n,) stratum of each image, within which groups are drawn; weights (B, n) or None -> (B,) or () metric.
        """

    @abstractmethod
    def run_scores(self, table: pd.DataFrame, folds: list[dict[str, Any]]) -> RunScores:
        """Return a run in the form in which runs are compared.

        Args:
            table: predictions.csv, with the column fold if there are several.
            folds: results.json of each fold, or of the only run.
        """

    def label_results(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Return label -> results of that label alone, if labels are decided independently; else nothing."""
        return {}

    def mean_thresholds(self, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the keys of results.json that hold thresholds, averaged over the results of several runs."""
        return {}

    def decision_rule(self, results: Mapping[str, Any], fitted: bool = True) -> DecisionRule:
        """Return the decision rule with the thresholds of results.json, or with the defaults if not `fitted`.

        Only for tasks with `has_probabilities`.
        """
        raise NotImplementedError

    def dataset_spec(self, spec: DatasetSpec, labels: tuple[str, ...]) -> DatasetSpec:
        """Return the data set that a model with these labels was trained on, from what is known about it."""
        return replace(spec, task=self.pipeline, labels=labels, several=self.multilabel)

    def is_binary(self, labels: Sequence[str]) -> bool:
        """Return True if one of the labels is the positive one, with a threshold."""
        return False

    def presence(self, loaded: LoadedDataset) -> dict[str, NDArray[np.bool_]]:
        """Return what is counted in a subgroup: name -> (n,) True for each image that shows it."""
        return dict(zip(loaded.labels, loaded.label_matrix().T, strict=True))
