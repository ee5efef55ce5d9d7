"""A figure of what an augmentation does to some pictures, for a look before training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hf_medtl.data.augment import augmentation
from hf_medtl.errors import MedtlError


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
