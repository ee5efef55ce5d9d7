"""How long it takes to read, fingerprint and group all images of a large set, the first and the second time.

    python benchmarks/fingerprints.py                   # as many and as large as covid19-radiography
    python benchmarks/fingerprints.py --number 2000

The images are chest phantoms of as many patients, shaded and noisy, so that their PNG files are as large, and as many
of them look alike, as in real sets: in 936 real ones of chest-xray-pneumonia 0.75 of 1,000 pairs had to be laid over
one another. Every 100th is a resized copy of the one before it.
"""

import argparse
import os
import platform
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

SHADE = 0.35


def draw(folder: Path, size: int, number: int) -> None:
    """One image; the same for each `number`."""
    from hf_medtl.data.phantoms import draw_chest

    copy = number % 100 == 99
    patient = number - copy
    rng = np.random.default_rng(patient)
    film = Image.fromarray(draw_chest(patient, 0, bool(patient % 2), size=64).image).resize((size, size))
    shade = Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(Image.blend(film, shade, SHADE)) + rng.normal(0, 3, (size, size))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if copy:
        image = image.resize((size * 3 // 4, size * 4 // 5))
    image.save(folder / f"{number:06d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=21165, help="images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=299, help="height and width in pixels (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["HF_MEDTL_CACHE"] = f"{place}/cache"
        from hf_medtl.data.fingerprints import compute_fingerprints, near_duplicates

        folder = Path(place) / "images"
        folder.mkdir()
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(draw, folder, options.size), range(options.number), chunksize=100))
        files = sorted(folder.iterdir())
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        times = {}
        for name in ("read, the first time", "read, the second time"):
            start = time.perf_counter()
            prints = compute_fingerprints(files, "benchmark")
            times[name] = time.perf_counter() - start
        start = time.perf_counter()
        groups = near_duplicates(prints)
        times["group near copies"] = time.perf_counter() - start
        paired = sum(groups[i] == groups[i - 1] for i in range(99, len(files), 100))
        compared = sum(len(np.load(file)) for file in Path(place).rglob("*.npy"))
        others = len(files) - len(set(groups)) - paired
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{len(files)} PNG files of {options.size} × {options.size} pixels, {megabytes:.0f} MB; "
          f"{os.cpu_count()} cores, Python {platform.python_version()}\n")  # fmt: skip
    print("| step | seconds |\n|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {seconds:.1f} |")
    share = 1000 * compared / (len(files) * (len(files) - 1) / 2)
    print(f"\n{paired} of {len(files) // 100} planted copies found, {others} other images grouped; {compared} pairs "
          f"of look-alikes compared, {share:.2f} of 1,000; peak memory {peak:.2f} GB")  # fmt: skip


if __name__ == "__main__":
    main()
