"""A slice of a NIfTI volume -> an 8-bit RGB picture."""

import gzip
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.data.pixels import MAX_PIXELS, Greys, apply_window
from hf_medtl.errors import UnreadableImage

if TYPE_CHECKING:
    from nibabel import Nifti1Image

T = TypeVar("T")
MAX_BYTES = 2 << 30  # of one volume: a gzipped one is unpacked up to the slice


def read(
    stream: BinaryIO, name: str, window: tuple[float, float] | None = None, frame: int | None = None
) -> Image.Image:
    """Read one axial slice as radiologists see it: patient's right on the left, front at the top.

    Of a series of volumes the first is read. Only the slice is loaded.

    Args:
        stream: the file, already unpacked if it was gzipped.
        name: what errors call it.
        window: values (low, high) that become 0 and 255, after the header's scaling; by default the 0.5th and 99.5th
            percentile of the slice.
        frame: slice from 0 at the feet upwards; by default the middle one.

    Raises:
        UnreadableImage: nibabel is missing, the file is damaged, too large, or has no such slice.
    """
    return careful(name, lambda: shown(_slice(stream, name, frame), window))


def shown(plane: NDArray[Any], window: tuple[float, float] | None) -> Image.Image:
    """Values (H, W) as an RGB picture."""
    if plane.dtype.names:  # RGB or RGBA voxels
        return Image.fromarray(np.ascontiguousarray(np.stack([plane[channel] for channel in "RGB"], axis=-1)))
    return Image.fromarray(apply_window(plane, window)).convert("RGB")


def sizes(stream: BinaryIO, name: str) -> tuple[int, int, int, int]:
    """Columns, rows and slices of a volume as it is shown, and its bytes, before anything is decoded.

    Raises:
        UnreadableImage: as `read` does, of what the header and the file's length tell.
    """

    def announced() -> tuple[int, int, int, int]:
        image = opened(stream, name)
        shape = shape3(image)
        across, ahead, up = axes(image)[0]
        return shape[across], shape[ahead], shape[up], int(np.prod(shape)) * image.get_data_dtype().itemsize

    return careful(name, announced)


def greys(stream: BinaryIO, name: str, frame: int | None = None) -> Greys | None:
    """Lowest and highest grey value of one slice; None for one in colour.

    Raises:
        UnreadableImage: as `read` does.
    """

    def measured() -> Greys | None:
        plane = _slice(stream, name, frame)
        return None if plane.dtype.names else Greys.of(plane)

    return careful(name, measured)


def careful(name: str, work: Callable[[], T]) -> T:
    """Call `work`; what it raises becomes an UnreadableImage without text of the header."""
    try:
        return work()
    except UnreadableImage as error:
        reason = str(error)
    except ImportError:
        reason = f"{name}: a NIfTI volume, which needs nibabel. Install it: pip install hf_medtl[nifti]"
    except Exception as error:  # header fields hold free text, so nibabel's words stay here
        reason = f"{name}: NIfTI that can't be decoded ({type(error).__name__}). Export the volume again."
    raise UnreadableImage(reason)


def shape3(image: "Nifti1Image") -> tuple[int, ...]:
    """Three sizes of a volume; of a series of volumes, those of one."""
    return tuple([*(int(size) for size in image.shape), 1, 1, 1][:3])


def axes(image: "Nifti1Image") -> tuple[list[int], list[int]]:
    """Which axis of the array runs along right, front, up, and in which direction (±1)."""
    import nibabel

    orientation = nibabel.io_orientation(image.affine)
    if np.isnan(orientation).any():
        orientation = np.array([[0, 1], [1, 1], [2, 1]])
    order = [int(np.flatnonzero(orientation[:, 0] == towards)[0]) for towards in range(3)]
    return order, [int(orientation[axis, 1]) for axis in order]


def opened(stream: BinaryIO, name: str) -> "Nifti1Image":
    """The volume with its header read and compared with what may be opened and what is there."""
    import nibabel
    from nibabel.fileholders import FileHolder

    kind = nibabel.Nifti2Image if stream.read(8)[4:] == b"n+2\0" else nibabel.Nifti1Image
    stream.seek(0)
    holder = FileHolder(fileobj=stream)  # type: ignore[arg-type]  # any stream will do
    image = kind.from_file_map({"header": holder, "image": holder})
    shape = [int(size) for size in image.shape]
    needed = int(np.prod(shape3(image), dtype=object)) * image.get_data_dtype().itemsize
    if min(shape, default=0) < 1 or needed > MAX_BYTES:
        raise UnreadableImage(f"{name}: a NIfTI volume of {shape} voxels. Up to {MAX_BYTES >> 30} GiB are opened.")
    if not isinstance(stream, gzip.GzipFile):
        there = stream.seek(0, io.SEEK_END) - int(image.dataobj.offset)
        if needed > there:
            raise UnreadableImage(f"{name}: its header announces {needed:,} bytes of voxels, but {there:,} are there.")
    return image


def _slice(stream: BinaryIO, name: str, frame: int | None) -> NDArray[Any]:
    """Scaled values (H, W) of a slice, by default the middle one, as it is shown."""
    image = opened(stream, name)
    shape, (order, signs) = shape3(image), axes(image)
    across, ahead, up = order
    slices = shape[up]
    if shape[across] * shape[ahead] > MAX_PIXELS // 4:
        raise UnreadableImage(f"{name}: slices of more than {MAX_PIXELS // 4:,} pixels are not opened.")
    frame = slices // 2 if frame is None else frame
    if not 0 <= frame < slices:
        raise UnreadableImage(f"{name}: there is no slice {frame}. Choose one of 0 to {slices - 1}.")

    index = frame if signs[2] > 0 else slices - 1 - frame
    dimensions = len(image.shape)
    where: list[slice | int] = [0] * dimensions
    where[: min(3, dimensions)] = [slice(None)] * min(3, dimensions)
    if up < dimensions:
        where[up] = index
    if up < 2 and dimensions > 2:
        # nibabel would read the whole volume to cut it across; row by row it reads little more than the slice.
        rows = [np.asarray(image.dataobj[(*where[:2], k, *where[3:])]) for k in range(shape[2])]
        plane = np.stack(rows, axis=-1)
    else:
        plane = np.asarray(image.dataobj[tuple(where)])
    if across > ahead:
        plane = plane.swapaxes(0, 1)
    plane = plane[:: -signs[0], :: -signs[1]].swapaxes(0, 1)
    return np.ascontiguousarray(plane)
