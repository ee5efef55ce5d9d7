"""Inputs for prediction: images as files, folders, bytes or arrays."""

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.common.text import printable
from hf_medtl.data.images import EXTENSIONS, read_image, to_rgb
from hf_medtl.data.listing import list_images
from hf_medtl.data.masks import pair_masks
from hf_medtl.errors import MedtlError, UnreadableImage

logger = logging.getLogger("hf_medtl")
ImageSource = str | Path | bytes | Image.Image | NDArray[np.uint8] | torch.Tensor
LOADING = threading.Lock()  # one image may be given twice, and its open file can't be read by two threads at once


def image_files(path: Path) -> list[Path]:
    """Return a file itself, or the images below a folder, sorted by name.

    As in training, masks beside images are no images, see `pair_masks`; a folder of masks alone has them all.

    Raises:
        MedtlError: The path does not exist, or the folder has no images.
    """
    if path.is_dir():
        files = list_images(path)
        if not files:
            raise MedtlError(
                f"{path} has no images. Expected DICOM files, or names ending in {', '.join(EXTENSIONS)}; pass other "
                "files directly."
            )
        return _leave_out_masks(files, path)
    if not path.exists():
        raise MedtlError(f"{path} does not exist. Give files, or a folder with images.")
    return [path]


def _leave_out_masks(files: list[Path], folder: Path) -> list[Path]:
    """Return the images among files below a folder that are no masks of others; all if there are only masks."""
    names = [file.relative_to(folder).as_posix() for file in files]
    _, masks = pair_masks(names)
    images = [file for file, name in zip(files, names, strict=True) if name not in masks]
    if not images or not masks:
        return files
    what = "1 mask beside an image is" if len(masks) == 1 else f"{len(masks)} masks beside images are"
    logger.warning("%s: %s left out; name the files to predict them.", printable(folder), what)
    return images


def iter_sources(images: ImageSource | Iterable[ImageSource]) -> Iterator[ImageSource]:
    """Yield one or many images, replacing folders by the images in them; one without images stays, for its error."""
    single = isinstance(images, str | os.PathLike | bytes | Image.Image) or not isinstance(images, Iterable)
    if isinstance(images, np.ndarray | torch.Tensor):  # (n, ...) is many images, and so are paths in an array
        single = images.ndim < 4 and getattr(images.dtype, "kind", "u") not in "OU"
    sources: Any = [images] if single else images
    for source in sources:
        folder = Path(source) if isinstance(source, str | os.PathLike) and source else None
        if folder is not None and folder.is_dir():
            try:
                yield from image_files(folder)
                continue
            except MedtlError:  # the error of this folder alone, see `read_source`
                pass
        yield source


def source_name(numbered: tuple[int, ImageSource]) -> str:
    """Return the path of a (number, source) pair, or # and the number."""
    number, source = numbered
    return str(source) if isinstance(source, str | os.PathLike) else f"#{number}"


def read_source(numbered: tuple[int, ImageSource]) -> tuple[str, Image.Image | None, str]:
    """Read a (number, source) pair and return its name, RGB image (None if unreadable) and error ("" if none)."""
    (_, source), name = numbered, source_name(numbered)
    try:
        if isinstance(source, str | os.PathLike):
            if not str(source):  # Path("") would be the current folder
                raise UnreadableImage("expected a path, found an empty one.")
            if "://" in str(source) and not Path(source).exists():
                raise UnreadableImage(f"{name}: addresses are not downloaded. Download the file and give its path.")
            path = Path(source)
            return name, read_image(image_files(path)[0] if path.is_dir() else path), ""
        if isinstance(source, bytes | bytearray | memoryview):
            return name, read_image(bytes(source)), ""
        if isinstance(source, np.ndarray | torch.Tensor):
            source = _from_array(source, name)
        if not isinstance(source, Image.Image):
            raise UnreadableImage(
                f"{name}: expected a path, bytes, a Pillow image, an array or a tensor, found {type(source).__name__}."
            )
        return name, _to_rgb(source, name), ""
    except MedtlError as error:
        return name, None, str(error)
    except Exception as error:  # Pillow's readers raise whatever a damaged file provokes
        return name, None, f"{name}: not a readable image ({type(error).__name__}: {error})."


def _from_array(array: "NDArray[Any] | torch.Tensor", name: str) -> Image.Image:
    """Convert 8-bit or binary pixels (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels; the fourth is alpha."""
    axes = (0, -1) if isinstance(array, torch.Tensor) else (-1, 0)  # where the channels are, most likely first
    if array.dtype not in (np.uint8, np.bool_, torch.uint8, torch.bool):
        dtype = str(array.dtype).removeprefix("torch.")
        raise UnreadableImage(
            f"{name}: expected 8-bit pixels, found {dtype}. Apply a window first, to whole numbers of 0 to 255 (uint8)."
        )
    pixels = array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.ndim == 3:
        axis = next((axis for axis in axes if pixels.shape[axis] in (1, 3, 4)), None)
        if axis is not None:
            pixels = np.moveaxis(pixels, axis, -1)
            pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[-1] not in (3, 4)):
        raise UnreadableImage(
            f"{name}: expected pixels (H, W), (H, W, channels) or (channels, H, W) with 1, 3 or 4 channels, found "
            f"{tuple(array.shape)}."
        )
    if not pixels.size:
        raise UnreadableImage(f"{name}: expected an image, found no pixels {tuple(array.shape)}.")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert a Pillow image like a file: more than 8 bits windowed, upright by EXIF, RGB, without metadata."""
    if not image.width or not image.height:
        raise UnreadableImage(f"{name}: expected an image, found no pixels {image.size}.")
    with LOADING:
        return to_rgb(image, name=name)
