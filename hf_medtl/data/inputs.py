"""Inputs for prediction: images as files, folders, bytes or arrays."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.data.images import EXTENSIONS, read_image
from hf_medtl.errors import MedtlError, UnreadableImage

ImageSource = str | Path | bytes | Image.Image | NDArray[np.uint8]


def image_files(path: Path) -> list[Path]:
    """Return a file itself, or the images below a folder, sorted by name.

    Raises:
        MedtlError: The path does not exist, or the folder has no images.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.lower().endswith(EXTENSIONS) and file.is_file())
        if not files:
            raise MedtlError(
                f"{path} has no images. Expected names ending in {', '.join(EXTENSIONS)}; pass other files directly."
            )
        return files
    if not path.exists():
        raise MedtlError(f"{path} does not exist. Give files, or a folder with images.")
    return [path]


def iter_sources(images: ImageSource | Iterable[ImageSource]) -> Iterator[ImageSource]:
    """Yield one or many images, replacing folders by the images in them."""
    if isinstance(images, str | Path | bytes | Image.Image | np.ndarray):
        images = [images]
    for source in images:
        if isinstance(source, str | Path) and Path(source).is_dir():
            yield from image_files(Path(source))
        else:
            yield source


def read_source(numbered: tuple[int, ImageSource]) -> tuple[str, Image.Image | None, str]:
    """Read a (number, source) pair and return its name, RGB image (None if unreadable) and error ("" if none)."""
    number, source = numbered
    name = str(source) if isinstance(source, str | Path) else f"#{number}"
    try:
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8:
                raise UnreadableImage(f"{name}: expected 8-bit pixels, found {source.dtype}. Apply a window first.")
            source = Image.fromarray(source)
        if not isinstance(source, Image.Image):
            return name, read_image(source), ""
        if source.mode[0] in "IF":
            raise UnreadableImage(f"{name}: expected 8-bit pixels, found mode {source.mode}. Apply a window first.")
        return name, source.convert("RGB"), ""
    except UnreadableImage as error:
        return name, None, str(error)
