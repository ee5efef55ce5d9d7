"""Named augmentations of uint8 pictures. The only file that knows albumentations (2.0.8 is its last MIT release)."""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hf_medtl.errors import MedtlError

NAMES = ("none", "light", "chest", "brain", "randaugment")
MIRRORING = ("brain",)  # exchange left and right
MAX_MAGNITUDE = 30

Picture = NDArray[np.uint8]


def augmentation(name: str, operations: int = 2, magnitude: int = 9) -> "Augmentation | None":
    """An augmentation by name, or None for "none".

    - light: rotation ±10°, shift ±5 %, zoom ±10 %, brightness and contrast ±15 %.
    - chest: rotation ±15°, shift ±10 %, zoom ±20 %, brightness and contrast ±20 %, blur, coarse dropout. Left and right
      are never exchanged: the heart is on the left, and a model taught otherwise takes situs inversus for usual and
      reads the side markers in mirror writing.
    - brain: rotation ±15°, shift ±5 %, zoom ±10 %, left and right exchanged in half of the pictures, brightness and
      contrast ±15 %, sharpness.
    - randaugment: `operations` of eleven that make sense on grey pictures, each as strong as a uniform draw up to
      `magnitude` of 30 (RandAugment, Cubuk et al. 2020, https://arxiv.org/abs/1909.13719, where drawn and fixed
      magnitudes do equally well). Solarize, posterize and colour are left out: they turn bone dark, merge grey levels,
      or do nothing. Nothing is mirrored.

    Where a picture is moved away, black comes in.

    Raises:
        MedtlError: unknown name; a number of operations or a magnitude that can't be.
    """
    if name not in NAMES:
        raise MedtlError(f"Unknown augmentation {name!r}. Known are: {', '.join(NAMES)}.")
    if operations < 1 or not 0 <= magnitude <= MAX_MAGNITUDE:
        raise MedtlError(
            f"RandAugment takes at least 1 operation and a magnitude of 0 to {MAX_MAGNITUDE}, "
            f"found {operations} and {magnitude}."
        )
    return None if name == "none" else Augmentation(name, operations, magnitude)


class Augmentation:
    """A function of a picture, a seed and perhaps a mask. Every draw comes from that seed alone."""

    def __init__(self, name: str, operations: int, magnitude: int) -> None:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network for a newer version at import
        import albumentations as A
        import cv2

        # OpenCV would start a thread for each core in each worker, and a forked worker can hang in its parent's pool.
        cv2.setNumThreads(0)
        self.arguments = name, operations, magnitude
        self.pipeline = A.Compose(steps(A, name, operations, magnitude))

    def __reduce__(self) -> Any:  # workers that are spawned make their own
        return augmentation, self.arguments

    @overload
    def __call__(self, pixels: Picture, seed: int) -> Picture: ...
    @overload
    def __call__(self, pixels: Picture, seed: int, mask: Picture) -> tuple[Picture, Picture]: ...
    def __call__(self, pixels: Picture, seed: int, mask: Picture | None = None) -> Picture | tuple[Picture, Picture]:
        """Augment pixels (H, W, 3), and with the same geometry a mask (H, W) of which values are never mixed.

        A grey picture can be given as (H, W, 1), and comes back as each channel of (H, W, 3) would.
        """
        # Global seeds don't reach albumentations, one given to Compose restarts in every worker, and its
        # set_random_seed gives each step the same one: steps of equal p would always come together.
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        if mask is None:
            return self.pipeline(image=pixels)["image"]
        both = self.pipeline(image=pixels, mask=mask)
        return both["image"], both["mask"]


def steps(A: Any, name: str, operations: int, magnitude: int) -> list[Any]:
    """The steps of albumentations `A` behind a name.

    Geometry comes first, so that the black it brings in stays the same as a black background, and is a single warp
    wherever it can be: it takes most of the time.
    """

    def move(degrees: float, shift: float, zoom: float, **more: Any) -> Any:
        rotate, translate, scale = (-degrees, degrees), (-shift, shift), (1 - zoom, 1 + zoom)
        return A.Affine(rotate=rotate, translate_percent=translate, scale=scale, p=0.9, **more)

    def light(limit: float, **more: Any) -> Any:
        return A.RandomBrightnessContrast(brightness_limit=limit, contrast_limit=limit, p=0.8, **more)

    mean = {"brightness_by_max": False}  # a share of the picture's mean, else of 255: a dark brain would turn grey
    if name == "light":
        return [move(10, 0.05, 0.1), light(0.15)]
    if name == "chest":
        return [
            move(15, 0.1, 0.2, keep_ratio=True),
            light(0.2, **mean),
            A.GaussianBlur(sigma_limit=(0.3, 1.0), blur_limit=0, p=0.2),
            A.CoarseDropout(
                num_holes_range=(1, 4), hole_height_range=(0.05, 0.12), hole_width_range=(0.05, 0.12), p=0.3
            ),
        ]
    if name == "brain":
        # Lightness 1 keeps the brightness: other values would darken the picture besides.
        sharpen = A.Sharpen(alpha=(0.05, 0.2), lightness=(1.0, 1.0), p=0.3)
        return [move(15, 0.05, 0.1, keep_ratio=True), A.HorizontalFlip(p=0.5), light(0.15, **mean), sharpen]
    return [A.SomeOf(rand_augment(A, magnitude / MAX_MAGNITUDE), n=operations, replace=True)]


def rand_augment(A: Any, strength: float) -> list[Any]:
    """RandAugment's operations for grey pictures; at strength 1 as strong as those of the paper."""
    enhance, angle, shear, shift = 0.9 * strength, 30 * strength, 17 * strength, 0.45 * strength
    fixed = {"x": (0.0, 0.0), "y": (0.0, 0.0)}
    return [
        A.NoOp(p=1),
        A.Affine(rotate=(-angle, angle), p=1),
        A.Affine(shear={**fixed, "x": (-shear, shear)}, p=1),
        A.Affine(shear={**fixed, "y": (-shear, shear)}, p=1),
        A.Affine(translate_percent={**fixed, "x": (-shift, shift)}, p=1),
        A.Affine(translate_percent={**fixed, "y": (-shift, shift)}, p=1),
        A.RandomBrightnessContrast(brightness_limit=enhance, contrast_limit=0, p=1),
        A.RandomBrightnessContrast(brightness_limit=0, contrast_limit=enhance, p=1),
        A.Sharpen(alpha=(0.0, 0.3 * strength), lightness=(1.0, 1.0), p=1),
        A.AutoContrast(p=1),
        A.Equalize(p=1),
    ]


def preview(
    pictures: Sequence[NDArray[np.uint8]],
    captions: Sequence[str],
    name: str,
    path: Path,
    samples: int = 6,
    seed: int = 0,
) -> None:
    """Draw one row a picture: as the model gets it without augmentation, then `samples` times with it.

    Args:
        pictures: n prepared pictures (H, W, 3).
        captions: n texts for their rows, the labels for instance.
        name: of the augmentation; "none" draws the first column alone.
        path: file to write, PNG or what else its ending says.
        samples: augmented pictures in a row.
        seed: of the draws; the same seed draws the same figure.

    Raises:
        MedtlError: unknown augmentation, or no pictures.
    """
    if not len(pictures):
        raise MedtlError("There are no pictures to preview.")
    augment = augmentation(name)
    columns = 1 + (samples if augment else 0)
    figure = Figure(figsize=(1.8 * columns, 1.9 * len(pictures) + 0.3), layout="constrained")
    grid = figure.subplots(len(pictures), columns, squeeze=False)
    for row, (pixels, caption) in enumerate(zip(pictures, captions, strict=True)):
        shown = [pixels]
        if augment:
            draws = np.random.SeedSequence([seed, row]).generate_state(samples)
            shown += [augment(pixels, int(draw)) for draw in draws]
        for axes, image in zip(grid[row], shown, strict=True):
            axes.imshow(image)
            axes.set_axis_off()
        grid[row, 0].set_title(caption, fontsize=9, loc="left", parse_math=False)
    figure.suptitle(f"As prepared{', then ' + name if augment else ''}", fontsize=10)
    figure.savefig(path, dpi=100)
