"""What a page lays over a picture, as PNG inside the page: no file is written, and none is served."""

import base64
import io
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from hf_medtl.explain.maps import Maps
from hf_medtl.explain.statistics import COLOURS

LARGEST = 1024  # pixels of an overlay's longer side: maps are smooth
# Okabe and Ito: told apart by the colour-blind. Blue is the last, since it is hard to see on black.
CLASSES = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178))


def data_uri(picture: Image.Image) -> str:
    """A picture as PNG in a data URI; grey where all channels are equal, which is a third of the bytes."""
    if picture.mode == "RGB":
        pixels = np.asarray(picture)
        if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
            picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
    return "data:image/png;base64," + base64.b64encode(png(picture, compress_level=1)).decode("ascii")


def png(picture: Image.Image, **options: Any) -> bytes:
    """A picture as the content of a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


def heat(values: Maps) -> Image.Image:
    """A map (H, W) in [0, 1] as colour that covers nothing at 0 and all at 1."""
    small = np.asarray(shrunk(Image.fromarray(np.clip(values, 0, 1).astype(np.float32))))
    rgba = matplotlib.colormaps[COLOURS](small)
    rgba[..., 3] = small
    return Image.fromarray((255 * rgba).round().astype(np.uint8))


def fill(mask: NDArray[np.uint8]) -> Image.Image:
    """A mask (H, W) of class indices in the classes' colours, the background clear."""
    return painted(np.asarray(shrunk(Image.fromarray(mask), Image.Resampling.NEAREST)))


def outline(mask: NDArray[np.uint8]) -> Image.Image:
    """The edges of a mask's classes in their colours."""
    small = np.asarray(shrunk(Image.fromarray(mask), Image.Resampling.NEAREST))
    width = max(1, round(max(small.shape) / 250))
    edges = np.zeros_like(small)
    for index in np.unique(small[small != 0]):
        inside = small == index
        edges[inside & ~binary_erosion(inside, iterations=width, border_value=0)] = index
    return painted(edges)


def painted(mask: NDArray[np.uint8]) -> Image.Image:
    """Class indices (H, W) as RGBA."""
    table = np.zeros((256, 4), np.uint8)
    table[1:] = [(*CLASSES[(index - 1) % len(CLASSES)], 255) for index in range(1, 256)]
    return Image.fromarray(table[mask])


def shrunk(picture: Image.Image, by: Any = Image.Resampling.BOX) -> Image.Image:
    """At most LARGEST pixels long."""
    scale = LARGEST / max(picture.size)
    if scale >= 1:
        return picture
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), by)
