"""Prepared images: a training dataset of the memory-mapped images and masks in the cache."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

Augment = Callable[..., Any]  # (pixels, seed) -> pixels, or (pixels, seed, mask) -> (pixels, mask)


def as_arrays(prepared: datasets.Dataset, column: str = "pixels") -> list[NDArray[np.uint8]]:
    """Return a column as arrays without copying: lazily read views of the memory-mapped file.

    Args:
        prepared: Result of `prepare_images`.
        column: "pixels" or "mask".

    Returns:
        Arrays (k, H, W, channels) of pixels or (k, H, W) of masks, with equal k in all but the last.
    """
    arrays = []
    for chunk in prepared.data.column(column).chunks:
        shape = [len(chunk)]
        while pa.types.is_fixed_size_list(chunk.type):
            shape.append(chunk.type.list_size)
            chunk = chunk.flatten()
        arrays.append(chunk.to_numpy(zero_copy_only=True).reshape(shape))
    return arrays


class PreparedImages(Dataset):
    """Training dataset of prepared images.

    An item has `pixel_values`, uint8 (3, H, W), and `labels`: the image's label or, for images prepared with masks,
    the mask, int64 (H, W), augmented with the same geometry.

    Random augmentation depends on (seed, epoch, index) alone, so it is the same on resume, in any worker and on any
    number of processes. `epoch` is in shared memory, so that workers see it change.

    Args:
        prepared: Result of `prepare_images`.
        indices: Images to use; where these were cut into tiles, each tile is an item.
        labels: Label of each of these images.
        augment: Augmentation; None for none.
        seed: Random seed of the augmentation.

    Attributes:
        images: (m,) position in `indices` of the image of each tile; None for whole images.
    """

    def __init__(
        self,
        prepared: datasets.Dataset,
        indices: Sequence[int],
        labels: Sequence[Any],
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        self.prepared, self.indices, self.labels = prepared, list(indices), list(labels)
        self.images: NDArray[np.int64] | None = None
        if "last" in prepared.column_names:
            ends = np.flatnonzero(prepared.data.column("last").to_numpy()) + 1
            tiles = [np.arange(ends[i - 1] if i else 0, ends[i]) for i in self.indices]
            self.images = np.repeat(np.arange(len(tiles)), [len(part) for part in tiles])
            self.indices = np.concatenate([*tiles, np.arange(0)]).tolist()
            self.labels = [self.labels[i] for i in self.images]
        self.augment, self.seed = augment, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @cached_property
    def views(self) -> list[NDArray[np.uint8]]:
        """Pixels (k, H, W, channels) of each record batch."""
        return as_arrays(self.prepared)

    @cached_property
    def masks(self) -> list[NDArray[np.uint8]] | None:
        """Masks (k, H, W) of each record batch; None for images without masks."""
        return as_arrays(self.prepared, "mask") if "mask" in self.prepared.column_names else None

    @cached_property
    def grey(self) -> NDArray[np.bool_]:
        """(n,) true if the three channels of a prepared image are equal."""
        return self.prepared.data.column("grey").to_numpy()

    def __getstate__(self) -> dict[str, Any]:  # a spawned worker maps the file again
        return {name: value for name, value in vars(self).items() if name not in ("views", "masks", "grey")}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch, row = divmod(self.indices[index], len(self.views[0]))
        pixels = self.views[batch][row]
        planes = torch.empty((pixels.shape[2], *pixels.shape[:2]), dtype=torch.uint8)
        if self.grey[self.indices[index]]:  # one channel gives the same result with less than half of the work
            pixels = np.ascontiguousarray(pixels[..., :1])
        mask = None if self.masks is None else self.masks[batch][row]
        if self.augment is not None:
            draw = int(np.random.SeedSequence([self.seed, int(self.epoch), index]).generate_state(1)[0])
            if mask is None:
                pixels = self.augment(pixels, draw)
            else:
                pixels, mask = self.augment(pixels, draw, mask)
        planes.numpy()[:] = pixels.transpose(2, 0, 1)
        labels = self.labels[index] if mask is None else torch.from_numpy(mask.astype(np.int64))
        return {"pixel_values": planes, "labels": labels}
