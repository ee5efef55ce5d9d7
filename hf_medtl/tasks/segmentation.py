"""Image segmentation, as a row of `tasks.py`: what to learn of masks, how it is judged and shown."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from transformers import EvalPrediction, Pipeline, PreTrainedModel

from hf_medtl.data.cache import check_masks
from hf_medtl.data.images import read_image, read_mask
from hf_medtl.data.loading import Loaded
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import plots
from hf_medtl.evaluation.evaluate import pipeline_of, predict_masks, results_of_masks
from hf_medtl.evaluation.masks import IGNORED, METRICS, mask_metrics
from hf_medtl.evaluation.paired import Rival, of_masks
from hf_medtl.evaluation.postprocessing import postprocess
from hf_medtl.models.encoders import published_encoder, read_encoder
from hf_medtl.models.segmenter import build_segmenter
from hf_medtl.models.smp import ARCHITECTURES
from hf_medtl.training.mask_losses import LOSSES, MaskLoss
from hf_medtl.training.recipe import Recipe, without_place

watched = "dice"
search_space = {"ema_decay": [0.0, 0.9, 0.99]}
STRATEGIES = ("full", "feature_extraction", "lp_ft")


def check(recipe: Recipe) -> None:
    """Raise MedtlError for what a recipe asks and masks do not allow."""
    if recipe.model_name_or_path == Recipe.model_name_or_path:
        raise MedtlError(
            f"--task image-segmentation needs --model_name_or_path {' or '.join(ARCHITECTURES)}, or another "
            f"segmentation model; the default, {Recipe.model_name_or_path}, is none."
        )
    recipe.refuse(
        (
            "mixup",
            "cutmix",
            "class_weights",
            "effective_beta",
            "label_smoothing_factor",
            "head_dropout",
            "feature_views",
        ),
        "not for --task image-segmentation. Leave it out; for rare structures take --loss dice, bce_dice or tversky.",
    )
    recipe.refuse(
        ("preprocessing", "fit", "lung_model"),
        "not for --task image-segmentation, since the masks would have to go through the same. Leave it out.",
    )
    recipe.refuse(
        ("positive_label", "external_labels", "threshold", "conformal_alpha"),
        "not for --task image-segmentation, which learns no labels. Leave it out.",
    )
    recipe.refuse(
        ("from_scratch",), "a segmentation network starts from random weights with --encoder_weights none. Give that."
    )
    if recipe.loss not in LOSSES:
        raise MedtlError(f"--loss is one of {', '.join(LOSSES)} for masks, found {recipe.loss!r}.")
    if recipe.strategy not in STRATEGIES:
        raise MedtlError(f"--strategy is one of {', '.join(STRATEGIES)} for masks, found {recipe.strategy}.")
    if not is_new(recipe):
        recipe.refuse(
            ("encoder", "encoder_weights"),
            f"those are of a new network (--model_name_or_path {' or '.join(ARCHITECTURES)}), and "
            f"{recipe.model_name_or_path} has an encoder with weights. Leave it out.",
        )
    elif recipe.encoder_weights == "none" and recipe.strategy != "full":
        raise MedtlError(f"--encoder_weights none would freeze random weights with --strategy {recipe.strategy}.")


def is_new(recipe: Recipe) -> bool:
    """Whether a recipe names an architecture, not a checkpoint."""
    return recipe.model_name_or_path in ARCHITECTURES and not Path(recipe.model_name_or_path).exists()


def output_labels(recipe: Recipe, loaded: Loaded) -> tuple[str, ...]:
    """(K,) what the outputs stand for: those of --mask_values, or the background and what the masks show."""
    if recipe.mask_classes:
        return tuple(dict.fromkeys(recipe.mask_classes.values()))
    return "background", loaded.spec.mask_shows


def build(recipe: Recipe, labels: tuple[str, ...]) -> tuple[PreTrainedModel, Any]:
    """Model and image processor; its configuration says how masks are read and what is done to predicted ones."""
    model, processor = build_segmenter(
        recipe.model_name_or_path,
        labels,
        encoder=recipe.encoder,
        encoder_weights=recipe.encoder_weights,
        image_size=recipe.image_size,
        revision=recipe.model_revision,
    )
    classes = recipe.mask_classes
    # Keys as JSON will have them.
    values = None if classes is None else {str(value): labels.index(name) for value, name in classes.items()}
    model.config.update({"mask_values": values, "postprocessing": recipe.postprocessing})
    return model, processor


def start(recipe: Recipe, model: PreTrainedModel) -> str:
    """What the weights were before training, for people."""
    if not is_new(recipe):
        return f"`{recipe.base_model}`"
    weights = "random" if recipe.encoder_weights == "none" else f"`{without_place(recipe.encoder_weights)}`"
    return f"a new {recipe.model_name_or_path} on the encoder `{model.config.encoder_name}` ({weights} weights)"


def base_model(recipe: Recipe) -> tuple[str, str | None] | None:
    """Folder or id of the weights to start from, and the revision that was asked for."""
    if not is_new(recipe):
        return recipe.model_name_or_path, recipe.model_revision
    if recipe.encoder_weights == "none":
        return None
    if Path(recipe.encoder_weights).is_dir():
        return recipe.encoder_weights, None
    return published_encoder(recipe.encoder or "resnet34", recipe.encoder_weights)


def masks(config: Any, loaded: Loaded) -> dict[str, Any]:
    """What `prepare` needs to know of the masks: the files of each, and the class of each grey value."""
    values = config.mask_values and {int(value): index for value, index in config.mask_values.items()}
    files = [[loaded.root / part for part in cell.split("|")] for cell in loaded.table["mask"]]
    return {"masks": files, "values": values}


def verify(config: Any, loaded: Loaded) -> None:
    """Read every mask of an external data set, so that one that can't be used does not come up after training."""
    check_masks([loaded.root / path for path in loaded.table["path"]], **masks(config, loaded))


def targets(loaded: Loaded, split: str) -> list[None]:
    """(n,) nothing: the masks are beside the prepared pictures."""
    return [None] * int((loaded.table["split"] == split).sum())


def loss(recipe: Recipe, labels: tuple[str, ...], train: Any) -> Callable[..., torch.Tensor]:
    """That of a recipe, on logits of the masks' size."""
    of_masks = MaskLoss(recipe.loss, recipe.focal_gamma)

    def of_logits(logits: torch.Tensor, masks: torch.Tensor, number: torch.Tensor | int | None = None) -> torch.Tensor:
        return of_masks(enlarged(logits, masks), masks, number)

    return of_logits


def enlarged(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Logits (B, K, h, w) at the size of masks (B, H, W), as the image processor does it: SegFormer gives a quarter."""
    size = masks.shape[-2:]
    return logits if logits.shape[-2:] == size else nn.functional.interpolate(logits, size, mode="bilinear")


def reduce(logits: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of each foreground class in each picture: (B, K - 1, 2) hit and predicted, (B, K - 1) true."""
    predicted = enlarged(logits, masks).argmax(dim=1).masked_fill(masks == IGNORED, 0)
    classes = torch.arange(1, logits.shape[1], device=logits.device)[:, None, None]
    found, true = predicted[:, None] == classes, masks[:, None] == classes
    return torch.stack([(found & true).sum((2, 3)), found.sum((2, 3))], dim=2), true.sum((2, 3))


def validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Means over pictures and classes, at the model's size, of what `reduce` counts; both empty is 1."""
    hits, predicted = np.moveaxis(np.asarray(prediction.predictions, np.float64), 2, 0)
    both = predicted + np.asarray(prediction.label_ids)
    empty = both == 0
    dice = np.where(empty, 1, 2 * hits / np.maximum(both, 1))
    iou = np.where(empty, 1, hits / np.maximum(both - hits, 1))
    return {"dice": float(dice.mean()), "iou": float(iou.mean())}


def answer(folder: Path | Pipeline, loaded: Loaded, split: str) -> pd.DataFrame:
    """A row a picture: image_id, label, source, group and its metrics, at its own size.

    Where postprocessing is on, raw_dice and so on are those without. In memory is one picture at a time.
    """
    facts = loaded.table.loc[loaded.table["split"] == split, ["image_id", "label", "source", "group"]]
    state = PartialState()
    with state.split_between_processes(facts.index.tolist()) as share:
        found = [row for row, *_ in judged(folder, loaded, share)]
    every = gather_object(found) if state.num_processes > 1 else found
    return pd.concat([facts.reset_index(drop=True), pd.DataFrame(every)], axis=1)


def judged(
    folder: Path | Pipeline, loaded: Loaded, rows: list[int]
) -> Iterator[tuple[dict[str, float], NDArray, NDArray]]:
    """Metrics, true mask and final mask (H, W) of pictures, one at a time, by the folder's own pipeline.

    Args:
        rows: of `loaded.table`.
    """
    segment = pipeline_of(folder, "image-segmentation")
    config = segment.model.config
    names, steps = label_names(config), config.postprocessing
    files = masks(config, loaded)
    paths = [loaded.root / path for path in loaded.table["path"][rows]]
    for row, raw in zip(rows, predict_masks(segment, paths, read_image), strict=True):
        true, final = true_mask(files, row, raw.shape), postprocess(raw, steps)
        metrics = mask_metrics(true, final, names)
        if steps:
            before = mask_metrics(true, raw, names)
            metrics |= {f"raw_{name}": before[name] for name in METRICS}
        yield metrics, true, final


def true_mask(files: dict[str, Any], row: int, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Class indices (H, W) of a picture of that shape, by `masks`."""
    height, width = shape
    whole = read_mask(files["masks"][row], files["values"])
    true = np.asarray(whole.resize((width, height), Image.Resampling.NEAREST))
    return true if files["values"] else (true > 0).astype(np.uint8)


def label_names(config: Any) -> list[str]:
    """(K,) in output order."""
    return [config.id2label[i] for i in range(config.num_labels)]


def rows(config: Any, loaded: Loaded, places: list[int], predictions: Sequence[Any]) -> pd.DataFrame:
    """Of some rows of the table: image_id, label, source, group and the metrics of the mask of a `Prediction`."""
    files, names = masks(config, loaded), label_names(config)
    found = [
        mask_metrics(true_mask(files, row, its.mask.shape), its.mask, names)
        for row, its in zip(places, predictions, strict=True)
    ]
    facts = loaded.table.loc[places, ["image_id", "label", "source", "group"]]
    return pd.concat([facts.reset_index(drop=True), pd.DataFrame(found)], axis=1)


calibrate = kinds = None  # the class of the largest logit is decided, and no probabilities are given


def measure(loaded: Loaded, table: pd.DataFrame, config: Any) -> dict[str, Any]:
    """What results.json says of the test split of a data set."""
    names = label_names(config)
    return results_of_masks(table, names, config.postprocessing)


def predictions(loaded: Loaded, table: pd.DataFrame) -> pd.DataFrame:
    """Of the test split: the answers, which are a row a picture."""
    return table


def worst(table: pd.DataFrame, result: dict[str, Any], number: int) -> list[dict[str, str]]:
    """The pictures with the lowest Dice."""
    rows = table.sort_values("dice", kind="stable").head(number)
    return [
        {"picture": row["image_id"], "source": row["source"], "Dice": f"{row['dice']:.3f}"}
        for row in rows.to_dict("records")
    ]


def draw(
    folder: Path | Pipeline,
    figures: Path,
    loaded: Loaded,
    table: pd.DataFrame,
    result: dict[str, Any],
    where: str = "test split",
) -> None:
    """Outlines on the best, the median and the worst picture, and Dice by source."""
    dice = table["dice"].to_numpy(np.float64)
    order = dice.argsort(kind="stable")
    chosen = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    rows = np.flatnonzero(loaded.table["split"] == "test")[[*chosen.values()]].tolist()
    captions = [f"{name}: Dice {dice[place]:.3f}" for name, place in chosen.items()]
    # Predicted again: all masks of the test split would fill the memory.
    found = [(true, final) for _, true, final in judged(folder, loaded, rows)]
    pictures = [np.asarray(read_image(loaded.root / path)) for path in loaded.table["path"][rows]]
    plots.outlines(pictures, found, captions, figures / "outlines.png")
    plots.by_source(dice, table["source"].tolist(), result["by_source"], figures / "dice_by_source.png", where)


def backbone(recipe: Recipe, name: str) -> dict[str, Any]:
    """Options that start from an encoder: by its name, with weights that are published, or from a folder of weights."""
    if Path(name).is_dir():
        return {"encoder_weights": name}
    return {"encoder": name, "encoder_weights": Recipe.encoder_weights}


def scratch(recipe: Recipe) -> dict[str, Any]:
    """Options that give the same network random weights; none if it has them already."""
    if recipe.encoder_weights == "none":
        return {}
    folder = Path(recipe.encoder_weights)
    encoder = recipe.encoder or (read_encoder(folder).names[0] if folder.is_dir() else None)
    return {"encoder": encoder, "encoder_weights": "none", "strategy": "full"}


def score(
    table: pd.DataFrame, result: dict[str, Any]
) -> tuple[list[str], Callable[[NDArray | None], NDArray[np.float64]]]:
    """Sources, within which groups are drawn, and the mean Dice of a run's test pictures under weights (B, n)."""
    dice = table["dice"].to_numpy(np.float64)

    def mean(weights: NDArray | None) -> NDArray[np.float64]:
        rows = np.ones(len(dice)) if weights is None else weights
        return np.asarray(rows @ dice / rows.sum(axis=-1))

    return table["source"].tolist(), mean


def pool(table: pd.DataFrame, singles: list[dict[str, Any]], figures: Path, where: str) -> dict[str, Any]:
    """What results.json says of all folds' test pictures."""
    found = results_of_masks(table, singles[0]["labels"], singles[0]["postprocessing"])
    dice, sources = table["dice"].to_numpy(np.float64), table["source"].tolist()
    plots.by_source(dice, sources, found["by_source"], figures / "dice_by_source.png", where)
    return found


def rival(table: pd.DataFrame, singles: list[dict[str, Any]]) -> Rival:
    """A run, or all folds."""
    return of_masks(table, singles[0]["labels"])
