"""How long it takes to read, fingerprint and group all pictures of a large set, the first and the second time.

    python benchmarks/fingerprints.py                   # as many and as large as covid19-radiography
    python benchmarks/fingerprints.py --number 2000

The pictures are made: one chest phantom, deformed, blended and noisy, so that their PNG files are as hard to read as
real ones; every 100th is a resized copy of the one before it.
"""

import argparse
import os
import platform
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image


@cache
def phantom(number: int) -> Image.Image:
    from hf_medtl.data.phantoms import chest

    return Image.fromarray(chest(number, 0, False, size=128).image)


def draw(folder: Path, size: int, number: int) -> None:
    """One picture; the same for each `number`."""
    copy = number % 100 == 99
    rng = np.random.default_rng(number - copy)
    base = phantom(int(rng.integers(40)))
    coarse = Image.fromarray(rng.integers(0, 256, (7, 7), dtype=np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(Image.blend(base.resize((size, size)), coarse, 0.5)) + rng.normal(0, 3, (size, size))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if copy:
        image = image.resize((size * 3 // 4, size * 4 // 5))
    image.save(folder / f"{number:06d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=21165, help="pictures (default: %(default)s)")
    parser.add_argument("--size", type=int, default=299, help="height and width in pixels (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["HF_MEDTL_CACHE"] = f"{place}/cache"
        from hf_medtl.data.fingerprints import fingerprints, near_duplicates

        folder = Path(place) / "pictures"
        folder.mkdir()
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(draw, folder, options.size), range(options.number), chunksize=100))
        files = sorted(folder.iterdir())
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        times = {}
        for name in ("read, the first time", "read, the second time"):
            start = time.perf_counter()
            prints = fingerprints(files, "benchmark")
            times[name] = time.perf_counter() - start
        start = time.perf_counter()
        groups = near_duplicates(prints)
        times["group near copies"] = time.perf_counter() - start
        paired = sum(groups[i] == groups[i - 1] for i in range(99, len(files), 100))
        others = len(files) - len(set(groups)) - paired
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{len(files)} PNG files of {options.size} × {options.size} pixels, {megabytes:.0f} MB; "
          f"{os.cpu_count()} cores, Python {platform.python_version()}\n")  # fmt: skip
    print("| step | seconds |\n|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {seconds:.1f} |")
    print(f"\n{paired} of {len(files) // 100} planted copies found, {others} other pictures grouped; "
          f"peak memory {peak:.2f} GB")  # fmt: skip


if __name__ == "__main__":
    main()
