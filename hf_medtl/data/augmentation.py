"""Data augmentation presets for uint8 images, with albumentations (2.0.8 is its last MIT release)."""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hf_medtl.common.files import replacing
from hf_medtl.errors import MedtlError

AUGMENTATIONS = ("none", "light", "chest", "brain", "randaugment")
MIRRORING = ("brain",)  # swap left and right
MAX_MAGNITUDE = 30

Pixels = NDArray[np.uint8]


def get_augmentation(name: str, operations: int = 2, magnitude: int = 9) -> "Augmentation | None":
    """Return an augmentation by name, or None for "none".

    - light: rotation ±10°, shift ±5 %, zoom ±10 %, brightness and contrast ±15 %.
    - chest: rotation ±15°, shift ±10 %, zoom ±20 %, brightness and contrast ±20 %, blur, coarse dropout. Never
      mirrored: the heart is on the left, and a model trained otherwise would take situs inversus for normal and see
      mirrored side markers.
    - brain: rotation ±15°, shift ±5 %, zoom ±10 %, mirrored in half of the images, brightness and contrast ±15 %,
      sharpness.
    - randaugment: `operations` of eleven that make sense for grey images, each with a uniformly sampled strength up to
      `magnitude` of 30 (RandAugment, Cubuk et al. 2020, https://arxiv.org/abs/1909.13719, where sampled and fixed
      magnitudes perform equally well). Solarize, posterize and colour are omitted: they turn bone dark, merge grey
      levels, or do nothing. Never mirrored.

    Areas outside the original image are filled with black.

    Args:
        name: One of AUGMENTATIONS.
        operations: Number of operations per image, for randaugment.
        magnitude: Strength from 0 to 30, for randaugment.

    Raises:
        MedtlError: Unknown name, or operations or magnitude out of range.
    """
    if name not in AUGMENTATIONS:
        raise MedtlError(f"Unknown augmentation {name!r}. Known are: {', '.join(AUGMENTATIONS)}.")
    if operations < 1 or not 0 <= magnitude <= MAX_MAGNITUDE:
        raise MedtlError(
            f"RandAugment takes at least 1 operation and a magnitude from 0 to {MAX_MAGNITUDE}, "
            f"found {operations} and {magnitude}."
        )
    return None if name == "none" else Augmentation(name, operations, magnitude)


class Augmentation:
    """Augmentation of an image and optionally its mask, deterministic given the seed."""

    def __init__(self, name: str, operations: int, magnitude: int) -> None:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it checks the network for a newer version at import
        import albumentations as A
        import cv2

        # OpenCV would start one thread per core in each worker, and a forked worker can hang in its parent's pool.
        cv2.setNumThreads(0)
        self.arguments = name, operations, magnitude
        self.pipeline = A.Compose(_transforms(A, name, operations, magnitude))

    def __reduce__(self) -> Any:  # spawned workers build their own
        return get_augmentation, self.arguments

    @overload
    def __call__(self, pixels: Pixels, seed: int) -> Pixels: ...
    @overload
    def __call__(self, pixels: Pixels, seed: int, mask: Pixels) -> tuple[Pixels, Pixels]: ...
    def __call__(self, pixels: Pixels, seed: int, mask: Pixels | None = None) -> Pixels | tuple[Pixels, Pixels]:
        """Augment pixels and, with the same geometry and without mixing values, a mask.

        Args:
            pixels: (H, W, 3), or (H, W, 1) for a grey image, which gives the same as each channel of (H, W, 3).
            seed: Random seed.
            mask: (H, W) class indices.
        """
        # Global seeds don't affect albumentations, one passed to Compose restarts in every worker, and its
        # set_random_seed gives each transform the same one: transforms with equal p would always coincide.
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        if mask is None:
            return self.pipeline(image=pixels)["image"]
        both = self.pipeline(image=pixels, mask=mask)
        return both["image"], both["mask"]


def _transforms(A: Any, name: str, operations: int, magnitude: int) -> list[Any]:
    """Return the transforms of a preset; `A` is albumentations.

    Geometry comes first, so that its black fill stays equal to a black background, and is a single warp where possible
    because it takes most of the time.
    """

    def move(degrees: float, shift: float, zoom: float, **more: Any) -> Any:
        rotate, translate, scale = (-degrees, degrees), (-shift, shift), (1 - zoom, 1 + zoom)
        return A.Affine(rotate=rotate, translate_percent=translate, scale=scale, p=0.9, **more)

    def light(limit: float, **more: Any) -> Any:
        return A.RandomBrightnessContrast(brightness_limit=limit, contrast_limit=limit, p=0.8, **more)

    mean = {"brightness_by_max": False}  # relative to the image's mean instead of 255: a dark brain would turn grey
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
        # Lightness 1 keeps the brightness; other values would also darken the image.
        sharpen = A.Sharpen(alpha=(0.05, 0.2), lightness=(1.0, 1.0), p=0.3)
        return [move(15, 0.05, 0.1, keep_ratio=True), A.HorizontalFlip(p=0.5), light(0.15, **mean), sharpen]
    if name == "randaugment":
        return [A.SomeOf(_rand_augment_transforms(A, magnitude / MAX_MAGNITUDE), n=operations, replace=True)]
    raise NotImplementedError(f"{name!r} is one of AUGMENTATIONS, but has no list of transforms here.")


def _rand_augment_transforms(A: Any, strength: float) -> list[Any]:
    """Return RandAugment's operations for grey images; strength 1 is the maximum of the paper."""
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


def save_preview(
    images: Sequence[NDArray[np.uint8]],
    captions: Sequence[str],
    name: str,
    path: Path,
    samples: int = 6,
    seed: int = 0,
) -> None:
    """Save a figure with one row per image: without augmentation, then `samples` times with it.

    Args:
        images: (n,) prepared images (H, W, 3).
        captions: (n,) titles of the rows, such as labels.
        name: Name of the augmentation; "none" draws only the first column.
        path: File to write; the extension determines the format.
        samples: Number of augmented versions per row.
        seed: Random seed of the augmentation.

    Raises:
        MedtlError: Unknown augmentation, or no images.
    """
    if not len(images):
        raise MedtlError("There are no images to preview.")
    augment = get_augmentation(name)
    columns = 1 + (samples if augment else 0)
    figure = Figure(figsize=(1.8 * columns, 1.9 * len(images) + 0.3), layout="constrained")
    grid = figure.subplots(len(images), columns, squeeze=False)
    for row, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        versions = [pixels]
        if augment:
            seeds = np.random.SeedSequence([seed, row]).generate_state(samples)
            versions += [augment(pixels, int(value)) for value in seeds]
        for axes, image in zip(grid[row], versions, strict=True):
            axes.imshow(image)
            axes.set_axis_off()
        grid[row, 0].set_title(caption, fontsize=9, loc="left", parse_math=False)
    figure.suptitle(f"Preprocessed{', then ' + name if augment else ''}", fontsize=10)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=100, format=path.suffix.removeprefix(".") or None)
