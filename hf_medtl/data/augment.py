"""Named augmentations of uint8 pictures. The only file that knows albumentations (2.0.8 is its last MIT release)."""

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hf_medtl.errors import MedtlError

NAMES = ("none", "light", "brain")


def augmentation(name: str) -> Callable[[NDArray[np.uint8], int], NDArray[np.uint8]] | None:
    """An augmentation by name: a function of a picture (height, width, 3) and a seed, or None for "none".

    - light: rotation ±10°, shift ±5 %, zoom ±10 %, brightness and contrast ±15 %.
    - brain: light, and left and right exchanged in half of the pictures.

    Raises:
        MedtlError: unknown name.
    """
    if name not in NAMES:
        raise MedtlError(f"Unknown augmentation {name!r}. Known are: {', '.join(NAMES)}.")
    if name == "none":
        return None
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network for a newer version at import
    import albumentations as A

    steps = [
        A.Affine(rotate=(-10, 10), translate_percent=(-0.05, 0.05), scale=(0.9, 1.1), p=0.9),
        A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.8),
    ]
    if name == "brain":
        steps.append(A.HorizontalFlip(p=0.5))
    pipeline = A.Compose(steps)

    def augment(pixels: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        # Global seeds don't reach albumentations, and a seed given to Compose restarts in every worker.
        pipeline.set_random_seed(seed)
        return pipeline(image=pixels)["image"]

    return augment
