"""Recipes of segmentation runs that take seconds."""

from pathlib import Path

from hf_medtl import Recipe
from tests.support.commands import options


def segmentation_recipe(data: Path, output: Path, **more: object) -> Recipe:
    """Return a segmentation recipe whose run takes seconds."""
    return Recipe(
        **options(
            data,
            "unet",
            output,
            **{
                "dataset": "chest-phantoms",
                "task": "image-segmentation",
                "encoder": "tu-test_resnet",
                "encoder_weights": "none",
                "image_size": 64,
                "loss": "bce_dice",
                "learning_rate": 3e-3,
                **more,
            },
        )
    )
