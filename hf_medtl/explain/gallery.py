"""Maps for people to look at: over the picture, and many on a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.errors import MedtlError
from hf_medtl.explain.maps import Maps
from hf_medtl.explain.statistics import COLOURS


class Shown(NamedTuple):
    """One picture of a gallery.

    Attributes:
        picture: the original.
        map: (H, W) of it.
        caption: one line or two.
    """

    picture: Image.Image
    map: Maps
    caption: str


def overlay(picture: Image.Image, values: Maps, opacity: float = 0.6) -> Image.Image:
    """A picture with a map over it: where the map is 0 the picture stays as it is, where it is 1 colour covers most.

    Args:
        picture: the original, (W, H).
        values: (H, W) in [0, 1].
        opacity: of the colour where the map is 1, above 0 to 1.

    Returns:
        RGB, of the picture's size.

    Raises:
        MedtlError: another size, or an opacity that can't be.
    """
    if values.shape != (picture.height, picture.width) or not 0 < opacity <= 1:
        raise MedtlError(
            f"A map of {picture.height} × {picture.width} and an opacity above 0 and at most 1 are expected; found "
            f"{' × '.join(map(str, values.shape))} and {opacity}."
        )
    clipped = np.clip(values, 0, 1).astype(np.float32)
    colour = matplotlib.colormaps[COLOURS](clipped)[..., :3] * 255
    alpha = opacity * clipped[..., None]
    mixed = np.asarray(picture.convert("RGB")) * (1 - alpha) + colour * alpha
    return Image.fromarray(mixed.round().astype(np.uint8))


def choose(
    truth: NDArray[np.int64], decided: NDArray[np.int64], certainty: NDArray[np.float64], number: int
) -> dict[str, NDArray[np.int64]]:
    """Which pictures are worth a look: name of a page -> indices, the clearest first; empty where there are none.

    Args:
        truth, decided: (n,) class indices.
        certainty: (n,) of the decisions.
        number: on each page, at most.
    """
    right, surest = decided == truth, np.argsort(-certainty, kind="stable")
    return {
        "most_certain_right": surest[right[surest]][:number],
        "most_certain_wrong": surest[~right[surest]][:number],
        "least_certain": surest[::-1][:number],
    }


def page(shown: Sequence[Shown], path: Path, title: str, columns: int = 4) -> None:
    """Draw pictures and the same with maps over them, side by side.

    Args:
        shown: at least one.
        path: file to write.
        title: of the page.
        columns: of pairs.
    """
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    tall = float(np.median([picture.height / picture.width for picture, _, _ in shown]))
    figure = Figure(figsize=(3.6 * columns, (1.8 * tall + 0.35) * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for i, (picture, values, caption) in enumerate(shown):
        row, column = divmod(i, columns)
        plain, over = grid[row, 2 * column : 2 * column + 2]
        step = max(1, max(picture.size) // 600)  # more than a page shows
        plain.imshow(np.asarray(picture.convert("RGB"))[::step, ::step])
        over.imshow(np.asarray(overlay(picture, values))[::step, ::step])
        plain.set_title(caption, fontsize=8, loc="left", parse_math=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
