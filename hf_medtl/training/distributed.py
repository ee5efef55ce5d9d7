"""Distributed training: sharding each optimizer step's images over processes, and signal-safe workers."""

import math
import os
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.data_loader import get_sampler
from torch.utils.data import DataLoader, Dataset, Sampler

from hf_medtl.errors import MedtlError

PADDING_EXAMPLE = "stand_in"  # batch column that marks examples which must not count


def join_processes(cpu: bool, backend: str | None, timeout: float) -> None:
    """Let the processes of a job on CPUs find each other, before transformers does, which ignores --ddp_timeout there.

    Args:
        cpu: train on CPUs.
        backend: of torch.distributed; None for the usual one.
        timeout: seconds after which a process no longer waits for the others.
    """
    cpu |= os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")
    if cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        PartialState(cpu=True, backend=backend, timeout=timedelta(seconds=timeout))


def split_evenly(batch: int, accumulation: int, processes: int) -> tuple[int, int]:
    """Split the batch of an optimizer step over processes, keeping its total number of images.

    Args:
        batch: images per batch in a single process. No batch gets larger, so it still fits into memory.
        accumulation: batches per optimizer step in a single process.
        processes: number of processes that share `batch` x `accumulation` images as evenly as possible.

    Returns:
        Largest batch of a process, and its batches per optimizer step.

    Raises:
        MedtlError: more processes than images.
    """
    images = batch * accumulation
    if images < processes:
        raise MedtlError(
            f"{processes} processes cannot share the {images} image(s) of an optimizer step "
            f"(--per_device_train_batch_size {batch} x --gradient_accumulation_steps {accumulation}). Start at most "
            f"{images} processes, or set a larger batch and a learning rate for it."
        )
    batches = math.ceil(images / (processes * batch))
    return math.ceil(images / (processes * batches)), batches


def smallest_batch(number: int, batch: int, accumulation: int, drop_last: bool, processes: int) -> int:
    """Return the number of images of the smallest batch of an epoch, as `shard_batches` divides them.

    Args:
        number: training images.
        batch: images per batch in a single process.
        accumulation: batches per optimizer step in a single process.
        drop_last: drop the last incomplete batch of a single process.
        processes: number of processes.
    """
    number -= number % batch if drop_last else 0
    if processes == 1:
        return number % batch or batch
    size, _ = split_evenly(batch, accumulation, processes)
    step = batch * accumulation
    steps = [images for images in (min(step, number), number % step) if images]
    # A process without an image gets one that does not count.
    return min(max(1, images // (math.ceil(images / (processes * size)) * processes)) for images in steps)


class StepShardSampler(Sampler[list[int]]):
    """Batches of one process, such that each optimizer step has the same images as in a single process.

    Each image is in exactly one batch of one process per epoch. A step's images are split into parts that differ by at
    most one image. accelerate would fill the last batches with images from the beginning of the epoch, or let processes
    take different numbers of steps. A process without an image (fewer are left than there are processes) gets the batch
    [~i]: image i as a padding example, which must not count.

    Args:
        order: indices in the order of a single process; it may have `set_epoch`.
        number: how many of the indices are used.
        step_size: images per optimizer step.
        batch: maximum number of images per batch of a process.
        rank: index of this process.
        processes: number of processes.
        epoch: scalar tensor, read when an epoch begins.
    """

    def __init__(
        self,
        order: Sampler[int],
        number: int,
        step_size: int,
        batch: int,
        rank: int,
        processes: int,
        epoch: torch.Tensor,
    ) -> None:
        self.order, self.number, self.step_size, self.batch = order, number, step_size, batch
        self.rank, self.processes, self.epoch = rank, processes, epoch

    def _batches(self, images: int) -> int:
        return math.ceil(images / (self.processes * self.batch))

    def __len__(self) -> int:
        whole, rest = divmod(self.number, self.step_size)
        return whole * self._batches(self.step_size) + self._batches(rest)

    def __iter__(self) -> Iterator[list[int]]:
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(int(self.epoch))
        order = list(self.order)[: self.number]
        for start in range(0, self.number, self.step_size):
            step = order[start : start + self.step_size]
            parts = np.array_split(step, self._batches(len(step)) * self.processes)
            for part in parts[self.rank :: self.processes]:
                yield part.tolist() or [~step[0]]


class ShardedBatches(Dataset):
    """Dataset of dicts whose item ~i is item i marked as a padding example."""

    def __init__(self, data: Any) -> None:
        self.data = data

    @property
    def epoch(self) -> torch.Tensor:
        """Epoch of the data."""
        return self.data.epoch

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data[index] if index >= 0 else self.data[~index] | {PADDING_EXAMPLE: True}


def shard_batches(
    loader: DataLoader, batch: int, accumulation: int, drop_last: bool, rank: int, processes: int
) -> DataLoader:
    """Return a data loader of one process's batches, in the order of `loader`.

    Args:
        loader: Trainer's training loader, of a dataset with `epoch`.
        batch: images per batch in a single process.
        accumulation: batches per optimizer step in a single process.
        drop_last: drop the last incomplete batch of a single process.
        rank: index of this process.
        processes: number of processes.
    """
    order: Any = get_sampler(loader)
    data: Any = loader.dataset
    number = len(order) - (len(order) % batch if drop_last else 0)
    size, _ = split_evenly(batch, accumulation, processes)
    return DataLoader(
        ShardedBatches(data),
        batch_sampler=StepShardSampler(order, number, batch * accumulation, size, rank, processes, data.epoch),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        in_order=loader.in_order,
    )


def keep_workers(loader: DataLoader) -> DataLoader:
    """Let the loader's workers survive stop signals; return the loader.

    Ctrl-C and schedulers signal all processes of a run. The workers would end, and training would fail for lack of data
    before its checkpoint is written.
    """
    init = partial(_init_worker, os.getpid(), loader.worker_init_fn)
    loader.worker_init_fn = init
    if isinstance(base := getattr(loader, "base_dataloader", None), DataLoader):
        base.worker_init_fn = init  # accelerate's loader copies the attributes of this one, which starts the workers
    return loader


def _init_worker(parent: int, init: Any, worker: int) -> None:
    """Let only `parent` end this worker. It waits for the worker, so ignoring it would hang the run."""

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # missing on macOS, where schedulers are rare
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=wait, daemon=True).start()
    if init is not None:
        init(worker)
