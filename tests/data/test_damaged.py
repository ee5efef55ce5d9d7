"""A thousand damaged files: each gives an image or one error that names the file, in bounded time and memory.

As a program (`python tests/data/test_damaged.py FOLDER COUNT`) it damages and reads the files in a process with limited
memory: a crash or hang in a decoder written in C would end the tests.
"""

import json
import os
import random
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


def undamaged_files(real: Path | None) -> dict[str, bytes]:
    """Return name -> content of files of all formats; `real` is a folder of further DICOM files."""
    from hf_medtl.data.images import encode_image
    from tests.support.dicom_files import COLOUR, RAMP, encode_dicom, make_dicom, make_encapsulated_dicom

    small = np.sort(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8), axis=0)
    rgb, deep = Image.fromarray(small), Image.fromarray(RAMP)
    exif = Image.Exif()
    exif[274] = 6
    files = {
        "a.png": encode_image(rgb),
        "a.jpg": encode_image(rgb, "JPEG", exif=exif),
        "progressive.jpg": encode_image(rgb, "JPEG", progressive=True),
        "a.tif": encode_image(rgb, "TIFF"),
        "lzw.tif": encode_image(rgb, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encode_image(rgb, "TIFF", compression="jpeg"),
        "a.webp": encode_image(rgb, "WEBP"),
        "lossless.webp": encode_image(rgb, "WEBP", lossless=True),
        "a.bmp": encode_image(rgb, "BMP"),
        "a.gif": encode_image(rgb, "GIF"),
        "deep.png": encode_image(deep),
        "deep.tif": encode_image(deep, "TIFF", compression="tiff_adobe_deflate"),
    }

    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        JPEG2000Lossless,
        JPEGBaseline8Bit,
        RLELossless,
    )

    rle = make_dicom(RAMP)
    rle.compress(RLELossless)
    jpeg, jpeg2000 = encode_image(rgb.convert("L"), "JPEG"), encode_image(rgb, "JPEG2000", no_jp2=True)
    photometric = {"PhotometricInterpretation": "YBR_RCT"}
    for name, data in {
        "a.dcm": make_dicom(RAMP, BitsStored=12, WindowCenter=2000, WindowWidth=1000),
        "implicit.dcm": make_dicom(RAMP, syntax=ImplicitVRLittleEndian),
        "deflated.dcm": make_dicom(RAMP, syntax=DeflatedExplicitVRLittleEndian),
        "rgb.dcm": make_dicom(COLOUR),
        "frames.dcm": make_dicom(np.stack([RAMP] * 3), frames=3),
        "rle.dcm": rle,
        "jpeg.dcm": make_encapsulated_dicom(jpeg, small[..., 0], JPEGBaseline8Bit),
        "j2k.dcm": make_encapsulated_dicom(jpeg2000, small, JPEG2000Lossless, **photometric),
    }.items():
        files[name] = encode_dicom(data)
    if real:
        files |= {f"real-{path.name}": path.read_bytes() for path in sorted(real.glob("*.dcm"))}
    return files


def damage(content: bytes, rng: random.Random) -> bytes:
    """Return the content with one kind of damage, sampled from `rng`."""
    size = len(content)
    data = bytearray(content)
    kind = rng.choice(["bits", "header bits", "cut", "zeros", "noise", "header of another", "lengths", "sizes"])
    if kind == "bits":
        for _ in range(rng.choice([1, 10, 100])):
            data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == "header bits":
        for _ in range(rng.choice([1, 3, 10])):
            data[rng.randrange(min(size, 1500))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.choice([0, rng.randrange(200), rng.randrange(size)]) :]
    elif kind == "zeros":
        start = rng.randrange(size)
        end = min(size, start + rng.choice([4, 64, 4096]))
        data[start:end] = bytes(end - start)
    elif kind == "noise":
        start = rng.randrange(size)
        end = min(size, start + rng.choice([4, 64, 4096]))
        data[start:end] = rng.randbytes(end - start)
    elif kind == "header of another":
        data[:8] = rng.choice(
            [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\0\x10JF", b"II*\0\x08\0\0\0", b"GIF89a\xff\xff"]
        )
    elif kind == "lengths":
        data[(at := rng.randrange(min(size - 4, 1500))) : at + 4] = b"\xff\xff\xff\xff"
    else:  # impossible rows, columns, frames where DICOM has them, else 16 bits anywhere in the header
        offsets = [p + 8 for tag in (b"\x28\0\x10\0", b"\x28\0\x11\0", b"\x28\0\x08\0") if (p := content.find(tag)) > 0]
        at = rng.choice(offsets or [rng.randrange(min(size - 2, 200))])
        data[at : at + 2] = rng.choice([b"\xff\xff", b"\0\0", b"\0\x40", b"99"])
    return bytes(data)


def main(folder: Path, count: int, seed: int = 0) -> None:
    import warnings

    warnings.simplefilter("ignore")
    from hf_medtl import read_image
    from hf_medtl.data import dicom  # noqa: F401  # imports count for the base, not for a file
    from hf_medtl.errors import UnreadableImage

    shared = os.environ.get("HF_MEDTL_SHARED")
    files = undamaged_files(Path(shared, "data/dicom-samples") if shared else None)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        read_image(folder / name)  # readable before the damage
    if Path("/proc/self/statm").exists():  # elsewhere without the limit
        import resource

        virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + GIGABYTE, virtual + GIGABYTE))
    rng = random.Random(seed)
    names = sorted(files)
    readable, errors, slowest = 0, 0, 0.0
    for number in range(count):
        path = folder / f"{number}-{names[number % len(names)]}"
        path.write_bytes(damage(files[names[number % len(names)]], rng))
        print(path.name, file=sys.stderr, flush=True)  # the last line names the file that ended the process
        signal.alarm(SECONDS)
        begun = time.perf_counter()
        try:
            image = read_image(path)
        except UnreadableImage as error:
            errors += 1
            assert path.name in str(error), str(error)
        else:
            readable += 1
            assert image.mode == "RGB"
            assert not image.info
        slowest = max(slowest, time.perf_counter() - begun)
        signal.alarm(0)
        path.unlink()
    # Not ru_maxrss, which a new process inherits from its parent.
    peak = 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    print(json.dumps({"images": readable, "errors": errors, "slowest": slowest, "peak": peak}))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory limit needs /proc")
def test_damaged_files_neither_crash_nor_hang_nor_exhaust_memory(tmp_path):
    from tests.support.commands import run_command

    done = run_command(sys.executable, __file__, tmp_path, COUNT, OPENBLAS_NUM_THREADS="1")
    last = done.stderr[-1500:]
    assert done.returncode == 0, f"return code {done.returncode} (-11: crash, -14: more than {SECONDS} s): {last}"
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["images"] + summary["errors"] == COUNT
    assert min(summary["images"], summary["errors"]) > COUNT / 10  # some damage is harmless, some is not
    assert summary["peak"] < GIGABYTE


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
