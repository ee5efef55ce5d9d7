"""What identifies a picture's content: its bytes, and what it looks like."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.contrib.concurrent import thread_map

from hf_medtl.data.images import read_image
from hf_medtl.errors import UnreadableImage

THUMBNAIL = 24
VERSION = 2  # of this file's computations: part of the cache's name


@dataclass(frozen=True)
class Fingerprint:
    """sha256 of the file, and, unless `error` says why there is none, perceptual hash and grey thumbnail."""

    sha256: str
    phash: int = 0
    thumbnail: bytes = b""
    error: str = ""


def cache_dir() -> Path:
    """Where hf_medtl keeps what can be computed again: $HF_MEDTL_CACHE, else `hf_medtl` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HF_MEDTL_CACHE") or Path(base) / "hf_medtl")


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
    thumbnail = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return Fingerprint(sha256, int.from_bytes(bits.tobytes(), "big"), thumbnail.tobytes())


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
        max_workers=os.cpu_count(),
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


def near_duplicates(items: list[Fingerprint], bits: int = 6, correlation: float = 0.985) -> NDArray[np.int64]:
    """Group pictures that show the same: (n,) group numbers, equal where pictures are linked, in order of appearance.

    Two pictures are linked if their 64-bit DCT hashes (Zauner 2010, `imagehash.phash`) differ in at most `bits` bits
    and their 24 × 24 grey thumbnails correlate above `correlation`; equal files always are. Links are transitive.
    """
    hashes = np.array([item.phash for item in items], dtype=np.uint64)
    thumbnails = np.array([np.frombuffer(item.thumbnail, np.uint8) for item in items], dtype=np.float32)
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True) + 1e-6
    n, rows, columns = len(items), [], []
    for start in range(0, n, 1024):  # bounded memory: 1,024 × n distances at a time
        near = np.bitwise_count(hashes[start : start + 1024, None] ^ hashes[None]) <= bits
        left, right = np.nonzero(near)
        left += start
        same = np.einsum("ij,ij->i", thumbnails[left], thumbnails[right]) > correlation
        rows.append(left[same])
        columns.append(right[same])
    shas: dict[str, int] = {}
    first = np.array([shas.setdefault(item.sha256, index) for index, item in enumerate(items)])
    left, right = np.concatenate([*rows, np.arange(n)]), np.concatenate([*columns, first])
    return connected_components(coo_array((np.ones(len(left), bool), (left, right)), shape=(n, n)), directed=False)[1]
