"""Files that are no images: one sentence says what they are, without an object's address or a class of Pillow."""

import gzip
import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image, features

from hf_medtl import read_image
from hf_medtl.data.fingerprints import compute_fingerprints
from hf_medtl.data.images import encode_image
from hf_medtl.errors import UnreadableImage

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a.txt", "x")
    return stream.getvalue()


FILES = {
    "empty": (b"", "is empty"),
    "zeros": (bytes(600), "only zeros"),
    "page of a failed download": (b"\n<!DOCTYPE html><html><body>404", r"web page \(HTML\).*failed download"),
    "page after a comment": (b"<!-- saved --><HTML lang=en>", r"web page \(HTML\)"),
    "message of a server": (b'{"error": "quota exceeded"}', "text, not an image"),
    "text in UTF-16": ("no image".encode("utf-16"), "text, not an image"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "LFS pointer.*git lfs pull"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC image.*Save it as PNG"),
    "HEIC of another brand": (b"\0\0\0\x18ftypmif1" + bytes(40), "HEIC image"),
    "video": (b"\0\0\0\x18ftypisom" + bytes(40), "video"),
    "video of a webcam": (b"\x1aE\xdf\xa3" + bytes(40), "video"),
    "PDF": (b"%PDF-1.7\n", "PDF"),
    "zip": (archive(), "zip archive"),
    "gzip": (gzip.compress(b"text" * 400), "archive"),
    "drawing": (b"<?xml version='1.0'?>\n<svg/>", "SVG"),
    "JPEG 2000": (encode_image(NOISE, "JPEG2000"), "JPEG 2000"),
    "Photoshop": (b"8BPS\0\1" + bytes(20), "kind that is not supported"),
    "NRRD": (b"NRRD0004\n", "NRRD.*NIfTI"),
    "NumPy": (b"\x93NUMPY\1\0", "array"),
    "Analyze": (b"\x5c\1\0\0" + bytes(340) + b"ni1\0", "two files"),
    "unknown": (bytes(range(1, 256)), "Expected PNG, JPEG"),
    "half a gzip": (gzip.compress(bytes(500))[:12], "compressed file is damaged"),
    **{
        f"half a {kind}": (encode_image(NOISE, kind)[: 90 if kind == "WEBP" else 300], f"(?i:the {kind}) is damaged")
        for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
    },
}  # fmt: skip
if features.check("avif"):
    FILES["AVIF"] = encode_image(NOISE, "AVIF"), "AVIF image"


@pytest.mark.parametrize("kind", list(FILES))
def test_unreadable_files_are_named_by_what_they_are(kind, tmp_path):
    content, words = FILES[kind]
    path = tmp_path / "scan.png"
    path.write_bytes(content)
    for source, name in ((path, r"scan\.png"), (content, "bytes")):
        with pytest.raises(UnreadableImage, match=rf"{name}: .*{words}") as caught:
            read_image(source)
        assert " object at 0x" not in str(caught.value)
        assert "Error" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_paths_that_can_not_be_opened_are_one_sentence(tmp_path):
    for path, words in (
        (tmp_path / "a.png", "No such file"),
        (tmp_path / ("a" * 300), "can't be read"),
        ("a\0b", "null"),
    ):
        with pytest.raises(UnreadableImage, match=words):
            read_image(path)


def test_files_of_any_name_are_read_and_their_errors_can_be_printed(tmp_path):
    names = ["a [1].png", "a#b?.png", "~.png", "%20 {x}.png", " .png", "x" * 251 + ".png", "-\u202e\U0001f600.png"]
    if os.name == "posix":
        names.append(os.fsdecode(b"m\xfcller.png"))
    paths = [tmp_path / name for name in names]
    for path in paths:
        NOISE.save(path)
        assert np.array_equal(read_image(path), NOISE)
        assert np.array_equal(read_image(str(path)), NOISE)
    assert {item.error for item in compute_fingerprints(paths, "names [1]")} == {""}
    for path in paths:
        path.write_bytes(b"text")
        with pytest.raises(UnreadableImage, match="this is text") as caught:
            read_image(path)
        assert str(caught.value).encode("utf-8").startswith(os.fsencode(tmp_path))
    assert {item.error for item in compute_fingerprints(paths, "names [1]")} == {"this is text, not an image."}
