"""The deterministic part of preprocessing, done once: uint8 pictures at the model's size, memory-mapped."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from hf_medtl.data.fingerprints import cache_dir
from hf_medtl.data.images import read_image

VERSION = 1  # of this file's computations: part of the key

Preprocess = Callable[[list[Image.Image]], NDArray[np.uint8]]
Augment = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]


def prepare(paths: Sequence[Path], sha256: Sequence[str], preprocess: Preprocess, key: str) -> datasets.Dataset:
    """Decode and preprocess files once; later calls with the same contents map the result into memory.

    Args:
        paths: (n,) files.
        sha256: (n,) of their bytes, so that a changed file is prepared again.
        preprocess: RGB pictures -> (k, height, width, 3) uint8.
        key: names the preprocessing and the versions of the libraries behind it.

    Returns:
        Arrow data set of n rows with the columns pixels (height × width × 3 bytes) and size (height, width).
    """
    fingerprint = hashlib.sha256("\n".join([str(VERSION), key, *sha256]).encode()).hexdigest()[:32]
    folder = cache_dir() / "pictures"
    folder.mkdir(parents=True, exist_ok=True)

    def read(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        pixels = preprocess([read_image(path) for path in batch["path"]])
        return {"pixels": [p.tobytes() for p in pixels], "size": [list(p.shape[:2]) for p in pixels]}

    # `map` writes to a temporary file and renames it: a killed or a second process does no harm.
    return datasets.Dataset.from_dict({"path": [str(path) for path in paths]}).map(
        read,
        batched=True,
        batch_size=32,
        remove_columns=["path"],
        features=datasets.Features(
            pixels=datasets.Value("large_binary"), size=datasets.List(datasets.Value("int32"), length=2)
        ),
        new_fingerprint=fingerprint,
        cache_file_name=str(folder / f"{fingerprint}.arrow"),
        load_from_cache_file=True,
        writer_batch_size=256,
        desc="Preparing pictures",
    )


class Pictures(Dataset):
    """Prepared pictures for training: `pixel_values` uint8 (3, height, width) and `labels`.

    Augmentation of a picture is drawn from (seed, epoch, index) alone, so it is the same on resume, in any worker and
    on any number of processes. `epoch` lies in shared memory: workers see it change.
    """

    def __init__(
        self,
        prepared: datasets.Dataset,
        indices: Sequence[int],
        labels: Sequence[int],
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        self.prepared, self.indices, self.labels = prepared, list(indices), list(labels)
        self.augment, self.seed = augment, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.prepared[self.indices[index]]
        pixels = np.frombuffer(row["pixels"], np.uint8).reshape(*row["size"], 3)
        if self.augment is not None:
            draw = np.random.SeedSequence([self.seed, int(self.epoch), index]).generate_state(1)
            pixels = self.augment(pixels, int(draw[0]))
        return {"pixel_values": torch.from_numpy(pixels.transpose(2, 0, 1).copy()), "labels": self.labels[index]}
