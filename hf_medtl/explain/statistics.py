"""What many maps have in common: where they lie, how wide, and whether those of a class are alike."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.plots import BLUE, GREY, ORANGE
from hf_medtl.explain.maps import Maps

GRID = 64  # rows and columns at which maps of pictures of all sizes are compared
BORDER = 0.1  # of the side; such a frame is 36 % of the picture
PAIRS = 400  # of maps to compare, at most: more change no second digit
COLOURS = "viridis"  # told apart by the colour-blind, and brighter for more


def statistics(maps: Sequence[Maps], labels: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Where maps lie. Places are shares of the picture's width and height, from the left and from the top.

    Args:
        maps: n maps (H, W) in [0, 1], of any sizes.
        labels: (n,) what they are maps of.
        seed: of the pairs that are compared, where there are many.

    Returns:
        For JSON. n; constant: number of maps that are the same everywhere, which are left out of the rest; all and
        by_label: label -> n, x, y (mean centre of mass), spread (mean distance of the energy from it: 0.38 where it is
        the same everywhere), left and right and border (shares of the energy; a map that is the same everywhere has
        0.5, 0.5 and 0.36), consistency (mean rank correlation of two maps); across: that of two maps of different
        labels. null where there are none.

    Raises:
        MedtlError: no maps, or not a label for each.
    """
    if not len(maps) or len(maps) != len(labels):
        raise MedtlError(f"Statistics need maps and a label for each; found {len(maps)} and {len(labels)}.")
    grid, names = common_grid(maps), np.asarray(labels)
    lively = np.ptp(grid, axis=(1, 2)) > 0
    grid, names = grid[lively], names[lively]
    order = np.random.default_rng(seed)
    pairs = np.array([*combinations(range(len(grid)), 2)], int).reshape(-1, 2)
    ranks = np.array([_standard(rankdata(values)) for values in grid]).reshape(len(grid), GRID * GRID)

    def alike(chosen: NDArray[np.bool_]) -> float | None:
        these = pairs[chosen]
        if len(these) > PAIRS:
            these = order.choice(these, PAIRS, replace=False)
        return float((ranks[these[:, 0]] * ranks[these[:, 1]]).sum(axis=1).mean()) if len(these) else None

    first, second = names[pairs].T.reshape(2, -1)
    each = {name: np.flatnonzero(names == name) for name in dict.fromkeys(labels)}
    return {
        "n": len(maps),
        "constant": int((~lively).sum()),
        "all": {**_places(grid), "consistency": alike(np.ones(len(pairs), bool))},
        "by_label": {
            name: {**_places(grid[rows]), "consistency": alike((first == name) & (second == name))}
            for name, rows in each.items()
        },
        "across": alike(first != second),
    }


def mean_maps(maps: Sequence[Maps], labels: Sequence[str]) -> dict[str, Maps]:
    """Label -> mean (GRID, GRID) of its maps."""
    grid, names = common_grid(maps), np.asarray(labels)
    return {name: grid[names == name].mean(axis=0) for name in dict.fromkeys(labels)}


def common_grid(maps: Sequence[Maps]) -> Maps:
    """(n, GRID, GRID) of maps of any sizes: means over areas, so that no energy is lost."""
    pool = torch.nn.AdaptiveAvgPool2d(GRID)
    return np.stack([pool(torch.from_numpy(np.ascontiguousarray(values))[None])[0].numpy() for values in maps])


def figures(maps: Sequence[Maps], labels: Sequence[str], folder: Path) -> list[Path]:
    """Draw mean_maps.png, the mean map of each label, and centres.png, the centre of mass of each map.

    Args:
        maps: n maps (H, W) in [0, 1].
        labels: (n,) what they are maps of.
        folder: is there.
    """
    means = mean_maps(maps, labels)
    counts = {name: list(labels).count(name) for name in means}
    figure = Figure(figsize=(3.2 * len(means) + 0.8, 3.4), layout="constrained")
    grid = figure.subplots(1, len(means), squeeze=False)[0]
    top = max(float(values.max()) for values in means.values()) or 1.0
    for axes, (name, values) in zip(grid, means.items(), strict=True):
        image = axes.imshow(values, cmap=COLOURS, vmin=0, vmax=top, extent=(0, 1, 1, 0))
        axes.set_title(f"{name} ({counts[name]} maps)", fontsize=10, parse_math=False)
        axes.set(xlabel="share of the width", ylabel="share of the height")
    figure.colorbar(image, ax=list(grid), label="mean map", shrink=0.8)
    paths = [folder / "mean_maps.png", folder / "centres.png"]
    figure.savefig(paths[0], dpi=120)

    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0.5, color=GREY, linestyle=":")
    axes.axvline(0.5, color=GREY, linestyle=":")
    marks = [(BLUE, "o"), (ORANGE, "^"), ("#009E73", "s"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P")]
    gridded, names = common_grid(maps), np.asarray(labels)
    for i, name in enumerate(means):
        x, y, _ = _centres(gridded[(names == name) & (gridded.sum(axis=(1, 2)) > 0)])
        colour, mark = marks[i % len(marks)]
        axes.plot(x, y, mark, color=colour, alpha=0.7, label=name, linestyle="none")
    axes.set(xlim=(0, 1), ylim=(1, 0), xlabel="share of the width", ylabel="share of the height", aspect="equal")
    axes.set_title("Centre of mass of each map")
    axes.legend()
    figure.savefig(paths[1], dpi=120)
    return paths


def _places(grid: Maps) -> dict[str, float | None]:
    if not len(grid):
        return {"n": 0, **dict.fromkeys(("x", "y", "spread", "left", "right", "border"))}
    total = grid.sum(axis=(1, 2), dtype=float)
    x, y, spread = _centres(grid)
    left = grid[:, :, : GRID // 2].sum(axis=(1, 2)) / total
    edge = round(BORDER * GRID)
    inside = grid[:, edge:-edge, edge:-edge].sum(axis=(1, 2)) / total
    # The frame is whole pixels of the grid; scaled, so that an even map has 0.36.
    exact = 1 - (1 - 2 * BORDER) ** 2
    border = (1 - inside) * exact / (1 - (1 - 2 * edge / GRID) ** 2)
    values = {"x": x, "y": y, "spread": spread, "left": left, "right": 1 - left, "border": border}
    return {"n": len(grid), **{name: float(value.mean()) for name, value in values.items()}}


def _centres(grid: Maps) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Centre of mass of each map, from the left and from the top, and the mean distance of its energy from there."""
    places = (np.arange(GRID) + 0.5) / GRID
    weights = grid / grid.sum(axis=(1, 2), keepdims=True, dtype=float)
    x, y = (weights.sum(axis=1) * places).sum(axis=1), (weights.sum(axis=2) * places).sum(axis=1)
    far = np.hypot(places[None, None, :] - x[:, None, None], places[None, :, None] - y[:, None, None])
    return x, y, (weights * far).sum(axis=(1, 2))


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """With a mean of 0 and a length of 1, so that products are correlations."""
    centred = values.ravel() - values.mean()
    return centred / np.linalg.norm(centred)
