"""Preprocessed images of a run, by split."""

import logging
from collections.abc import Sequence
from typing import Any

import pandas as pd

from hf_medtl.data.augmentation import get_augmentation
from hf_medtl.data.cache import prepare_images
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.prepared import PreparedImages
from hf_medtl.models.preprocessing import preprocessing_key, to_uint8
from hf_medtl.tasks import task_for_dataset
from hf_medtl.training.recipe import Recipe

logger = logging.getLogger("hf_medtl")


def preprocess_splits(
    recipe: Recipe,
    loaded: LoadedDataset,
    processor: Any,
    masks: dict[str, Any] | None = None,
    splits: Sequence[str] = ("train", "validation"),
) -> dict[str, PreparedImages]:
    """Return preprocessed images by split, those of the training split augmented.

    Args:
        recipe: The options of the run.
        loaded: The data set.
        processor: The image processor.
        masks: Arguments of `prepare_images` that concern masks, if masks are learned.
        splits: Names of the splits.
    """
    # With the images that are in no split, so that runs on more or fewer training images share one cache.
    table = loaded.with_unused().table
    rows = pd.Series(range(len(table)), index=table["image_id"])[loaded.table["image_id"]].to_numpy()
    with recipe.main_process_first(local=True):
        prepared = prepare_images(
            [loaded.root / path for path in table["path"]],
            table["sha256"].tolist(),
            lambda images: to_uint8(processor, images),
            key=preprocessing_key(processor),
            **(masks or {}),
        )
    counts = getattr(processor, "counts", {})
    if counts.get("pictures"):  # none if the images were in the cache
        logger.info("Crop: nothing found in %d of %d images, which are not cropped.", counts["nothing"],
                    counts["pictures"])  # fmt: skip
    return {
        split: PreparedImages(
            prepared,
            rows[loaded.table["split"] == split].tolist(),
            task_for_dataset(loaded).targets(loaded, split),
            get_augmentation(recipe.augmentation) if split == "train" else None,
            recipe.seed,
        )
        for split in splits
    }
