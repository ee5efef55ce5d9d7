"""Figures of the audit page as `data:` URIs: small, re-encoded from pixels, without metadata."""

import base64
import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from hf_medtl.data.dataset import Survey
from hf_medtl.data.images import encode_image, read_image

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito
SAMPLES = 8  # per label
LABELS = 12  # labels with samples
AVERAGED = 200  # images in the mean of a label
GROUPS, MEMBERS = 12, 6  # groups of copies, and images shown of each
SIDE = 132  # pixels of an image's longer side
MEAN_SIDE = 96
UNITS = {"width": "width in pixels", "height": "height in pixels", "bytes": "file size in kB"}


def render_figures(survey: Survey, findings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Render the figures of `audit.html.jinja`.

    Args:
        survey: The dataset.
        findings: Result of `audit.audit`.
        seed: Random seed of the samples.

    Returns:
        samples: label -> (path, URI); means: label -> URI; difference: URI, labels and limit, with two labels;
        histograms: name -> URI, or None if all values are equal; duplicates: as in the findings, for at most GROUPS
        groups, with a URI for each of at most MEMBERS files.
    """
    rng = np.random.default_rng(seed)
    rows = {label: rng.permutation(np.flatnonzero(survey.table["label"] == label)) for label in survey.labels[:LABELS]}
    path = survey.table["path"].tolist()
    samples = {
        label: [(path[row], _thumbnail(survey.root / path[row])) for row in indices[:SAMPLES]]
        for label, indices in rows.items()
    }
    progress = tqdm(rows.items(), desc="Averaging images", unit="label", disable=None, leave=False)
    means = {label: _mean_image([survey.root / path[row] for row in indices[:AVERAGED]]) for label, indices in progress}
    return {
        "samples": samples,
        "means": {label: data_uri(Image.fromarray(mean.round().astype(np.uint8))) for label, mean in means.items()},
        "difference": _difference_map(means) if len(means) == 2 else None,
        "histograms": {name: _histogram(name, sizes) for name, sizes in findings["sizes"].items()},
        "duplicates": [
            group | {"files": [(file, _thumbnail(survey.root / file["path"])) for file in group["files"][:MEMBERS]],
                     "more": max(0, group["size"] - MEMBERS)}
            for group in findings["duplicates"][:GROUPS]
        ],
    }  # fmt: skip


def _thumbnail(path: Path) -> str:
    """Return an image, at most SIDE pixels wide and high, as a URI."""
    image = read_image(path)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return data_uri(image)


def _mean_image(paths: list[Path]) -> NDArray[np.float64]:
    """Return the (MEAN_SIDE, MEAN_SIDE) mean grey values of images stretched to a square."""
    total = np.zeros((MEAN_SIDE, MEAN_SIDE))
    for path in paths:
        total += np.asarray(read_image(path).convert("L").resize((MEAN_SIDE, MEAN_SIDE), Image.Resampling.BOX))
    return total / len(paths)


def _difference_map(means: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Return the second mean minus the first: red is brighter, blue darker, white no difference."""
    (first, a), (second, b) = means.items()
    limit = max(1.0, float(np.abs(b - a).max()))
    shades = matplotlib.colormaps["RdBu_r"](((b - a) / limit + 1) / 2)[..., :3]
    image = Image.fromarray((255 * shades).astype(np.uint8))
    return {"uri": data_uri(image), "first": first, "second": second, "limit": round(limit)}


def _histogram(name: str, sizes: dict[str, Any]) -> str | None:
    """Return a plot of the percentage of each label's images per bin as a URI; None if there is only one bin."""
    edges = np.array(sizes["edges"]) / (1000 if name == "bytes" else 1)
    if len(edges) == 2:
        return None
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axes = figure.subplots()
    for index, (label, counts) in enumerate(sizes["counts"].items()):
        percent = 100 * np.array(counts) / max(1, sum(counts))
        colour = COLOURS[index % len(COLOURS)]
        axes.stairs(
            percent, edges, color=colour, linewidth=1.8, linestyle="-" if index < len(COLOURS) else ":", label=label
        )
        axes.stairs(percent, edges, color=colour, fill=True, alpha=0.13)
    axes.set(xlabel=UNITS[name], ylabel="% of the label's images", ylim=(0, None))
    if name == "bytes" and edges[-1] > 10 * edges[0]:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def data_uri(image: Image.Image) -> str:
    """Return an image as `data:image/jpeg;base64,...`."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_image(image, "JPEG", quality=82)).decode()
