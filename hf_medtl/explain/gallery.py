"""Heatmap figures: overlays, and pages of many images."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.matplotlib_backend import IMAGE_DPI, write_figure
from hf_medtl.explain.maps import Heatmaps
from hf_medtl.explain.statistics import COLORMAP

COLUMNS = 4  # images per row of a page, each with its overlay


class GalleryItem(NamedTuple):
    """One image of a gallery page.

    Attributes:
        image: the original.
        map: (H, W), its heatmap.
        caption: one line or two.
    """

    image: Image.Image
    map: Heatmaps
    caption: str


def overlay(image: Image.Image, values: Heatmaps, opacity: float = 0.6) -> Image.Image:
    """Blend a heatmap over an image: where the map is 0 the image is unchanged, where it is 1 the colour covers most.

    Args:
        image: the original, (W, H).
        values: (H, W) in [0, 1].
        opacity: of the colour where the map is 1, in (0, 1].

    Returns:
        RGB, of the size of the image.

    Raises:
        MedtlError: the sizes differ, or the opacity is out of range.
    """
    if values.shape != (image.height, image.width) or not 0 < opacity <= 1:
        raise MedtlError(
            f"Expected a map of {image.height} × {image.width} and an opacity above 0 and at most 1; found "
            f"{' × '.join(map(str, values.shape))} and {opacity}."
        )
    clipped = np.clip(values, 0, 1).astype(np.float32)
    colour = matplotlib.colormaps[COLORMAP](clipped)[..., :3] * 255
    alpha = opacity * clipped[..., None]
    mixed = np.asarray(image.convert("RGB")) * (1 - alpha) + colour * alpha
    return Image.fromarray(mixed.round().astype(np.uint8))


def select_examples(
    truth: NDArray[np.int64],
    decided: NDArray[np.int64],
    certainty: NDArray[np.float64],
    number: int,
    groups: Sequence[str] | None = None,
) -> dict[str, NDArray[np.int64]]:
    """Select images for each page: page name -> indices, the most typical first; empty if there are none.

    Args:
        truth: (n,) true class indices.
        decided: (n,) decided class indices.
        certainty: (n,) certainty of the decisions.
        number: images per page, at most.
        groups: (n,) of the images, to show at most one image of each, so that copies do not fill a page.
    """
    correct, descending = decided == truth, np.argsort(-certainty, kind="stable")
    names = pd.Index(range(len(truth)) if groups is None else groups)
    pages = {
        "most_certain_right": descending[correct[descending]],
        "most_certain_wrong": descending[~correct[descending]],
        "least_certain": descending[::-1],
    }
    return {page: rows[~names[rows].duplicated()][:number] for page, rows in pages.items()}


def draw_page(items: Sequence[GalleryItem], path: Path, title: str) -> None:
    """Draw each image side by side with its overlay.

    Args:
        items: at least one.
        path: file to write.
        title: title of the page.
    """
    columns = min(COLUMNS, len(items))
    rows = -(-len(items) // columns)
    aspect = float(np.median([item.image.height / item.image.width for item in items]))
    figure = Figure(figsize=(3.6 * columns, (1.8 * aspect + 0.35) * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for i, (image, values, caption) in enumerate(items):
        row, column = divmod(i, columns)
        original, blended = grid[row, 2 * column : 2 * column + 2]
        step = max(1, max(image.size) // 600)  # a page shows no more pixels
        original.imshow(np.asarray(image.convert("RGB"))[::step, ::step])
        blended.imshow(np.asarray(overlay(image, values))[::step, ::step])
        original.set_title(caption, fontsize=8, loc="left", parse_math=False)
    figure.suptitle(title, fontsize=10)
    write_figure(figure, path, IMAGE_DPI)
