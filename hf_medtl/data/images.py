"""Any picture file -> an 8-bit RGB picture without metadata."""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hf_medtl.errors import UnreadableImage

# The header decides, never the file's name. The list keeps Pillow's rarer readers away from files of unknown origin.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".webp", ".bmp", ".gif"})
MAX_PIXELS = 100_000_000  # the largest radiographs have about 20 million


def read_image(source: str | Path | bytes, window: tuple[float, float] | None = None) -> Image.Image:
    """Read a picture as 8-bit RGB, upright, without EXIF or any other metadata.

    An ordinary 8-bit file becomes exactly what stock `transformers` pipelines make of it: EXIF rotation, then
    `convert("RGB")`. A picture of more than 8 bits is windowed first, because `convert` would clip it to white.

    Args:
        source: path of a file, or its bytes.
        window: grey values (low, high) that become 0 and 255 in a picture of more than 8 bits; by default the 0.5th
            and 99.5th percentile of its pixels, which one stray pixel does not move as a maximum would.

    Raises:
        UnreadableImage: the file is empty, truncated, not a picture, or has more than 100 million pixels.
    """
    name = "bytes" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is checked or mended below
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise UnreadableImage(
                        f"{name}: {width} × {height} pixels, more than the {MAX_PIXELS:,} that are opened. "
                        "Shrink the file, or take it out of the data folder."
                    )
                image.load()
                upright = ImageOps.exif_transpose(image)
                if upright.mode.startswith("I") or upright.mode == "F":
                    upright = Image.fromarray(apply_window(np.asarray(upright, dtype=np.float64), window))
                # Through an array: a converted picture would still carry EXIF and text in `info`.
                return Image.fromarray(np.asarray(upright.convert("RGB")))
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file provokes, SyntaxError included
        raise UnreadableImage(f"{name}: not a readable picture ({type(error).__name__}: {error}).") from error


def apply_window(pixels: NDArray[np.float64], window: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Map grey values (H, W) linearly to 0..255, clipped at `window` (low, high) or the 0.5th and 99.5th percentile."""
    finite = pixels[np.isfinite(pixels)]
    if window is None:
        window = tuple(np.percentile(finite, [0.5, 99.5])) if finite.size else (0.0, 1.0)
    low, high = window
    scaled = (np.nan_to_num(pixels, nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-9)
    return np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)
