"""Pictures wherever they are: files, folders, bytes, arrays."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.data.images import EXTENSIONS, read_image
from hf_medtl.errors import MedtlError, UnreadableImage

Source = str | Path | bytes | Image.Image | NDArray[np.uint8]


def picture_files(place: Path) -> list[Path]:
    """A file, or the pictures below a folder, by name.

    Raises:
        MedtlError: there is no such place, or no picture in it.
    """
    if place.is_dir():
        found = sorted(path for path in place.rglob("*") if path.name.lower().endswith(EXTENSIONS) and path.is_file())
        if not found:
            raise MedtlError(f"{place} has no pictures. They end in {', '.join(EXTENSIONS)}; others by their own path.")
        return found
    if not place.exists():
        raise MedtlError(f"{place} does not exist. Give files, or a folder with pictures.")
    return [place]


def each_source(images: Source | Iterable[Source]) -> Iterator[Source]:
    """One or many, a folder as the pictures in it."""
    if isinstance(images, str | Path | bytes | Image.Image | np.ndarray):
        images = [images]
    for source in images:
        if isinstance(source, str | Path) and Path(source).is_dir():
            yield from picture_files(Path(source))
        else:
            yield source


def read_source(numbered: tuple[int, Source]) -> tuple[str, Image.Image | None, str]:
    """Name, RGB picture and error of a source."""
    number, source = numbered
    name = str(source) if isinstance(source, str | Path) else f"#{number}"
    try:
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8:
                raise UnreadableImage(f"{name}: 8-bit pixels are expected, found {source.dtype}. Apply a window first.")
            source = Image.fromarray(source)
        if not isinstance(source, Image.Image):
            return name, read_image(source), ""
        if source.mode[0] in "IF":
            raise UnreadableImage(f"{name}: 8-bit pixels are expected, found mode {source.mode}. Apply a window first.")
        return name, source.convert("RGB"), ""
    except UnreadableImage as error:
        return name, None, str(error)
