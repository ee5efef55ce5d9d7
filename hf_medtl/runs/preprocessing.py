"""Preprocessed images of a run, by split."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_medtl.data.augmentation import get_augmentation
from hf_medtl.data.cache import prepare_images
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.prepared import PreparedImages
from hf_medtl.errors import MedtlError
from hf_medtl.models.preprocessing import preprocessing_key, to_uint8
from hf_medtl.models.smp import TILE_OVERLAP, tile_windows
from hf_medtl.tasks import task_for_dataset
from hf_medtl.training.oversampling import repeat_factors, repeated_images
from hf_medtl.training.recipe import Recipe

logger = logging.getLogger("hf_medtl")


def preprocess_splits(
    recipe: Recipe,
    loaded: LoadedDataset,
    processor: Any,
    masks: dict[str, Any] | None = None,
    splits: Sequence[str] = ("train", "validation"),
    shown: NDArray[np.int64] | None = None,
) -> dict[str, PreparedImages]:
    """Return preprocessed images by split, those of the training split augmented.

    Args:
        recipe: The options of the run.
        loaded: The data set.
        processor: The image processor.
        masks: Arguments of `prepare_images` that concern masks, if masks are learned.
        splits: Names of the splits.
        shown: Indices of the training images in an epoch, as `oversample` returns them; None for each once.
    """
    # With the images that are in no split, so that runs on more or fewer training images share one cache.
    table = loaded.with_unused().table
    rows = pd.Series(range(len(table)), index=table["image_id"])[loaded.table["image_id"]].to_numpy()
    key, more = preprocessing_key(processor), dict(masks or {})
    if masks and hasattr(processor, "geometry"):
        more["geometry"] = processor.geometry
    if tile := getattr(processor, "tile", None):
        key += f"\ntiles of {tile} pixels, overlap {TILE_OVERLAP}"
        more["tiles"] = partial(tile_windows, tile=tile)
    with recipe.main_process_first(local=True):
        prepared = prepare_images(
            [loaded.root / path for path in table["path"]],
            table["sha256"].tolist(),
            lambda images: to_uint8(processor, images),
            key=key,
            **more,
        )
    counts = getattr(processor, "counts", {})
    if counts.get("pictures"):  # none if the images were in the cache
        logger.info("Crop: nothing found in %d of %d images, which are not cropped.", counts["nothing"],
                    counts["pictures"])  # fmt: skip
    result = {}
    for split in splits:
        indices = rows[loaded.table["split"] == split].tolist()
        targets = task_for_dataset(loaded).targets(loaded, split)
        augment = None
        if split == "train":
            augment = get_augmentation(recipe.augmentation)
            if shown is not None:
                indices, targets = ([values[index] for index in shown] for values in (indices, targets))
        result[split] = PreparedImages(prepared, indices, targets, augment, recipe.seed)
    return result


def oversample(recipe: Recipe, config: Any, loaded: LoadedDataset) -> NDArray[np.int64] | None:
    """Return the indices of the training images in an epoch with --oversampling; None without it.

    Args:
        recipe: The options of the run.
        config: The configuration of the model.
        loaded: The data set.

    Raises:
        MedtlError: No class is that rare. In cross-validation, where another fold may have one, it is a warning.
    """
    if not recipe.oversampling:
        return None
    present = task_for_dataset(loaded).training_presence(config, loaded)
    shown = repeated_images(repeat_factors(present, recipe.oversampling), recipe.seed)
    if len(shown) == len(present):
        fractions = present.mean(axis=0)
        least = f"{fractions[fractions > 0].min():.3g}" if fractions.any() else "none"
        message = (
            f"--oversampling {recipe.oversampling:g} repeats nothing: the rarest class is in {least} of the training "
            "images (as a fraction). Give a larger number, or remove the option."
        )
        if not recipe.folds:
            raise MedtlError(message)
        logger.warning(message)
    return shown
