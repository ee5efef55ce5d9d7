"""Statistics of heatmaps over many images: position, spread and consistency."""

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
from hf_medtl.evaluation.matplotlib_backend import GREY, series_styles, write_figure
from hf_medtl.explain.maps import Heatmaps

GRID = 64  # rows and columns of the common grid on which maps of all sizes are compared
BORDER = 0.1  # of the side; such a frame is 36 % of the image
PAIRS = 400  # of maps to compare, at most: more do not change the second digit
COLORMAP = "viridis"  # readable for colour-blind people, and brighter for higher values
POSITION_LABELS = {"xlabel": "fraction of the width", "ylabel": "fraction of the height"}


def heatmap_statistics(maps: Sequence[Heatmaps], labels: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Summarise where heatmaps lie. Positions are fractions of the width and height, from the left and the top.

    Args:
        maps: n maps (H, W) in [0, 1], of any sizes.
        labels: (n,) label that each map explains.
        seed: seed of the sample of compared pairs, if there are many.

    Returns:
        For JSON. n; constant: number of constant maps, which are left out of the rest; all and by_label: label -> n, x,
        y (mean centre of mass), spread (mean distance of the energy from it: 0.38 for a uniform map), left and right
        and border (fractions of the energy; 0.5, 0.5 and 0.36 for a uniform map), consistency (mean rank correlation of
        two maps); across: that of two maps of different labels. None where there are no maps.

    Raises:
        MedtlError: no maps, or not one label per map.
    """
    if not len(maps) or len(maps) != len(labels):
        raise MedtlError(f"Statistics need maps and one label per map; found {len(maps)} and {len(labels)}.")
    grid, names = common_grid(maps), np.asarray(labels)
    varying = np.ptp(grid, axis=(1, 2)) > 0
    grid, names = grid[varying], names[varying]
    rng = np.random.default_rng(seed)
    pairs = np.array([*combinations(range(len(grid)), 2)], int).reshape(-1, 2)
    ranks = np.array([_standardise(rankdata(values)) for values in grid]).reshape(len(grid), GRID * GRID)

    def consistency(chosen: NDArray[np.bool_]) -> float | None:
        sampled = pairs[chosen]
        if len(sampled) > PAIRS:
            sampled = rng.choice(sampled, PAIRS, replace=False)
        return float((ranks[sampled[:, 0]] * ranks[sampled[:, 1]]).sum(axis=1).mean()) if len(sampled) else None

    first, second = names[pairs].T.reshape(2, -1)
    return {
        "n": len(maps),
        "constant": int((~varying).sum()),
        "all": {**_position(grid), "consistency": consistency(np.ones(len(pairs), bool))},
        "by_label": {
            name: {**_position(grid[names == name]), "consistency": consistency((first == name) & (second == name))}
            for name in dict.fromkeys(labels)
        },
        "across": consistency(first != second),
    }


def mean_maps(maps: Sequence[Heatmaps], labels: Sequence[str]) -> dict[str, Heatmaps]:
    """Return label -> mean (GRID, GRID) of its maps."""
    grid, names = common_grid(maps), np.asarray(labels)
    return {name: grid[names == name].mean(axis=0) for name in dict.fromkeys(labels)}


def common_grid(maps: Sequence[Heatmaps]) -> Heatmaps:
    """Resize maps of any sizes to (n, GRID, GRID) by averaging over areas, so that no energy is lost."""
    pool = torch.nn.AdaptiveAvgPool2d(GRID)
    return np.stack([pool(torch.from_numpy(np.ascontiguousarray(values))[None])[0].numpy() for values in maps])


def draw_figures(maps: Sequence[Heatmaps], labels: Sequence[str], folder: Path) -> list[Path]:
    """Draw mean_maps.png, the mean map of each label, and centres.png, the centre of mass of each map.

    Args:
        maps: n maps (H, W) in [0, 1].
        labels: (n,) label that each map explains.
        folder: an existing folder.
    """
    means = mean_maps(maps, labels)
    counts = {name: list(labels).count(name) for name in means}
    figure = Figure(figsize=(3.2 * len(means) + 0.8, 3.4), layout="constrained")
    grid = figure.subplots(1, len(means), squeeze=False)[0]
    top = max(float(values.max()) for values in means.values()) or 1.0
    for axes, (name, values) in zip(grid, means.items(), strict=True):
        image = axes.imshow(values, cmap=COLORMAP, vmin=0, vmax=top, extent=(0, 1, 1, 0))
        axes.set_title(f"{name} ({counts[name]} maps)", fontsize=10, parse_math=False)
        axes.set(**POSITION_LABELS)
    figure.colorbar(image, ax=list(grid), label="mean map", shrink=0.8)
    paths = [folder / "mean_maps.png", folder / "centres.png"]
    write_figure(figure, paths[0])

    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0.5, color=GREY, linestyle=":")
    axes.axvline(0.5, color=GREY, linestyle=":")
    gridded, names = common_grid(maps), np.asarray(labels)
    for name, (colour, marker) in zip(means, series_styles(), strict=False):
        x, y, _ = _centres(gridded[(names == name) & (gridded.sum(axis=(1, 2)) > 0)])
        axes.plot(x, y, marker, color=colour, alpha=0.7, label=name, linestyle="none")
    axes.set(xlim=(0, 1), ylim=(1, 0), aspect="equal", **POSITION_LABELS)
    axes.set_title("Centre of mass of each map")
    axes.legend()
    write_figure(figure, paths[1])
    return paths


def _position(grid: Heatmaps) -> dict[str, float | None]:
    if not len(grid):
        return {"n": 0, **dict.fromkeys(("x", "y", "spread", "left", "right", "border"))}
    total = grid.sum(axis=(1, 2), dtype=float)
    x, y, spread = _centres(grid)
    left = grid[:, :, : GRID // 2].sum(axis=(1, 2)) / total
    edge = round(BORDER * GRID)
    inside = grid[:, edge:-edge, edge:-edge].sum(axis=(1, 2)) / total
    # The frame consists of whole pixels of the grid; rescale, so that a uniform map has 0.36.
    exact = 1 - (1 - 2 * BORDER) ** 2
    border = (1 - inside) * exact / (1 - (1 - 2 * edge / GRID) ** 2)
    values = {"x": x, "y": y, "spread": spread, "left": left, "right": 1 - left, "border": border}
    return {"n": len(grid), **{name: float(value.mean()) for name, value in values.items()}}


def _centres(grid: Heatmaps) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the centre of mass of each map (x, y), and the mean distance of its energy from there."""
    positions = (np.arange(GRID) + 0.5) / GRID
    weights = grid / grid.sum(axis=(1, 2), keepdims=True, dtype=float)
    x, y = (weights.sum(axis=1) * positions).sum(axis=1), (weights.sum(axis=2) * positions).sum(axis=1)
    distance = np.hypot(positions[None, None, :] - x[:, None, None], positions[None, :, None] - y[:, None, None])
    return x, y, (weights * distance).sum(axis=(1, 2))


def _standardise(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale to mean 0 and length 1, so that products are correlations."""
    centred = values.ravel() - values.mean()
    return centred / np.linalg.norm(centred)
