"""NIfTI reader: one axial slice of a volume as an 8-bit RGB image."""

import gzip
import io
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.common.extras import install_command
from hf_medtl.data.header_privacy import without_header_text
from hf_medtl.data.pixels import MAX_PIXELS, GreyRange, apply_window
from hf_medtl.errors import UnreadableImage

if TYPE_CHECKING:
    from nibabel import Nifti1Image

MAX_BYTES = 2 << 30  # of one volume: a gzipped one is decompressed up to the slice


@without_header_text("NIfTI file", "volume")
def read(
    stream: BinaryIO, name: str, window: tuple[float, float] | None = None, frame: int | None = None
) -> Image.Image:
    """Read one axial slice in radiological orientation: patient's right on the left, anterior at the top.

    Only the slice is loaded; of a 4D series the first volume is read.

    Args:
        stream: The file, decompressed if it was gzipped.
        name: Name of the file in errors.
        window: Values (low, high) mapped to 0 and 255, after the header's scaling; by default the 0.5th and 99.5th
            percentile of the slice.
        frame: Slice number, from 0 at the feet upwards; by default the middle one.

    Raises:
        UnreadableImage: nibabel is missing, or the file is damaged, too large or has no such slice.
    """
    plane = _slice(stream, name, frame)
    if plane.dtype.names:  # RGB or RGBA voxels
        return Image.fromarray(np.ascontiguousarray(np.stack([plane[channel] for channel in "RGB"], axis=-1)))
    return Image.fromarray(apply_window(plane, window)).convert("RGB")


@without_header_text("NIfTI file", "volume")
def read_dimensions(stream: BinaryIO, name: str) -> tuple[int, int, int, int]:
    """Return the columns, rows and slices of a volume as displayed, and its bytes, without decoding it.

    Args:
        stream: The file.
        name: Name of the file in errors.

    Raises:
        UnreadableImage: As for `read`, as far as the header and the file size reveal it.
    """
    image = _open(stream, name)
    shape = _shape_3d(image)
    right, anterior, superior = _anatomical_axes(image)[0]
    return shape[right], shape[anterior], shape[superior], int(np.prod(shape)) * image.get_data_dtype().itemsize


@without_header_text("NIfTI file", "volume")
def read_grey_range(stream: BinaryIO, name: str) -> GreyRange | None:
    """Return the range of grey values of the middle slice; None for a colour slice.

    Args:
        stream: The file.
        name: Name of the file in errors.

    Raises:
        UnreadableImage: As for `read`.
    """
    plane = _slice(stream, name, None)
    return None if plane.dtype.names else GreyRange.from_pixels(plane)


def _shape_3d(image: "Nifti1Image") -> tuple[int, ...]:
    """Return the three dimensions of a volume; for a 4D series, those of one volume."""
    return tuple([*(int(size) for size in image.shape), 1, 1, 1][:3])


def _anatomical_axes(image: "Nifti1Image") -> tuple[list[int], list[int]]:
    """Return the array axes along right, anterior, superior, and their directions (±1).

    `nibabel.as_closest_canonical` would do the same, but loads the whole volume to reorient one slice.
    """
    import nibabel

    orientation = nibabel.io_orientation(image.affine)
    if np.isnan(orientation).any():
        orientation = np.array([[0, 1], [1, 1], [2, 1]])
    order = [int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3)]
    return order, [int(orientation[axis, 1]) for axis in order]


def _open(stream: BinaryIO, name: str) -> "Nifti1Image":
    """Read the header, and check it against the size limit and the file size."""
    try:
        import nibabel
        from nibabel.fileholders import FileHolder
    except ImportError as error:
        raise UnreadableImage(
            f"{name}: reading a NIfTI volume needs nibabel. Install it with: {install_command('nifti')}"
        ) from error

    image_class = nibabel.Nifti2Image if stream.read(8)[4:] == b"n+2\0" else nibabel.Nifti1Image
    stream.seek(0)
    holder = FileHolder(fileobj=stream)  # type: ignore[arg-type]  # any stream works
    image = image_class.from_file_map({"header": holder, "image": holder})
    shape = [int(size) for size in image.shape]
    needed = int(np.prod(_shape_3d(image), dtype=object)) * image.get_data_dtype().itemsize
    if min(shape, default=0) < 1 or needed > MAX_BYTES:
        raise UnreadableImage(f"{name}: a NIfTI volume of {shape} voxels. The limit is {MAX_BYTES >> 30} GiB.")
    if not isinstance(stream, gzip.GzipFile):
        available = stream.seek(0, io.SEEK_END) - int(image.dataobj.offset)
        if needed > available:
            raise UnreadableImage(
                f"{name}: its header declares {needed:,} bytes of voxels, but the file has {available:,}."
            )
    return image


def _slice(stream: BinaryIO, name: str, frame: int | None) -> NDArray[Any]:
    """Return the scaled values (H, W) of a slice as displayed, by default the middle one."""
    image = _open(stream, name)
    shape, (order, signs) = _shape_3d(image), _anatomical_axes(image)
    right, anterior, superior = order
    slices = shape[superior]
    if shape[right] * shape[anterior] > MAX_PIXELS // 4:
        raise UnreadableImage(f"{name}: slices are limited to {MAX_PIXELS // 4:,} pixels.")
    frame = slices // 2 if frame is None else frame
    if not 0 <= frame < slices:
        raise UnreadableImage(f"{name}: there is no slice {frame}. Choose one from 0 to {slices - 1}.")

    index = frame if signs[2] > 0 else slices - 1 - frame
    dimensions = len(image.shape)
    selection: list[slice | int] = [0] * dimensions
    selection[: min(3, dimensions)] = [slice(None)] * min(3, dimensions)
    if superior < dimensions:
        selection[superior] = index
    if superior < 2 and dimensions > 2:
        # nibabel would read the whole volume for such a slice; row by row it reads little more than the slice.
        rows = [np.asarray(image.dataobj[(*selection[:2], k, *selection[3:])]) for k in range(shape[2])]
        plane = np.stack(rows, axis=-1)
    else:
        plane = np.asarray(image.dataobj[tuple(selection)])
    if right > anterior:
        plane = plane.swapaxes(0, 1)
    plane = plane[:: -signs[0], :: -signs[1]].swapaxes(0, 1)
    return np.ascontiguousarray(plane)
