"""Pictures of a report: small, drawn anew from pixels, so that nothing of a file's header travels on."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

from hf_medtl.data.images import read_image
from hf_medtl.data.loading import Loaded
from hf_medtl.report.blocks import Picture

SIDE, LARGE = 200, 420  # pixels of the longer side
EACH = 6  # pictures of a kind
TRUE, PREDICTED = (86, 180, 233), (240, 120, 20)  # outlines, bright enough for a dark picture


def chosen(right: NDArray[np.bool_], confidence: NDArray[np.float64], groups: Sequence[str]) -> dict[str, list[int]]:
    """Title -> rows of at most EACH pictures, the clearest first; the surest right and wrong ones, the least sure.

    One of each group, so that copies do not fill a row.
    """
    surest = np.argsort(-confidence, kind="stable")
    kinds = {
        "Right, and most certain": surest[right[surest]],
        "Wrong, and most certain": surest[~right[surest]],
        "Least certain": surest[::-1],
    }
    found = {}
    for title, rows in kinds.items():
        first: dict[str, int] = {}
        for row in rows.tolist():
            first.setdefault(groups[row], row)
        found[title] = list(first.values())[:EACH]
    return found


def shown(loaded: Loaded, image_id: str, caption: str, kind: str = "plain") -> Picture:
    """A picture with its id in the run below what is said of it."""
    place = loaded.table.index[loaded.table["image_id"] == image_id][0]
    image = read_image(loaded.root / loaded.table["path"][place])
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return Picture(jpeg(image), f"{caption}\n{image_id}", f"{image_id}: {caption}", kind)


def outlined(picture: Image.Image, masks: Sequence[NDArray[np.uint8]], side: int = LARGE) -> Image.Image:
    """A picture with the outlines of its true and its predicted mask, (H, W) class indices of the picture's size."""
    scale = min(1.0, side / max(picture.size))
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    canvas = np.asarray(picture.resize(size, Image.Resampling.LANCZOS).convert("RGB")).copy()
    for mask, colour in zip(masks, (TRUE, PREDICTED), strict=True):
        small = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        for value in np.unique(small[small > 0]):
            inside = small == value
            edge = binary_dilation(inside & ~binary_erosion(inside)) & inside  # two pixels wide
            canvas[edge] = colour
    return Image.fromarray(canvas)


def jpeg(image: Image.Image) -> bytes:
    """Of an RGB picture's pixels."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=82)
    return stream.getvalue()
