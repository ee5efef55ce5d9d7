"""Small valid files of all types that users hand in, drawn by code: what fuzzing mutates."""

import csv
import gzip
import io
import json
import struct
import zipfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from tests.support.dicom_files import encode_dicom, make_dicom, make_encapsulated_dicom

COLOURS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
GREYS = COLOURS[..., 0]
DEEP = np.linspace(0, 65535, 24 * 32).reshape(24, 32).astype(np.uint16)


def _save(image: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def _zip(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def png_bomb(side: int) -> bytes:
    """Return a PNG of zeros, (side, side) with 8 bits: a thousandth of its pixels in bytes."""
    packer = zlib.compressobj(9)
    row, rows = bytes(side + 1), b""
    for _ in range(side):
        rows += packer.compress(row)
    header = struct.pack(">LLBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows + packer.flush()) + _chunk(b"IEND", b"")
    )


@cache
def image_files() -> dict[str, bytes]:
    """Return name -> content of ordinary images."""
    rgb, grey, deep = (Image.fromarray(pixels) for pixels in (COLOURS, GREYS, DEEP))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "Mustermann^Erika"
    animated = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    files = {
        "rgb.png": _save(rgb, "PNG"),
        "grey.png": _save(grey, "PNG"),
        "deep.png": _save(deep, "PNG"),
        "palette.png": _save(rgb.quantize(16), "PNG", transparency=3),
        "exif.png": _save(deep, "PNG", exif=exif),
        "animated.png": _save(rgb, "PNG", **animated),
        "baseline.jpg": _save(rgb, "JPEG", exif=exif),
        "progressive.jpg": _save(rgb, "JPEG", progressive=True),
        "cmyk.jpg": _save(rgb.convert("CMYK"), "JPEG"),
        "strips.tif": _save(rgb, "TIFF"),
        "deep.tif": _save(deep, "TIFF"),
        "lzw.tif": _save(rgb, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}),
        "deflate.tif": _save(deep, "TIFF", compression="tiff_adobe_deflate"),
        "float.tif": _save(Image.fromarray(DEEP.astype(np.float32)), "TIFF"),
        "tiles.tif": _save(rgb, "TIFF", compression="tiff_lzw", tiffinfo={322: 16, 323: 16}),
        "big.tif": _save(grey, "TIFF", big_tiff=True),
        "pages.tif": _save(rgb, "TIFF", save_all=True, append_images=[grey, deep]),
        "colour16.tif": tiff_colour16(),
        "bits.tif": _save(grey.convert("1"), "TIFF", compression="group4"),
        "animated.gif": _save(rgb, "GIF", **animated),
        "lossy.webp": _save(rgb, "WEBP"),
        "lossless.webp": _save(rgb, "WEBP", lossless=True, exif=exif),
        "animated.webp": _save(rgb, "WEBP", **animated),
        "rgb.bmp": _save(rgb, "BMP"),
        "palette.bmp": _save(rgb.quantize(16), "BMP"),
    }
    return files


def tiff_colour16() -> bytes:
    """Return an uncompressed TIFF of 16-bit RGB, which Pillow can't write."""
    pixels = (COLOURS.astype("<u2") * 257).tobytes()
    entries = [(256, 3, 1, 32), (257, 3, 1, 24), (258, 3, 3, 146), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 152)]
    entries += [(277, 3, 1, 3), (278, 3, 1, 24), (279, 4, 1, len(pixels)), (284, 3, 1, 1), (339, 3, 1, 1)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<L", 8) + directory + bytes(4)
    return head + struct.pack("<3H", 16, 16, 16) + bytes(152 - len(head) - 6) + pixels


@cache
def medical_files() -> dict[str, bytes]:
    """Return name -> content of DICOM and NIfTI files."""
    import nibabel
    from pydicom.data import get_testdata_file
    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        JPEG2000Lossless,
        JPEGBaseline8Bit,
        RLELossless,
    )

    windowed = {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": 1, "RescaleIntercept": -1024}
    plain = make_dicom(DEEP, BitsStored=16, **windowed)
    compressed = {}
    for name, pixels, syntax in (
        ("rle.dcm", DEEP, RLELossless),
        ("rle_colour.dcm", COLOURS, RLELossless),
        ("jpeg2000.dcm", np.tile(DEEP, (2, 2)), JPEG2000Lossless),
        ("jpeg2000_colour.dcm", np.tile(COLOURS, (2, 2, 1)), JPEG2000Lossless),
    ):
        data = make_dicom(pixels)
        data.compress(syntax, generate_instance_uid=False)
        compressed[name] = encode_dicom(data)
    for name in ("MR_small_jpeg_ls_lossless", "JPEGLSNearLossless_08", "SC_rgb_jls_lossy_sample", "GDCMJ2K_TextGBR"):
        path = get_testdata_file(f"{name}.dcm", download=False)  # in pydicom itself
        compressed[f"{name}.dcm"] = Path(str(path)).read_bytes()
    overlays = make_dicom(GREYS, PixelPaddingValue=0)
    overlays.add_new(0x60000010, "US", 24)
    overlays.add_new(0x60000011, "US", 32)
    overlays.add_new(0x60000040, "CS", "G")
    overlays.add_new(0x60000050, "SS", [1, 1])
    overlays.add_new(0x60000100, "US", 1)
    overlays.add_new(0x60000102, "US", 0)
    overlays.add_new(0x60003000, "OW", bytes(96))
    palette = make_dicom(GREYS, PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(palette, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(palette, f"{colour}PaletteColorLookupTableData", np.arange(0, 65536, 256, np.uint16).tobytes())
    code = _save(Image.fromarray(GREYS), "JPEG")
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    volume = np.arange(8 * 9 * 5, dtype=np.int16).reshape(8, 9, 5)
    nifti = nibabel.Nifti1Image(volume, affine).to_bytes()
    return {
        "plain.dcm": encode_dicom(plain),
        "implicit.dcm": encode_dicom(make_dicom(GREYS, syntax=ImplicitVRLittleEndian)),
        "colour.dcm": encode_dicom(make_dicom(COLOURS)),
        "frames.dcm": encode_dicom(make_dicom(np.stack([DEEP] * 3), frames=3)),
        "deflated.dcm": encode_dicom(make_dicom(DEEP, syntax=DeflatedExplicitVRLittleEndian)),
        "jpeg.dcm": encode_dicom(make_encapsulated_dicom(code, GREYS, JPEGBaseline8Bit)),
        "overlays.dcm": encode_dicom(overlays),
        "palette.dcm": encode_dicom(palette),
        "volume.nii": nifti,
        "series.nii": nibabel.Nifti1Image(np.stack([volume] * 2, -1).astype(np.float32), affine).to_bytes(),
        "second.nii": nibabel.Nifti2Image(volume, affine).to_bytes(),
        "volume.nii.gz": gzip.compress(nifti, mtime=0),
        **compressed,
    }


def array_archive(**arrays: np.ndarray) -> bytes:
    """Return the content of an .npz file."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def lying_array() -> bytes:
    """Return the content of an .npy file whose header declares 10 TB."""
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 100, 100)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + bytes(1000)


@cache
def array_files() -> dict[str, bytes]:
    """Return name -> content of .npz files as of MedMNIST."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, number in (("train", 8), ("val", 4), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(number) % 2)[:, None].astype(np.uint8)
    objects = np.empty((8, 1), object)
    objects[:] = "a"
    return {
        "breastmnist.npz": array_archive(**arrays),
        "objects.npz": array_archive(**arrays | {"train_labels": objects}),
        "lying.npz": zip_files(member_files(array_archive(**arrays)) | {"train_images.npy": lying_array()}),
    }


TABLE = pd.DataFrame(
    {
        "file_name": [f"{i}.png" for i in range(12)],
        "label": ["ill", "well"] * 6,
        "patient": [f"p{i // 2}" for i in range(12)],
        "split": ["train"] * 6 + ["validation"] * 2 + ["test"] * 4,
    }
)


@cache
def table_files() -> dict[str, bytes]:
    """Return name -> content of tables of the images 0.png to 11.png."""
    sheet, parquet = io.BytesIO(), io.BytesIO()
    TABLE.to_excel(sheet, index=False)
    TABLE.to_parquet(parquet)
    indicators = TABLE[["file_name"]].assign(ill=[0, 1] * 6, well=[1, 0] * 6, other=0)
    listed = TABLE.assign(label=["[ill, well]", "['well']", '["ill"]'] * 4)
    return {
        "comma.csv": TABLE.to_csv(index=False).encode(),
        "quoted.csv": TABLE.to_csv(index=False, quoting=csv.QUOTE_ALL, sep=";").encode("utf-8-sig"),
        "indicators.csv": indicators.to_csv(index=False).encode(),
        "lists.csv": listed.to_csv(index=False).encode(),
        "tabs.tsv": TABLE.to_csv(index=False, sep="\t").encode("utf-16"),
        "packed.csv.gz": gzip.compress(TABLE.to_csv(index=False).encode(), mtime=0),
        "sheet.xlsx": sheet.getvalue(),
        "lines.jsonl": TABLE.to_json(orient="records", lines=True).encode(),
        "columns.parquet": parquet.getvalue(),
    }


@cache
def option_files() -> dict[str, bytes]:
    """Return name -> content of recipes."""
    recipe = """model_name_or_path: google/vit-base-patch16-224
dataset: imagefolder
data_dir: images
num_train_epochs: 2
learning_rate: 5e-5
per_device_train_batch_size: 8
class_weights: balanced
columns: file_name=a,label=b
report_to: [tensorboard]
lr_scheduler_kwargs: {num_cycles: 1}
mixup: 0.2
seed: 1
"""
    return {"recipe.yaml": recipe.encode()}


def member_files(content: bytes) -> dict[str, bytes]:
    """Return name -> content of the members of a zip."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zip_files(members: dict[str, bytes]) -> bytes:
    """Return a zip of name -> content."""
    return _zip(members)


def request_bodies() -> dict[str, bytes]:
    """Return name -> body of a request to a model's HTTP handler."""
    import base64

    image = image_files()["rgb.png"]
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + image + b"\r\n--x--\r\n"
    encoded = base64.b64encode(image).decode()
    return {
        "form": form,
        "object.json": json.dumps({"inputs": encoded}).encode(),
        "address.json": json.dumps({"inputs": f"data:image/png;base64,{encoded}"}).encode(),
    }
