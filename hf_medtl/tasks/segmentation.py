"""Image segmentation: a class for each pixel."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import nn
from transformers import EvalPrediction, Pipeline, PreTrainedModel

from hf_medtl.data.cache import check_masks
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.images import read_image
from hf_medtl.data.mask_classes import class_fractions
from hf_medtl.data.specs import DATASETS, DatasetSpec
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import plots
from hf_medtl.evaluation.decisions import DecisionRule
from hf_medtl.evaluation.evaluate import segmentation_results
from hf_medtl.evaluation.masks import IGNORE_INDEX
from hf_medtl.evaluation.run_scores import RunScores
from hf_medtl.evaluation.tolerance import Tolerance
from hf_medtl.models.encoders import encoder_source, read_encoder
from hf_medtl.models.segmenter import build_segmenter, check_tile
from hf_medtl.models.smp import ARCHITECTURES
from hf_medtl.tasks.base import Reader, Score, Task
from hf_medtl.tasks.mask_predictions import (
    check_spacing,
    config_tolerance,
    mask_options,
    measure_mask,
    needed_spacing,
    predict_and_measure,
    true_mask,
)
from hf_medtl.training.mask_losses import LOSSES, PIXEL_LOSSES, MaskLoss, pixel_class_weights
from hf_medtl.training.options import strip_path
from hf_medtl.training.recipe import Recipe

logger = logging.getLogger("hf_medtl")

STRATEGIES = ("full", "feature_extraction", "lp_ft")


class Segmentation(Task):
    """A class for each pixel. Predictions are a table with the metrics of each image's mask.

    There are no probabilities: the class of the largest logit is decided.
    """

    name = "segmentation"
    pipeline = "image-segmentation"
    main_metric = "dice"
    search_space: ClassVar = {"ema_decay": [0.0, 0.9, 0.99]}

    def check_recipe(self, recipe: Recipe) -> None:
        """Check the model, the loss and the strategy, and refuse options for labels."""
        name = recipe.model_name_or_path
        if name == Recipe.model_name_or_path:
            raise MedtlError(
                f"--task image-segmentation needs --model_name_or_path {' or '.join(ARCHITECTURES)}, or another "
                f"segmentation model; the default, {name}, is a classifier."
            )
        recipe.refuse(
            (
                "mixup",
                "cutmix",
                "effective_beta",
                "label_smoothing_factor",
                "head_dropout",
                "feature_views",
            ),
            "not for --task image-segmentation. Remove the option; for rare structures use --loss dice, bce_dice or "
            "tversky, --class_weights balanced or --oversampling 0.5.",
        )
        if recipe.class_weights == "effective":
            raise MedtlError(
                "--class_weights effective is for labels: pixels of one image are no independent samples, whose number "
                "could be effective. Use --class_weights balanced."
            )
        if recipe.class_weights != "none" and recipe.loss not in PIXEL_LOSSES:
            raise MedtlError(
                f"--class_weights {recipe.class_weights} has no effect on --loss {recipe.loss}, which counts each "
                "class the same, however few its pixels are. Remove it, or use --loss "
                f"{' or '.join(PIXEL_LOSSES)}."
            )
        recipe.refuse(
            ("pooling", "image_mean", "image_std"),
            "not for --task image-segmentation, whose encoder has its own. Remove the option.",
        )
        recipe.refuse(
            ("positive_label", "external_labels", "threshold", "conformal_alpha"),
            "not for --task image-segmentation, which learns no image labels. Remove the option.",
        )
        recipe.refuse(
            ("from_scratch",), "to train a segmentation network from random weights, use --encoder_weights none."
        )
        Tolerance.parse(recipe.surface_tolerance)
        check_tile(recipe.tile)
        if recipe.tile:
            recipe.refuse(("fit",), "images are not resized with --tile. Remove one of them.")
        if recipe.sizes.stages:
            raise MedtlError("--image_size is one number for --task image-segmentation: masks keep their size.")
        if recipe.loss not in LOSSES:
            raise MedtlError(f"--loss must be one of {', '.join(LOSSES)} for segmentation, but is {recipe.loss!r}.")
        if recipe.strategy not in STRATEGIES:
            raise MedtlError(
                f"--strategy must be one of {', '.join(STRATEGIES)} for segmentation, but is {recipe.strategy!r}."
            )
        if not _is_new(recipe):
            recipe.refuse(
                ("encoder", "encoder_weights"),
                f"only for a new network (--model_name_or_path {' or '.join(ARCHITECTURES)}); {name} already has an "
                "encoder with weights. Remove the option.",
            )
        elif recipe.encoder_weights == "none" and recipe.strategy != "full":
            raise MedtlError(
                f"--strategy {recipe.strategy} would freeze the random weights of --encoder_weights none. "
                "Use --strategy full."
            )

    def output_labels(self, recipe: Recipe, loaded: LoadedDataset) -> tuple[str, ...]:
        """Return the (K,) classes of --mask_values, or the background and the structure in the masks."""
        if recipe.mask_classes:
            return tuple(dict.fromkeys(recipe.mask_classes.values()))
        return "background", loaded.spec.mask_shows

    def build(self, recipe: Recipe, labels: tuple[str, ...]) -> tuple[PreTrainedModel, Any]:
        """Return the model and its image processor; config.json holds the mask values and the postprocessing."""
        model, processor = build_segmenter(
            recipe.model_name_or_path,
            labels,
            encoder=recipe.encoder,
            encoder_weights=recipe.encoder_weights,
            image_size=recipe.sizes.last,
            revision=recipe.model_revision,
            steps=recipe.steps,
            fit=recipe.fit,
            lung_model=recipe.lung_model,
            tile=recipe.tile or None,
        )
        tolerance = Tolerance.parse(recipe.surface_tolerance)
        classes = recipe.mask_classes
        # Keys are strings, as JSON will have them.
        values = None if classes is None else {str(value): labels.index(name) for value, name in classes.items()}
        rule = DecisionRule(labels, postprocessing=recipe.postprocessing)
        model.config.update({"mask_values": values, "surface_tolerance": str(tolerance)} | rule.to_config())
        return model, processor

    def describe_initial_weights(self, recipe: Recipe, model: PreTrainedModel) -> str:
        """Name the checkpoint, or the architecture, its encoder and the encoder's weights."""
        if not _is_new(recipe):
            return f"`{recipe.base_model}`"
        weights = "random" if recipe.encoder_weights == "none" else f"`{strip_path(recipe.encoder_weights)}`"
        return f"a new {recipe.model_name_or_path} on the encoder `{model.config.encoder_name}` ({weights} weights)"

    def base_model(self, recipe: Recipe) -> tuple[str, str | None] | None:
        """Return the checkpoint or the source of the encoder's weights, and the revision; None for random weights."""
        if not _is_new(recipe):
            return recipe.model_name_or_path, recipe.model_revision
        if recipe.encoder_weights == "none":
            return None
        if Path(recipe.encoder_weights).is_dir():
            return recipe.encoder_weights, None
        return encoder_source(recipe.encoder or "resnet34", recipe.encoder_weights)

    def mask_options(self, config: Any, loaded: LoadedDataset) -> dict[str, Any]:
        """Return the mask files of each image, and the class of each gray value."""
        return mask_options(config, loaded)

    def check_data(self, config: Any, loaded: LoadedDataset) -> None:
        """Check that the test images have the pixel spacing that a tolerance in mm needs."""
        check_spacing(config_tolerance(config), loaded)

    def check_external(self, config: Any, loaded: LoadedDataset) -> None:
        """Check that the gray values of the classes are known, and read every mask of an external data set."""
        labels = DecisionRule.from_config(config).labels
        if len(labels) > 2 and not getattr(config, "mask_values", None):
            raise MedtlError(
                f"The model segments {', '.join(labels[1:])}, but its config.json has no mask_values, so the gray "
                "values of the masks cannot be assigned to classes. Use a model with one class besides the background, "
                "or one trained with --mask_values."
            )
        check_spacing(config_tolerance(config), loaded)
        check_masks([loaded.root / path for path in loaded.table["path"]], **self.mask_options(config, loaded))

    def targets(self, loaded: LoadedDataset, split: str) -> Any:
        """Return (n,) None: the masks are stored with the prepared images."""
        return [None] * len(loaded.rows(split))

    def loss_targets(self, recipe: Recipe, config: Any, loaded: LoadedDataset) -> NDArray[np.float64] | None:
        """Return (n, K) fractions of each training mask; None without class weights, because masks are read."""
        return None if recipe.class_weights == "none" else self._class_fractions(config, loaded)

    def training_presence(self, config: Any, loaded: LoadedDataset) -> NDArray[np.bool_]:
        """Return (n, K - 1) True for each class, except the background, in the mask of a training image."""
        return self._class_fractions(config, loaded)[:, 1:] > 0

    def _class_fractions(self, config: Any, loaded: LoadedDataset) -> NDArray[np.float64]:
        """Return (n, K) fractions of the mask of each training image."""
        options, rows = mask_options(config, loaded), loaded.rows("train").index
        labels = DecisionRule.from_config(config).labels
        return class_fractions([options["masks"][row] for row in rows], options["values"], len(labels))

    def loss(self, recipe: Recipe, labels: tuple[str, ...], targets: Any) -> Callable[..., torch.Tensor]:
        """Return the loss, which resizes the logits to the size of the masks.

        Its class weights come from `targets`, (n, K) fractions of each training mask.
        """
        weights = None
        if recipe.class_weights != "none":
            weights = torch.tensor(pixel_class_weights(np.mean(targets, axis=0), labels), dtype=torch.float32)
            described = ", ".join(f"{label} {weight:.3g}" for label, weight in zip(labels, weights, strict=True))
            logger.info("Class weights: %s.", described)
        mask_loss = MaskLoss(recipe.loss, recipe.focal_gamma, weights=weights)

        def loss(logits: torch.Tensor, masks: torch.Tensor, number: torch.Tensor | int | None = None) -> torch.Tensor:
            return mask_loss(_resize_logits(logits, masks), masks, number)

        return loss

    def reduce_logits(self, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Count the pixels of each foreground class in each image.

        Returns:
            (B, K - 1, 2) pixels that are predicted rightly, and predicted at all; (B, K - 1) true pixels.
        """
        decided = _resize_logits(logits, targets).argmax(dim=1).masked_fill(targets == IGNORE_INDEX, 0)
        classes = torch.arange(1, logits.shape[1], device=logits.device)[:, None, None]
        predicted, true = decided[:, None] == classes, targets[:, None] == classes
        return torch.stack([(predicted & true).sum((2, 3)), predicted.sum((2, 3))], dim=2), true.sum((2, 3))

    def validation_metrics(self, prediction: EvalPrediction, positive: int | None = None) -> dict[str, float]:
        """Return means over images and classes, at the model's size, from `reduce_logits`; 1 where both are empty."""
        hits, predicted = np.moveaxis(np.asarray(prediction.predictions, np.float64), 2, 0)
        both = predicted + np.asarray(prediction.label_ids)
        empty = both == 0
        dice = np.where(empty, 1, 2 * hits / np.maximum(both, 1))
        iou = np.where(empty, 1, hits / np.maximum(both - hits, 1))
        return {"dice": float(dice.mean()), "iou": float(iou.mean())}

    def ideal_prediction(self, loaded: LoadedDataset) -> EvalPrediction:
        """Return a right prediction of one pixel, with which every metric is defined."""
        return EvalPrediction(np.ones((1, 1, 2)), np.ones((1, 1)))

    def backbone_options(self, recipe: Recipe, name: str) -> dict[str, Any]:
        """Return the options for an encoder: its name with published weights, or a folder of weights."""
        if Path(name).is_dir():
            return {"encoder_weights": name}
        return {"encoder": name, "encoder_weights": Recipe.encoder_weights}

    def random_weight_options(self, recipe: Recipe) -> dict[str, Any]:
        """Return the options for the same encoder with random weights."""
        if recipe.encoder_weights == "none":
            return {}
        folder = Path(recipe.encoder_weights)
        encoder = recipe.encoder or (read_encoder(folder).names[0] if folder.is_dir() else None)
        return {"encoder": encoder, "encoder_weights": "none", "strategy": "full"}

    def predict(self, model: Path | Pipeline, loaded: LoadedDataset, split: str, read: Reader = read_image) -> Any:
        """Return one row per image: image_id, label, source, group and the metrics of its mask at its own size.

        With postprocessing, raw_dice and so on are the metrics without it. One image at a time is in memory.
        """
        facts = loaded.rows(split)[["image_id", "label", "source", "group"]]
        with PartialState().split_between_processes(facts.index.tolist()) as shard:
            metrics = [row for row, *_ in predict_and_measure(model, loaded, shard, read)]
        return pd.concat([facts.reset_index(drop=True), pd.DataFrame(gather_object(metrics))], axis=1)

    def dummy_predictions(self, loaded: LoadedDataset, labels: tuple[str, ...]) -> tuple[Any, DecisionRule]:
        """Return the metrics of masks that are wrong everywhere."""
        facts = loaded.rows("test")[["image_id", "label", "source", "group"]].reset_index(drop=True)
        mask = np.ones((4, 4), np.uint8)
        metrics = measure_mask(mask, 1 - mask, labels, Tolerance(), None)
        return facts.assign(**metrics), DecisionRule(labels)

    def measure(self, loaded: LoadedDataset, predictions: pd.DataFrame, rule: DecisionRule) -> dict[str, Any]:
        """Measure the test split: means over images, classes and sources."""
        return segmentation_results(predictions, rule.labels, rule.postprocessing or {})

    def prediction_table(self, loaded: LoadedDataset, predictions: pd.DataFrame) -> pd.DataFrame:
        """Return the predictions, which have one row per image."""
        return predictions

    def prediction_rows(
        self, config: Any, loaded: LoadedDataset, rows: list[int], predictions: Sequence[Any]
    ) -> pd.DataFrame:
        """Return image_id, label, source, group and the metrics of the mask of each `Prediction`."""
        options, names = mask_options(config, loaded), DecisionRule.from_config(config).labels
        tolerance, paths = config_tolerance(config), [loaded.root / path for path in loaded.table["path"][rows]]
        metrics = [
            measure_mask(
                true_mask(options, row, each.mask.shape), each.mask, names, tolerance, needed_spacing(tolerance, path)
            )
            for row, path, each in zip(rows, paths, predictions, strict=True)
        ]
        facts = loaded.table.loc[rows, ["image_id", "label", "source", "group"]]
        return pd.concat([facts.reset_index(drop=True), pd.DataFrame(metrics)], axis=1)

    def worst_images(self, table: pd.DataFrame, results: dict[str, Any], number: int) -> list[dict[str, str]]:
        """Return the images with the lowest Dice."""
        rows = table.sort_values("dice", kind="stable").head(number)
        return [
            {"image": row["image_id"], "source": row["source"], "Dice": f"{row['dice']:.3f}"}
            for row in rows.to_dict("records")
        ]

    def draw_figures(
        self,
        model: Path | Pipeline,
        figures: Path,
        loaded: LoadedDataset,
        predictions: pd.DataFrame,
        results: dict[str, Any],
        title: str = "test split",
    ) -> None:
        """Draw the outlines of the best, the median and the worst image, and Dice by source."""
        dice = predictions["dice"].to_numpy(np.float64)
        order = dice.argsort(kind="stable")
        ranks = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
        rows = loaded.rows("test").index[[*ranks.values()]].tolist()
        captions = [f"{name}: Dice {dice[index]:.3f}" for name, index in ranks.items()]
        # Predicted again: the masks of the whole test split would not fit into memory.
        masks = [(true, final) for _, true, final in predict_and_measure(model, loaded, rows)]
        images = [np.asarray(read_image(loaded.root / path)) for path in loaded.table["path"][rows]]
        plots.mask_outlines(images, masks, captions, figures / "outlines.png")
        plots.by_source(
            dice, predictions["source"].tolist(), results["by_source"], figures / "dice_by_source.png", title
        )

    def pool_folds(self, table: pd.DataFrame, folds: list[dict[str, Any]], figures: Path, title: str) -> dict[str, Any]:
        """Measure all folds' test images and draw Dice by source."""
        pooled = segmentation_results(table, folds[0]["labels"], folds[0]["postprocessing"])
        dice, sources = table["dice"].to_numpy(np.float64), table["source"].tolist()
        plots.by_source(dice, sources, pooled["by_source"], figures / "dice_by_source.png", title)
        return pooled

    def score(self, table: pd.DataFrame, results: dict[str, Any]) -> tuple[list[str], Score]:
        """Return the sources as strata and the mean Dice as a function of weights."""
        dice = table["dice"].to_numpy(np.float64)

        def mean_dice(weights: NDArray | None) -> NDArray[np.float64]:
            rows = np.ones(len(dice)) if weights is None else weights
            return np.asarray(rows @ dice / rows.sum(axis=-1))

        return table["source"].tolist(), mean_dice

    def run_scores(self, table: pd.DataFrame, folds: list[dict[str, Any]]) -> RunScores:
        """Return the metrics of each image's mask."""
        return RunScores.from_masks(table, folds[0]["labels"])

    def presence(self, loaded: LoadedDataset) -> dict[str, NDArray[np.bool_]]:
        """Return all images: each has a mask."""
        return {"the masks": np.ones(len(loaded.table), bool)}

    def dataset_spec(self, spec: DatasetSpec, labels: tuple[str, ...]) -> DatasetSpec:
        """Name the structure in the masks by the model's only class, if nothing else is known about them."""
        spec = super().dataset_spec(spec, labels)
        return replace(spec, mask_shows=labels[1]) if spec.name not in DATASETS and len(labels) == 2 else spec


def _is_new(recipe: Recipe) -> bool:
    """Return True if the recipe names an architecture, not a checkpoint."""
    return recipe.model_name_or_path in ARCHITECTURES and not Path(recipe.model_name_or_path).exists()


def _resize_logits(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Resize logits (B, K, h, w) to masks (B, H, W), as the image processor does: SegFormer gives a quarter."""
    size = masks.shape[-2:]
    return logits if logits.shape[-2:] == size else nn.functional.interpolate(logits, size, mode="bilinear")
