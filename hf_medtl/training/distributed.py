"""How processes share the pictures of an optimizer step."""

import math
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import get_sampler
from torch.utils.data import DataLoader, Dataset, Sampler

from hf_medtl.errors import MedtlError

STAND_IN = "stand_in"  # column of a batch that must count nothing


def divide(batch: int, accumulation: int, processes: int) -> tuple[int, int]:
    """Largest batch of a process, and batches of an optimizer step, with the pictures a step that one process has.

    Args:
        batch, accumulation: those of one process. No batch gets larger, so that what fitted into memory still fits.
        processes: how many share `batch` x `accumulation` pictures, as evenly as they can.

    Raises:
        MedtlError: more processes than pictures.
    """
    pictures = batch * accumulation
    if pictures < processes:
        raise MedtlError(
            f"{processes} processes can't share the {pictures} picture(s) of an optimizer step "
            f"(--per_device_train_batch_size {batch} x --gradient_accumulation_steps {accumulation}). Start at most "
            f"{pictures} processes, or give a larger batch and a learning rate for it."
        )
    batches = math.ceil(pictures / (processes * batch))
    return math.ceil(pictures / (processes * batches)), batches


class Shares(Sampler[list[int]]):
    """The batches of one process. Each picture is in one batch of one process in an epoch, and in the optimizer step
    that one process alone would have it in.

    A step's pictures are cut into parts that differ by one picture at most. accelerate would fill the last batches up
    with pictures from the epoch's beginning, or let the processes do different numbers of steps. Where a process gets
    no picture (fewer are left than there are processes), its batch is [~i]: picture i, which must count nothing.

    Args:
        order: indices in the order of one process; it may have `set_epoch`.
        number: of the indices that are used.
        pictures: of an optimizer step.
        batch: pictures of a process at a time, at most.
        rank, processes: which of how many.
        epoch: scalar tensor, looked at when an epoch begins.
    """

    def __init__(
        self,
        order: Sampler[int],
        number: int,
        pictures: int,
        batch: int,
        rank: int,
        processes: int,
        epoch: torch.Tensor,
    ) -> None:
        self.order, self.number, self.pictures, self.batch = order, number, pictures, batch
        self.rank, self.processes, self.epoch = rank, processes, epoch

    def _rounds(self, pictures: int) -> int:
        return math.ceil(pictures / (self.processes * self.batch))

    def __len__(self) -> int:
        whole, rest = divmod(self.number, self.pictures)
        return whole * self._rounds(self.pictures) + self._rounds(rest)

    def __iter__(self) -> Iterator[list[int]]:
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(int(self.epoch))
        order = list(self.order)[: self.number]
        for start in range(0, self.number, self.pictures):
            step = order[start : start + self.pictures]
            parts = np.array_split(step, self._rounds(len(step)) * self.processes)
            for part in parts[self.rank :: self.processes]:
                yield part.tolist() or [~step[0]]


class Shared(Dataset):
    """A data set of dicts whose item ~i is item i marked as a stand-in."""

    def __init__(self, data: Any) -> None:
        self.data = data

    @property
    def epoch(self) -> torch.Tensor:
        """That of the data."""
        return self.data.epoch

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data[index] if index >= 0 else self.data[~index] | {STAND_IN: True}


def share_out(
    loader: DataLoader, batch: int, accumulation: int, drop_last: bool, rank: int, processes: int
) -> DataLoader:
    """A process's loader of its `Shares`, in the order of `loader`.

    Args:
        loader: Trainer's own for training, of a data set with `epoch`.
        batch, accumulation: those of one process.
        drop_last: leave out what does not fill a batch of one process.
    """
    order: Any = get_sampler(loader)
    data: Any = loader.dataset
    number = len(order) - (len(order) % batch if drop_last else 0)
    size, _ = divide(batch, accumulation, processes)
    return DataLoader(
        Shared(data),
        batch_sampler=Shares(order, number, batch * accumulation, size, rank, processes, data.epoch),
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
    """The same loader, whose workers outlive a signal to stop.

    Ctrl-C and schedulers signal all processes of a run. torch ends the loader's workers then, and training fails for
    want of data before it has written its checkpoint.
    """
    loader.worker_init_fn = partial(_obey, os.getpid(), loader.worker_init_fn)
    return loader


def _obey(master: int, then: Any, worker: int) -> None:
    """Let only `master` end this worker, which its exit waits for: a worker that ignored it would hang the run."""

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != master:
            pass
        os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where schedulers are rare
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=wait, daemon=True).start()
    if then is not None:
        then(worker)
