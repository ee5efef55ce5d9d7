"""A slice of a NIfTI volume -> an 8-bit RGB picture."""

import gzip
import io
from typing import BinaryIO

import numpy as np
from PIL import Image

from hf_medtl.data.images import MAX_PIXELS, apply_window
from hf_medtl.errors import UnreadableImage

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
    try:
        return _read(stream, name, window, frame)
    except UnreadableImage as error:
        reason = str(error)
    except ImportError:
        reason = f"{name}: a NIfTI volume, which needs nibabel. Install it: pip install hf_medtl[nifti]"
    except Exception as error:  # header fields hold free text, so nibabel's words stay here
        reason = f"{name}: NIfTI that can't be decoded ({type(error).__name__}). Export the volume again."
    raise UnreadableImage(reason)


def _read(stream: BinaryIO, name: str, window: tuple[float, float] | None, frame: int | None) -> Image.Image:
    import nibabel
    from nibabel.fileholders import FileHolder

    kind = nibabel.Nifti2Image if stream.read(8)[4:] == b"n+2\0" else nibabel.Nifti1Image
    stream.seek(0)
    holder = FileHolder(fileobj=stream)  # type: ignore[arg-type]  # any stream will do
    image = kind.from_file_map({"header": holder, "image": holder})
    sizes = [int(size) for size in image.shape]
    shape = tuple([*sizes, 1, 1, 1][:3])
    needed = int(np.prod(shape, dtype=object)) * image.get_data_dtype().itemsize
    if min(sizes, default=0) < 1 or needed > MAX_BYTES:
        raise UnreadableImage(f"{name}: a NIfTI volume of {sizes} voxels. Up to {MAX_BYTES >> 30} GiB are opened.")
    if not isinstance(stream, gzip.GzipFile):
        there = stream.seek(0, io.SEEK_END) - int(image.dataobj.offset)
        if needed > there:
            raise UnreadableImage(f"{name}: its header announces {needed:,} bytes of voxels, but {there:,} are there.")

    # Which axis of the array runs along right, front, up, and in which direction (±1).
    orientation = nibabel.io_orientation(image.affine)
    if np.isnan(orientation).any():
        orientation = np.array([[0, 1], [1, 1], [2, 1]])
    order = [int(np.flatnonzero(orientation[:, 0] == towards)[0]) for towards in range(3)]
    signs = [int(orientation[axis, 1]) for axis in order]
    across, ahead, up = order
    slices = shape[up]
    if shape[across] * shape[ahead] > MAX_PIXELS // 4:
        raise UnreadableImage(f"{name}: slices of more than {MAX_PIXELS // 4:,} pixels are not opened.")
    frame = slices // 2 if frame is None else frame
    if not 0 <= frame < slices:
        raise UnreadableImage(f"{name}: there is no slice {frame}. Choose one of 0 to {slices - 1}.")

    index = frame if signs[2] > 0 else slices - 1 - frame
    where: list[slice | int] = [0] * len(sizes)
    where[: min(3, len(sizes))] = [slice(None)] * min(3, len(sizes))
    if up < len(sizes):
        where[up] = index
    if up < 2 and len(sizes) > 2:
        # nibabel would read the whole volume to cut it across; row by row it reads little more than the slice.
        rows = [np.asarray(image.dataobj[(*where[:2], k, *where[3:])]) for k in range(shape[2])]
        plane = np.stack(rows, axis=-1)
    else:
        plane = np.asarray(image.dataobj[tuple(where)])
    if across > ahead:
        plane = plane.swapaxes(0, 1)
    plane = plane[:: -signs[0], :: -signs[1]].swapaxes(0, 1)
    if plane.dtype.names:  # RGB or RGBA voxels
        return Image.fromarray(np.ascontiguousarray(np.stack([plane[channel] for channel in "RGB"], axis=-1)))
    return Image.fromarray(apply_window(np.ascontiguousarray(plane), window)).convert("RGB")
