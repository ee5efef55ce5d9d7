"""Weight files of a model: which they are, and checks of sizes and headers, on the Hub before they are downloaded."""

import json
import math
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_paths_info, get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from hf_medtl.errors import MedtlError

WEIGHTS = "model.safetensors"
MAX_HEADER = 16 * 2**20  # bytes, for 100,000 tensors
MAX_WEIGHTS = 128 * 2**30  # bytes of all files; the largest image encoders, of 18 billion parameters, have 72
MAX_SHARDS = 1000
ITEM_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F16": 2, "BF16": 2, "I16": 2, "F32": 4, "I32": 4, "F64": 8, "I64": 8}


def weight_files(find: Callable[[str], Path | None]) -> list[str]:
    """Return the names of the files from which `transformers` may load a model: one file, or its shards.

    Args:
        find: Returns the path of a checked JSON file of the model by its name; None if there is none.
    """
    config = find("config.json")
    settings = json.loads(config.read_text(encoding="utf-8")) if config else {}
    first = str(settings.get("transformers_weights") or WEIGHTS)
    index = find(first if first.endswith(".json") else f"{first}.index.json")
    shards = json.loads(index.read_text(encoding="utf-8")).get("weight_map") if index else None
    names = {first, *(shards.values() if isinstance(shards, dict) else ())}
    return sorted(name for name in names if not name.endswith(".json"))


def check_header(path: Path) -> None:
    """Raise MedtlError if the header of a safetensors file does not describe what follows it."""
    with path.open("rb") as stream:
        start = stream.read(8)
        _check_length(str(path), start, path.stat().st_size)
        _check_tensors(str(path), stream.read(_length(start)), path.stat().st_size)


def check_hub_weights(name: str, revision: str, files: Sequence[str]) -> None:
    """Check the sizes and headers of weight files on the Hub, reading no more of them than their headers.

    Args:
        name: Hub id.
        revision: Commit.
        files: Their paths. Those that do not exist are left out.

    Raises:
        MedtlError: They are larger than any model or than the disk has room for, or a header does not fit its file.
    """
    if len(files) > MAX_SHARDS:
        raise MedtlError(f"{name} has {len(files)} files of weights; the most are {MAX_SHARDS}. Use another model.")
    stored = {file: try_to_load_from_cache(name, file, revision=revision) for file in files}
    cached = [Path(path) for path in stored.values() if isinstance(path, str)]
    for path in cached:
        check_header(path)
    absent = [file for file, path in stored.items() if not isinstance(path, str)]
    if not absent:
        return
    try:
        entries = get_paths_info(name, absent, revision=revision)
        sizes = {entry.path: int(getattr(entry, "size", 0)) for entry in entries}
        _check_sizes(name, sizes, sum(path.stat().st_size for path in cached))
        for file, size in sizes.items():
            url = hf_hub_url(name, file, revision=revision)
            start = _read(url, 0, 100_000)
            _check_length(f"{name}/{file}", start, size)
            stop = 8 + _length(start)
            _check_tensors(f"{name}/{file}", (start if stop <= len(start) else _read(url, 0, stop))[8:stop], size)
    except (OSError, HTTPError):  # the download will say it
        return


def _read(url: str, start: int, stop: int) -> bytes:
    headers = build_hf_headers() | {"range": f"bytes={start}-{stop - 1}"}
    response = get_session().get(url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    hf_raise_for_status(response)
    return bytes(response.content)


def _check_sizes(name: str, sizes: dict[str, int], cached: int) -> None:
    """Raise MedtlError if all files together are too large."""
    size, cache = sum(sizes.values()), Path(constants.HF_HUB_CACHE)
    if size + cached > MAX_WEIGHTS:
        raise MedtlError(
            f"{name} has {(size + cached) / 2**30:,.1f} GB of weights; the most that is supported is "
            f"{MAX_WEIGHTS / 2**30:.0f} GB. Use another model."
        )
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    if size > free:
        raise MedtlError(
            f"{name} has {size / 2**30:,.1f} GB of weights to download, and {cache} has {free / 2**30:,.1f} GB left. "
            "Free space there, or set HF_HOME to a folder on another disk."
        )


def _length(start: bytes) -> int:
    return int(struct.unpack("<Q", start[:8])[0]) if len(start) >= 8 else 0


def _check_length(source: str, start: bytes, size: int) -> None:
    if not 0 < (length := _length(start)) <= min(MAX_HEADER, size - 8):
        raise MedtlError(
            f"{source} is damaged: expected a header of 1 to {MAX_HEADER} bytes, found {length} in a file of {size} "
            "bytes. Download it again, or use another model."
        )


def _check_tensors(source: str, header: bytes, size: int) -> None:
    """Raise MedtlError if a header is no JSON object, or a tensor of it has other bytes than its shape and type."""
    try:
        tensors: Any = json.loads(header)
        wrong = [key for key, tensor in tensors.items() if key != "__metadata__" and not _fits(tensor, header, size)]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise MedtlError(f"{source} is damaged: its header is none of safetensors. Use another model.") from error
    if wrong:
        raise MedtlError(
            f"{source} is damaged: its header gives {len(wrong)} tensors, such as {wrong[0][:60]!r}, another size than "
            f"their shape has, or more than the {size} bytes of the file. Download it again, or use another model."
        )


def _fits(tensor: dict[str, Any], header: bytes, size: int) -> bool:
    first, last = tensor["data_offsets"]
    shape, item = tensor["shape"], ITEM_SIZES.get(tensor["dtype"])
    if any(type(number) is not int or not 0 <= number <= size for number in (first, last)):
        return False
    if any(type(length) is not int or length < 0 for length in shape) or len(shape) > 100:
        return False
    whole = item is None or math.prod(shape) * item == last - first  # of other types the library knows the size
    return first <= last <= size - 8 - len(header) and whole
