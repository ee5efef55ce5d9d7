"""Image fingerprints: file hashes, perceptual hashes and thumbnails, for finding exact and near duplicates."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import imagehash
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.contrib.concurrent import thread_map

from hf_medtl.common.files import replacing
from hf_medtl.common.progress import shows_bars
from hf_medtl.common.system import cache_dir, cores, writing_cache
from hf_medtl.common.text import printable
from hf_medtl.data.images import read_image
from hf_medtl.errors import MedtlError, UnreadableImage

logger = logging.getLogger(__name__)

T = TypeVar("T")
Result = TypeVar("Result")

THUMBNAIL, SMALL = 24, 64  # height and width of the two thumbnails
BITS, CORRELATION = 6, 0.985  # copies differ in at most so many bits of the hash, and correlate above that
# Which pairs are aligned, and the correlation above which they are copies.
CROP_BITS, CROP_CORRELATION, CROP_AGREEMENT = 8, 0.8, 0.99
VERSION = 4  # of the computations in this file and of `read_image`: part of the cache file's name


@dataclass(frozen=True)
class Fingerprint:
    """Hash of a file, perceptual hash and grey thumbnails of its image; these are missing if there is an `error`.

    The field names are columns of the cache files.

    Attributes:
        sha256: Of the bytes of the file.
        phash: 64-bit perceptual hash.
        thumbnail: THUMBNAIL × THUMBNAIL grey pixels.
        small: SMALL × SMALL grey pixels.
        error: Reason why the image can't be read, or "".
    """

    sha256: str
    phash: int = 0
    thumbnail: bytes = b""
    small: bytes = b""
    error: str = ""


def _compute_fingerprint(path: Path, cached: dict[str, Fingerprint]) -> Fingerprint:
    """Hash the bytes of a file and, unless `cached` (by sha256) contains it, decode and hash its image."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        return Fingerprint("", error=f"can't be read ({getattr(error, 'strerror', error)})")
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 in cached:
        return cached[sha256]
    try:
        image = read_image(content, name=(name := printable(path)))
    except UnreadableImage as error:
        reason = "empty file" if not content else str(error.args[0]).removeprefix(f"{name}: ")
        return Fingerprint(sha256, error=reason)
    bits = np.packbits(imagehash.phash(image).hash.ravel())
    grey = image.convert("L")
    thumbnail, small = (grey.resize((side, side), Image.Resampling.BOX).tobytes() for side in (THUMBNAIL, SMALL))
    return Fingerprint(sha256, int.from_bytes(bits.tobytes(), "big"), thumbnail, small)


def compute_fingerprints(paths: list[Path], cache_name: str) -> list[Fingerprint]:
    """Return the fingerprints of files, in their order, using a cache.

    Args:
        paths: (n,) files.
        cache_name: Name of the cache file; images are decoded only if their sha256 is not in it. Errors are never
            cached: a package or a newer version may cure them.
    """
    cache = cache_dir() / "fingerprints" / f"{cache_name}-{VERSION}.parquet"
    cached = _read_cache(cache)
    results = map_threads(lambda path: _compute_fingerprint(path, cached), paths, "Reading images", "file")
    merged = {item.sha256: item for item in results if not item.error} | cached
    if len(merged) > len(cached):
        table = pd.DataFrame([vars(item) for item in merged.values()]).astype({"phash": "uint64"})
        _keep(cache, lambda partial: table.to_parquet(partial, index=False))
    return results


def _keep(cache: Path, write: Callable[[Path], Any]) -> None:
    """Write a cache file; if that is impossible, log why: the results only have to be computed again."""
    try:
        with writing_cache(cache.parent), replacing(cache) as partial:
            write(partial)
    except MedtlError as error:
        logger.warning("%s Until then, images are compared again each time.", error)


def map_threads(function: Callable[[T], Result], items: Sequence[T], title: str, unit: str) -> list[Result]:
    """Return the results of a function for all items, from one thread per core, with a progress bar.

    Args:
        function: Called for each item.
        items: (n,) items.
        title: Title of the progress bar.
        unit: Name of an item in it.
    """
    if items and not shows_bars():
        logger.info("%s: %d %ss", title, len(items), unit)
    return thread_map(function, items, desc=title, unit=unit, max_workers=cores(), disable=None, leave=False)


def cached_fingerprints(hashes: list[str]) -> list[Fingerprint]:
    """Return the fingerprints with these sha256 from all cache files, without thumbnails if none has them."""
    cached: dict[str, Fingerprint] = {}
    for cache in sorted((cache_dir() / "fingerprints").glob(f"*-{VERSION}.parquet")) if hashes else []:
        cached |= _read_cache(cache, [("sha256", "in", hashes)])
    return [cached.get(sha256, Fingerprint(sha256)) for sha256 in hashes]


def _read_cache(cache: Path, filters: list[Any] | None = None) -> dict[str, Fingerprint]:
    """Return sha256 -> fingerprint; none without a cache file, and of a damaged one."""
    try:
        rows = pd.read_parquet(cache, filters=filters).to_dict("records")
        return {row["sha256"]: Fingerprint(**{str(key): value for key, value in row.items()}) for row in rows}
    except (OSError, ValueError, TypeError, KeyError):  # pyarrow's errors are ValueErrors
        return {}


def near_duplicates(items: list[Fingerprint], crops: bool = True) -> NDArray[np.int64]:
    """Group images with the same content.

    Two images are linked if their 64-bit DCT hashes (Zauner 2010, `imagehash.phash`) differ in at most BITS bits and
    their 24 × 24 grey thumbnails correlate above CORRELATION; identical files always are. Links are transitive.

    Args:
        items: (n,) fingerprints without error.
        crops: Also align less similar pairs, and link them if they then agree; see `_link_aligned`.

    Returns:
        (n,) group numbers in order of appearance.
    """
    hashes = np.array([item.phash for item in items], dtype=np.uint64)
    thumbnails = np.array([np.frombuffer(item.thumbnail, np.uint8) for item in items], dtype=np.float32)
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True) + 1e-6
    shas: dict[str, int] = {}
    first = np.array([shas.setdefault(item.sha256, index) for index, item in enumerate(items)])
    n = len(items)
    rows, columns, candidates = [np.arange(n)], [first], [np.zeros((0, 3))]
    for start in range(0, n, 1024):  # bounded memory: 1,024 × n distances at a time
        distance = np.bitwise_count(hashes[start : start + 1024, None] ^ hashes[None])
        left, right = np.nonzero(np.triu(distance <= max(BITS, CROP_BITS), k=start + 1))
        pair_distance = distance[left, right]
        left += start
        similarity = np.einsum("ij,ij->i", thumbnails[left], thumbnails[right])
        copies = (pair_distance <= BITS) & (similarity > CORRELATION)
        rows.append(left[copies])
        columns.append(right[copies])
        possible = ~copies & (similarity > CROP_CORRELATION)
        candidates.append(np.column_stack([similarity, left, right])[possible])
    groups = _connected_groups(rows, columns, n)
    if crops:
        left, right = _link_aligned(items, groups, np.concatenate(candidates))
        groups = _connected_groups([*rows, left], [*columns, right], n)
    return groups


def _connected_groups(left: list[NDArray[np.int64]], right: list[NDArray[np.int64]], n: int) -> NDArray[np.int64]:
    """Return the (n,) group number of each image, from the two ends of links."""
    ends = np.concatenate(left), np.concatenate(right)
    return connected_components(coo_array((np.ones(len(ends[0]), bool), ends), shape=(n, n)), directed=False)[1]


def _link_aligned(
    items: list[Fingerprint], groups: NDArray[np.int64], candidates: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the two ends of links between images of which one is a cropped, shifted or stretched copy of the other.

    The most similar pair of each two groups is aligned by an affine map that maximizes their correlation (Evangelidis
    and Psarakis 2008, `findTransformECC`) and retains at least 60 % of the area; the images are copies if it is then
    above 0.99. Measured on six datasets: copies reach 0.997, the most similar images of different patients 0.983.

    Args:
        items: (n,) fingerprints.
        groups: (n,) group numbers.
        candidates: (m, 3) correlation and the indices of two images.
    """
    best: dict[tuple[int, int], tuple[int, int]] = {}
    for _, a, b in candidates[np.argsort(-candidates[:, 0], kind="stable")].tolist():
        key = int(groups[int(a)]), int(groups[int(b)])
        if key[0] != key[1]:
            best.setdefault((min(key), max(key)), (int(a), int(b)))
    pairs = list(best.values())
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    names = "".join(items[a].sha256 + items[b].sha256 for a, b in pairs)
    cache = cache_dir() / "fingerprints" / f"{hashlib.sha256(names.encode()).hexdigest()[:32]}-{VERSION}.bool"
    matches = np.frombuffer(cache.read_bytes(), bool) if cache.exists() else np.zeros(0, bool)
    if len(matches) != len(pairs):
        agree = map_threads(
            lambda p: _align_and_match(items[p[0]], items[p[1]]), pairs, "Comparing similar images", "pair"
        )
        matches = np.array(agree)
        _keep(cache, lambda partial: partial.write_bytes(matches.tobytes()))
    linked = np.array(pairs, dtype=np.int64)[matches]
    return linked[:, 0], linked[:, 1]


def _align_and_match(one: Fingerprint, other: Fingerprint) -> bool:
    """True if two images agree after alignment; see `_link_aligned`."""
    a, b = (
        cv2.GaussianBlur(np.frombuffer(item.small, np.uint8).reshape(SMALL, SMALL).astype(np.float32), (0, 0), 0.7)
        for item in (one, other)
    )
    return max(_aligned_correlation(a, b), _aligned_correlation(b, a)) > CROP_AGREEMENT


def _aligned_correlation(fixed: NDArray[Any], moving: NDArray[Any]) -> float:
    """Return the correlation of two grey float32 images (H, W) after the best affine map; 0 if there is none."""
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-4)
    start, mask = np.eye(2, 3, dtype=np.float32), np.ones(fixed.shape, np.uint8)
    try:
        correlation, warp = cv2.findTransformECC(fixed, moving, start, cv2.MOTION_AFFINE, criteria, mask, 1)
    except cv2.error:  # no convergence: the images have nothing in common
        return 0.0
    height, width = fixed.shape
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    covered = cv2.warpAffine(np.ones_like(moving), warp, (width, height), flags=flags)
    return float(correlation) if covered.mean() >= 0.6 else 0.0
