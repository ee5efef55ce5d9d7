"""No name that paths or headers hold is published, in whatever encoding, and other words are not taken for names."""

import base64
import io
import json
import re
import zipfile
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom import dcmread
from pydicom.data import get_testdata_file
from safetensors.torch import save_file

from hf_medtl.data.name_scan import check_names
from hf_medtl.data.person_names import IN_DICOM, IN_PATH, IN_TEXT, names_in_headers, names_in_paths
from hf_medtl.errors import MedtlError

PATHS = ["train/yes/Müllermann_Erika/slice_1.png", "no/ZoeYan-0815.dcm", "no/王小明/3.png", "no/12345678.png"]
NAMES = names_in_paths(PATHS, ["yes", "no"])


def refusal(path: Path, names: dict[str, str] = NAMES, **options) -> str:
    with pytest.raises(MedtlError) as error:
        check_names({path.name: path}, names, **options)
    assert not [name for name in names if name in str(error.value).lower()]
    return str(error.value)


def png(**texts: str) -> bytes:
    info = PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value, zip=True)
    Image.new("L", (8, 8)).save(stream := io.BytesIO(), "PNG", pnginfo=info)
    return stream.getvalue()


NAME = "Müllermann, Erika"
TEXTS = {
    "utf-8": NAME.encode(),
    "decomposed": "Mu\u0308llermann".encode(),
    "upper case": NAME.upper().encode(),
    "folder": b"see data/M\xc3\xbcllermann_Erika/x",
    "latin-1": NAME.encode("latin-1"),
    "utf-16-le": NAME.encode("utf-16-le"),
    "utf-16-be": NAME.encode("utf-16-be"),
    "utf-16 in binary": b"\x00\x01\xff\xfe" * 9 + NAME.encode("utf-16-le") + b"\x00\x01\x07" * 9,
    "binary": b"\x00\x01\xff" * 9 + NAME.encode() + b"\x00\x01\xff" * 9,
    "base64": b'{"a": "' + base64.b64encode(b"the name is " + NAME.encode() + b"!") + b'"}',
    "base64 of upper case": base64.b64encode(b"x" + NAME.upper().encode()),
    "base64 of utf-16": base64.b64encode(NAME.encode("utf-16-be")),
    "base64 after letters": b"ab" + base64.b64encode(b"the name is " + NAME.encode()),
    "base64 in lines": base64.encodebytes(b"-" * 52 + NAME.encode() + b"-" * 60),
    "url-safe base64": base64.urlsafe_b64encode(b"\xfb\xff\xfe?? " + NAME.encode()),
    "url": quote("Müllermann").encode(),
    "json": json.dumps("Müllermann").encode(),
    "html": b"M&uuml;llermann M&#252;ller",
    "id in a path": b"a ZoeYan-0815.dcm",
    "id without suffix": b"zoeyan_0815",
    "camel case": b"Zoe Yan 0815 ZoeYan",
    "ideographs": "患者王小明".replace("患者", "患者 ").encode(),
    "png": png(Comment=NAME),
    "png in base64": b"data:image/png;base64," + base64.b64encode(png(Author=NAME)),
}


@pytest.mark.parametrize("content", TEXTS.values(), ids=TEXTS.keys())
def test_name_is_found(content, tmp_path):
    path = tmp_path / "README.md"
    path.write_bytes(b"A line.\n" + content if content[:4] != b"\x89PNG" else content)
    assert IN_PATH in refusal(path)


def test_name_of_a_file_line_and_archives_are_told(tmp_path):
    path = tmp_path / "ERIKA.txt"
    path.write_text("nothing")
    assert refusal(path).startswith("The name of a file holds")
    (path := tmp_path / "a.json").write_text('{\n"a": 1,\n"b": "Erika"}')
    assert refusal(path).startswith("a.json, line 3, holds")
    with zipfile.ZipFile(path := tmp_path / "a.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 20 + b"/home/erika/data/images" + b"\0" * 20)
    assert refusal(path)
    rows = [{"image": {"bytes": png(Title="Erika"), "path": "1.png"}}]
    pq.write_table(pa.Table.from_pylist(rows), path := tmp_path / "a.parquet")
    assert refusal(path)
    save_file({"w": torch.zeros(2)}, path := tmp_path / "a.safetensors", {"from": "x/Erika"})
    assert refusal(path)


def test_other_files_pass(tmp_path):
    rng = np.random.default_rng(0)
    save_file({"w": torch.from_numpy(rng.normal(size=100_000))}, tmp_path / "model.safetensors")
    (tmp_path / "model.onnx").write_bytes(rng.bytes(3_000_000))
    (tmp_path / "splits.csv").write_text("image_id,sha256\nimage-000815,erikab\nslice_1.png,12345678\n")
    (tmp_path / "README.md").write_text("A card with a slice of yes or no, erikas and americana, and train.\n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "figure.png").write_bytes(png(Software="x"))
    check_names({path.name: path for path in tmp_path.iterdir()}, NAMES)
    (tmp_path / "README.md").write_text("Erika")
    check_names({"README.md": tmp_path / "README.md"}, NAMES, frozenset({"erika"}))
    assert names_in_paths(["train/normal/1.png", "Test/tumour_brain/2.png", "sick/3.png"], ["normal", "sick"]) == {}


def test_random_bytes_rarely_hold_short_names(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\0" + np.random.default_rng(1).bytes(2_000_000))
    letters = "abcdefghijklmnopqrstuvwxyz"
    short = {a + b + c + "a": IN_PATH for a in letters for b in letters for c in letters}
    check_names({"model.bin": tmp_path / "model.bin"}, short)


def test_headers_name_persons(tmp_path):
    header = dcmread(get_testdata_file("MR_small.dcm"))
    header.PatientName, header.PatientID = "Mustermann^Erika", "PID-4711"
    header.OtherPatientIDs, header.ReferringPhysicianName = ["1234567", "12"], "Anonymous"
    header.save_as(tmp_path / "1.dcm")
    exif = Image.Exif()
    exif[0x013B] = "Hans Meier"  # Artist
    exif[0x9C9D] = "Karl".encode("utf-16-le") + b"\0\0"  # XPAuthor
    xmp = (
        b"<x:xmpmeta><dc:creator><rdf:li>Nora</rdf:li></dc:creator><xmp:CreatorTool>Gimp</xmp:CreatorTool></x:xmpmeta>"
    )
    Image.new("L", (8, 8)).save(tmp_path / "2.jpg", exif=exif, xmp=xmp)
    (tmp_path / "3.png").write_bytes(png(Description="of Otto"))
    (tmp_path / "4.png").write_bytes(b"damaged")
    names = names_in_headers([*sorted(tmp_path.iterdir()), tmp_path / "missing.png"])
    of_dicom = {"mustermann", "erika", "mustermannerika", "erikamustermann", "pid4711", "1234567"}
    assert {name for name, kind in names.items() if kind == IN_DICOM} == of_dicom
    assert {name for name, kind in names.items() if kind == IN_TEXT} >= {"hans", "meier", "karl", "nora", "otto"}
    assert "gimp" not in names
    (tmp_path / "card.md").write_text("Seen: PID-4711.")
    assert re.search("DICOM", refusal(tmp_path / "card.md", names))
