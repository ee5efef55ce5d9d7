"""Cache of preprocessed images: uint8 images and masks at the model's size, computed once and memory-mapped."""

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from hf_medtl.common.system import cache_dir, cores, writing_cache
from hf_medtl.common.text import printable
from hf_medtl.data.images import IGNORE_INDEX, read_class_indices, read_image
from hf_medtl.errors import MedtlError, Unavailable, UnreadableImage

logger = logging.getLogger(__name__)

# Code that determines how a file is decoded, before `preprocess`: part of the cache key.
_SOURCE_FILES = (
    "cache.py",
    "deep_images.py",
    "dicom.py",
    "dicom_checks.py",
    "dicom_tables.py",
    "images.py",
    "nifti.py",
    "pixels.py",
)
LIBRARIES = ("nibabel", "numpy", "opencv-python-headless", "pillow", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg",
             "pylibjpeg-openjpeg")  # fmt: skip
_BATCH_ROWS = 64  # images per record batch
_UNUSED_DAYS = 30
_TILED_IMAGES = 2  # in memory at a time and core, if they are cut into tiles, because they may be large

Preprocess = Callable[[list[Image.Image]], NDArray[np.uint8]]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Geometry = Callable[[Image.Image], tuple[Box, Box]]
Tiles = Callable[[int, int], Sequence[tuple[slice, slice]]]
T = TypeVar("T")
PreparedRow = dict[str, NDArray[Any]]  # pixels (H, W, channels), grey (), optionally mask (H, W), last ()


def prepare_images(
    paths: Sequence[Path],
    sha256: Sequence[str],
    preprocess: Preprocess,
    key: str,
    masks: Sequence[Sequence[Path]] | None = None,
    values: Mapping[int, int] | None = None,
    geometry: Geometry | None = None,
    tiles: Tiles | None = None,
) -> datasets.Dataset:
    """Decode and preprocess files once; later calls with the same contents map the result into memory.

    The result is `<key>.arrow` in the folder `pictures` of `cache_dir()`. Files there can be deleted at any time; those
    unused for 30 days are deleted when another one is built. Files are written atomically.

    Args:
        paths: (n,) files.
        sha256: (n,) hashes of their bytes, so that a changed file is prepared again.
        preprocess: k RGB images -> (k, H, W, channels) uint8; called from multiple threads.
        key: Identifies the preprocessing and the versions of the libraries it uses.
        masks: (n,) files of each image's mask, which are united, and resized to the prepared image size by nearest
            neighbour.
        values: Grey value of the masks -> class index, see `read_class_indices`.
        geometry: Image -> its crop, and the position of that in the prepared image, of a `preprocess` that crops or
            pads; masks are cropped alike, and are 255 in the margins. `key` identifies it, too.
        tiles: Height and width of a prepared image, which are then any -> rows and columns of its tiles, which are of
            one size. `key` identifies it, too.

    Returns:
        Arrow dataset of n rows with the columns pixels (H × W × channels) and grey (true if the three channels are
        equal); with `masks` also mask (H × W), class indices. With `tiles` a row is a tile, and `last` is true for
        the last one of each image. `prepared.as_arrays` gives arrays.

    Raises:
        MedtlError: Not enough disk space; a file is missing, unreadable or has changed; the preprocessed images differ
            in size; a mask is missing, has another aspect ratio than its image, or undeclared values.
    """
    hashed: list[dict[Path, str] | None] = [None] * len(paths)
    if masks is not None:
        hashed = [_hash_mask(*pair) for pair in zip(paths, masks, strict=True)]
        key = f"{key}\nmasks {sorted(values.items()) if values else 'inside'}"
    jobs = [
        partial(_prepare_one, path, digest, preprocess, mask, values, geometry, tiles)
        for path, digest, mask in zip(paths, sha256, hashed, strict=True)
    ]
    sha256 = [*sha256, *("+".join(mask.values()) for mask in hashed if mask)]
    folder = cache_dir() / "pictures"
    target = folder / f"{_cache_key(key, sha256)}.arrow"
    if not _is_complete(target, len(paths)):
        with writing_cache(folder), _exclusive(target):
            if not _is_complete(target, len(paths)):
                _clean_up(folder)
                _build(target, paths, jobs, tiled=tiles is not None)
    with contextlib.suppress(OSError):  # a file of another user
        os.utime(target)
    return datasets.Dataset.from_file(str(target))


def check_masks(
    paths: Sequence[Path], masks: Sequence[Sequence[Path]], values: Mapping[int, int] | None = None
) -> None:
    """Read all images and masks to find unusable ones before training.

    Args:
        paths: (n,) image files.
        masks: (n,) files of each image's mask.
        values: As for `prepare_images`.

    Raises:
        MedtlError: As for `prepare_images`, for masks.
    """

    def check(path: Path, mask: Mapping[Path, str]) -> None:
        _read_mask(mask, values, path, read_image(path), (1, 1))

    jobs = [partial(check, path, _hash_mask(path, parts)) for path, parts in zip(paths, masks, strict=True)]
    deque(_run_in_threads(jobs, "Checking masks"), maxlen=0)


def _hash_mask(path: Path, parts: Sequence[Path]) -> dict[Path, str]:
    """Return the files of an image's mask with their sha256."""
    if not parts:
        raise MedtlError(f"{printable(path)} has no mask. Add one, or remove the image.")
    try:
        return {Path(part): hashlib.sha256(Path(part).read_bytes()).hexdigest() for part in parts}
    except OSError as error:
        raise MedtlError(
            f"{printable(error.filename)}, the mask of {printable(path)}, can't be read ({error.strerror}). Restore "
            "it, or remove the image."
        ) from error


def _cache_key(key: str, sha256: Sequence[str]) -> str:
    """Return a key that depends on the files, the preprocessing, our readers and the libraries they use."""
    versions = []
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    code = [hashlib.sha256(Path(__file__).with_name(name).read_bytes()).hexdigest() for name in _SOURCE_FILES]
    return hashlib.sha256("\n".join([key, *versions, *code, *sha256]).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    """Let one process at a time prepare `target`. The system releases the lock of a process that dies."""
    lock = FileLock(target.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("Waiting for another process that prepares the same images.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _is_complete(target: Path, number: int) -> bool:
    """True if the file exists with all its images; a damaged disk or a user may have truncated it."""
    if not target.exists():
        return False
    images = 0
    with contextlib.suppress(pa.ArrowInvalid, OSError), pa.memory_map(str(target)) as source:
        for batch in pa.ipc.open_stream(source):
            tiled = "last" in batch.schema.names
            images += int(np.count_nonzero(batch.column("last").to_numpy(False))) if tiled else batch.num_rows
        return images == number
    return False


def _clean_up(folder: Path) -> None:
    """Remove unfinished files of dead processes, and files unused for long."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError, Timeout):  # already removed, or (on Windows) in use
            old = path.stat().st_mtime < time.time() - _UNUSED_DAYS * 86400
            if path.suffix == ".partial" or (old and path.suffix in (".arrow", ".lock")):
                with FileLock(path.with_suffix(".lock"), timeout=0):  # held by a running process
                    path.unlink()


def _build(target: Path, paths: Sequence[Path], jobs: Sequence[Callable[[], list[PreparedRow]]], tiled: bool) -> None:
    """Write `target` atomically, with at most one decoded image per core and two batches in memory."""
    unfinished = target.with_suffix(".partial")
    with contextlib.closing(_run_in_threads(jobs, tiled=tiled)) as images:
        opening = next(images)
        first = opening[0]  # defines the shape of all
        shape = first["pixels"].shape
        _check_disk_space(target.parent, len(paths) * len(opening), first)
        rows = ((i, row) for i, parts in enumerate(chain([opening], images)) for row in parts)
        blocks = {name: np.empty((_BATCH_ROWS, *value.shape), value.dtype) for name, value in first.items()}
        try:
            with unfinished.open("wb") as stream:
                with pa.ipc.new_stream(stream, _to_record_batch(blocks, 0).schema) as writer:
                    last = -1
                    for number, (i, row) in enumerate(rows):
                        if row["pixels"].shape != shape:
                            raise MedtlError(
                                f"{printable(paths[i])} becomes {row['pixels'].shape}, {printable(paths[0])} {shape}; "
                                "expected the same size."
                            )
                        last = number % _BATCH_ROWS
                        for name, value in row.items():
                            blocks[name][last] = value
                        if last == _BATCH_ROWS - 1:
                            writer.write_batch(_to_record_batch(blocks, _BATCH_ROWS))
                    if last < _BATCH_ROWS - 1:
                        writer.write_batch(_to_record_batch(blocks, last + 1))
                stream.flush()
                os.fsync(stream.fileno())  # otherwise a power cut may leave the name without the content
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)


def _check_disk_space(folder: Path, number: int, first: PreparedRow) -> None:
    """Log the size of the prepared images; raise Unavailable if the disk lacks space for them."""
    shape, size = first["pixels"].shape, number * sum(value.nbytes for value in first.values())
    logger.info("Preparing %d images of %d × %d pixels: %.2f GB in %s", number, *shape[:2], size / 1e9, folder)
    free = shutil.disk_usage(folder).free
    if free < 1.01 * size:
        raise Unavailable(
            f"The prepared images need {size / 1e9:.2f} GB in {folder}, where {free / 1e9:.2f} GB are free. "
            "Free some space, or set HF_MEDTL_CACHE to a folder on another disk."
        )


def _to_record_batch(blocks: dict[str, NDArray[Any]], number: int) -> pa.RecordBatch:
    """Return the first `number` rows of blocks (k, ...) without copying pixels."""
    columns = {}
    for name, block in blocks.items():
        column: Any = pa.array(block[:number].ravel())
        for length in reversed(block.shape[1:]):
            column = pa.FixedSizeListArray.from_arrays(column, length)
        columns[name] = column
    return pa.RecordBatch.from_pydict(columns)


def _run_in_threads(
    jobs: Sequence[Callable[[], T]], title: str = "Preparing images", tiled: bool = False
) -> Generator[T, None, None]:
    """Yield results in order, from one thread per core (decoders and torch release the GIL)."""
    threads, ahead = torch.get_num_threads(), _TILED_IMAGES * cores() if tiled else _BATCH_ROWS
    waiting: deque[Future[T]] = deque()
    with (
        # Otherwise torch would start one thread per core in each of these threads.
        ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool,
        tqdm(desc=title, total=len(jobs), unit="image", disable=None, leave=False) as bar,
    ):
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
                    bar.update()
            while waiting:
                yield waiting.popleft().result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def _prepare_one(
    path: Path,
    sha256: str,
    preprocess: Preprocess,
    mask: Mapping[Path, str] | None,
    values: Mapping[int, int] | None,
    geometry: Geometry | None,
    tiles: Tiles | None,
) -> list[PreparedRow]:
    """Return one prepared image, or its tiles, from the bytes with this sha256."""
    content = _read_verified(path, sha256)
    image = read_image(content, name=printable(path))
    pixels = preprocess([image])[0]
    grey = pixels.shape[-1] == 3 and bool((pixels[..., :1] == pixels).all())
    prepared = {"pixels": pixels}
    if mask is not None:
        prepared["mask"] = _read_mask(mask, values, path, image, pixels.shape[:2], geometry)
    facts: PreparedRow = {"grey": np.array(grey)}
    if tiles is None:
        return [prepared | facts]
    windows = tiles(*pixels.shape[:2])
    return [
        {name: values[window] for name, values in prepared.items()} | facts | {"last": np.array(window is windows[-1])}
        for window in windows
    ]


def _read_mask(
    mask: Mapping[Path, str],
    values: Mapping[int, int] | None,
    path: Path,
    image: Image.Image,
    shape: tuple[int, int],
    geometry: Geometry | None = None,
) -> NDArray[np.uint8]:
    """Return class indices of `shape` (H, W) from the mask of the image at `path`."""
    size = image.size
    name = " and ".join(map(printable, mask))
    contents = [_read_verified(part, sha256) for part, sha256 in mask.items()]
    try:
        combined = read_class_indices(contents, values)
    except UnreadableImage as error:
        raise UnreadableImage(str(error).replace("bytes", name, 1)) from error
    # A mask may be smaller or larger than its image, with its sides rounded to whole pixels.
    if abs(combined.height * size[0] - combined.width * size[1]) > max(size):
        raise MedtlError(
            f"{name}: {combined.width} × {combined.height} pixels, but its image {printable(path)} has "
            f"{size[0]} × {size[1]}: one of them is cropped or rotated, or they do not belong together. Correct or "
            "remove the pair."
        )
    # Pillow samples at the centre of each new pixel, as its filters for images do; OpenCV's INTER_NEAREST and torch's
    # "nearest" sample at the corner, which shifts a mask by up to half a pixel of the larger grid.
    crop, (a, b, c, d) = geometry(image) if geometry else ((0, 0, *size), (0, 0, *shape[::-1]))
    x, y = combined.width / size[0], combined.height / size[1]
    part = (crop[0] * x, crop[1] * y, crop[2] * x, crop[3] * y)
    inside = np.asarray(combined.resize((c - a, d - b), Image.Resampling.NEAREST, part))
    if inside.shape == shape:
        return inside
    prepared = np.full(shape, IGNORE_INDEX, np.uint8)
    prepared[b:d, a:c] = inside
    return prepared


def _read_verified(path: Path, sha256: str) -> bytes:
    """Return the content of a file; raise Unavailable if its sha256 differs."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise Unavailable(
            f"{printable(path)} can no longer be read ({error.strerror}). Restore it and start again."
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Unavailable(
            f"{printable(path)} changed while it was being prepared. Start again when nothing writes to the data."
        )
    return content
