"""Small files that would take gigabytes of memory: refused by their headers, or read as far as the image needs."""

import gzip
import io
import struct
import tracemalloc

import nibabel
import numpy as np
import pytest
from PIL import Image

from hf_medtl import read_image
from hf_medtl.data.images import to_rgb
from hf_medtl.errors import MedtlError, UnreadableImage
from hf_medtl.space.uploads import parse_upload


def write_tiff(size: tuple[int, int], tags: dict[int, list[int]], data: bytes = b"") -> bytes:
    """Return a TIFF whose directory comes first; tags of more than one value are stored behind it."""
    tags = {256: [size[0]], 257: [size[1]], 259: [1], 262: [2], 277: [3], 258: [16] * 3} | tags
    directory, values = struct.pack("<H", len(tags)), b""
    end = 8 + 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"<{len(numbers)}L", *numbers)
        directory += struct.pack("<HHL", tag, 4, len(numbers))
        directory += packed if len(numbers) == 1 else struct.pack("<L", end + len(values))
        values += packed if len(numbers) > 1 else b""
    return struct.pack("<2sHL", b"II", 42, 8) + directory + bytes(4) + values + data


def test_overlapping_strips_are_read_as_far_as_the_image_needs():
    data = np.random.default_rng(0).integers(0, 1 << 16, 1 << 20, dtype=np.uint16).tobytes()
    content = write_tiff((64, 64), {273: [8] * 300, 279: [len(data)] * 300}, data)
    tracemalloc.start()
    try:
        assert read_image(content).size == (64, 64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(content)  # 300 times before


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("tile", [(30_000, 30_000), (1 << 28, 16), (16, 1 << 28)])
def test_tiles_larger_than_the_image_are_refused(bits, tile):
    tags = {258: [bits] * 3, 322: [tile[0]], 323: [tile[1]], 324: [8], 325: [99]}
    content = write_tiff((64, 64), tags, bytes(99))
    with pytest.raises(UnreadableImage, match=f"tiles of {tile[0]} × {tile[1]} pixels, but the image has 64 × 64"):
        read_image(content)
    with pytest.raises(UnreadableImage, match="tiles of"):
        to_rgb(Image.open(io.BytesIO(content)))
    with pytest.raises(MedtlError):
        parse_upload("a.tif", content)


def test_tiles_of_usual_sizes_are_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60), dtype=np.uint8)
    tile = np.zeros((512, 512), np.uint8)  # larger than the image, as some writers make it
    tile[:50, :60] = pixels
    tags = {258: [8], 262: [1], 277: [1], 322: [512], 323: [512], 324: [0], 325: [tile.size]}
    offset = len(write_tiff((60, 50), tags))
    content = write_tiff((60, 50), tags | {324: [offset]}, tile.tobytes())
    assert np.array_equal(np.asarray(read_image(content))[..., 0], pixels)


def test_limit_of_pixels_counts_their_bytes():
    """Four channels of 64 bits take sixteen times the memory of one of 16 bits."""
    deep = {258: [64] * 4, 277: [4], 339: [3] * 4, 273: [8], 279: [99]}
    with pytest.raises(UnreadableImage, match="3000 × 3000 pixels, more than the limit of 6,250,000"):
        read_image(write_tiff((3000, 3000), deep))
    with pytest.raises(MedtlError, match="more than 2 million pixels"):
        parse_upload("a.tif", write_tiff((2000, 2000), deep))
    with pytest.raises(UnreadableImage, match="truncated"):  # and not too large
        read_image(write_tiff((5000, 5000), {273: [8], 279: [99]}))


def test_large_slices_of_volumes_are_refused_in_the_space():
    """Scaled values have eight bytes each, whatever the file has."""
    header = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).header.copy()
    header.set_data_shape((4000, 4000, 2))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with pytest.raises(MedtlError, match="more than 10 million pixels"):
        parse_upload("a.nii.gz", gzip.compress(header.binaryblock + bytes(4)))
