"""The deterministic part of preprocessing, done once: uint8 pictures, and masks, at the model's size, memory-mapped."""

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
from functools import cached_property, partial
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
from torch.utils.data import Dataset
from tqdm import tqdm

from hf_medtl.common.system import cache_dir, cores
from hf_medtl.data.images import read_image, read_mask
from hf_medtl.errors import MedtlError, UnreadableImage

logger = logging.getLogger(__name__)

# What decides how a file becomes pixels, before `preprocess`: part of the key.
READERS = ("cache.py", "dicom.py", "images.py", "nifti.py", "pixels.py")
LIBRARIES = ("nibabel", "numpy", "pillow", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")
RECORDS = 64  # pictures a record batch
UNUSED_DAYS = 30

Preprocess = Callable[[list[Image.Image]], NDArray[np.uint8]]
T = TypeVar("T")
Prepared = dict[str, NDArray[Any]]  # a row: pixels (height, width, channels), grey (), perhaps mask (height, width)
Augment = Callable[..., Any]  # (pixels, seed) -> pixels, or (pixels, seed, mask) -> (pixels, mask)


def prepare(
    paths: Sequence[Path],
    sha256: Sequence[str],
    preprocess: Preprocess,
    key: str,
    masks: Sequence[Sequence[Path]] | None = None,
    values: Mapping[int, int] | None = None,
) -> datasets.Dataset:
    """Decode and preprocess files once; later calls with the same contents map the result into memory.

    The result is `<key>.arrow` in the folder `pictures` of `cache_dir()`. Files there can be deleted at any time; those
    that were not used for 30 days are, when another is built. They are written beside, and renamed when whole.

    Args:
        paths: (n,) files.
        sha256: (n,) of their bytes, so that a changed file is prepared again.
        preprocess: k RGB pictures -> (k, height, width, channels) uint8; called from several threads.
        key: names the preprocessing and the versions of the libraries behind it.
        masks: (n,) the files of each picture's mask, united. They are resized as a whole to the pictures' prepared size
            by nearest neighbour, so `preprocess` must neither crop nor add margins.
        values: grey value of the masks -> class index, see `read_mask`; by default 0 outside and 1 inside.

    Returns:
        Arrow data set of n rows with the columns pixels (height × width × channels), see `views`, and grey, whether
        the three channels are equal; with `masks` also mask (height × width), class indices.

    Raises:
        MedtlError: the disk lacks room; a file is missing, unreadable or not the one of `sha256` any more; the
            preprocessed pictures differ in size; a mask is missing, of another aspect than its picture, or of values
            that were not declared.
    """
    found = [None] * len(paths) if masks is None else [find_mask(*both) for both in zip(paths, masks, strict=True)]
    jobs = [
        partial(read, path, digest, preprocess, mask, values)
        for path, digest, mask in zip(paths, sha256, found, strict=True)
    ]
    if masks is not None:
        key = f"{key}\nmasks {sorted(values.items()) if values else 'inside'}"
        sha256 = [*sha256, *("+".join(mask.values()) for mask in found if mask)]
    folder = cache_dir() / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{fingerprint(key, sha256)}.arrow"
    if not is_whole(target, len(paths)):
        with turn(target):
            if not is_whole(target, len(paths)):
                tidy(folder)
                build(target, paths, jobs)
    with contextlib.suppress(OSError):  # somebody else's file
        os.utime(target)
    return datasets.Dataset.from_file(str(target))


def check_masks(
    paths: Sequence[Path], masks: Sequence[Sequence[Path]], values: Mapping[int, int] | None = None
) -> None:
    """Read pictures and masks, so that one that can't be used does not come up later; arguments as for `prepare`.

    Raises:
        MedtlError: as `prepare`, of masks.
    """

    def check(path: Path, mask: Mapping[Path, str]) -> None:
        read_classes(mask, values, path, read_image(path).size, (1, 1))

    found = [find_mask(*both) for both in zip(paths, masks, strict=True)]
    jobs = [partial(check, *both) for both in zip(paths, found, strict=True)]
    deque(read_all(jobs, "Checking masks"), maxlen=0)


def find_mask(path: Path, parts: Sequence[Path]) -> dict[Path, str]:
    """The files of a picture's mask, and the sha256 of each."""
    if not parts:
        raise MedtlError(f"{path} has no mask. Give it one, or leave it out.")
    try:
        return {Path(part): hashlib.sha256(Path(part).read_bytes()).hexdigest() for part in parts}
    except OSError as error:
        raise MedtlError(
            f"{error.filename}, the mask of {path}, can't be read ({error.strerror}). Put it back, or leave the "
            "picture out."
        ) from error


def fingerprint(key: str, sha256: Sequence[str]) -> str:
    """Changes with files, preprocessing, our readers and the libraries below them."""
    versions = []
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    code = [hashlib.sha256(Path(__file__).with_name(name).read_bytes()).hexdigest() for name in READERS]
    return hashlib.sha256("\n".join([key, *versions, *code, *sha256]).encode()).hexdigest()[:32]


@contextlib.contextmanager
def turn(target: Path) -> Iterator[None]:
    """One process at a time. The system frees the lock of one that dies, however it dies."""
    lock = FileLock(target.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("Waiting for another process that prepares the same pictures.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_whole(target: Path, number: int) -> bool:
    """Whether the file is there with all its pictures. None other should be; disks and people do otherwise."""
    if not target.exists():
        return False
    with contextlib.suppress(pa.ArrowInvalid, OSError), pa.memory_map(str(target)) as source:
        return sum(batch.num_rows for batch in pa.ipc.open_stream(source)) == number
    return False


def tidy(folder: Path) -> None:
    """Remove what dead builders left, and what nobody used for long."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError, Timeout):  # gone already, or (on Windows) in use
            old = path.stat().st_mtime < time.time() - UNUSED_DAYS * 86400
            if path.suffix == ".partial" or (old and path.suffix in (".arrow", ".lock")):
                with FileLock(path.with_suffix(".lock"), timeout=0):  # a living builder holds it
                    path.unlink()


def build(target: Path, paths: Sequence[Path], jobs: Sequence[Callable[[], Prepared]]) -> None:
    """Write `target`, whole or not at all. In memory are, at a time, one decoded picture a core and two batches."""
    unfinished = target.with_suffix(".partial")
    with contextlib.closing(read_all(jobs)) as pictures:
        first = next(pictures)  # tells the shape of all
        shape = first["pixels"].shape
        check_room(target.parent, len(paths), first)
        blocks = {name: np.empty((RECORDS, *value.shape), value.dtype) for name, value in first.items()}
        try:
            with unfinished.open("wb") as stream:
                with pa.ipc.new_stream(stream, records(blocks, 0).schema) as writer:
                    for i, picture in enumerate(chain([first], pictures)):
                        if picture["pixels"].shape != shape:
                            raise MedtlError(
                                f"{paths[i]} becomes {picture['pixels'].shape}, {paths[0]} {shape}; expected one size."
                            )
                        last = i % RECORDS
                        for name, value in picture.items():
                            blocks[name][last] = value
                        if last == RECORDS - 1 or i == len(paths) - 1:
                            writer.write_batch(records(blocks, last + 1))
                stream.flush()
                os.fsync(stream.fileno())  # else a power cut may leave the name without the content
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)


def check_room(folder: Path, number: int, first: Prepared) -> None:
    """Say how large the prepared pictures will be, and refuse a disk that lacks room for them."""
    shape, size = first["pixels"].shape, number * sum(value.nbytes for value in first.values())
    logger.info("Preparing %d pictures of %d × %d pixels: %.2f GB in %s", number, *shape[:2], size / 1e9, folder)
    free = shutil.disk_usage(folder).free
    if free < 1.01 * size:
        raise MedtlError(
            f"The prepared pictures need {size / 1e9:.2f} GB in {folder}, where {free / 1e9:.2f} GB are free. "
            "Make room, or let HF_MEDTL_CACHE name a folder on another disk."
        )


def records(blocks: dict[str, NDArray[Any]], number: int) -> pa.RecordBatch:
    """The first `number` of blocks (k, ...) as rows, without a copy of the pixels."""
    columns = {}
    for name, block in blocks.items():
        column: Any = pa.array(block[:number].ravel())
        for length in reversed(block.shape[1:]):
            column = pa.FixedSizeListArray.from_arrays(column, length)
        columns[name] = column
    return pa.RecordBatch.from_pydict(columns)


def read_all(jobs: Sequence[Callable[[], T]], what: str = "Preparing pictures") -> Generator[T, None, None]:
    """Results in order, by one thread a core (decoders and torch release the GIL); `what` is for the progress bar."""
    threads = torch.get_num_threads()
    waiting: deque[Future[T]] = deque()
    with (
        # torch would start as many threads as there are cores in each of ours.
        ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool,
        tqdm(desc=what, total=len(jobs), unit="picture", disable=None, leave=False) as bar,
    ):
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) >= RECORDS:
                    yield waiting.popleft().result()
                    bar.update()
            while waiting:
                yield waiting.popleft().result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def read(
    path: Path,
    sha256: str,
    preprocess: Preprocess,
    mask: Mapping[Path, str] | None = None,
    values: Mapping[int, int] | None = None,
) -> Prepared:
    """One prepared picture, from the very bytes that have this sha256."""
    content = read_bytes(path, sha256)
    try:
        picture = read_image(content)
        pixels = preprocess([picture])[0]
    except UnreadableImage as error:
        raise UnreadableImage(str(error).replace("bytes", str(path), 1)) from error
    grey = pixels.shape[-1] == 3 and bool((pixels[..., :1] == pixels).all())
    prepared = {"pixels": pixels, "grey": np.array(grey)}
    if mask is not None:
        prepared["mask"] = read_classes(mask, values, path, picture.size, pixels.shape[:2])
    return prepared


def read_classes(
    mask: Mapping[Path, str],
    values: Mapping[int, int] | None,
    path: Path,
    size: tuple[int, int],
    shape: tuple[int, int],
) -> NDArray[np.uint8]:
    """Class indices of `shape` (height, width) from the mask of a picture, `path`, of `size` (width, height)."""
    name = " and ".join(map(str, mask))
    contents = [read_bytes(part, sha256) for part, sha256 in mask.items()]
    try:
        whole = read_mask(contents, values)
    except UnreadableImage as error:
        raise UnreadableImage(str(error).replace("bytes", name, 1)) from error
    # A mask may be smaller or larger than its picture, its sides rounded to whole pixels.
    if abs(whole.height * size[0] - whole.width * size[1]) > max(size):
        raise MedtlError(
            f"{name}: {whole.width} × {whole.height} pixels, but its picture {path} has {size[0]} × {size[1]}: one of "
            "them is cropped, turned or not of the other. Mend the pair, or leave it out."
        )
    # Pillow takes the value at each new pixel's centre, as its filters for the picture do; OpenCV's INTER_NEAREST and
    # torch's "nearest" take that at the corner, which moves a mask by up to half a pixel of the larger grid.
    indices = np.asarray(whole.resize(shape[::-1], Image.Resampling.NEAREST))
    return indices if values else (indices > 0).astype(np.uint8)


def read_bytes(path: Path, sha256: str) -> bytes:
    """The content of a file, which must be that of this sha256."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise MedtlError(f"{path} can't be read any more ({error.strerror}). Put it back and start again.") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise MedtlError(f"{path} was changed while it was being prepared. Start again when nobody writes to the data.")
    return content


def views(prepared: datasets.Dataset, column: str = "pixels") -> list[NDArray[np.uint8]]:
    """The column pixels as arrays (k, height, width, channels), k equal in all but the last, without a copy.

    They look into the memory-mapped file: what is not looked at is not read. The column mask gives (k, height, width).
    """
    arrays = []
    for chunk in prepared.data.column(column).chunks:
        shape = [len(chunk)]
        while pa.types.is_fixed_size_list(chunk.type):
            shape.append(chunk.type.list_size)
            chunk = chunk.flatten()
        arrays.append(chunk.to_numpy(zero_copy_only=True).reshape(shape))
    return arrays


class Pictures(Dataset):
    """Prepared pictures for training: `pixel_values` uint8 (3, height, width) and `labels`, an index or a mask.

    Of pictures prepared with masks `labels` is the mask, int64 (height, width), moved as its picture is.

    Augmentation of a picture is drawn from (seed, epoch, index) alone, so it is the same on resume, in any worker and
    on any number of processes. `epoch` lies in shared memory: workers see it change.
    """

    def __init__(
        self,
        prepared: datasets.Dataset,
        indices: Sequence[int],
        labels: Sequence[Any],
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        self.prepared, self.indices, self.labels = prepared, list(indices), list(labels)
        self.augment, self.seed = augment, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @cached_property
    def views(self) -> list[NDArray[np.uint8]]:
        """See `views`."""
        return views(self.prepared)

    @cached_property
    def masks(self) -> list[NDArray[np.uint8]] | None:
        """Masks (k, height, width) likewise; None where pictures have labels only."""
        return views(self.prepared, "mask") if "mask" in self.prepared.column_names else None

    @cached_property
    def grey(self) -> NDArray[np.bool_]:
        """(n,) whether the three channels of a prepared picture are equal."""
        return self.prepared.data.column("grey").to_numpy()

    def __getstate__(self) -> dict[str, Any]:  # a spawned worker maps the file anew
        return {name: value for name, value in vars(self).items() if name not in ("views", "masks", "grey")}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch, row = divmod(self.indices[index], len(self.views[0]))
        pixels = self.views[batch][row]
        planes = torch.empty((pixels.shape[2], *pixels.shape[:2]), dtype=torch.uint8)
        if self.grey[self.indices[index]]:  # one channel gives the same with less than half of the work
            pixels = np.ascontiguousarray(pixels[..., :1])
        mask = None if self.masks is None else self.masks[batch][row]
        if self.augment is not None:
            draw = int(np.random.SeedSequence([self.seed, int(self.epoch), index]).generate_state(1)[0])
            if mask is None:
                pixels = self.augment(pixels, draw)
            else:
                pixels, mask = self.augment(pixels, draw, mask)
        planes.numpy()[:] = pixels.transpose(2, 0, 1)
        labels = self.labels[index] if mask is None else torch.from_numpy(mask.astype(np.int64))
        return {"pixel_values": planes, "labels": labels}
