"""A thousand damaged files: each gives a picture or one error that names it, in bounded time and memory.

As a program (`python tests/test_damaged.py FOLDER COUNT`) it damages and reads the files, in a process of its own whose
memory is limited: a crash or hang in a decoder of C would take the tests with it.
"""

import io
import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COUNT = 1000
SECONDS = 10  # for one file; damaged ones take milliseconds
GIGABYTE = 1 << 30


def whole(real: Path | None) -> dict[str, bytes]:
    """Undamaged files of all kinds, by name."""
    from tests.support.dicom_files import COLOUR, RAMP, make_dicom, make_encapsulated_dicom

    rng = np.random.default_rng(0)
    small = np.sort(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), axis=0)
    files = {}

    def add(name: str, picture: Image.Image, kind: str, **options: object) -> None:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        files[name] = buffer.getvalue()

    rgb, deep = Image.fromarray(small), Image.fromarray(RAMP)
    exif = Image.Exif()
    exif[274] = 6
    for name, kind, options in [
        ("a.png", "PNG", {}),
        ("a.jpg", "JPEG", {"exif": exif}),
        ("progressive.jpg", "JPEG", {"progressive": True}),
        ("a.tif", "TIFF", {}),
        ("lzw.tif", "TIFF", {"compression": "tiff_lzw"}),
        ("jpeg.tif", "TIFF", {"compression": "jpeg"}),
        ("a.webp", "WEBP", {}),
        ("lossless.webp", "WEBP", {"lossless": True}),
        ("a.bmp", "BMP", {}),
        ("a.gif", "GIF", {}),
    ]:
        add(name, rgb, kind, **options)
    add("deep.png", deep, "PNG")
    add("deep.tif", deep, "TIFF", compression="tiff_adobe_deflate")

    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        JPEG2000Lossless,
        JPEGBaseline8Bit,
        RLELossless,
    )

    rle = make_dicom(RAMP)
    rle.compress(RLELossless)
    add("code.jpg", rgb.convert("L"), "JPEG")
    add("code.j2k", rgb, "JPEG2000", no_jp2=True)
    photometric = {"PhotometricInterpretation": "YBR_RCT"}
    for name, data in {
        "a.dcm": make_dicom(RAMP, BitsStored=12, WindowCenter=2000, WindowWidth=1000),
        "implicit.dcm": make_dicom(RAMP, syntax=ImplicitVRLittleEndian),
        "deflated.dcm": make_dicom(RAMP, syntax=DeflatedExplicitVRLittleEndian),
        "rgb.dcm": make_dicom(COLOUR),
        "frames.dcm": make_dicom(np.stack([RAMP] * 3), frames=3),
        "rle.dcm": rle,
        "jpeg.dcm": make_encapsulated_dicom(files.pop("code.jpg"), small[..., 0], JPEGBaseline8Bit),
        "j2k.dcm": make_encapsulated_dicom(files.pop("code.j2k"), small, JPEG2000Lossless, **photometric),
    }.items():
        buffer = io.BytesIO()
        data.save_as(buffer, enforce_file_format=True)
        files[name] = buffer.getvalue()
    if real:
        files |= {f"real-{path.name}": path.read_bytes() for path in sorted(real.glob("*.dcm"))}
    return files


def damage(content: bytes, chance: random.Random) -> bytes:
    """One kind of damage, drawn by chance."""
    size = len(content)
    data = bytearray(content)
    kind = chance.choice(["bits", "header bits", "cut", "zeros", "noise", "header of another", "lengths", "sizes"])
    if kind == "bits":
        for _ in range(chance.choice([1, 10, 100])):
            data[chance.randrange(size)] ^= 1 << chance.randrange(8)
    elif kind == "header bits":
        for _ in range(chance.choice([1, 3, 10])):
            data[chance.randrange(min(size, 1500))] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del data[chance.choice([0, chance.randrange(200), chance.randrange(size)]) :]
    elif kind == "zeros":
        start = chance.randrange(size)
        end = min(size, start + chance.choice([4, 64, 4096]))
        data[start:end] = bytes(end - start)
    elif kind == "noise":
        start = chance.randrange(size)
        end = min(size, start + chance.choice([4, 64, 4096]))
        data[start:end] = chance.randbytes(end - start)
    elif kind == "header of another":
        data[:8] = chance.choice(
            [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\0\x10JF", b"II*\0\x08\0\0\0", b"GIF89a\xff\xff"]
        )
    elif kind == "lengths":
        data[(at := chance.randrange(min(size - 4, 1500))) : at + 4] = b"\xff\xff\xff\xff"
    else:  # impossible rows, columns, frames where DICOM has them, else 16 bits anywhere in the header
        places = [p + 8 for tag in (b"\x28\0\x10\0", b"\x28\0\x11\0", b"\x28\0\x08\0") if (p := content.find(tag)) > 0]
        at = chance.choice(places or [chance.randrange(min(size - 2, 200))])
        data[at : at + 2] = chance.choice([b"\xff\xff", b"\0\0", b"\0\x40", b"99"])
    return bytes(data)


def main(folder: Path, count: int, seed: int = 0) -> None:
    import warnings

    warnings.simplefilter("ignore")
    from hf_medtl import read_image
    from hf_medtl.data import dicom  # noqa: F401  # imports count for the base, not for a file
    from hf_medtl.errors import UnreadableImage

    shared = os.environ.get("HF_MEDTL_SHARED")
    files = whole(Path(shared, "data/dicom-samples") if shared else None)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        read_image(folder / name)  # a picture before the damage
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + GIGABYTE, virtual + GIGABYTE))
    chance = random.Random(seed)
    names = sorted(files)
    pictures, errors, slowest = 0, 0, 0.0
    for number in range(count):
        path = folder / f"{number}-{names[number % len(names)]}"
        path.write_bytes(damage(files[names[number % len(names)]], chance))
        print(path.name, file=sys.stderr, flush=True)  # the last line tells which file ended the process
        signal.alarm(SECONDS)
        begun = time.perf_counter()
        try:
            picture = read_image(path)
        except UnreadableImage as error:
            errors += 1
            assert path.name in str(error), str(error)
        else:
            pictures += 1
            assert picture.mode == "RGB"
            assert not picture.info
        slowest = max(slowest, time.perf_counter() - begun)
        signal.alarm(0)
        path.unlink()
    # Not ru_maxrss: a new process inherits that of the one that started it.
    peak = 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    print(json.dumps({"pictures": pictures, "errors": errors, "slowest": slowest, "peak": peak}))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit of memory is set by way of /proc")
def test_damaged_files_neither_crash_nor_hang_nor_exhaust_memory(tmp_path):
    from tests.support.commands import run_command

    done = run_command(sys.executable, __file__, tmp_path, COUNT, OPENBLAS_NUM_THREADS="1")
    last = done.stderr[-1500:]
    assert done.returncode == 0, f"return code {done.returncode} (-11: crash, -14: more than {SECONDS} s): {last}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["pictures"] + found["errors"] == COUNT
    assert min(found["pictures"], found["errors"]) > COUNT / 10  # neither does all damage show, nor none
    assert found["peak"] < GIGABYTE


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
