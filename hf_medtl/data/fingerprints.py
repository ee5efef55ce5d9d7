"""What identifies a picture's content: its bytes, and what it looks like."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imagehash
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.contrib.concurrent import thread_map

from hf_medtl.common.system import cache_dir, cores
from hf_medtl.data.images import read_image
from hf_medtl.errors import UnreadableImage

THUMBNAIL, SMALL = 24, 64  # height and width of the two thumbnails
# Which pairs are laid over one another, and the correlation from which they are copies.
CROP_BITS, CROP_CORRELATION, CROP_AGREEMENT = 8, 0.8, 0.99
VERSION = 3  # of this file's computations: part of the cache's name


@dataclass(frozen=True)
class Fingerprint:
    """sha256 of the file, and, unless `error` says why there is none, perceptual hash and two grey thumbnails."""

    sha256: str
    phash: int = 0
    thumbnail: bytes = b""
    small: bytes = b""
    error: str = ""


def fingerprint(path: Path, known: dict[str, Fingerprint] | None = None) -> Fingerprint:
    """Read one file once: hash its bytes and, unless `known` has them already, decode it and hash what it shows."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return Fingerprint("", error=f"can't be read ({error.strerror})")
    sha256 = hashlib.sha256(content).hexdigest()
    if known and sha256 in known:
        return known[sha256]
    try:
        image = read_image(content)
    except UnreadableImage as error:
        reason = "empty file" if not content else str(error).removeprefix("bytes: ")
        return Fingerprint(sha256, error=reason)
    bits = np.packbits(imagehash.phash(image).hash.ravel())
    grey = image.convert("L")
    thumbnail, small = (grey.resize((side, side), Image.Resampling.BOX).tobytes() for side in (THUMBNAIL, SMALL))
    return Fingerprint(sha256, int.from_bytes(bits.tobytes(), "big"), thumbnail, small)


def fingerprints(paths: list[Path], cache_name: str) -> list[Fingerprint]:
    """Fingerprints of files, in their order. Decoding is done once per content and kept under `cache_name`."""
    cache = cache_dir() / "fingerprints" / f"{cache_name}-{VERSION}.parquet"
    known: dict[str, Fingerprint] = {}
    if cache.exists():
        rows = pd.read_parquet(cache).to_dict("records")
        known = {row["sha256"]: Fingerprint(**{str(key): value for key, value in row.items()}) for row in rows}
    found = thread_map(
        lambda path: fingerprint(path, known),
        paths,
        desc="Reading pictures",
        unit="file",
        max_workers=cores(),
        disable=None,
        leave=False,
    )
    new = {item.sha256: item for item in found if item.sha256} | known
    if len(new) > len(known):
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}")
        table = pd.DataFrame([vars(item) for item in new.values()]).astype({"phash": "uint64"})
        table.to_parquet(partial, index=False)
        partial.replace(cache)
    return found


def remembered(hashes: list[str]) -> list[Fingerprint]:
    """Fingerprints, by sha256, of pictures that are not at hand, from all caches; bare ones where none knows them."""
    known: dict[str, Fingerprint] = {}
    for cache in sorted((cache_dir() / "fingerprints").glob(f"*-{VERSION}.parquet")):
        rows = pd.read_parquet(cache, filters=[("sha256", "in", hashes)]).to_dict("records") if hashes else []
        known |= {row["sha256"]: Fingerprint(**{str(key): value for key, value in row.items()}) for row in rows}
    return [known.get(sha256, Fingerprint(sha256)) for sha256 in hashes]


def near_duplicates(
    items: list[Fingerprint], bits: int = 6, correlation: float = 0.985, crops: bool = True
) -> NDArray[np.int64]:
    """Group pictures that show the same: (n,) group numbers, equal where pictures are linked, in order of appearance.

    Two pictures are linked if their 64-bit DCT hashes (Zauner 2010, `imagehash.phash`) differ in at most `bits` bits
    and their 24 × 24 grey thumbnails correlate above `correlation`; equal files always are. With `crops`, pairs that
    are less alike are laid over one another, and linked if they then agree: see `overlaid`. Links are transitive.
    """
    hashes = np.array([item.phash for item in items], dtype=np.uint64)
    thumbnails = np.array([np.frombuffer(item.thumbnail, np.uint8) for item in items], dtype=np.float32)
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True) + 1e-6
    shas: dict[str, int] = {}
    first = np.array([shas.setdefault(item.sha256, index) for index, item in enumerate(items)])
    n = len(items)
    rows, columns, alike = [np.arange(n)], [first], [np.zeros((0, 3))]
    for start in range(0, n, 1024):  # bounded memory: 1,024 × n distances at a time
        distance = np.bitwise_count(hashes[start : start + 1024, None] ^ hashes[None])
        left, right = np.nonzero(np.triu(distance <= max(bits, CROP_BITS), k=start + 1))
        apart = distance[left, right]
        left += start
        same = np.einsum("ij,ij->i", thumbnails[left], thumbnails[right])
        copies = (apart <= bits) & (same > correlation)
        rows.append(left[copies])
        columns.append(right[copies])
        maybe = ~copies & (same > CROP_CORRELATION)
        alike.append(np.column_stack([same, left, right])[maybe])
    groups = joined(rows, columns, n)
    if crops:
        left, right = overlaid(items, groups, np.concatenate(alike))
        groups = joined([*rows, left], [*columns, right], n)
    return groups


def joined(left: list[NDArray[np.int64]], right: list[NDArray[np.int64]], n: int) -> NDArray[np.int64]:
    """(n,) number of each picture's group, from the two ends of links."""
    ends = np.concatenate(left), np.concatenate(right)
    return connected_components(coo_array((np.ones(len(ends[0]), bool), ends), shape=(n, n)), directed=False)[1]


def overlaid(
    items: list[Fingerprint], groups: NDArray[np.int64], alike: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The two ends of links between pictures of which one is a cropped, shifted or stretched copy of the other.

    `alike` (m, 3) are correlations and the two pictures' numbers. Of each two groups the most similar pair is laid over
    one another by an affine map that maximises their correlation (Evangelidis and Psarakis 2008, `findTransformECC`)
    and that leaves at least 60 % of the area; they are copies if it is then above 0.99. Measured on six sets: copies
    reach 0.997, the most similar pictures of different patients 0.983.
    """
    best: dict[tuple[int, int], tuple[int, int]] = {}
    for _, a, b in alike[np.argsort(-alike[:, 0], kind="stable")].tolist():
        key = int(groups[int(a)]), int(groups[int(b)])
        if key[0] != key[1]:
            best.setdefault((min(key), max(key)), (int(a), int(b)))
    pairs = list(best.values())
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    names = "".join(items[a].sha256 + items[b].sha256 for a, b in pairs)
    cache = cache_dir() / "fingerprints" / f"{hashlib.sha256(names.encode()).hexdigest()[:32]}-{VERSION}.npy"
    if cache.exists():
        same = np.load(cache)
    else:
        same = np.array(
            thread_map(
                lambda pair: shows_the_same(items[pair[0]], items[pair[1]]),
                pairs,
                desc="Comparing look-alikes",
                unit="pair",
                max_workers=cores(),
                disable=None,
                leave=False,
            )
        )
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, same)
        partial.replace(cache)
    linked = np.array(pairs, dtype=np.int64)[same]
    return linked[:, 0], linked[:, 1]


def shows_the_same(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two pictures agree once one is laid over the other; see `overlaid`."""
    a, b = (
        cv2.GaussianBlur(np.frombuffer(item.small, np.uint8).reshape(SMALL, SMALL).astype(np.float32), (0, 0), 0.7)
        for item in (one, other)
    )
    return max(agreement(a, b), agreement(b, a)) > CROP_AGREEMENT


def agreement(fixed: NDArray[Any], moving: NDArray[Any]) -> float:
    """Correlation of two grey float32 pictures (H, W) after the best affine map; 0 where there is none."""
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-4)
    start, everywhere = np.eye(2, 3, dtype=np.float32), np.ones(fixed.shape, np.uint8)
    try:
        found, warp = cv2.findTransformECC(fixed, moving, start, cv2.MOTION_AFFINE, criteria, everywhere, 1)
    except cv2.error:  # it did not converge: they have nothing in common
        return 0.0
    height, width = fixed.shape
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    covered = cv2.warpAffine(np.ones_like(moving), warp, (width, height), flags=flags)
    return float(found) if covered.mean() >= 0.6 else 0.0
