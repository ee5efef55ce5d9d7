"""Uploads to the Space: each gives an image or a plain error; nothing stays on disk or is logged."""

import contextlib
import gzip
import io
import logging
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image, ImageSequence, PngImagePlugin

from hf_medtl import read_image
from hf_medtl.data.images import encode_image
from hf_medtl.errors import MedtlError
from hf_medtl.space import archives, frames, uploads
from hf_medtl.space.uploads import RejectedFile, Upload, load_batch, load_upload
from hf_medtl.space.windowing import CT_WINDOWS
from tests.support.dicom_files import COLOUR, NAME, RAMP, encode_dicom, logged_text, make_dicom
from tests.support.space_samples import zip_files

SMALL = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def as_dicom(*arguments: object, **elements: object) -> bytes:
    return encode_dicom(make_dicom(*arguments, **elements))


def as_nifti(values: np.ndarray, packed: bool = False) -> bytes:
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header["descrip"] = NAME.encode()
    content = image.to_bytes()
    return gzip.compress(content) if packed else content


def png_header(width: int, height: int) -> bytes:
    """Return a PNG whose header declares a size and whose data has one row."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))

    head = struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99999))) + chunk(b"IEND", b"")
    )


PNG = encode_image(SMALL)
HTML = b"<!DOCTYPE html><html><script>alert(1)</script></html>"
SVG = b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
NAN = np.full((32, 32), np.nan, np.float32)
BAD = {
    "empty.png": (b"", "empty"),
    "long.png": (PNG + bytes(uploads.MAX_BYTES), "larger than 50 MB"),
    "svg.png": (SVG, "drawing"),
    "html.png": (b"\xef\xbb\xbf\n" + HTML, "web page"),
    "page.png": (b"<!-- saved --><HTML><body>", "web page"),
    "text.png": (b"Patient: " + NAME.encode(), "text"),
    "pdf.png": (b"%PDF-1.7\n" + bytes(99), "PDF"),
    "program.png": (b"MZ" + bytes(99), "program"),
    "linux.png": (b"\x7fELF" + bytes(99), "program"),
    "phone.jpg": (b"\0\0\0\x18ftypheic" + bytes(99), "HEIC"),
    "film.png": (b"\0\0\0\x18ftypisom" + bytes(99), "video"),
    "noise.png": (bytes(range(20, 200)) * 9, "PNG, JPEG"),
    "cut.png": (PNG[:500], "damaged"),
    "cut.jpg": (encode_image(SMALL, "JPEG")[:-300], "damaged"),
    "flipped.png": (PNG[:80] + bytes(200) + PNG[280:], "damaged"),
    "cut.gz": (as_nifti(np.zeros((32, 32, 4)), packed=True)[:20], "archive"),
    "bomb.png": (png_header(20_000, 20_000), "40 million"),
    "larger.png": (png_header(7_000, 7_000), "40 million"),
    "side.png": (png_header(30_000, 20), "30,000 × 20"),
    "dot.png": (encode_image(SMALL.crop((0, 0, 1, 1))), "1 × 1"),
    "narrow.dcm": (as_dicom(RAMP[:9]), "64 × 9"),
    "report.dcm": (as_dicom(None), "without pixels"),
    "cut.dcm": (as_dicom(RAMP)[:-999], "damaged"),
    "frames.dcm": (as_dicom(np.zeros((10_000, 16, 16), np.uint8), frames=10_000), "10,000 frames"),
    "vast.dcm": (as_dicom(RAMP, Rows=20_000, Columns=20_000), "40 million"),
    "constant.dcm": (as_dicom(np.full((32, 32), 7, np.uint16)), "same value"),
    "black.dcm": (as_dicom(np.zeros((32, 32), np.uint8)), "same value"),
    "vast.nii": (as_nifti(np.zeros((400, 400, 400), np.int8).repeat(8, 0), packed=False)[:400], "bytes of voxels"),
    "nan.nii": (as_nifti(np.full((32, 32, 3), np.nan)), "finite"),
    "nan.tif": (encode_image(Image.fromarray(NAN), "TIFF"), "finite"),
    "infinite.tif": (encode_image(Image.fromarray(NAN + np.inf), "TIFF"), "finite"),
    "constant.png": (encode_image(Image.new("RGB", (32, 32), "red")), "same value"),
    "constant16.png": (encode_image(Image.fromarray(np.full((32, 32), 999, np.uint16))), "same value"),
    "pictures.zip": (zip_files({"a.png": PNG}), "zip"),
}
GOOD = {
    "a.png": PNG,
    "a.jpg": encode_image(SMALL, "JPEG"),
    "a.tif": encode_image(SMALL, "TIFF"),
    "a.webp": encode_image(SMALL, "WEBP"),
    "a.bmp": encode_image(SMALL, "BMP"),
    "grey.gif": encode_image(SMALL.convert("L"), "GIF"),
    "deep.png": encode_image(Image.fromarray(RAMP)),
    "float.tif": encode_image(Image.fromarray(np.where(RAMP > 99, RAMP, np.nan).astype(np.float32)), "TIFF"),
    "a.dcm": as_dicom(RAMP, BitsStored=12, WindowCenter=2000, WindowWidth=1000),
    "colour.dcm": as_dicom(COLOUR),
    "eight.dcm": as_dicom(COLOUR[..., 0].copy()),
    "a.nii": as_nifti(np.random.default_rng(0).normal(size=(40, 50, 6))),
    "a.nii.gz": as_nifti(np.random.default_rng(0).normal(size=(40, 50, 6)), packed=True),
    "zip behind.png": PNG + zip_files({"a.html": HTML}),
    "html behind.png": PNG + HTML,
    "really a png.svg": PNG,
}


@pytest.fixture
def upload(tmp_path):
    """Return a function that writes a file as Gradio does, in its own folder."""

    def write(name: str, content: bytes) -> Path:
        path = tmp_path / "gradio" / "5f2a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


def check_sentence(text: str) -> None:
    """Assert one or two plain sentences without a path, a class name or planted text."""
    assert re.fullmatch(r"[A-Z][^\n]{10,200}\.", text), text
    assert not re.search(r"/|\\|<|>|Error|Exception|Mustermann|alert|bytes:|\w\.(png|dcm)", text), text


@pytest.mark.parametrize("name", BAD)
def test_bad_upload_is_one_sentence_and_next_works(name, upload, caplog, capfd, recwarn):
    content, words = BAD[name]
    path = upload(name, content)
    with caplog.at_level(logging.DEBUG), pytest.raises(MedtlError, match=words) as caught:
        load_upload(path)
    check_sentence(str(caught.value))
    assert type(caught.value) is MedtlError
    assert caught.value.__context__ is None  # a traceback would print it
    assert not path.parent.exists()
    assert path.parent.parent.exists()
    text = logged_text(caplog, capfd, recwarn)
    assert "Mustermann" not in text and name not in text
    assert load_upload(upload("good.png", PNG)).image().size == SMALL.size


@pytest.mark.parametrize("name", GOOD)
def test_good_upload_equals_read_image(name, upload, caplog, capfd):
    path = upload(name, GOOD[name])
    with caplog.at_level(logging.DEBUG):
        kept = load_upload(path, remove=False)
        image = kept.image()
    assert path.exists()
    assert kept == load_upload(path)
    assert not path.parent.exists()
    expected = read_image(GOOD[name])
    assert image.mode == "RGB"
    assert not image.info
    assert np.array_equal(np.asarray(image), np.asarray(expected))
    assert kept.name == name
    assert kept.dicom == name.endswith(".dcm")
    assert (kept.windowing is not None) == (name in {"deep.png", "float.tif", "a.dcm", "a.nii", "a.nii.gz"})
    if kept.windowing:  # the default sliders reproduce the image that the model gets
        again = kept.image(kept.windowing.window)
        assert np.abs(np.asarray(again).astype(int) - np.asarray(expected)).max() <= 1
    assert not any("Mustermann" in text or name in text for text in (caplog.text, *capfd.readouterr(), repr(kept)))


def test_windowing_of_ct_and_others(upload):
    hounsfield = {"RescaleSlope": 1, "RescaleIntercept": -1024, "Modality": "CT"}
    windowing = load_upload(upload("a.dcm", as_dicom(RAMP, **hounsfield))).windowing
    assert (windowing.low, windowing.high, windowing.unit) == (-1024, 3071, "HU")
    assert windowing.presets == CT_WINDOWS
    assert windowing.window == pytest.approx(np.percentile(RAMP, [0.5, 99.5]) - 1024)
    own = load_upload(upload("a.dcm", as_dicom(RAMP, **hounsfield, WindowCenter=40, WindowWidth=400))).windowing
    assert own.window == own.presets["as stored in the file"] == (-160, 239)
    assert list(own.presets) == ["as stored in the file", "brain", "lung", "soft tissue", "bone"]

    ct = load_upload(upload("a.dcm", as_dicom(RAMP, **hounsfield)))
    brain = np.asarray(ct.image(ct.windowing.presets["brain"]))[..., 0]
    assert np.array_equal(brain == 0, RAMP <= 1024)
    assert np.array_equal(brain == 255, RAMP >= 1104)

    counts = load_upload(upload("a.dcm", as_dicom(RAMP, **(hounsfield | {"RescaleType": "US"})))).windowing
    assert counts.unit == ""
    assert counts.presets["full range"] == (-1024, 3071)
    padded = np.where(RAMP < 40, 65535, RAMP).astype(np.uint16)
    assert load_upload(upload("a.dcm", as_dicom(padded, PixelPaddingValue=65535))).windowing.high == 4095
    turned = load_upload(upload("a.dcm", as_dicom(RAMP, RescaleSlope=-2, RescaleIntercept=10))).windowing
    assert (turned.low, turned.high) == (-8180, 10)

    windowing = load_upload(upload("a.png", encode_image(Image.fromarray(RAMP)))).windowing
    assert (windowing.low, windowing.high, windowing.unit) == (0, 4095, "")
    assert windowing.presets == {"percentiles 0.5 to 99.5": windowing.window, "full range": (0, 4095)}
    assert load_upload(upload("a.tif", GOOD["float.tif"])).windowing.low > 99  # and not NaN


def test_frames_can_be_selected(upload):
    stack = np.stack([np.roll(RAMP, 100 * i) for i in range(5)])
    pages = [Image.fromarray(page) for page in stack.astype(np.uint8)]
    shades = [page.convert("P") for page in pages]
    for name, content in {
        "a.dcm": as_dicom(stack, frames=5),
        "a.nii": as_nifti(stack.transpose(2, 1, 0)),
        "a.tif": encode_image(pages[0], "TIFF", save_all=True, append_images=pages[1:]),
        "big.tif": encode_image(pages[0], "TIFF", save_all=True, append_images=pages[1:], big_tiff=True),
        "a.gif": encode_image(shades[0], "GIF", save_all=True, append_images=shades[1:]),
        "a.webp": encode_image(pages[0], "WEBP", save_all=True, append_images=pages[1:], lossless=True),
        "a.png": encode_image(pages[0], "PNG", save_all=True, append_images=pages[1:]),
    }.items():
        kept = load_upload(upload(name, content))
        assert kept.frames == 5, name
        first, last = (np.asarray(kept.image(frame=frame)) for frame in (0, 4))
        assert not np.array_equal(first, last)
        middle = name in {"a.dcm", "a.nii"}
        assert np.array_equal(np.asarray(kept.image()), np.asarray(kept.image(frame=2)) if middle else first)
        for frame in (-1, 5):
            with pytest.raises(MedtlError, match="0 to 4"):
                kept.image(frame=frame)


def test_each_tiff_page_is_checked(upload):
    pages = [Image.new("L", size, i) for i, size in enumerate([(64, 48), (7000, 7000)])]
    pages[0].paste(9, (0, 0, 9, 9))
    kept = load_upload(
        upload("a.tif", encode_image(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw"))
    )
    assert kept.frames == 2
    with pytest.raises(MedtlError, match="40 million"):
        kept.image(frame=1)


def test_frame_count_equals_pillow_in_bounded_time():
    images = [Image.new("P", (16, 16), i) for i in range(7)]
    for kind, more in (("GIF", {}), ("TIFF", {}), ("TIFF", {"big_tiff": True})):
        content = encode_image(images[0], kind, save_all=True, append_images=images[1:], **more)
        opened = Image.open(io.BytesIO(content))
        assert frames.count_frames(content) == opened.n_frames == len(list(ImageSequence.Iterator(opened)))
        for end in range(4, len(content), 7):
            assert frames.count_frames(content[:end]) >= 1
    assert frames.count_frames(PNG) is None
    loop = struct.pack("<2sHLHL", b"II", 42, 8, 0, 8)
    assert frames.count_frames(loop) == 1
    chain = b"II*\0\x08\0\0\0" + b"".join(struct.pack("<HL", 0, 8 + 6 * i) for i in range(1, 1_000_000))
    assert frames.count_frames(chain) == 1  # too many frames to offer
    assert frames.count_frames(b"GIF89a" + bytes(7) + b"\x21\xfe\0" * 1_000_000) == 1


def test_invalid_window_raises(upload):
    kept = load_upload(upload("a.png", GOOD["deep.png"]))
    for window in ((5, 5), (9, 2), (0, float("nan")), (-float("inf"), 3)):
        with pytest.raises(MedtlError, match="below"):
            kept.image(window)


def test_display_name():
    assert uploads.display_name("a\n\x1b[31m\u202egnp.exe") == "a[31mgnp.exe"
    assert uploads.display_name("\n") == "image"
    name = uploads.display_name("Ä" * 300 + "-last.png")
    assert len(name) == 80
    assert name.endswith("-last.png")


def test_missing_file_raises(tmp_path):
    with pytest.raises(MedtlError, match="no longer there"):
        load_upload(tmp_path / "away" / "a.png")


def test_other_upload_in_folder_stays(upload):
    other = upload("other.png", PNG)
    load_upload(upload("a.png", PNG))
    assert [path.name for path in other.parent.iterdir()] == ["other.png"]


def test_uploads_are_thread_safe(tmp_path):
    def work(number: int) -> object:
        names = list(GOOD) if number % 2 else list(BAD)
        name = names[number % len(names)]
        if name in {"long.png", "vast.nii"}:
            return None
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        path.write_bytes(GOOD[name] if number % 2 else BAD[name][0])
        try:
            return np.asarray(load_upload(path).image()).sum() == np.asarray(read_image(GOOD[name])).sum()
        except MedtlError as error:
            return bool(re.search(BAD[name][1], str(error)))

    with ThreadPoolExecutor(4) as pool:
        assert {*pool.map(work, range(80))} <= {True, None}
    assert not list(tmp_path.iterdir())


def link(target: str) -> tuple[zipfile.ZipInfo, str]:
    entry = zipfile.ZipInfo("link.png")
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    return entry, target


def test_zip_yields_images_and_rejected_files(upload, caplog):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ward/", "")
        for name in ("ward/1.png", "../../etc/up.png", "/etc/root.png", "C:\\windows.png", "ward/..\\back.png"):
            archive.writestr(name, PNG)
        archive.writestr(*link("/etc/passwd"))
        for name in ("__MACOSX/ward/._1.png", "ward/.DS_Store", "ward/._2.png", "Thumbs.db"):
            archive.writestr(name, b"nothing")
        archive.writestr("nested.zip", zip_files({"a.png": PNG}))
        archive.writestr("odd.png", PNG, zipfile.ZIP_LZMA)
        archive.writestr("none.png", b"")
        archive.writestr("table.csv", f"name\n{NAME}\n")
        archive.writestr("zeros.png", bytes(20_000_000))
        archive.writestr("damaged.png", PNG)
        archive.writestr("ward/2.dcm", GOOD["a.dcm"])
    content = bytearray(buffer.getvalue())
    start = content.index(b"damaged.png") + 11 + 300
    content[start : start + 50] = bytes(50)

    path = upload("ward.zip", bytes(content))
    with caplog.at_level(logging.DEBUG):
        batch = load_batch(path)
        assert not path.parent.exists()  # removed before the first image is read
        results = list(batch)
    assert [one.name for one in results if isinstance(one, Upload)] == ["ward/1.png", "ward/2.dcm"]
    reasons = {one.name: one.reason for one in results if isinstance(one, RejectedFile)}
    for reason in reasons.values():
        check_sentence(reason)
    expected = {
        "../../etc/up.png": "out of",
        "/etc/root.png": "out of",
        "C:\\windows.png": "out of",
        "ward/..\\back.png": "out of",
        "link.png": "link",
        "nested.zip": "zip",
        "odd.png": "ordinary zip",
        "none.png": "empty",
        "table.csv": "text",
        "zeros.png": "bomb",
        "damaged.png": "damaged",
    }
    assert {name: word in reasons[name] for name, word in expected.items()} == dict.fromkeys(expected, True)
    assert len(reasons) == len(expected)
    assert "Mustermann" not in caplog.text
    assert "ward" not in caplog.text


def test_password_protected_entry_is_rejected(upload):
    content = bytearray(zip_files({"a.png": PNG, "b.png": PNG}))
    content[6] |= 1  # the encryption flag of the first entry, in its header and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    first, second = load_batch(upload("a.zip", bytes(content)))
    assert "password" in first.reason
    assert second.name == "b.png"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (zip_files({"a.png": PNG})[:-30], "damaged"),
        (b"PK\x03\x04" + bytes(99), "damaged"),
        (zip_files({}), "no file"),
        (zip_files({"folder/": b""}), "no file"),
        (b"", "empty"),
        (SVG, "drawing"),
    ],
)
def test_bad_batch_is_one_rejected_file(content, word, upload):
    path = upload("batch.zip", content)
    (refusal,) = load_batch(path)
    assert refusal.name == "batch.zip"
    check_sentence(refusal.reason)
    assert word in refusal.reason
    assert not path.parent.exists()


def test_single_file_is_batch_of_one(upload):
    (one,) = load_batch(upload("a.png", PNG))
    assert one == load_upload(upload("a.png", PNG))


def test_zip_limits(upload, monkeypatch):
    many = zip_files({f"{i}.png": PNG for i in range(archives.MAX_FILES + 5)})
    results = list(load_batch(upload("many.zip", many)))
    assert sum(isinstance(one, Upload) for one in results) == archives.MAX_FILES
    assert "205 files; the first 200" in results[-1].reason
    assert results[-1].name == "many.zip"

    monkeypatch.setattr(archives, "MAX_CONTENTS", 3 * len(PNG) + 9)
    *read, last = load_batch(upload("some.zip", many))
    assert len(read) == 3
    assert "Split it" in last.reason
    monkeypatch.setattr(archives, "MAX_DIRECTORY", 5_000)
    (last,) = load_batch(upload("long.zip", many))
    assert "too many files" in last.reason


BOMBS = """
import io, resource, sys, zipfile
from pathlib import Path
from hf_medtl.errors import MedtlError
from hf_medtl.space.uploads import load_batch, load_upload
from hf_medtl.data import dicom, nifti
import nibabel, pydicom.pixels
folder = Path(sys.argv[1])
load_upload(folder / "good.png", remove=False).image()
virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (virtual + 400_000_000,) * 2)
for path in sorted(folder.iterdir()):
    if path.suffix == ".zip":
        print(path.name, *(getattr(one, "reason", "picture") for one in load_batch(path)))
        continue
    try:
        load_upload(path)
        print(path.name, "picture")
    except MedtlError as error:
        print(path.name, error)
"""


@pytest.mark.slow
def test_bombs_stay_within_400_megabytes(tmp_path):
    resource = pytest.importorskip("resource", reason="memory can't be limited here")
    header = as_nifti(np.zeros((8, 8, 8)))[:352].replace(
        struct.pack("<3h", 8, 8, 8), struct.pack("<3h", 2000, 2000, 15)
    )
    vast = gzip.compress(header, 1) + gzip.compress(bytes(300_000_000), 1)
    files = {
        "a.png": png_header(20_000, 20_000),
        "b.png": png_header(65_000, 65_000),
        "c.nii.gz": vast,
        "d.zip": zip_files({f"{i}.bmp": bytes(90_000_000) for i in range(3)}),
        "good.png": PNG,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert all(len(content) < 2_000_000 for content in files.values())
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [word in line for word, line in zip(["40 million"] * 2, lines, strict=False)] == [True, True], lines
    assert lines[3].count("bomb") == 3, lines
    assert lines[4] == "good.png picture", lines
    assert "same value" in lines[2], lines  # one slice of 480 MB
    assert not tmp_path.exists()
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY  # only the child was limited


def test_header_values_are_not_logged(upload, caplog, capfd, recwarn):
    """Libraries quote values that they cannot parse."""
    content = bytearray(as_dicom(RAMP, WindowCenter=2000, WindowWidth=1000, RescaleIntercept="-1024", RescaleSlope="1"))
    at = content.index(b"-1024")
    content[at : at + 6] = b"Muster"
    described = bytearray(as_nifti(np.random.default_rng(0).normal(size=(40, 50, 6))))
    described[0:4] = struct.pack("<l", 347)
    with caplog.at_level(logging.DEBUG):
        for name, bad in (("a.dcm", content), ("a.nii", described)):
            with contextlib.suppress(MedtlError):
                load_upload(upload(name, bytes(bad))).image()
    assert not recwarn.list
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_png_text_is_neither_kept_nor_logged(upload, caplog):
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", NAME)
    with caplog.at_level(logging.DEBUG):
        image = load_upload(upload("a.png", encode_image(SMALL, pnginfo=info))).image()
    assert not image.info
    assert NAME.encode() not in encode_image(image)
    assert NAME not in caplog.text
