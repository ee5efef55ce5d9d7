"""The pictures of an audit's page, as `data:` addresses: drawn anew from pixels, small, without metadata."""

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

from hf_medtl.data.images import read_image
from hf_medtl.data.loading import Survey

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito
SAMPLES = 8  # of a label
LABELS = 12  # of which samples are shown
AVERAGED = 200  # pictures of a label in its mean
GROUPS, MEMBERS = 12, 6  # of copies
SIDE = 132  # pixels of a shown picture's longer side
MEAN_SIDE = 96
UNITS = {"width": "width in pixels", "height": "height in pixels", "bytes": "file size in kB"}


def pictures(survey: Survey, findings: dict[str, Any], seed: int) -> dict[str, Any]:
    """What `audit.html.jinja` shows.

    Returns:
        samples: label -> (path, address); means: label -> address; difference: address, labels and limit, with two
        labels; histograms: name -> address, or None where all are equal; duplicates: as in the findings, of at most 12
        groups, with an address for each of at most 6 files.
    """
    rng = np.random.default_rng(seed)
    rows = {label: rng.permutation(np.flatnonzero(survey.table["label"] == label)) for label in survey.labels[:LABELS]}
    path = survey.table["path"].tolist()
    samples = {
        label: [(path[row], thumbnail(survey.root / path[row])) for row in its[:SAMPLES]] for label, its in rows.items()
    }
    progress = tqdm(rows.items(), desc="Averaging pictures", unit="label", disable=None, leave=False)
    means = {label: average([survey.root / path[row] for row in its[:AVERAGED]]) for label, its in progress}
    return {
        "samples": samples,
        "means": {label: address(Image.fromarray(mean.round().astype(np.uint8))) for label, mean in means.items()},
        "difference": difference(means) if len(means) == 2 else None,
        "histograms": {name: histogram(name, found) for name, found in findings["sizes"].items()},
        "duplicates": [
            group | {"files": [(file, thumbnail(survey.root / file["path"])) for file in group["files"][:MEMBERS]],
                     "more": max(0, group["size"] - MEMBERS)}
            for group in findings["duplicates"][:GROUPS]
        ],
    }  # fmt: skip


def thumbnail(path: Path) -> str:
    """A picture as it is seen, at most SIDE pixels wide and high."""
    image = read_image(path)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return address(image)


def average(paths: list[Path]) -> NDArray[np.float64]:
    """(MEAN_SIDE, MEAN_SIDE) mean grey of pictures that are stretched to a square."""
    total = np.zeros((MEAN_SIDE, MEAN_SIDE))
    for path in paths:
        total += np.asarray(read_image(path).convert("L").resize((MEAN_SIDE, MEAN_SIDE), Image.Resampling.BOX))
    return total / len(paths)


def difference(means: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """The second mean less the first: red where it is brighter, blue where it is darker, white at no difference."""
    (first, a), (second, b) = means.items()
    limit = max(1.0, float(np.abs(b - a).max()))
    shades = matplotlib.colormaps["RdBu_r"](((b - a) / limit + 1) / 2)[..., :3]
    picture = Image.fromarray((255 * shades).astype(np.uint8))
    return {"address": address(picture), "first": first, "second": second, "limit": round(limit)}


def histogram(name: str, found: dict[str, Any]) -> str | None:
    """Share of each label's pictures in each bin; None where there is one bin."""
    edges = np.array(found["edges"]) / (1000 if name == "bytes" else 1)
    if len(edges) == 2:
        return None
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axes = figure.subplots()
    for index, (label, counts) in enumerate(found["counts"].items()):
        share = 100 * np.array(counts) / max(1, sum(counts))
        colour = COLOURS[index % len(COLOURS)]
        axes.stairs(
            share, edges, color=colour, linewidth=1.8, linestyle="-" if index < len(COLOURS) else ":", label=label
        )
        axes.stairs(share, edges, color=colour, fill=True, alpha=0.13)
    axes.set(xlabel=UNITS[name], ylabel="% of the label's pictures", ylim=(0, None))
    if name == "bytes" and edges[-1] > 10 * edges[0]:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def address(image: Image.Image) -> str:
    """`data:image/jpeg;base64,...` of a picture's pixels."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
